"""Rows that are recomputed: each step's own batch, at the snapshot's weights."""

import itertools
import random

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

from lightning_vamo import InvalidArgumentError, UnsupportedError, VAMOCallback
from lightning_vamo.core.directions import CoordinateDirections, GradientSubspaceDirections, OrthonormalDirections
from lightning_vamo.core.schedules import LinearProbes
from lightning_vamo.loop.sweep import Sweep
from tests.integration.test_no_trace import Meddling, VAMOMeddling, contents, everything
from tests.integration.test_svrg import Trajectory, VAMOLeastSquares, problem, train
from tests.modules import MemoryLogger, VAMOEverything, classification_data, loaders, trainer
from tests.reference import fo_svrg, least_squares_gradient, sgd

RATE = 0.05


class Watched(VAMOCallback):
    """Keeps each snapshot, each row, and the slopes of the gradient that it corrects."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.snapshots = []
        self.rows = []
        self.slopes = []

    def _take_snapshot(self, fit, module, batch_idx):
        super()._take_snapshot(fit, module, batch_idx)
        self.snapshots.append((fit.global_step, batch_idx, self._standing.taken))

    def after_backward(self, fit, module, **flags):
        taken = self._standing.taken
        if taken is not None and taken.recomputation is not None:
            self.rows.append(taken.recomputation.row)
            self.slopes.append(taken.correction.directions.project([p.grad for p in taken.correction.parameters]))
        super().after_backward(fit, module, **flags)


def every_direction(**arguments):
    family = arguments.pop("directions", None) or OrthonormalDirections()
    return Watched(probes=9, directions=family, difference="central", seed=0, **arguments)


def samples():
    a, b = problem()
    return TensorDataset(torch.tensor(a).float(), torch.tensor(b).float(), torch.arange(len(a)))


def groups(plan, count):
    """The batches of a run, as many to a group as steps to a snapshot."""
    flat = list(itertools.chain.from_iterable(plan))
    return [flat[start : start + count] for start in range(0, len(flat), count)]


# ---- the mean of a sweep: first-order SVRG


@pytest.mark.parametrize("family", [OrthonormalDirections(), OrthonormalDirections("seeded"), CoordinateDirections()])
@pytest.mark.parametrize("workers", [0, 2])
def test_all_directions_give_first_order_svrg(family, workers):
    callback = every_direction(directions=family, control="recompute")
    points, start, plan = train(callback, num_workers=workers)
    assert np.abs(points - fo_svrg(*problem(), start, plan, RATE)).max() < 1e-5
    assert np.abs(points - sgd(*problem(), start, plan, RATE)).max() > 1e-2
    assert callback.report.variance_removed > 0.2


SNAPSHOTS = {"every epoch": ({}, 7), "every 2 epochs": ({"every_n_epochs": 2}, 14), "every 5": ({"every_n_train_steps": 5}, 5)}


@pytest.mark.parametrize(("arguments", "steps"), SNAPSHOTS.values(), ids=SNAPSHOTS)
@pytest.mark.parametrize("replacement", [False, True], ids=["without", "with replacement"])
def test_snapshots_of_any_length_give_svrg(arguments, steps, replacement):
    """With replacement an epoch misses some samples; the mean is over all of them, as in the paper's Algorithm 1."""
    options = {"shuffle": False, "sampler": RandomSampler(samples(), replacement=True)} if replacement else {}
    callback = every_direction(control="recompute", **arguments)
    points, start, plan = train(callback, epochs=4, **options)
    drawn = set(itertools.chain.from_iterable(plan[0]))
    assert (len(drawn) < 41) == replacement
    assert np.abs(points - fo_svrg(*problem(), start, groups(plan, steps), RATE)).max() < 1e-5


def test_a_limit_of_the_epoch_limits_the_sweep_of_samples_that_are_drawn_with_replacement():
    callback, module = every_direction(control="recompute"), VAMOLeastSquares(9, RATE)
    data = DataLoader(samples(), 6, sampler=RandomSampler(samples(), replacement=True), drop_last=True)
    trainer(callbacks=[callback], max_epochs=2, limit_train_batches=2).fit(module, data)
    assert [len(taken.sweep.deltas) for _, _, taken in callback.snapshots] == [2, 2]
    data = DataLoader(samples(), 6, sampler=RandomSampler(samples(), replacement=True, num_samples=90), drop_last=True)
    callback, module = every_direction(control="recompute"), VAMOLeastSquares(9, RATE)
    trainer(callbacks=[callback], max_epochs=1).fit(module, data)
    assert [taken.sweep.weights.tolist() for _, _, taken in callback.snapshots] == [[6] * 6]


class Stream(IterableDataset):
    """Reads its samples in sequence, or keeps its place in them."""

    def __init__(self, data=None, cursor=False, size=1):
        self.data = samples() if data is None else data
        self.cursor = iter(self.items()) if cursor else None
        self.size = size

    def items(self):
        return (self.data[index] for index in range(len(self.data)))

    def __iter__(self):
        return self.items() if self.cursor is None else self.cursor


class Batches:
    """No DataLoader at all."""

    def __init__(self, size=6):
        self.size = size

    def __iter__(self):
        data = samples()
        for start in range(0, len(data), self.size):
            yield list(data[start : start + self.size])


def fit_stream(callback, data, **options):
    torch.manual_seed(0)
    module, trajectory = VAMOLeastSquares(9, RATE), Trajectory()
    start = torch.cat(list(module.weights)).detach().double().numpy()
    run = trainer(callbacks=[callback, trajectory], **{"max_epochs": 3, **options})
    run.fit(module, data)
    return np.stack(trajectory.points), start, module.plan, run


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_that_can_be_read_twice_gives_svrg(workers):
    """With a length, here from the Trainer's limit; its last batch is left out, so that batches weigh alike."""
    callback = every_direction()
    points, start, plan, _ = fit_stream(callback, DataLoader(Stream(), 6, num_workers=workers), limit_train_batches=6)
    a, b = problem()
    assert np.abs(points - fo_svrg(a[:36], b[:36], start, plan, RATE)).max() < 1e-5
    assert [taken.sweep is not None for _, _, taken in callback.snapshots] == [True] * 3


def test_a_limit_beyond_the_end_of_a_stream():
    callback = every_direction()
    points, start, plan, _ = fit_stream(callback, DataLoader(Stream(TensorDataset(*samples()[:36])), 6), limit_train_batches=9)
    a, b = problem()
    assert np.abs(points - fo_svrg(a[:36], b[:36], start, plan, RATE)).max() < 1e-5
    assert callback.snapshots[0][2].sweep.weights.tolist() == [1] * 6 + [0] * 3


def test_data_that_is_not_batched_is_read_a_second_time():
    sets = [[part[start : start + 6] for part in samples().tensors] for start in range(0, 36, 6)]
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(sets, batch_size=None, shuffle=True, generator=generator)
    callback = every_direction()
    points, start, plan, _ = fit_stream(callback, loader)
    a, b = problem()
    assert np.abs(points - fo_svrg(a[:36], b[:36], start, plan, RATE)).max() < 1e-5
    assert len(set(map(str, plan))) == 3
    again = DataLoader(sets, batch_size=None, shuffle=True, generator=generator.manual_seed(3))
    _, _, again, _ = fit_stream(VAMOCallback(probes=0), again)
    assert again == plan  # the second reading took nothing from the loader's generator


# ---- a running mean


def running_svrg(a, b, x, plans):
    """Each step's own gradient at the snapshot, less the mean of those since the snapshot."""
    trajectory = []
    for plan in plans:
        snapshot, seen = x, []
        for batch in plan:
            seen.append(least_squares_gradient(a[batch], b[batch], snapshot))
            x = x - RATE * (least_squares_gradient(a[batch], b[batch], x) - seen[-1] + np.mean(seen, axis=0))
            trajectory.append(x)
    return np.stack(trajectory)


ONCE = {
    "stream without a length": lambda: DataLoader(Stream(), 6),
    "stream that keeps its place": lambda: DataLoader(Stream(ConcatDataset([samples()] * 3), cursor=True), 6),
    "not a DataLoader": Batches,
}


@pytest.mark.parametrize("data", ONCE.values(), ids=ONCE)
@pytest.mark.parametrize("control", ["auto", "recompute"])
def test_data_that_cannot_be_read_twice_has_a_running_mean(data, control):
    callback = every_direction(control=control, every_n_train_steps=4)
    points, start, plan, run = fit_stream(callback, data())
    expected = running_svrg(*problem(), start, groups(plan, 4))
    assert np.abs(points - expected).max() < 1e-5
    assert all(taken.sweep is None for _, _, taken in callback.snapshots)
    assert "vamo/snapshot_loss" not in run.callback_metrics
    steps = len(points)
    assert callback.report.forward_evaluations == steps * (1 + 1 + 2 * 9)


def test_a_stream_that_keeps_its_place_loses_no_batch():
    """Although the Trainer's limit tells how much there is to read."""
    callback = every_direction()
    _, _, plan, _ = fit_stream(callback, DataLoader(Stream(cursor=True), 6), limit_train_batches=6, max_epochs=1)
    assert list(itertools.chain.from_iterable(plan[0])) == list(range(36))
    assert callback.snapshots[0][2].sweep is None


# ---- the same batch, under the same random numbers


class Augmented(Dataset):
    """Other samples for the same indices."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        a, b, place = self.data[index]
        return a + 0.5 * torch.randn(len(a)), b, place


class OnTheDevice(VAMOLeastSquares):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [batch[0] + 0.5 * torch.randn_like(batch[0]), *batch[1:]]


class InTheStep(VAMOLeastSquares):
    def training_step(self, batch, batch_idx):
        noise = 0.5 * torch.randn_like(batch[0]) + random.random() + np.random.rand()
        return super().training_step([batch[0] + noise, *batch[1:]], batch_idx)


AUGMENTATIONS = {
    "dataset": (Augmented(samples()), VAMOLeastSquares),
    "device": (samples(), OnTheDevice),
    "step": (samples(), InTheStep),
}


@pytest.mark.parametrize(("data", "cls"), AUGMENTATIONS.values(), ids=AUGMENTATIONS)
@pytest.mark.filterwarnings("ignore:A training batch differs from the one that the sweep saw")
def test_a_row_is_of_the_very_batch_and_randomness_of_its_step(data, cls):
    """Along all directions it is then the gradient of the step at the snapshot, where the weights are right after it."""
    for accumulate in (1, 3):
        callback, module = every_direction(control="recompute", every_n_train_steps=1, mu=0.1), cls(9, RATE)
        fit = trainer(callbacks=[callback], max_epochs=2, accumulate_grad_batches=accumulate)
        fit.fit(module, DataLoader(data, 6, shuffle=True, num_workers=int(accumulate > 1)))
        assert len(callback.snapshots) == fit.global_step > 0
        if accumulate == 1:
            for row, slopes in zip(callback.rows, callback.slopes, strict=True):
                assert torch.allclose(row, slopes, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:A training batch differs from the one that the sweep saw")
def test_augmentation_leaves_replay_without_rows_and_does_not_disturb_recomputing():
    def removed(control):
        callback = every_direction(control=control)
        fit = trainer(callbacks=[callback], max_epochs=2)
        fit.fit(VAMOLeastSquares(9, 0.01), DataLoader(Augmented(samples()), 6, shuffle=True))
        return callback.report.variance_removed, int(fit.callback_metrics["vamo/rows_unused"])

    assert removed("replay") == (None, 7)
    share, unused = removed("recompute")
    assert unused == 0
    assert share > 0.2


def test_augmentation_in_replay_is_answered_with_advice():
    with pytest.warns(UserWarning, match="Set control='recompute'"):
        trainer(callbacks=[VAMOCallback(probes=1)], max_epochs=1).fit(
            VAMOLeastSquares(9, RATE), DataLoader(Augmented(samples()), 6)
        )


# ---- no trace


class Compare(VAMOCallback):
    """Compares the state before and after each row."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.compared = 0

    def before_step(self, fit, module, batch):
        before, given = everything(fit, module), [part.clone() for part in batch]
        try:
            super().before_step(fit, module, batch)
        finally:
            after = everything(fit, module)
            assert [key for key in before if before[key] != after[key]] == []
            assert all(torch.equal(one, other) for one, other in zip(batch, given, strict=True))
            self.compared += 1


@pytest.mark.parametrize("arguments", [{}, {"difference": "central", "every_n_train_steps": 3}], ids=["forward", "central"])
@pytest.mark.parametrize("cls", [VAMOEverything, VAMOMeddling])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.filterwarnings("ignore:The probe differences hardly stand out")
def test_state_before_and_after_a_row(cls, arguments, precision):
    L.seed_everything(0, verbose=False)
    callback = Compare(probes=3, control="recompute", **arguments)
    fit = trainer(callbacks=[callback], logger=MemoryLogger("somewhere"), precision=precision, max_epochs=2)
    fit.fit(cls(), *loaders())
    assert callback.compared == 24
    assert callback.report.steps == 24


def test_a_meddling_module_trains_as_without_rows():
    def run(cls, callbacks):
        L.seed_everything(0, verbose=False)
        module, logger = cls(), MemoryLogger("somewhere")
        trainer(callbacks=callbacks, logger=logger).fit(module, *loaders())
        state = dict(module.state_dict()), module.history, module.average, module.moving, module.tree["visits"]
        return [contents(value) for value in state], logger.rows

    assert run(Meddling, []) == run(VAMOMeddling, [VAMOCallback(probes=2, control="recompute", alpha=0.0)])


def test_an_error_in_a_row_leaves_the_weights_that_were_trained():
    class Failing(VAMOEverything):
        def training_step(self, batch, batch_idx):
            if batch_idx == 5 and not torch.is_grad_enabled() and not self.trainer.sanity_checking and self.armed:
                raise RuntimeError("out of memory, say")
            return super().training_step(batch, batch_idx)

        def on_train_batch_start(self, batch, batch_idx):
            self.armed = batch_idx == 5
            self.before = contents(dict(self.state_dict()))

    module = Failing()
    module.armed = False
    with pytest.raises(RuntimeError, match="out of memory, say"):
        trainer(callbacks=[VAMOCallback(probes=2, control="recompute")]).fit(module, *loaders())
    assert contents(dict(module.state_dict())) == module.before
    assert module.automatic_optimization


class Student(VAMOLeastSquares):
    """Has a frozen backbone, and a teacher that the step moves, unseen by the version counters."""

    def __init__(self):
        super().__init__(9, RATE)
        self.backbone = nn.Linear(3, 3).requires_grad_(False)
        self.teacher = nn.Linear(3, 1).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        self.teacher.weight.data.mul_(0.9).add_(0.1)
        return super().training_step(batch, batch_idx)


def test_a_frozen_parameter_is_copied_once_and_one_that_moves_for_every_row():
    copies = []

    class Copies(Watched):
        def before_step(self, fit, module, batch):
            super().before_step(fit, module, batch)
            others = self._standing.taken.recomputation._others
            copies.append([others[id(p)]._copy.data_ptr() for p in (module.backbone.weight, module.teacher.weight)])
            kept.append([others[id(p)]._copy for p in (module.backbone.weight, module.teacher.weight)])

    kept = []  # so that no memory is used twice
    module = Student()
    expected = module.teacher.weight.detach().clone()
    callback = Copies(probes=2, control="recompute")
    trainer(callbacks=[callback], max_epochs=1).fit(module, DataLoader(samples(), 6))
    backbone, teacher = (len(set(pointers)) for pointers in zip(*copies, strict=True))
    assert (backbone, teacher) == (1, 7)
    for _ in range(7):
        expected.mul_(0.9).add_(0.1)
    assert torch.equal(module.teacher.weight, expected)


def test_weights_that_something_else_writes_to_between_two_steps():
    """A row is of the snapshot, wherever the weights have gone and whatever their storage is."""

    class Moves(L.Callback):
        def on_train_batch_end(self, fit, module, *arguments):
            for parameter in module.parameters():
                parameter.data = parameter.data.clone() + 1

    callback, module = every_direction(control="recompute", mu=0.1), VAMOLeastSquares(9, RATE)
    trainer(callbacks=[callback, Moves()], max_epochs=1).fit(module, DataLoader(samples(), 6))
    a, b = problem()
    start = np.concatenate([np.zeros(7), np.ones(2)])
    directions = callback.snapshots[0][2].correction.directions.dense(list(module.weights)).double().numpy()
    for row, batch in zip(callback.rows, module.plan[0], strict=True):
        expected = directions @ least_squares_gradient(a[batch], b[batch], start)
        assert row.numpy() == pytest.approx(expected, abs=1e-3)


# ---- when, and what it costs


def test_snapshots_every_few_steps():
    callback = Watched(probes=2, every_n_train_steps=4, seed=0)
    L.seed_everything(0, verbose=False)
    fit = trainer(callbacks=[callback], max_epochs=2, accumulate_grad_batches=2)
    fit.fit(VAMOEverything(), *loaders())  # 12 batches, 6 steps
    assert [(step, batch_idx) for step, batch_idx, _ in callback.snapshots] == [(0, 0), (4, 8), (8, 4)]
    assert callback.report.steps == 12
    assert callback.report.snapshots == 3


def test_figures():
    callback = VAMOCallback(probes=3, control="recompute")
    fit = trainer(callbacks=[callback], max_epochs=2)
    fit.fit(VAMOEverything(), *loaders())
    metrics = {name: value.item() for name, value in fit.callback_metrics.items()}
    sweeps, rows = 2 * (12 * (1 + 3) + 8), 2 * 12 * (1 + 3)
    assert metrics["vamo/forward_evaluations"] == sweeps + rows + 2 * 12
    assert metrics["vamo/row_seconds"] > 0
    assert metrics["vamo/sweep_seconds"] > 0
    assert metrics["vamo/rows_unused"] == 0
    report = callback.report
    assert report.row_seconds > metrics["vamo/row_seconds"]
    assert report.sweep_seconds + report.row_seconds < report.training_seconds
    assert "VAMO: 2 snapshots, 24 corrected steps." in str(report)
    assert "and the rows of the steps" in str(report)


def test_probes_that_change_and_a_schedule_that_starts_at_none():
    callback = Watched(probes=LinearProbes(start=0, end=2, epochs=3), every_n_train_steps=6)
    trainer(callbacks=[callback], max_epochs=3).fit(VAMOEverything(), *loaders())
    taken = [taken and taken.correction.directions.count for _, _, taken in callback.snapshots]
    assert taken == [None, None, 1, 1, 2, 2]


def test_auto_replays_where_it_can_and_recomputes_elsewhere():
    def recomputed(data, **options):
        callback = Watched(probes=1, **options.pop("arguments", {}))
        trainer(callbacks=[callback], max_epochs=1, **options).fit(VAMOLeastSquares(9, RATE), data)
        [(_, _, taken), *_] = callback.snapshots
        return taken.recomputation is not None, isinstance(taken.sweep, Sweep)

    class Unknown:
        def __iter__(self):
            yield from ([start, start + 1] for start in range(0, 40, 2))

    assert recomputed(DataLoader(samples(), 6)) == (False, True)
    assert recomputed(DataLoader(samples(), 6), arguments={"control": "recompute"}) == (True, True)
    assert recomputed(DataLoader(samples(), 6), arguments={"every_n_train_steps": 3}) == (True, True)
    assert recomputed(DataLoader(samples(), batch_sampler=Unknown())) == (True, False)
    assert recomputed(DataLoader(samples(), batch_sampler=Unknown()), limit_train_batches=5) == (False, True)
    assert recomputed(DataLoader(samples(), 6, num_workers=1, in_order=False)) == (True, True)
    assert recomputed(DataLoader(Stream(), 6)) == (True, False)
    assert recomputed(DataLoader(Stream(), 6), limit_train_batches=5) == (True, True)


def test_a_loader_that_is_made_anew_makes_a_snapshot_due():
    class Reloaded(L.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(Stream(), 6)

    callback = Watched(probes=1, every_n_train_steps=100)
    fit = trainer(callbacks=[callback], max_epochs=3, reload_dataloaders_every_n_epochs=2)
    fit.fit(VAMOLeastSquares(9, RATE), Reloaded())
    assert [step for step, _, _ in callback.snapshots] == [0, 14]


def test_directions_that_are_learned_on_a_stream():
    """Without a warm-up, as its batches cannot be looked at before; the first steps teach."""
    callback = Watched(probes=2, directions=GradientSubspaceDirections(), every_n_train_steps=5, alpha="adaptive")
    data = Stream(classification_data(240))
    trainer(callbacks=[callback], max_epochs=1).fit(VAMOEverything(), DataLoader(data, 8))
    assert [taken is not None for _, _, taken in callback.snapshots] == [False, True, True, True, True, True]
    assert callback.report.steps == 25


def test_a_coefficient_that_decays_over_the_steps_of_a_snapshot():
    class Factors(Watched):
        def after_backward(self, fit, module, **flags):
            super().after_backward(fit, module, **flags)
            if flags["last"]:
                factors.append(self._standing.taken.correction.mean_factor)

    factors = []
    callback = Factors(probes=2, every_n_train_steps=4, alpha="linear-decay")
    data = DataLoader(classification_data(96), 8)
    trainer(callbacks=[callback], max_epochs=1, accumulate_grad_batches=2).fit(VAMOEverything(), data)
    assert factors == [1, 0.75, 0.5, 0.25, 1, 0.75]


def test_batches_whose_losses_are_not_finite_have_no_row():
    class Bad(VAMOLeastSquares):
        def probe_loss(self, batch, batch_idx):
            loss = super().probe_loss(batch, batch_idx)
            return {3: loss * float("nan"), 4: None}.get(batch_idx, loss)

    callback = Watched(probes=2)
    fit = trainer(callbacks=[callback], max_epochs=1)
    module = Bad(9, RATE)
    fit.fit(module, DataLoader(Stream(), 6))
    assert fit.callback_metrics["vamo/rows_unused"] == 2
    assert all(bool(weight.isfinite().all()) for weight in module.weights)


def test_directions_that_the_sweep_drops_stay_dropped():
    class Steep(VAMOLeastSquares):
        def probe_loss(self, batch, batch_idx):
            loss = super().probe_loss(batch, batch_idx)
            dropped = self.weights[0][0] != self.first and self.trainer.global_step == 0 and self.armed
            return loss * float("inf") if dropped else loss

        def on_train_batch_start(self, batch, batch_idx):
            self.armed = False  # the sweep is over

    module = Steep(9, RATE)
    module.first, module.armed = module.weights[0][0].item(), True
    callback = Watched(probes=9, directions=CoordinateDirections(), control="recompute", mu=0.1)
    fit = trainer(callbacks=[callback], max_epochs=1)
    with pytest.warns(UserWarning, match="The loss is not finite at points perturbed along 1 of 9"):
        fit.fit(module, DataLoader(samples(), 6))
    used = (torch.stack(callback.rows) != 0).any(dim=0)
    assert sorted(used.tolist()) == [False] + 8 * [True]


def test_the_row_keeps_the_sweeps_own_precision():
    class Precise(VAMOEverything):
        def probe_loss(self, batch, batch_idx):
            assert not torch.is_autocast_enabled("cpu")
            return super().probe_loss(batch, batch_idx)

    callback = VAMOCallback(probes=2, control="recompute", sweep_precision="32-true")
    trainer(callbacks=[callback], max_epochs=1, precision="bf16-mixed").fit(Precise(), *loaders())
    assert callback.report.steps == 12


# ---- resuming


def run_stream(folder, data, ckpt=None, seed=1, epochs=4, **arguments):
    L.seed_everything(seed, verbose=False)
    module, saver = VAMOEverything(), ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    callback = VAMOCallback(**{"probes": 2, "seed": 4, **arguments})
    fit = trainer(folder, callbacks=[callback, saver], enable_checkpointing=True, max_epochs=epochs)
    fit.fit(module, data, ckpt_path=ckpt, weights_only=True if ckpt else None)
    return module, callback.report


@pytest.mark.parametrize("arguments", [{}, {"every_n_epochs": 2}, {"every_n_train_steps": 7}], ids=str)
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.filterwarnings("ignore:You passed in a .val_dataloader. but have no|ignore:The .val_dataloader")
def test_a_stream_goes_on_bit_for_bit_from_an_epochs_end(arguments, tmp_path):
    def data():
        return DataLoader(Stream(classification_data(50)), 8, num_workers=0)

    whole, report = run_stream(tmp_path, data(), **arguments)
    for epoch in (0, 2):
        resumed, again = run_stream(tmp_path, data(), tmp_path / f"epoch={epoch}.ckpt", seed=99, **arguments)
        assert contents(dict(resumed.state_dict())) == contents(dict(whole.state_dict()))
        assert again.forward_evaluations == report.forward_evaluations


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_checkpoint_of_another_control_is_refused_within_a_snapshot(tmp_path):
    run_stream(tmp_path, DataLoader(classification_data(50), 8), epochs=3, control="recompute", every_n_epochs=3)
    data = DataLoader(classification_data(50), 8)
    with pytest.raises(InvalidArgumentError, match="`control` was recompute, and in the present run it is replay"):
        run_stream(tmp_path, data, tmp_path / "epoch=0.ckpt", control="replay", every_n_epochs=3)


# ---- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"control": "replay", "every_n_train_steps": 5}, "`every_n_train_steps=5` needs control='recompute'"),
        ({"every_n_epochs": 2, "every_n_train_steps": 5}, "`every_n_epochs=2` both say when"),
    ],
)
def test_arguments_that_contradict_each_other(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        VAMOCallback(**arguments)


def test_a_coefficient_that_decays_over_an_unknown_number_of_steps():
    with pytest.raises(UnsupportedError, match="set every_n_train_steps, or another `alpha`"):
        trainer(callbacks=[VAMOCallback(alpha="linear-decay")]).fit(VAMOLeastSquares(9, RATE), DataLoader(Stream(), 6))
