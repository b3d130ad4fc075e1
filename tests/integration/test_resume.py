"""A run that is killed anywhere and resumed from its last checkpoint equals the uninterrupted run, bit for bit."""

import contextlib
import copy
import functools
import multiprocessing
import os
import pickle
import random
import signal

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader

from lightning_vamo import Recompute, Replay, VAMOCallback, VAMOMixin
from lightning_vamo.core.directions import GradientSubspaceDirections, OrthonormalDirections, SphereDirections
from lightning_vamo.core.schedules import LinearProbes
from lightning_vamo.errors import InvalidArgumentError
from tests.support.modules import classification_data, trainer
from tests.support.resuming import (
    BATCH,
    SAMPLES,
    WARNINGS,
    Killed,
    Module,
    Rows,
    VAMOModule,
    Watch,
    assert_continues,
    assert_ranks_continue,
    assert_survives,
    last_checkpoint,
    run,
    run_ranks,
)

pytestmark = WARNINGS


CONFIGURATIONS = {
    "plain loader": {},
    "a radius that is measured, in sequence": {"vamo": {"mu": "auto"}, "loader": {"shuffle": False}},
    "two workers, a snapshot for two epochs": {"loader": {"num_workers": 2}, "vamo": {"control": Replay(every_n_epochs=2)}},
    "a persistent worker, probes that change": {
        "loader": {"num_workers": 1, "persistent_workers": True},
        "vamo": {"probes": LinearProbes(start=0, end=3, epochs=3)},
    },
    "its own generator, a short warm-up": {
        "loader": {"generator": 3},
        "vamo": {"directions": GradientSubspaceDirections(warmup_batches=4)},
    },
    "its own generator, a worker, the paper's method": {
        "loader": {"generator": 3, "num_workers": 1},
        "vamo": {"directions": SphereDirections(), "alpha": "theory"},
    },
    "accumulation, learned directions, dense": {
        "accumulate_grad_batches": 2,
        "vamo": {"directions": GradientSubspaceDirections(rank=None, warmup_batches=0)},
    },
    "validation within the epoch, orthonormal, central": {
        "val_check_interval": 3,
        "vamo": {"directions": OrthonormalDirections("seeded"), "difference": "central"},
    },
    "checkpoints at epochs' ends, limited": {
        "limit_train_batches": 5,
        "saver": {"every_n_epochs": 1, "save_on_train_epoch_end": True},
    },
    "checkpoints after validation": {
        "val_check_interval": 3,
        "saver": {"every_n_epochs": 1, "save_on_train_epoch_end": False},
    },
    "checkpoints while gradients accumulate": {
        "val_check_interval": 3,
        "accumulate_grad_batches": 2,
        "saver": {"every_n_epochs": 1, "save_on_train_epoch_end": False},
    },
    "loaders that cycle": {"second": {"batch_size": 16, "shuffle": True}},
    "recomputed rows": {"vamo": {"control": "recompute", "alpha": "adaptive"}, "accumulate_grad_batches": 2},
    "recomputed rows, snapshots by steps": {
        "vamo": {"control": Recompute(every_n_train_steps=5)},
        "loader": {"num_workers": 1},
    },
    "recomputed rows, learned directions": {
        "vamo": {"control": Recompute(every_n_epochs=2), "directions": GradientSubspaceDirections(warmup_batches=4)},
    },
}


def kill_points():
    """Drawn with a fixed seed, in three of four phases in each configuration: in the sweep, before a step, in it, after it."""
    draw = random.Random(7)
    phases = ("sweep", "start", "step", "end")
    points = {name: [] for name in CONFIGURATIONS}
    for index in range(3 * len(CONFIGURATIONS)):
        name = list(CONFIGURATIONS)[index % len(CONFIGURATIONS)]
        phase = phases[(index % len(CONFIGURATIONS) + index // len(CONFIGURATIONS)) % len(phases)]
        batches = CONFIGURATIONS[name].get("limit_train_batches", 7)
        batch = 0 if phase == "start" and draw.random() < 0.5 else draw.randrange(batches)
        if phase == "step" and "accumulate_grad_batches" in CONFIGURATIONS[name]:
            batch |= 1  # a batch that steps
            batch = min(batch, batches - 1)
        epoch = draw.randrange(1, 3)
        if phase == "sweep" and name == "two workers, a snapshot for two epochs":
            epoch = 2
        points[name].append((epoch, batch, phase))
    return points


CONFIGURATIONS = {name: {"max_epochs": 3, **configuration} for name, configuration in CONFIGURATIONS.items()}
KILLS = kill_points()
WHOLE = {}


def whole(name, folder):
    """The uninterrupted run of a configuration, made once."""
    if name not in WHOLE:
        WHOLE[name] = run(folder / "whole", CONFIGURATIONS[name])
    return WHOLE[name]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_run_that_is_killed_again_and_again_goes_on_bit_for_bit(name, tmp_path, tmp_path_factory):
    uninterrupted = whole(name, tmp_path_factory.getbasetemp() / name.replace(" ", "-").replace("'", ""))
    assert_survives(tmp_path, CONFIGURATIONS[name], KILLS[name], uninterrupted)


@pytest.mark.parametrize(
    ("sent", "kill"),
    [
        (signal.SIGKILL, (1, 5, "sweep")),
        (signal.SIGKILL, (2, 3, "step")),
        (signal.SIGTERM, (1, 4, "end")),
        (signal.SIGTERM, (2, 0, "start")),
        (signal.SIGINT, (2, 6, "sweep")),
        (signal.SIGINT, (1, 3, "step")),
    ],
    ids=str,
)
def test_a_run_that_gets_a_signal(sent, kill, tmp_path, tmp_path_factory):
    uninterrupted = whole("plain loader", tmp_path_factory.getbasetemp() / "plain-loader")

    def victim():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
        run(tmp_path, CONFIGURATIONS["plain loader"], kill, how=lambda: os.kill(os.getpid(), sent))

    process = multiprocessing.get_context("fork").Process(target=victim)
    process.start()
    process.join(1800)
    assert (process.exitcode == -signal.SIGKILL) == (sent == signal.SIGKILL)
    checkpoint = last_checkpoint(tmp_path)
    assert checkpoint.name < "epoch=2-step=21"  # that of the end
    assert_continues(run(tmp_path, CONFIGURATIONS["plain loader"], ckpt=checkpoint, seed=99), uninterrupted, checkpoint)


def test_a_checkpoint_that_sigterm_makes_lightning_save(tmp_path):
    """Lightning lets the batch end first, so nothing of it is lost either."""
    configuration = {"saver": {"every_n_train_steps": 100, "save_on_exception": True}}
    uninterrupted = run(tmp_path / "whole", configuration)
    with pytest.raises(SIGTERMException):
        run(tmp_path / "killed", configuration, (2, 3, "step"), how=lambda: os.kill(os.getpid(), signal.SIGTERM))
    checkpoint = last_checkpoint(tmp_path / "killed")
    fit, module, watch, _, _ = run(tmp_path / "killed", configuration, ckpt=checkpoint, seed=99)
    assert fit.global_step == 28
    assert watch.batches == uninterrupted[2].batches[18:]
    state = uninterrupted[1].state_dict()
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


class SavesAt(L.Callback):
    """Saves a checkpoint in a hook of every epoch's batch, standing before or behind the VAMOCallback."""

    def __init__(self, folder, hook, batch_idx):
        self.folder = folder

        def save(fit, *arguments):
            if fit.fit_loop.batch_idx == batch_idx and not fit.sanity_checking:
                fit.save_checkpoint(folder / f"{fit.current_epoch}.ckpt")

        setattr(self, hook, save)


def run_saving(folder, ckpt=None, seed=1, hook=None, batch_idx=None, before=True, module=VAMOModule, collate=None, **options):
    folder.mkdir(exist_ok=True)
    L.seed_everything(seed, verbose=False)
    torch.manual_seed(seed)
    watch, rows = Watch(), Rows()
    vamo = VAMOCallback(probes=2, mu=1e-3, seed=4, control=Replay(every_n_epochs=2))
    callbacks = [vamo, watch, *options.pop("callbacks", ())]
    if hook:
        callbacks.insert(0 if before else len(callbacks), SavesAt(folder, hook, batch_idx))
    fit = trainer(folder, callbacks=callbacks, logger=rows, **{"max_epochs": 3, "enable_checkpointing": False, **options})
    data = L.LightningDataModule()
    data.train_dataloader = lambda: DataLoader(classification_data(SAMPLES), BATCH, shuffle=True, collate_fn=collate)
    data.val_dataloader = lambda: DataLoader(classification_data(20, seed=1), 10)
    fit.fit(net := module(), data, ckpt_path=ckpt, weights_only=True if ckpt else None)
    return fit, net, watch, rows


def assert_same_end(resumed, uninterrupted):
    fit, module, watch, rows = resumed
    whole_fit, whole_module, whole_watch, whole_rows = uninterrupted
    assert (fit.global_step, fit.current_epoch) == (whole_fit.global_step, whole_fit.current_epoch)
    state = whole_module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert watch.batches
    assert watch.batches == whole_watch.batches[-len(watch.batches) :]
    assert rows.rows == whole_rows.rows[-len(rows.rows) :]


@pytest.mark.parametrize(
    ("hook", "batch_idx", "before"),
    [
        ("on_train_batch_start", 0, True),
        ("on_train_batch_start", 0, False),  # between the sweep and the first step
        ("on_train_batch_start", 3, True),
        ("on_train_batch_end", 3, False),
        ("on_train_batch_end", 3, True),
        ("on_validation_start", 6, False),
        ("on_train_epoch_end", 6, True),
        ("on_train_epoch_end", 6, False),
    ],
)
def test_a_checkpoint_that_another_callback_saves(hook, batch_idx, before, tmp_path):
    """Wherever it stands in the list, and in whichever hook outside a step it saves."""
    uninterrupted = run_saving(tmp_path, hook=hook, batch_idx=batch_idx, before=before)
    # Of an epoch with a snapshot, and of one that goes on with that of the epoch before.
    for epoch in range(2):
        assert_same_end(run_saving(tmp_path / "resumed", tmp_path / f"{epoch}.ckpt", seed=99), uninterrupted)


@pytest.mark.parametrize("limit_val_batches", [0, 1.0])
@pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_validation_start", "on_train_batch_end"])
def test_a_checkpoint_of_an_epoch_s_end_where_max_steps_ends_the_training(hook, limit_val_batches, tmp_path):
    if hook == "on_validation_start" and not limit_val_batches:
        pytest.skip("there is no validation")
    options = {"max_epochs": -1, "max_steps": 28, "limit_val_batches": limit_val_batches, "module": NoPlateau}
    uninterrupted = run_saving(tmp_path, hook=hook, batch_idx=6, before=False, **options)
    for epoch in range(3):
        assert_same_end(run_saving(tmp_path / "resumed", tmp_path / f"{epoch}.ckpt", seed=99, **options), uninterrupted)


class NoPlateau(VAMOModule):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.02)


@pytest.mark.parametrize("again", ["the same Trainer", "another Trainer"])
def test_a_callback_whose_fit_has_failed_resumes_the_next_one(again, tmp_path):
    def fit(callbacks, ckpt=None, fits=None, seed=1):
        L.seed_everything(seed, verbose=False)
        fits = fits or trainer(tmp_path, callbacks=callbacks, max_epochs=3)
        fits.fit(module := NoPlateau(), DataLoader(classification_data(SAMPLES), BATCH, shuffle=True), ckpt_path=ckpt)
        return fits, module

    class Fails(L.Callback):
        def __init__(self):
            self.fails = True

        def on_train_batch_end(self, fit, module, outputs, batch, batch_idx):
            if self.fails and fit.global_step == 10:
                fit.save_checkpoint(tmp_path / "failed.ckpt")
                self.fails = False
                raise KeyError

    _, whole = fit([VAMOCallback(probes=2, seed=4), saver := Fails()][:1])
    callbacks = [VAMOCallback(probes=2, seed=4), saver]
    first = trainer(tmp_path, callbacks=callbacks, max_epochs=3)
    with pytest.raises(KeyError):
        fit(None, fits=first)
    same = again == "the same Trainer"
    _, resumed = fit(callbacks, tmp_path / "failed.ckpt", first if same else None, seed=99)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())


def test_an_evaluation_of_a_checkpoint_keeps_the_report(tmp_path):
    callback = VAMOCallback(probes=2, seed=4)
    fit = trainer(tmp_path, callbacks=[callback, SavesAt(tmp_path, "on_train_batch_end", 3)], max_epochs=3)
    loader = DataLoader(classification_data(SAMPLES), BATCH)
    fit.fit(module := NoPlateau(), loader)
    before = str(callback.report)
    fit.validate(module, loader, ckpt_path=tmp_path / "0.ckpt", weights_only=True, verbose=False)
    assert str(callback.report) == before


@pytest.mark.parametrize(("every", "hook"), [(1, "on_train_batch_end"), (2, "on_train_batch_end"), (2, "on_train_epoch_end")])
def test_loaders_that_are_made_anew(every, hook, tmp_path):
    options = {"reload_dataloaders_every_n_epochs": every, "max_epochs": 4}
    uninterrupted = run_saving(tmp_path, hook=hook, batch_idx=6, before=False, **options)
    for epoch in (1, 2):
        assert_same_end(run_saving(tmp_path / "resumed", tmp_path / f"{epoch}.ckpt", seed=99, **options), uninterrupted)


def nothing_of_some(items):
    inputs, labels = zip(*items, strict=True)
    return None if inputs[0][0] > 0.9 else [torch.stack(inputs), torch.stack(labels)]


class EndsEarly(Module):
    def on_train_batch_start(self, batch, batch_idx):
        return -1 if (self.current_epoch, batch_idx) == (1, 4) else None


class VAMOEndsEarly(VAMOMixin, EndsEarly):
    pass


@pytest.mark.filterwarnings("ignore:train_dataloader yielded None")
@pytest.mark.parametrize("options", [{"collate": nothing_of_some}, {"module": VAMOEndsEarly}], ids=["None", "-1"])
def test_batches_that_lightning_leaves_out(options, tmp_path):
    """A loader may give None for a batch, and `on_train_batch_start` may return -1 to end an epoch."""
    uninterrupted = run_saving(tmp_path, hook="on_train_batch_end", batch_idx=5, before=False, **options)
    checkpoint = max(tmp_path.glob("*.ckpt"))
    assert_same_end(run_saving(tmp_path / "resumed", checkpoint, seed=99, **options), uninterrupted)


class Fails(Module):
    at = None

    def on_before_batch_transfer(self, batch, dataloader_idx):
        if self.trainer.training and self.at == ("transfer", self.current_epoch, self.trainer.fit_loop.batch_idx + 1):
            raise ArithmeticError
        return batch

    def training_step(self, batch, batch_idx):
        if self.at == ("sweep" if not torch.is_grad_enabled() else "step", self.current_epoch, batch_idx):
            raise ArithmeticError
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        if self.at == ("validation", self.current_epoch, batch_idx):
            raise ArithmeticError
        return super().validation_step(batch, batch_idx)


class VAMOFails(VAMOMixin, Fails):
    pass


@pytest.fixture(scope="module")
def without_failure(tmp_path_factory):
    """The uninterrupted run for each number of accumulated batches."""
    return functools.cache(
        lambda accumulate: run_saving(tmp_path_factory.mktemp("whole"), module=VAMOFails, accumulate_grad_batches=accumulate)
    )


@pytest.mark.parametrize(
    ("at", "accumulate"),
    [
        (("sweep", 2, 3), 1),
        (("step", 1, 0), 2),  # of a batch whose gradient accumulates
        (("step", 1, 3), 1),
        (("step", 1, 3), 2),
        (("step", 2, 6), 2),  # alone in its step
        (("validation", 1, 1), 1),
        (("transfer", 1, 0), 1),
        (("transfer", 1, 0), 2),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:You have overridden `on_before_batch_transfer`")
def test_a_checkpoint_that_an_exception_makes_lightning_save(at, accumulate, without_failure, tmp_path, monkeypatch):
    options = {"module": VAMOFails, "accumulate_grad_batches": accumulate}
    uninterrupted = without_failure(accumulate)
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=100, save_on_exception=True)
    monkeypatch.setattr(Fails, "at", at)
    with pytest.raises(ArithmeticError):
        run_saving(tmp_path, callbacks=[saver], enable_checkpointing=True, **options)
    monkeypatch.setattr(Fails, "at", None)
    assert_same_end(run_saving(tmp_path, last_checkpoint(tmp_path), seed=99, **options), uninterrupted)


@pytest.mark.parametrize("arguments", [{}, {"control": Recompute(every_n_train_steps=2)}], ids=["replayed", "recomputed"])
def test_ranks_resume_where_each_of_them_was(arguments, tmp_path):
    run_ranks(tmp_path / "whole", arguments=arguments)
    expected = [torch.load(tmp_path / "whole" / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert expected[0]["batches"] != expected[1]["batches"]
    kills = [(2, 0, "start")] if arguments else [(1, 3, "step"), (2, 0, "start")]
    assert_ranks_continue(tmp_path / "killed", expected, kills, arguments)


@pytest.fixture(scope="module")
def within(tmp_path_factory):
    """A checkpoint that was saved in the middle of an epoch."""
    folder = tmp_path_factory.mktemp("within")
    run(folder, {}, (1, 4, "step"))
    return last_checkpoint(folder)


class Frozen(VAMOModule):
    def __init__(self):
        super().__init__()
        self.net[4].bias.requires_grad_(False)


class Reordered(VAMOModule):
    def configure_optimizers(self):
        return torch.optim.AdamW(list(self.parameters())[::-1], lr=0.02)


def resume(checkpoint, module=None, batch_size=BATCH, samples=SAMPLES, **arguments):
    module = module or VAMOModule()
    # Of the class that saved it, as Lightning finds a callback's state by its class.
    fit = trainer(callbacks=[VAMOCallback(**{"probes": 2, **arguments})], max_epochs=3)
    data = DataLoader(classification_data(samples), batch_size, shuffle=True)
    fit.fit(module, data, DataLoader(classification_data(20, seed=1), 10), ckpt_path=checkpoint, weights_only=True)
    return fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probes": 3}, "the number of probes was 2, and in the present run it is 3"),
        (
            {"directions": OrthonormalDirections()},
            "directions was GradientSubspaceDirections, and in .* is OrthonormalDirections",
        ),
        ({"batch_size": 10}, "the number of batches per epoch was 7, and in the present run it is 5"),
        ({"samples": 52}, "the number of samples of the training data was 50, and in the present run it is 52"),
        ({"samples": 42, "batch_size": 6}, "the number of samples of the training data was 50, and in .* is 42"),
        ({"module": Frozen}, "the number of trainable parameters was 99, and in the present run it is 96"),
        (
            {"module": Reordered},
            r"trainable parameter 0 of the optimizer was net\.0\.weight of shape \(8, 6\), and .* net\.4\.bias",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_table_that_does_not_fit_is_refused(change, message, within):
    change = dict(change)
    module = change.pop("module", VAMOModule)()
    with pytest.raises(InvalidArgumentError, match=message):
        resume(within, module, **change)
    saved = torch.load(within, weights_only=True)["state_dict"]
    assert all(torch.equal(module.state_dict()[name], value) for name, value in saved.items())
    assert module.automatic_optimization


@pytest.mark.parametrize(
    ("cls", "directions"),
    [
        (VAMOModule, OrthonormalDirections()),
        (VAMOModule, GradientSubspaceDirections(rank=None)),
        (Frozen, GradientSubspaceDirections()),
    ],
)
def test_at_an_epochs_end_the_settings_may_change(cls, directions, tmp_path):
    run(tmp_path, {"saver": {"every_n_epochs": 1, "save_on_train_epoch_end": True}}, (2, 0, "sweep"))
    fit = resume(last_checkpoint(tmp_path), cls(), batch_size=10, probes=3, directions=directions)
    assert fit.global_step == 2 * 7 + 5
    assert fit.callback_metrics["vamo/probes"] == 3


def test_another_number_of_processes_is_refused_within_an_epoch(within, tmp_path):
    checkpoint = torch.load(within, weights_only=True)
    state = checkpoint["callbacks"]["VAMOCallback"]
    checkpoint["callbacks"] = {"VAMOCallback": {**state, "ranks": state["ranks"] * 2}}
    torch.save(checkpoint, tmp_path / "two.ckpt")
    with pytest.raises(InvalidArgumentError, match="the number of processes was 2, and in the present run it is 1"):
        resume(tmp_path / "two.ckpt")


def test_a_checkpoint_from_within_an_epoch_can_be_evaluated(within):
    [metrics] = trainer(callbacks=[VAMOCallback(probes=3)]).validate(
        VAMOModule(), DataLoader(classification_data(20, seed=1), 10), ckpt_path=within, weights_only=True, verbose=False
    )
    assert metrics["val_loss"] > 0


def test_a_state_that_cannot_be_read_is_refused(within, tmp_path):
    checkpoint = torch.load(within, weights_only=True)
    for state in ({"totals": {}}, {"snapshots": 3}, {"totals": {"seed": 1}, "ranks": [{"position": 3}]}):
        checkpoint["callbacks"] = {"VAMOCallback": state}
        torch.save(checkpoint, tmp_path / "other.ckpt")
        with pytest.raises(InvalidArgumentError, match="The checkpoint's state of VAMOCallback cannot be read"):
            resume(tmp_path / "other.ckpt")


def places(value, path=()):
    """Where something stands in nested contents."""
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


def damaged(value):
    if isinstance(value, torch.Tensor) and value.numel():
        return torch.cat([value.reshape(-1), value.reshape(-1)[:1]])
    return 3 if value is None else None


def test_contents_that_are_damaged_are_refused_before_anything_changes(within, tmp_path):
    checkpoint = torch.load(within, weights_only=True)
    [state] = checkpoint["callbacks"]["VAMOCallback"]["ranks"]
    every = [path for path in places(state) if path]
    assert len(every) > 100
    for *path, last in every[:: len(every) // 12]:
        copied = copy.deepcopy(checkpoint)
        [place] = copied["callbacks"]["VAMOCallback"]["ranks"]
        for key in path:
            place = place[key]
        place[last] = damaged(place[last])
        torch.save(copied, tmp_path / "damaged.ckpt")
        with pytest.raises(InvalidArgumentError, match=r"state of VAMOCallback cannot be read.* or it is damaged"):
            resume(tmp_path / "damaged.ckpt")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_checkpoint_changes_nothing(share, within, tmp_path):
    content = within.read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(content[: int(share * len(content))])
    module = VAMOModule()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises((RuntimeError, EOFError, OSError, pickle.UnpicklingError)):
        trainer(callbacks=[VAMOCallback(probes=2)]).fit(
            module, DataLoader(classification_data(SAMPLES), BATCH), ckpt_path=tmp_path / "cut.ckpt", weights_only=True
        )
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


class Strange(torch.utils.data.Sampler):
    """Yields batches of things that no checkpoint can hold."""

    def __init__(self, data):
        self.data = data

    def __iter__(self):
        for start in range(0, len(self.data), 10):
            yield [Place(index) for index in range(start, start + 10)]

    def __len__(self):
        return len(self.data) // 10


class Place:
    def __init__(self, index):
        self.index = index


class Places(torch.utils.data.Dataset):
    def __init__(self, data):
        self.data = data

    def __getitem__(self, place):
        return self.data[place.index]


def test_batches_that_no_checkpoint_can_hold(tmp_path):
    """Training goes on; resuming within the epoch then takes a new snapshot."""
    data = classification_data(SAMPLES)
    loader = DataLoader(Places(data), batch_sampler=Strange(data))
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    fit = trainer(tmp_path, callbacks=[VAMOCallback(probes=1), saver], enable_checkpointing=True, max_epochs=1)
    val = DataLoader(classification_data(20, seed=1), 10)
    with pytest.warns(UserWarning, match="yields batches with a Place, which a checkpoint cannot hold"):
        fit.fit(VAMOModule(), loader, val)
    callback = VAMOCallback(probes=1)
    fit = trainer(callbacks=[callback], max_epochs=1)
    fit.fit(VAMOModule(), loader, val, ckpt_path=tmp_path / "step=3.ckpt", weights_only=True)
    assert fit.global_step == 5
    assert callback.report.snapshots == 2


class Parts(VAMOModule):
    """A backbone that is frozen at first, and thawed in training."""

    def __init__(self):
        super().__init__()
        self.backbone = self.net[:1]

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.05, momentum=0.9)


def thawing(folder, control, kill=None, ckpt=None):
    L.seed_everything(1, verbose=False)
    saver = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    vamo = VAMOCallback(probes=2, mu=1e-3, control=control, seed=3)
    callbacks = [BackboneFinetuning(1, verbose=False), vamo, Watch(kill), saver]
    fit = trainer(folder, callbacks=callbacks, enable_checkpointing=True, max_epochs=3)
    module = Parts()
    with contextlib.suppress(Killed):
        fit.fit(module, DataLoader(classification_data(SAMPLES), BATCH, shuffle=True), ckpt_path=ckpt, weights_only=bool(ckpt))
    return module.state_dict()


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
@pytest.mark.parametrize("control", ["replay", "recompute"])
def test_parameters_that_were_thawed_in_training_stay_so(control, tmp_path):
    """Killed before they thaw, after, and after a run that resumed with them thawed."""
    whole = thawing(tmp_path / "whole", control)
    checkpoint = None
    for kill in ((0, 4, "step"), (1, 5, "step"), (2, 3, "step")):
        thawing(tmp_path / "killed", control, kill, ckpt=checkpoint)
        checkpoint = last_checkpoint(tmp_path / "killed")
    resumed = thawing(tmp_path / "killed", control, ckpt=checkpoint)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


class DrawsAsItGoes(torch.utils.data.Sampler):
    """Draws each index when it is asked for, from the global generator that the training draws from too."""

    def __iter__(self):
        for _ in range(SAMPLES):
            yield int(torch.randint(SAMPLES, ()))

    def __len__(self):
        return SAMPLES


def once_in_a_while(folder, data, control, every, ckpt=None, kill=None):
    L.seed_everything(1, verbose=False)
    callback = VAMOCallback(probes=LinearProbes(start=0, end=2, epochs=3), mu=1e-3, control=control, seed=3)
    saver = [ModelCheckpoint(folder, filename="{step}", every_n_train_steps=every, save_top_k=-1)] if every else []
    fit = trainer(folder, callbacks=[callback, Watch(kill), *saver], enable_checkpointing=bool(every), max_epochs=3)
    module = Parts()
    with contextlib.suppress(Killed):
        fit.fit(module, data(), ckpt_path=ckpt, weights_only=bool(ckpt))
    return module.state_dict()


def cycling():
    parts = [DataLoader(classification_data(size), BATCH, shuffle=True) for size in (SAMPLES, 20)]
    return CombinedLoader(parts, "max_size_cycle")


SAMPLED = {
    "draws as it goes": lambda: DataLoader(classification_data(SAMPLES), BATCH, sampler=DrawsAsItGoes()),
    "cycles": cycling,
}


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
@pytest.mark.parametrize("control", ["replay", "recompute"])
@pytest.mark.parametrize("data", SAMPLED.values(), ids=SAMPLED)
def test_saving_a_checkpoint_changes_nothing(data, control, tmp_path):
    """Neither in an epoch with a sweep nor in one without; and a run that resumes goes on as it would have."""
    unsaved = once_in_a_while(tmp_path, data, control, None)
    saved = once_in_a_while(tmp_path / "saved", data, control, 3)
    assert all(torch.equal(saved[name], value) for name, value in unsaved.items())
    once_in_a_while(tmp_path / "killed", data, control, 3, kill=(0, 5, "step"))
    resumed = once_in_a_while(tmp_path / "killed", data, control, 3, ckpt=last_checkpoint(tmp_path / "killed"))
    assert all(torch.equal(resumed[name], value) for name, value in unsaved.items())
