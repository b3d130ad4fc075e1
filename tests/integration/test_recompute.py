"""Rows that are recomputed: each step's own batch, at the snapshot's weights."""

import itertools
import random
import warnings
from collections import Counter
from contextlib import nullcontext
from typing import ClassVar

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset, RandomSampler

from lightning_vamo import InvalidArgumentError, Recompute, RunObserver, VAMOCallback
from lightning_vamo.core.directions import CoordinateDirections, OrthonormalDirections, SphereDirections
from lightning_vamo.core.schedules import LinearProbes
from tests.reference import fo_svrg, least_squares_gradient, sgd
from tests.support.least_squares import RATE, VAMOLeastSquares, every_direction, groups, problem, samples, train
from tests.support.meddling import Meddling, VAMOMeddling, contents, everything
from tests.support.modules import MemoryLogger, VAMOEverything, classification_data, loaders, trainer
from tests.support.watched import Compare, Watched


@pytest.mark.parametrize(
    ("family", "workers"), [(OrthonormalDirections(), 0), (OrthonormalDirections("seeded"), 1), (CoordinateDirections(), 0)]
)
def test_all_directions_give_first_order_svrg(family, workers):
    callback = every_direction(directions=family, control="recompute")
    points, start, plan = train(callback, epochs=3, num_workers=workers)
    assert np.abs(points - fo_svrg(*problem(), start, plan, RATE)).max() < 1e-5
    assert np.abs(points - sgd(*problem(), start, plan, RATE)).max() > 1e-2
    assert callback.report.variance_removed > 0.2


SNAPSHOTS = {
    "every epoch": ("recompute", 7),
    "every 2 epochs": (Recompute(every_n_epochs=2), 14),
    "every 5": (Recompute(every_n_train_steps=5), 5),
}


@pytest.mark.parametrize(("control", "steps"), SNAPSHOTS.values(), ids=SNAPSHOTS)
@pytest.mark.parametrize("replacement", [False, True], ids=["without", "with replacement"])
def test_snapshots_of_any_length_give_svrg(control, steps, replacement):
    """With replacement an epoch misses some samples; the mean is over all of them, as in the paper's Algorithm 1."""
    options = {"shuffle": False, "sampler": RandomSampler(samples(), replacement=True)} if replacement else {}
    callback = every_direction(control=control, mu=0.1)
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
@pytest.mark.filterwarnings("ignore:A training batch differs from the batch that the sweep saw")
def test_a_row_is_of_the_very_batch_and_randomness_of_its_step(data, cls):
    """Along all directions it is then the gradient of the step at the snapshot, where the weights are right after it."""
    for accumulate in (1, 3):
        callback, module = every_direction(control=Recompute(every_n_train_steps=1), mu=0.1), cls(9, RATE)
        fit = trainer(callbacks=[callback], max_epochs=2, accumulate_grad_batches=accumulate)
        fit.fit(module, DataLoader(data, 6, shuffle=True, num_workers=int(accumulate > 1)))
        assert len(callback.snapshots) == fit.global_step > 0
        if accumulate == 1:
            for row, slopes in zip(callback.rows, callback.slopes, strict=True):
                assert torch.allclose(row, slopes, rtol=1e-3, atol=1e-3)


def fit_augmented(control):
    callback = Watched(probes=9, directions=OrthonormalDirections(), alpha=1.0, mu=1e-3, control=control, difference="central")
    fit = trainer(callbacks=[callback], max_epochs=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit.fit(VAMOLeastSquares(9, 0.01), DataLoader(Augmented(samples()), 6, shuffle=True))
    return callback, fit.callback_metrics, [str(warning.message) for warning in caught]


def test_augmentation_leaves_replay_without_rows_and_it_stops_sweeping():
    callback, metrics, told = fit_augmented("replay")
    assert callback.report.variance_removed is None
    assert callback.report.snapshots == 1
    assert callback.report.rows_unused == 7
    assert metrics["vamo/probes"] == 0
    assert sum("Most rows of the sweep could not be used" in message and "No more sweeps" in message for message in told) == 1
    assert "7 batches differed from what the sweep had seen" in str(callback.report)


def test_augmentation_does_not_disturb_recomputing():
    callback, metrics, told = fit_augmented("recompute")
    assert metrics["vamo/rows_unused"] == 0
    assert callback.report.variance_removed > 0.2
    assert not any("could not be used" in message for message in told)


def test_augmentation_makes_auto_recompute_after_its_first_sweep():
    callback, metrics, told = fit_augmented("auto")
    assert [taken.kind for _, _, taken in callback.snapshots] == ["replay", "recompute", "recompute"]
    assert metrics["vamo/variance_removed"] > 0.2
    assert callback.report.steps == 2 * 7
    assert sum("`control='auto'` recomputes rows from now on" in message for message in told) == 1


@pytest.mark.filterwarnings("ignore:Most rows of the sweep could not be used")
def test_augmentation_in_replay_is_answered_with_advice():
    with pytest.warns(UserWarning, match="set control='recompute'"):
        trainer(callbacks=[Watched(probes=1)], max_epochs=1).fit(VAMOLeastSquares(9, RATE), DataLoader(Augmented(samples()), 6))


class CompareBatches(Compare):
    """Compares the batch that is trained on next too."""

    def __init__(self):
        super().__init__(lambda fit, module: {**everything(fit, module), "batch": contents(self.batch)}, "row")

    def on_train_batch_start(self, fit, module, batch, batch_idx):
        self.batch = batch


FORWARD, CENTRAL = {"mu": 1e-3}, {"mu": 1e-3, "difference": "central", "control": Recompute(every_n_train_steps=3)}


@pytest.mark.parametrize(
    ("arguments", "cls", "precision"),  # each pair of them
    [
        (FORWARD, VAMOEverything, "bf16-mixed"),
        (FORWARD, VAMOMeddling, "32-true"),
        (CENTRAL, VAMOEverything, "32-true"),
        (CENTRAL, VAMOMeddling, "bf16-mixed"),
    ],
)
@pytest.mark.filterwarnings("ignore:The probe differences hardly stand out")
def test_state_before_and_after_a_row(arguments, cls, precision):
    L.seed_everything(0, verbose=False)
    callback, compare = VAMOCallback(**{"probes": 2, "control": "recompute", **arguments}), CompareBatches()
    fit = trainer(callbacks=[compare, callback], logger=MemoryLogger("somewhere"), precision=precision, limit_train_batches=7)
    fit.fit(cls(), *loaders())
    assert compare.compared == 14
    assert callback.report.steps == 14


def test_a_meddling_module_trains_as_without_rows():
    def run(cls, callbacks):
        L.seed_everything(0, verbose=False)
        module, logger = cls(), MemoryLogger("somewhere")
        trainer(callbacks=callbacks, logger=logger).fit(module, *loaders())
        state = dict(module.state_dict()), module.history, module.average, module.moving, module.tree["visits"]
        return [contents(value) for value in state], logger.rows

    assert run(Meddling, []) == run(VAMOMeddling, [VAMOCallback(probes=2, mu=1e-3, control="recompute", alpha=0.0)])


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
        trainer(callbacks=[VAMOCallback(probes=2, mu=1e-2, control="recompute")]).fit(module, *loaders())
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
    """What is read from the parameters is counted, whether into a new copy or into one that is there."""

    class Copies(TorchDispatchMode):
        counts: ClassVar = Counter()
        sources: ClassVar = {"aten::_to_copy": 0, "aten::copy_": 1}  # which argument is read

        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            source = self.sources.get(function.name())
            if source is not None:
                self.counts[arguments[source].data_ptr()] += 1
            return function(*arguments, **(options or {}))

    class Counting(RunObserver):
        def on_probing_start(self, fit, module, purpose):
            self.mode = Copies() if purpose == "row" else nullcontext()
            self.mode.__enter__()

        def on_probing_end(self, fit, module, purpose):
            self.mode.__exit__(None, None, None)

    module = Student()
    expected = module.teacher.weight.detach().clone()
    callback = Watched(probes=2, mu=1e-2, control="recompute")
    trainer(callbacks=[callback, Counting()], max_epochs=1).fit(module, DataLoader(samples(), 6))
    assert [Copies.counts[part.weight.data_ptr()] for part in (module.backbone, module.teacher)] == [1, 7]
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
    directions = callback.snapshots[0][2].directions.dense(list(module.weights)).double().numpy()
    for row, batch in zip(callback.rows, module.plan[0], strict=True):
        expected = directions @ least_squares_gradient(a[batch], b[batch], start)
        assert row.numpy() == pytest.approx(expected, abs=1e-3)


def test_snapshots_every_few_steps():
    callback = Watched(probes=2, mu=1e-3, control=Recompute(every_n_train_steps=4), seed=0)
    L.seed_everything(0, verbose=False)
    fit = trainer(callbacks=[callback], max_epochs=2, accumulate_grad_batches=2)
    fit.fit(VAMOEverything(), *loaders())  # 12 batches, 6 steps
    assert [(step, batch_idx) for step, batch_idx, _ in callback.snapshots] == [(0, 0), (4, 8), (8, 4)]
    assert callback.report.steps == 12
    assert callback.report.snapshots == 3


def test_figures():
    callback = VAMOCallback(probes=3, mu=1e-2, control="recompute", directions=SphereDirections())
    fit = trainer(callbacks=[callback], max_epochs=2)
    fit.fit(VAMOEverything(), *loaders())
    metrics = {name: value.item() for name, value in fit.callback_metrics.items()}
    sweeps, rows = 2 * (12 * (1 + 3) + 1 + 8 + 4), 2 * 12 * (1 + 3)
    assert metrics["vamo/forward_evaluations"] == sweeps + rows + 2 * 12
    assert metrics["vamo/row_seconds"] > 0
    assert metrics["vamo/sweep_seconds"] > 0
    assert metrics["vamo/rows_unused"] == 0
    report = callback.report
    assert report.row_seconds > metrics["vamo/row_seconds"]
    assert report.sweep_seconds + report.row_seconds < report.training_seconds
    assert "2 snapshots, 24 corrected steps\n" in str(report)


def test_probes_that_change_and_a_schedule_that_starts_at_none():
    callback = Watched(
        probes=LinearProbes(start=0, end=2, epochs=3), mu=1e-3, control=Recompute(every_n_train_steps=5), alpha="adaptive"
    )
    trainer(callbacks=[callback], max_epochs=3).fit(VAMOEverything(), *loaders())
    counts = [snapshot and snapshot.directions.count for _, _, snapshot in callback.snapshots]
    assert counts == [None, None, None, 1, 1, 2, 2, 2]


def test_a_coefficient_that_decays_over_the_steps_of_a_snapshot():
    class Factors(Watched):
        def on_correction(self, fit, module, snapshot, moments):
            factors.append(snapshot.correction.factors)

    factors = []
    callback = Factors(probes=2, control=Recompute(every_n_train_steps=4), alpha="linear-decay")
    data = DataLoader(classification_data(96), 8)
    trainer(callbacks=[callback], max_epochs=1, accumulate_grad_batches=2).fit(VAMOEverything(), data)
    assert factors == [1, 0.75, 0.5, 0.25, 1, 0.75]


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_epochs": 2, "every_n_train_steps": 5}, "`every_n_epochs=2` both say when"),
        ({"every_n_epochs": 0}, "`every_n_epochs` must be a whole number >= 1 or None, got 0"),
        ({"every_n_train_steps": True}, "`every_n_train_steps` must be a whole number >= 1 or None, got True"),
    ],
)
def test_arguments_that_are_not_allowed(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        Recompute(**arguments)
