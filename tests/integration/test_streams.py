"""Data whose batches come only once, or may: rows are recomputed, around a mean from a second reading or a running one."""

import itertools

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, TensorDataset

from lightning_vamo import InvalidArgumentError, Recompute, Replay, UnsupportedError, VAMOCallback
from lightning_vamo.core.directions import GradientSubspaceDirections
from lightning_vamo.core.schedules import EfficientProbes
from lightning_vamo.loop.control.choice import Choice
from tests.reference import fo_svrg, least_squares_gradient
from tests.support.least_squares import RATE, Trajectory, VAMOLeastSquares, every_direction, groups, problem, samples
from tests.support.meddling import contents
from tests.support.modules import VAMOEverything, classification_data, trainer
from tests.support.watched import Watched


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


def test_a_stream_beside_data_that_can_be_recorded_is_read_a_second_time():
    class Both(VAMOLeastSquares):
        def training_step(self, batch, batch_idx):
            return sum(super(Both, self).training_step(part, batch_idx) for part in batch)

    callback = every_direction()
    data = [DataLoader(samples(), 6, shuffle=True), DataLoader(Stream(), 6)]
    trainer(callbacks=[callback], max_epochs=2, limit_train_batches=6).fit(Both(9, RATE), data)
    assert [taken.sweep is not None for _, _, taken in callback.snapshots] == [True, True]


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
@pytest.mark.parametrize("control", ["auto", Recompute(every_n_train_steps=4)], ids=["auto", "steps"])
def test_data_that_cannot_be_read_twice_has_a_running_mean(data, control):
    callback = every_direction(control=control, mu=0.1)
    points, start, plan, run = fit_stream(callback, data())
    expected = running_svrg(*problem(), start, plan if control == "auto" else groups(plan, 4))
    assert np.abs(points - expected).max() < 1e-5
    assert all(taken.sweep is None for _, _, taken in callback.snapshots)
    assert "vamo/snapshot_loss" not in run.callback_metrics
    steps = len(points)
    once_more = len(callback.snapshots)  # the first batch of each, to see that its loss is the same again
    assert callback.report.forward_evaluations == steps * (1 + 1 + 2 * 9) + once_more


def test_a_stream_that_keeps_its_place_loses_no_batch():
    """Although the Trainer's limit tells how much there is to read."""
    callback = every_direction()
    _, _, plan, _ = fit_stream(callback, DataLoader(Stream(cursor=True), 6), limit_train_batches=6, max_epochs=1)
    assert list(itertools.chain.from_iterable(plan[0])) == list(range(36))
    assert callback.snapshots[0][2].sweep is None


def test_auto_replays_where_it_can_and_recomputes_elsewhere():
    def recomputed(data, **options):
        callback = Watched(probes=1, mu=1e-2, **options.pop("arguments", {}))
        trainer(callbacks=[callback], max_epochs=1, **options).fit(VAMOLeastSquares(9, RATE), data)
        [(_, _, taken), *_] = callback.snapshots
        return taken.kind == "recompute", taken.sweep is not None

    class Unknown:
        def __iter__(self):
            yield from ([start, start + 1] for start in range(0, 40, 2))

    assert recomputed(DataLoader(samples(), 6)) == (False, True)
    assert recomputed(DataLoader(samples(), 6), arguments={"control": "recompute"}) == (True, True)
    assert recomputed(DataLoader(samples(), 6), arguments={"control": Recompute(every_n_train_steps=3)}) == (True, True)
    assert recomputed(DataLoader(samples(), batch_sampler=Unknown())) == (True, False)
    assert recomputed(DataLoader(samples(), batch_sampler=Unknown()), limit_train_batches=5) == (False, True)
    assert recomputed(DataLoader(samples(), 6, num_workers=1, in_order=False)) == (True, True)
    assert recomputed(DataLoader(Stream(), 6)) == (True, False)
    assert recomputed(DataLoader(Stream(), 6), limit_train_batches=5) == (True, True)


def test_a_loader_that_is_made_anew_makes_a_snapshot_due():
    class Reloaded(L.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(Stream(), 6)

    callback = Watched(probes=1, mu=1e-2, control=Recompute(every_n_train_steps=100))
    fit = trainer(callbacks=[callback], max_epochs=3, reload_dataloaders_every_n_epochs=2)
    fit.fit(VAMOLeastSquares(9, RATE), Reloaded())
    assert [step for step, _, _ in callback.snapshots] == [0, 14]


def test_directions_that_are_learned_on_a_stream():
    """Without a warm-up, as its batches cannot be looked at before; the first steps teach."""
    callback = Watched(
        probes=2, directions=GradientSubspaceDirections(), control=Recompute(every_n_train_steps=5), alpha="adaptive"
    )
    data = Stream(classification_data(240))
    trainer(callbacks=[callback], max_epochs=1).fit(VAMOEverything(), DataLoader(data, 8))
    assert [taken is not None for _, _, taken in callback.snapshots] == [False, True, True, True, True, True]
    assert callback.report.steps == 25


def test_on_a_stream_without_a_length_the_first_steps_stand_in_for_the_warm_up():
    callback = Watched(probes=2, mu=1e-2, directions=GradientSubspaceDirections(warmup_batches=6), seed=1)
    fit = trainer(callbacks=[callback], max_epochs=1, accumulate_grad_batches=2)
    fit.fit(VAMOEverything(), DataLoader(Stream(classification_data(240)), 8))
    assert [(step, taken is not None) for step, _, taken in callback.snapshots] == [(0, False), (6, True)]
    assert callback.report.steps == 15 - 6


def test_the_number_of_probes_is_chosen_by_what_rows_cost_too(monkeypatch):
    """A batch is probed once per epoch in a sweep, for each snapshot, and once in its row."""
    asked, decide = [], Choice.decide

    def watched(self, fit, shares, difference, sweeps, *rest, **options):
        asked.append(sweeps)
        return decide(self, fit, shares, difference, sweeps, *rest, **options)

    def sweeps(data, **arguments):
        asked.clear()
        directions = GradientSubspaceDirections(warmup_batches=8)
        callback = VAMOCallback(probes=EfficientProbes(maximum=2), directions=directions, **arguments)
        trainer(callbacks=[callback], max_epochs=2).fit(VAMOEverything(), data)
        return asked[0]

    monkeypatch.setattr(Choice, "decide", watched)
    data = DataLoader(classification_data(96), 8)
    assert sweeps(data, control=Replay(every_n_epochs=2)) == 1 / 2
    assert sweeps(data, control=Recompute(every_n_epochs=2)) == 1 + 1 / 2
    assert sweeps(data, control=Recompute(every_n_train_steps=4)) == 1 + 3
    assert sweeps(DataLoader(Stream(classification_data(96)), 8)) == 1


def test_batches_whose_losses_are_not_finite_have_no_row():
    class Bad(VAMOLeastSquares):
        def probe_loss(self, batch, batch_idx):
            loss = super().probe_loss(batch, batch_idx)
            return {3: loss * float("nan"), 4: None}.get(batch_idx, loss)

    callback = Watched(probes=2, mu=1e-2)
    fit = trainer(callbacks=[callback], max_epochs=1)
    module = Bad(9, RATE)
    fit.fit(module, DataLoader(Stream(), 6))
    assert fit.callback_metrics["vamo/rows_unused"] == 2
    assert all(bool(weight.isfinite().all()) for weight in module.weights)


def test_a_coefficient_that_decays_over_an_unknown_number_of_steps():
    with pytest.raises(UnsupportedError, match=r"set control=Recompute\(every_n_train_steps=...\), or another `alpha`"):
        trainer(callbacks=[VAMOCallback(probes=1, alpha="linear-decay")]).fit(
            VAMOLeastSquares(9, RATE), DataLoader(Stream(), 6)
        )


# ---- resuming


def run_stream(folder, data, ckpt=None, seed=1, epochs=4, **arguments):
    L.seed_everything(seed, verbose=False)
    module, saver = VAMOEverything(), ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    callback = VAMOCallback(**{"probes": 2, "mu": 1e-2, "seed": 4, **arguments})
    fit = trainer(folder, callbacks=[callback, saver], enable_checkpointing=True, max_epochs=epochs)
    fit.fit(module, data, ckpt_path=ckpt, weights_only=True if ckpt else None)
    return module, callback.report


@pytest.mark.parametrize(
    "arguments", [{}, {"control": Recompute(every_n_epochs=2)}, {"control": Recompute(every_n_train_steps=7)}], ids=str
)
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
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
    run_stream(tmp_path, DataLoader(classification_data(50), 8), epochs=3, mu=1e-3, control=Recompute(every_n_epochs=3))
    data = DataLoader(classification_data(50), 8)
    with pytest.raises(InvalidArgumentError, match="`control` was 'recompute', and in the present run it is 'replay'"):
        run_stream(tmp_path, data, tmp_path / "epoch=0.ckpt", control=Replay(every_n_epochs=3))


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_within_an_epoch_a_stream_begins_anew_and_the_snapshot_goes_on(tmp_path):
    def run(ckpt=None):
        callback, saver = (
            Watched(probes=2, mu=1e-2, control=Recompute(every_n_train_steps=10)),
            ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4),
        )
        fit = trainer(tmp_path, callbacks=[callback, saver], enable_checkpointing=True, max_epochs=1)
        data = DataLoader(Stream(classification_data(41)), 6)
        fit.fit(VAMOEverything(), data, ckpt_path=ckpt, weights_only=True if ckpt else None)
        return callback

    assert len(run().rows) == 7
    callback = run(tmp_path / "step=4.ckpt")
    assert [step for step, _, _ in callback.snapshots] == [10]
    assert len(callback.rows) == 7
