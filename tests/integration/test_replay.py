"""The sweep sees the very batches of the epoch, in their order, and no batch is lost or doubled."""

import gc
import itertools
import random
import weakref

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, WeightedRandomSampler

from lightning_vamo import Replay, RunObserver, UnsupportedError, VAMOCallback
from tests.support.modules import Indexed, Recorder, VAMORecorder, trainer
from tests.support.watched import WatchedSweeps


class Halves:
    """A batch sampler that is not torch's: batches of varying size, in an order that it draws anew for each pass."""

    def __init__(self, length):
        self.length = length
        self.generator = torch.Generator().manual_seed(1)

    def __len__(self):
        return 5

    def __iter__(self):
        order = torch.randperm(self.length, generator=self.generator)
        yield from (part.tolist() for part in order.split([1, 2, 3, 4, self.length - 10]))


class Contents(RunObserver):
    """Compares each batch that a step gets with what the sweep saw at the same position of the plan."""

    def __init__(self):
        self.epochs = []
        self.checked = 0

    def on_train_epoch_start(self, fit, module):
        self.epochs.append([])

    def on_train_batch_start(self, fit, module, batch, batch_idx):
        self.epochs[-1].append(module.contents(batch).tolist())

    def on_gradient(self, fit, module, snapshot, row):
        assert module.swept[row] == self.epochs[-1][-1]
        self.checked += 1


# What the sweep of the present run evaluates. Whatever a module holds is put back, so this is a global of Python's module.
SWEPT = {}


class Watched(VAMORecorder):
    """Keeps what the sweep evaluates, out of the guards' reach."""

    def __init__(self):
        super().__init__()
        SWEPT.clear()

    @property
    def swept(self):
        return SWEPT

    def probe_loss(self, batch, batch_idx):
        SWEPT[batch_idx] = self.contents(batch).tolist()
        return super().probe_loss(batch, batch_idx)


def loader(length=23, start=0, **options):
    options = {"batch_size": 4, "shuffle": True, **options}
    return DataLoader(Indexed(length, start), **options)


WEIGHTS = torch.linspace(0.1, 1, 23)
LOADERS = {
    "shuffled": loader,
    "in order": lambda: loader(shuffle=False),
    "2 workers": lambda: loader(num_workers=2),
    "1 worker that prefetches": lambda: loader(num_workers=1, prefetch_factor=4),
    "persistent workers": lambda: loader(num_workers=2, persistent_workers=True),
    "own generator": lambda: loader(generator=torch.Generator().manual_seed(3)),
    "own generator, workers": lambda: loader(generator=torch.Generator().manual_seed(3), num_workers=2),
    "weighted": lambda: loader(shuffle=False, sampler=WeightedRandomSampler(WEIGHTS, 23)),
    "weighted, own generator": lambda: loader(
        shuffle=False, sampler=WeightedRandomSampler(WEIGHTS, 23, generator=torch.Generator().manual_seed(4))
    ),
    "batch sampler": lambda: DataLoader(Indexed(23), batch_sampler=BatchSampler(RandomSampler(range(23)), 5, drop_last=False)),
    "own batch sampler": lambda: DataLoader(Indexed(23), batch_sampler=Halves(23)),
    "own batch sampler, workers": lambda: DataLoader(Indexed(23), batch_sampler=Halves(23), num_workers=2),
    "drop last": lambda: loader(drop_last=True),
    "dict of loaders": lambda: {"a": loader(), "b": loader(start=100)},
    "list of loaders": lambda: [loader(), loader(start=100)],
    "cycling": lambda: CombinedLoader([loader(), loader(9, start=100)], "max_size_cycle"),
    "cycling, workers": lambda: CombinedLoader([loader(num_workers=1), loader(9, start=100, num_workers=2)], "max_size_cycle"),
    "shortest": lambda: CombinedLoader({"a": loader(), "b": loader(9, start=100)}, "min_size"),
    "padded": lambda: CombinedLoader({"a": loader(), "b": loader(9, start=100)}, "max_size"),
}


ONE = {"probes": 1, "mu": 1e-2, "seed": 0}


def epochs(cls, callbacks, data, **options):
    L.seed_everything(11, verbose=False)
    module = cls()
    contents = Contents() if callbacks else Plain()
    trainer(callbacks=[contents, *callbacks], **{"max_epochs": 4, **options}).fit(module, data())
    return contents


class Plain(Contents):
    def on_gradient(self, *arguments):
        pass


# Their shorter loader begins again within the epoch: the sweep draws that pass ahead of time, so it is another permutation.
CYCLING = {name: make for name, make in LOADERS.items() if name.startswith("cycling")}
FIXED = {name: make for name, make in LOADERS.items() if name not in CYCLING}


@pytest.mark.parametrize("data", FIXED.values(), ids=FIXED)
def test_rows_belong_to_steps_and_batches_are_those_of_plain_training(data):
    plain = epochs(Recorder, [], data, max_epochs=2)
    callback = VAMOCallback(**ONE)
    swept = epochs(Watched, [callback], data, max_epochs=2)
    assert swept.checked == sum(map(len, swept.epochs)) > 0
    assert swept.epochs == plain.epochs
    assert callback.report.snapshots == 2


@pytest.mark.parametrize("data", CYCLING.values(), ids=CYCLING)
def test_rows_belong_to_steps_where_a_loader_cycles(data):
    swept = epochs(Watched, [VAMOCallback(**ONE)], data, max_epochs=2)
    assert swept.checked == sum(map(len, swept.epochs)) > 0
    for contents in swept.epochs:
        indices = [*itertools.chain(*contents)]
        assert sorted(i for i in indices if i < 100) == list(map(float, range(23)))
        short = [i for i in indices if i >= 100]
        assert sorted(short[:9]) == sorted(short[9:18]) == list(map(float, range(100, 109)))
        assert len(short) == 18


class Episodes:
    """Draws each batch from Python's global generator when it is asked for, as samplers of episodes do."""

    def __len__(self):
        return 6

    def __iter__(self):
        for _ in range(6):
            yield random.sample(range(23), 4)


class Reused:
    """Yields one list again and again, with other contents."""

    def __len__(self):
        return 5

    def __iter__(self):
        indices = [0]
        for index in range(5):
            indices[0] = index
            yield indices


class Consuming(Indexed):
    """Takes the list of indices that it gets apart."""

    def __getitems__(self, indices):
        items = []
        while indices:
            items.append(self[indices.pop(0)])
        return items


class Epochs:
    """Orders its batches by an epoch that somebody sets on it."""

    def __init__(self):
        self.epoch = 0

    def __len__(self):
        return 3

    def __iter__(self):
        yield from ([self.epoch + index] for index in range(3))


UNUSUAL = {
    "reused list": lambda: DataLoader(Indexed(5), batch_sampler=Reused()),
    "consumed list": lambda: DataLoader(Consuming(23), batch_size=4, shuffle=True),
}


@pytest.mark.parametrize("data", UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_samplers_and_datasets(data):
    plain = epochs(Recorder, [], data)
    swept = epochs(Watched, [VAMOCallback(probes=2, seed=0)], data)
    assert swept.epochs == plain.epochs
    assert swept.checked > 0


def test_a_sampler_that_draws_as_it_goes_draws_anew_in_each_epoch():
    def data():
        return DataLoader(Indexed(23), batch_sampler=Episodes())

    swept = epochs(Watched, [VAMOCallback(**ONE)], data)
    assert swept.epochs == epochs(Recorder, [], data).epochs
    batches = [tuple(batch) for contents in swept.epochs for batch in contents]
    assert len(set(batches)) == len(batches) == 24


def test_attributes_set_on_the_batch_sampler_reach_it():
    class Setting(VAMORecorder):
        def on_train_epoch_start(self):
            self.trainer.train_dataloader.batch_sampler.epoch = 10 * self.trainer.current_epoch

    class SettingPlain(Recorder):
        on_train_epoch_start = Setting.on_train_epoch_start

    def data():
        return DataLoader(Indexed(40), batch_sampler=Epochs())

    def run(cls, callbacks):
        contents = Plain()
        trainer(callbacks=[contents, *callbacks], max_epochs=3).fit(cls(), data())
        return contents.epochs

    assert run(Setting, [VAMOCallback(**ONE)]) == run(SettingPlain, [])


@pytest.mark.parametrize("reload", [0, 1])
def test_persistent_workers_that_were_at_work_before(reload):
    train = loader(num_workers=1, persistent_workers=True)
    next(iter(train))
    callback = VAMOCallback(**ONE)

    class Same(L.LightningDataModule):
        def train_dataloader(self):
            return train

    contents = Contents()
    options = {"max_epochs": 3, "reload_dataloaders_every_n_epochs": reload}
    trainer(callbacks=[contents, callback], **options).fit(Watched(), datamodule=Same())
    assert contents.checked == 18
    assert callback.report.snapshots == 3


def test_reloaded_loaders_do_not_pile_up():
    alive = weakref.WeakSet()

    class Counted(Indexed):
        def __init__(self):
            super().__init__(8)
            alive.add(self)

    class Fresh(L.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(Counted(), batch_size=2)

    counts = []

    class Count(L.Callback):
        def on_train_epoch_end(self, fit, module):
            gc.collect()
            counts.append(len(alive))

    callbacks = [Count(), VAMOCallback(**ONE)]
    trainer(callbacks=callbacks, max_epochs=5, reload_dataloaders_every_n_epochs=1).fit(VAMORecorder(), datamodule=Fresh())
    assert max(counts) <= 2


def test_a_loader_that_resumes_by_itself_is_refused():
    class Stateful(DataLoader):
        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    with pytest.raises(UnsupportedError, match="resumes in mid-epoch by itself"):
        trainer(callbacks=[VAMOCallback(control="replay")]).fit(VAMORecorder(), Stateful(Indexed(4)))


OPTIONS = {
    "limit": {"limit_train_batches": 3},
    "limit share": {"limit_train_batches": 0.5},
    "accumulate": {"accumulate_grad_batches": 4},
    "reload": {"reload_dataloaders_every_n_epochs": 1},
    "reload every other": {"reload_dataloaders_every_n_epochs": 2},
}


@pytest.mark.parametrize(
    ("name", "workers"),
    [("limit", 2), ("limit share", 0), ("accumulate", 0), ("reload", 0), ("reload every other", 2)],
)
def test_options_of_the_trainer(name, workers):
    options = OPTIONS[name]

    def data():
        return loader(num_workers=workers)

    plain = epochs(Recorder, [], data, max_epochs=3, **options)
    swept = epochs(Watched, [VAMOCallback(**ONE)], data, max_epochs=3, **options)
    assert swept.checked > 0
    assert swept.epochs == plain.epochs


# Where the order is kept, drawn by torch, by a generator of its own, or by a sampler that is not torch's; with workers too.
COMPOSED = (
    *("shuffled", "in order", "1 worker that prefetches", "persistent workers", "own generator, workers", "batch sampler"),
    *("own batch sampler", "drop last", "dict of loaders", "cycling", "shortest", "padded"),
)


@pytest.mark.parametrize("name", COMPOSED)
def test_between_snapshots_the_batches_keep_their_composition(name):
    callback = VAMOCallback(**ONE, control=Replay(every_n_epochs=2))
    swept = epochs(Watched, [callback], LOADERS[name])
    first, second, third, fourth = swept.epochs
    assert callback.report.snapshots == 2
    assert sorted(first) == sorted(second) != sorted(third) == sorted(fourth) or name == "in order"
    shuffled = ("shuffled", "1 worker that prefetches", "persistent workers", "drop last")
    assert (first != second) == (name in (*shuffled, "own generator, workers", "batch sampler"))
    assert swept.checked == sum(map(len, swept.epochs))


def test_with_every_sample_in_one_batch_of_an_epoch():
    for contents in epochs(Watched, [VAMOCallback(**ONE, control=Replay(every_n_epochs=3))], loader).epochs:
        assert sorted([*itertools.chain(*contents)]) == list(map(float, range(23)))


def test_a_reloaded_loader_gets_a_snapshot_of_its_own():
    callback = VAMOCallback(**ONE, control=Replay(every_n_epochs=10))
    epochs(Watched, [callback], loader, reload_dataloaders_every_n_epochs=3)
    assert callback.report.snapshots == 2


@pytest.mark.parametrize("data", [lambda: loader(8), lambda: loader(8, num_workers=2)], ids=["0 workers", "2 workers"])
def test_the_loader_is_given_back(data):
    train = data()
    sampler = train.batch_sampler
    module = Watched()
    fit = trainer(callbacks=[VAMOCallback(**ONE)], max_epochs=1)
    fit.fit(module, train)
    assert train.batch_sampler is sampler
    fit.fit_loop.max_epochs = 2
    fit.fit(module, train)
    assert train.batch_sampler is sampler
    assert "process_dataloader" not in vars(fit.strategy)
    assert "run" not in vars(fit.fit_loop.epoch_loop.automatic_optimization)
    assert module.automatic_optimization


def test_batch_weights_are_their_sizes():
    callback = WatchedSweeps(probes=1)
    trainer(callbacks=[callback], max_epochs=1).fit(VAMORecorder(), loader(23, shuffle=False))
    assert callback.sweeps[0].weights.tolist() == [4, 4, 4, 4, 4, 3]
    # weight * (sum of the indices), two weights of one
    total = sum(2 * sum(range(start, min(start + 4, 23))) * min(4, 23 - start) for start in range(0, 23, 4))
    assert callback.sweeps[0].snapshot_loss == pytest.approx(total / 23)
