"""Rows that are carried from epoch to epoch: what they remove for nothing, and with what Lightning does around the steps."""

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import DDPStrategy
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_vamo import Carry, InvalidArgumentError, Replay, RunObserver, VAMOCallback, VAMOMixin
from lightning_vamo.core.directions import GradientSubspaceDirections, OrthonormalDirections
from lightning_vamo.core.schedules import LinearProbes
from tests import reference
from tests.support import ranks, resuming
from tests.support.least_squares import problem, train
from tests.support.modules import Everything, Indexed, VAMOEverything, VAMORecorder, classification_data, trainer
from tests.support.overlapping import Classifier, fit, overlapping
from tests.support.processes import in_processes
from tests.support.sharded import VAMO
from tests.support.sharded import train as train_sharded
from tests.support.watched import WatchedSweeps

pytestmark = resuming.WARNINGS
LEARNED = GradientSubspaceDirections(warmup_batches=0)
UNSWEPT = {"directions": LEARNED, "alpha": "adaptive", "control": "carry", "seed": 1}


class Digits(VAMOMixin, L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(64, 10)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def digits(callback, epochs):
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images).float() / 16, torch.tensor(labels))
    L.seed_everything(1, verbose=False)
    run = trainer(callbacks=[callback], max_epochs=epochs)
    run.fit(Digits(), DataLoader(data, 16, shuffle=True))
    return run


def test_on_digits_they_remove_noise_without_a_forward_pass_more():
    callback = VAMOCallback(probes=8, **UNSWEPT)
    run = digits(callback, epochs=4)
    report = callback.report
    assert report.forward_evaluations == report.backward_evaluations == run.global_step
    assert report.snapshots == 0
    assert run.callback_metrics["vamo/variance_removed"] > 0.3
    assert "vamo/sweep_seconds" not in run.callback_metrics


def test_before_the_table_is_full_training_is_plain():
    """One epoch of learning and one of filling."""
    _, carried, metrics = fit(VAMOCallback(probes=3, **UNSWEPT), epochs=2)
    _, plain, _ = fit(VAMOCallback(probes=0), epochs=2)
    assert all(torch.equal(one, other) for one, other in zip(carried.parameters(), plain.parameters(), strict=True))
    assert metrics["vamo/probes"] == 0  # none of the rows is applied yet
    assert "vamo/variance_removed" not in metrics


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 3},
        {"gradient_clip_val": 0.5},
        {"precision": "bf16-mixed"},
        {"reload_dataloaders_every_n_epochs": 3},
        {"callbacks": [GradientAccumulationScheduler({0: 1, 2: 2})]},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.filterwarnings("ignore:The training DataLoader was made anew, so the rows that were carried")
def test_they_are_carried_whatever_lightning_does_around_a_step(options):
    options = dict(options)
    L.seed_everything(1, verbose=False)
    callback = VAMOCallback(probes=4, **UNSWEPT)
    run = trainer(callbacks=[callback, *options.pop("callbacks", ())], max_epochs=5, **options)
    run.fit(Classifier(), DataLoader(overlapping(), 8, shuffle=True))
    assert run.callback_metrics["vamo/variance_removed"] > 0.15
    assert callback.report.forward_evaluations == 5 * 50


def test_between_sweeps_they_stay_fresh():
    removed = {}
    for carry in (False, True):
        control = Carry(sweep_every_n_epochs=4, turn_every_n_epochs=4) if carry else Replay(every_n_epochs=4)
        callback = WatchedSweeps(probes=8, mu=1e-3, directions=LEARNED, seed=1, control=control, alpha="theory")
        run = digits(callback, epochs=8)
        removed[carry] = callback.report.variance_removed
        assert len(callback.sweeps) == 2
        assert run.callback_metrics["vamo/rows_unused"] == 0
    assert removed[True] > removed[False] + 0.05


def test_probes_that_change_and_directions_that_turn_keep_what_is_known():
    counts = []

    class Counting(VAMOCallback, RunObserver):
        def on_correction(self, fit, module, snapshot, moments):
            if fit.fit_loop.batch_idx == 0 and snapshot is not None:
                counts.append((snapshot.directions.count, int(moments is not None)))

    callback = Counting(probes=LinearProbes(start=2, end=5, epochs=3), **UNSWEPT)
    _, _, metrics = fit(callback, epochs=6)
    assert counts == [(4, 0), (5, 1), (5, 1), (5, 1), (5, 1)]  # of which the first epoch fills the table
    assert metrics["vamo/variance_removed"] > 0.2


# Exactly what they say


@pytest.mark.parametrize("decay", [0, 0.5])
@pytest.mark.parametrize(("group", "batches"), [(1, {"shuffle": False}), (1, {"num_workers": 2}), (3, {})])
def test_along_all_directions_each_step_is_corrected_with_its_gradients_of_the_epochs_before(group, batches, decay):
    """Against the oracle; seven batches, of which the last has fewer samples, and is alone in its step."""
    control = Carry(decay=decay)
    callback = VAMOCallback(probes=9, directions=OrthonormalDirections(), control=control, seed=0, alpha="theory")
    points, start, plan = train(callback, accumulated=group, **batches)
    steps = [7 * epoch + batch for epoch in range(5) for batch in range(7) if (batch + 1) % group == 0 or batch == 6]
    expected = reference.carried(*problem(), start, plan, 0.05, group, decay)
    assert np.abs(points[steps] - expected).max() < 1e-5
    assert callback.report.variance_removed > 0.1
    assert all(sorted(epoch) == sorted(plan[0]) for epoch in plan)
    assert (plan[1] == plan[0]) == (batches == {"shuffle": False})


def test_after_a_sweep_the_first_epoch_is_svrgs_and_the_next_are_carried():
    directions = OrthonormalDirections()
    paper = {"probes": 9, "directions": directions, "alpha": "theory", "difference": "central", "seed": 0}
    callback = VAMOCallback(control=Carry(sweep_every_n_epochs=5, turn_every_n_epochs=5), **paper)
    points, start, plan = train(callback)
    a, b = problem()
    first = reference.fo_svrg(a, b, start, plan[:1], 0.05)
    assert np.abs(points[:7] - first).max() < 1e-5
    # From then on with the means of the sweep's rows and the first epoch's gradients, which are not SGD's.
    last = {}
    x = start
    for step, batch in enumerate(plan[0]):
        rows = [reference.least_squares_gradient(a[batch], b[batch], at) for at in (start, x)]
        last[tuple(batch)] = sum(rows) / 2
        x = points[step]
    for number, epoch in enumerate(plan[1:], start=1):
        mean = sum(len(batch) * row for batch, row in last.items()) / len(a)
        fresh = {}
        for step, batch in enumerate(epoch):
            fresh[tuple(batch)] = reference.least_squares_gradient(a[batch], b[batch], x)
            x = x - 0.05 * (fresh[tuple(batch)] - last[tuple(batch)] + mean)
            assert np.abs(points[7 * number + step] - x).max() < 1e-4
        last = {batch: (row + fresh[batch]) / 2 for batch, row in last.items()}


@pytest.mark.parametrize("group", [1, 2])
def test_batches_keep_their_composition_and_steps_their_batches(group):
    module = VAMORecorder()
    seen = []

    class Contents(L.Callback):
        def on_train_batch_start(self, fit, module, batch, batch_idx):
            seen.append(tuple(batch.flatten().tolist()))

    callback = VAMOCallback(probes=1, directions=OrthonormalDirections(), control="carry", seed=1, alpha="theory")
    L.seed_everything(2, verbose=False)
    run = trainer(callbacks=[callback, Contents()], max_epochs=4, accumulate_grad_batches=group)
    run.fit(module, DataLoader(Indexed(31), 3, shuffle=True))  # 11 batches
    epochs = [seen[first : first + 11] for first in range(0, 44, 11)]
    steps = [[tuple(epoch[first : first + group]) for first in range(0, 11, group)] for epoch in epochs]
    assert all(set(step) == set(steps[0]) for step in steps)
    assert all(step != steps[0] for step in steps[1:])


# Refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sweep_every_n_epochs": 1}, "`sweep_every_n_epochs` must be 2 or more, or None, got 1: .* Set control='replay'"),
        ({"sweep_every_n_epochs": True}, "`sweep_every_n_epochs` must be a whole number >= 1 or None, got True"),
        ({"decay": 1.0}, r"`decay` must be a number, at least 0 and less than 1, got 1\.0: 0 keeps the fresh row"),
        ({"decay": -0.1}, r"`decay` must be a number, at least 0 and less than 1, got -0\.1"),
        ({"decay": float("nan")}, "`decay` must be a number, at least 0 and less than 1, got nan"),
        ({"decay": "half"}, "`decay` must be a number, at least 0 and less than 1, got 'half'"),
        ({"decay": True}, "`decay` must be a number, at least 0 and less than 1, got True"),
        ({"turn_every_n_epochs": 0}, "`turn_every_n_epochs` must be a whole number >= 1, got 0"),
    ],
)
def test_arguments_that_are_not_allowed(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        Carry(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"carry": True}, 'no argument `carry` any more: write control="carry"'),
        ({"sweep": False}, "no argument `sweep` any more: .* control=Carry"),
        ({"every_n_epochs": 2}, r"no argument `every_n_epochs` any more: write control=Replay\(every_n_epochs"),
        ({"every_n_train_steps": 9}, r"`every_n_train_steps` any more: write control=Recompute\(every_n_train_steps"),
    ],
)
def test_old_names_are_answered_with_what_to_write(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        VAMOCallback(**arguments)


# Several processes


SWEPT = {
    "directions": OrthonormalDirections(),
    "control": Carry(sweep_every_n_epochs=4, turn_every_n_epochs=4),
    "mu": 1e-2,
    "difference": "central",
}


@pytest.mark.parametrize(
    ("arguments", "accumulated"),
    [
        ({"directions": OrthonormalDirections()}, 1),
        ({"directions": GradientSubspaceDirections(warmup_batches=0), "alpha": "adaptive"}, 2),
        (SWEPT, 1),
        (SWEPT, 2),
    ],
    ids=["unswept", "learned, accumulated", "swept", "swept, accumulated"],
)
def test_two_processes_equal_one(arguments, accumulated, tmp_path):
    inputs, labels = classification_data(48).tensors
    data = TensorDataset(inputs.double(), labels)
    options = {"precision": "64-true", "use_distributed_sampler": False, "max_epochs": 4}
    options["accumulate_grad_batches"] = accumulated
    results = []
    for devices in (1, 2):
        callback = VAMOCallback(**{"probes": 4, "control": "carry", "seed": 1, **arguments})
        results.append(
            ranks.run(
                ranks.Regression(),
                tmp_path / str(devices),
                data,
                devices=devices,
                batch_size=8 // devices,
                callback=callback,
                **options,
            )
        )
    [one], (first, second) = results
    assert all(torch.equal(first["state"][name], second["state"][name]) for name in first["state"])
    for name, weight in one["state"].items():
        assert torch.allclose(first["state"][name], weight, rtol=1e-9, atol=1e-9 * float(weight.abs().max())), name
    removed = float(one["metrics"]["vamo/variance_removed"])
    assert removed > 0
    assert first["metrics"]["vamo/variance_removed"] == pytest.approx(removed, rel=1e-4)


def test_a_training_step_communicates_no_more_than_without_vamo(tmp_path):
    def counts(name, module, callbacks):
        (tmp_path / name).mkdir()
        callbacks = [*callbacks, ranks.Collectives(tmp_path / name)]
        run = trainer(callbacks=callbacks, strategy=DDPStrategy(start_method="fork"), devices=2, max_epochs=4)
        run.fit(module, datamodule=ranks.Data(classification_data(48), 4))
        return [(tmp_path / name / f"{rank}.txt").read_text() for rank in range(2)]

    plain = counts("plain", Everything(), [])
    assert counts("carried", VAMOEverything(), [VAMOCallback(probes=3, **UNSWEPT)]) == plain


def sharded_and_not(folder):
    results = {}
    for name, rank in (("factored", 1), ("dense", None)):
        for sharded in (False, True):
            directions = GradientSubspaceDirections(rank, warmup_batches=0)
            callback = VAMOCallback(probes=3, **{**UNSWEPT, "directions": directions})
            results[f"{name} {sharded}"] = train_sharded(
                VAMO, [callback], sharded, torch.float64, max_epochs=5, limit_train_batches=4
            )
            results[f"{name} {sharded} removed"] = torch.tensor(callback.report.variance_removed)
    return results


def test_shards_carry_what_the_whole_does(tmp_path):
    for result in in_processes(sharded_and_not, tmp_path):
        for name in ("factored", "dense"):
            whole, sharded = result[f"{name} False"], result[f"{name} True"]
            assert all(torch.allclose(sharded[key], value, rtol=1e-8, atol=1e-10) for key, value in whole.items())
            assert result[f"{name} False removed"] == pytest.approx(float(result[f"{name} True removed"]), rel=1e-6)
            assert result[f"{name} False removed"] > 0


# Resuming

RESUMED = {
    "unswept": {"vamo": {**UNSWEPT, "probes": 2}},
    "unswept, turning every other epoch": {
        "vamo": {**UNSWEPT, "probes": LinearProbes(start=1, end=3, epochs=3), "control": Carry(turn_every_n_epochs=2)},
    },
    "unswept, dense": {"vamo": {**UNSWEPT, "directions": GradientSubspaceDirections(rank=None, warmup_batches=0)}},
    "swept": {
        "vamo": {
            "control": Carry(sweep_every_n_epochs=3, turn_every_n_epochs=3),
            "directions": GradientSubspaceDirections(warmup_batches=4),
        }
    },
    "accumulated": {"vamo": UNSWEPT, "accumulate_grad_batches": 2},
    "checkpoints while gradients accumulate": {
        "vamo": {**UNSWEPT, "directions": OrthonormalDirections()},
        "val_check_interval": 3,
        "accumulate_grad_batches": 2,
        "saver": {"every_n_epochs": 1, "save_on_train_epoch_end": False},
    },
    "checkpoints at epochs' ends": {
        "vamo": UNSWEPT,
        "saver": {"every_n_epochs": 1, "save_on_train_epoch_end": True},
    },
}
# Of four epochs, the first learns, and the next fills the table.
POINTS = [(1, 4, "end"), (2, 0, "start"), (2, 5, "step"), (3, 3, "end")]


@pytest.mark.parametrize(
    ("name", "points"), [(name, POINTS[index % 2 :: 2]) for index, name in enumerate(RESUMED)], ids=RESUMED
)
def test_a_run_that_is_killed_again_and_again_goes_on_bit_for_bit(name, points, tmp_path):
    uninterrupted = resuming.run(tmp_path / "whole", RESUMED[name])
    resuming.assert_survives(tmp_path / "killed", RESUMED[name], points, uninterrupted)


def test_ranks_resume_where_each_of_them_was(tmp_path):
    arguments = {**UNSWEPT, "probes": 2, "seed": 2}
    resuming.run_ranks(tmp_path / "whole", arguments=arguments)
    expected = [torch.load(tmp_path / "whole" / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert expected[0]["metrics"]["vamo/variance_removed"] > 0
    resuming.assert_ranks_continue(tmp_path / "killed", expected, [(1, 3, "step"), (2, 3, "step")], arguments)


@pytest.mark.filterwarnings("ignore:The loss is not finite at points perturbed")
def test_rows_recover_from_a_sweep_that_drops_every_direction(tmp_path):
    configuration = {"vamo": {"probes": 2, "mu": 1e30, "control": Carry(sweep_every_n_epochs=3, turn_every_n_epochs=3)}}
    uninterrupted = resuming.run(tmp_path / "whole", configuration)
    [callback] = [callback for callback in uninterrupted[0].callbacks if isinstance(callback, VAMOCallback)]
    assert callback.report.variance_removed != 0  # in the epochs whose rows the first one's steps have measured
    resuming.run(tmp_path / "killed", configuration, (1, 4, "step"))
    checkpoint = resuming.last_checkpoint(tmp_path / "killed")
    resumed = resuming.run(tmp_path / "killed", configuration, ckpt=checkpoint, seed=99)
    resuming.assert_continues(resumed, uninterrupted, checkpoint)


def test_a_run_that_does_not_carry_is_refused_a_carried_table(tmp_path):
    configuration = RESUMED["accumulated"]
    resuming.run(tmp_path, configuration, (2, 5, "step"))
    other = {**configuration, "vamo": {**configuration["vamo"], "control": "replay"}}
    with pytest.raises(InvalidArgumentError, match="`control` was 'carry', and in the present run it is 'replay'"):
        resuming.run(tmp_path, other, ckpt=resuming.last_checkpoint(tmp_path))


def test_other_accumulation_is_refused_within_an_epoch(tmp_path):
    configuration = RESUMED["accumulated"]
    resuming.run(tmp_path, configuration, (2, 5, "step"))
    checkpoint = resuming.last_checkpoint(tmp_path)
    with pytest.raises(InvalidArgumentError, match="the number of accumulated batches was 2, and in the present run it is 3"):
        resuming.run(tmp_path, {**configuration, "accumulate_grad_batches": 3}, ckpt=checkpoint)
