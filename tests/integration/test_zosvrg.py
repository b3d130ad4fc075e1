"""ZO-SVRG: along all directions it is SVRG; along fewer it is what an independent implementation says."""

import warnings

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from lightning_vamo import Carry, InvalidArgumentError, MeZOCallback, Recompute, Replay, VAMOMixin, ZOSVRGCallback
from lightning_vamo.core.directions import (
    CoordinateDirections,
    GaussianDirections,
    GradientSubspaceDirections,
    MaskedDirections,
    OrthonormalDirections,
)
from lightning_vamo.loop.ledger.seeds import Seeds, seeded
from lightning_vamo.loop.observer import RunObserver
from tests.reference import fo_svrg, sgd
from tests.support.least_squares import problem
from tests.support.modules import Perceptron, classification_data, trainer
from tests.support.ranks import Data, run
from tests.support.resuming import WARNINGS, VAMOModule, assert_continues, last_checkpoint
from tests.support.resuming import run as resuming


class LeastSquares(VAMOMixin, L.LightningModule):
    """Remembers the batches that it trains on, and where each step led."""

    def __init__(self, sgd=None):
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(7)), nn.Parameter(torch.ones(2))])
        self.sgd = {"lr": 0.05, **(sgd or {})}
        self.plan, self.points = [], []

    def training_step(self, batch, batch_idx):
        inputs, targets, _ = batch
        return (inputs @ torch.cat(list(self.weights)) - targets).square().mean() / 2

    def on_train_epoch_start(self):
        self.plan.append([])

    def on_train_batch_start(self, batch, batch_idx):
        self.plan[-1].append(batch[2].tolist())

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.points.append(torch.cat(list(self.weights)).detach().double().numpy().copy())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), **self.sgd)


START = np.concatenate([np.zeros(7), np.ones(2)])


def train(callback, epochs=4, sgd=None, **options):
    L.seed_everything(1, verbose=False)
    module, (a, b) = LeastSquares(sgd).double(), problem()
    data = TensorDataset(torch.tensor(a), torch.tensor(b), torch.arange(len(a)))
    fit = trainer(callbacks=[callback], max_epochs=epochs, precision="64-true", **options)
    fit.fit(module, DataLoader(data, 6, shuffle=True))
    return np.stack(module.points), module.plan, fit


@pytest.mark.parametrize(
    ("family", "control"),
    [
        (OrthonormalDirections(), None),
        (OrthonormalDirections(), Replay()),
        (OrthonormalDirections(), Replay(every_n_epochs=2)),
        (CoordinateDirections(), Recompute(every_n_epochs=2)),
        (CoordinateDirections(), Replay()),
    ],
)
def test_all_directions_give_svrg(family, control):
    callback = ZOSVRGCallback(9, family, mu=0.1, control=control, seed=0)
    points, plan, _ = train(callback)
    if control is not None and control.every_n_epochs == 2:
        plan = [plan[0] + plan[1], plan[2] + plan[3]]
    expected = fo_svrg(*problem(), START, plan, 0.05)
    assert np.abs(points - expected).max() < 1e-10
    assert np.abs(points - sgd(*problem(), START, plan, 0.05)).max() > 1e-2


def reference(plan, count, lr, mu, difference, alpha, seed=3):
    """The method with dense directions, a snapshot per epoch."""
    a, b = (torch.tensor(part, dtype=torch.float64) for part in problem())
    x, parameters, points = torch.tensor(START), [torch.zeros(7, dtype=torch.float64), torch.ones(2, dtype=torch.float64)], []

    def slopes(point, z, rows):
        def loss(at):
            return (a[rows] @ at - b[rows]).square().mean() / 2

        behind = [loss(point - mu * one) if difference == "central" else loss(point) for one in z]
        return torch.stack([loss(point + mu * one) - minus for one, minus in zip(z, behind, strict=True)]) / (
            2 * mu if difference == "central" else mu
        )

    for epoch, batches in enumerate(plan):
        drawn = GaussianDirections().draw(parameters, count, seeded(Seeds(seed).of(f"snapshot {epoch}")))
        z, snapshot = drawn.dense(parameters) * 3.0, x.clone()  # the root of nine dimensions
        mean = sum(len(rows) * slopes(snapshot, z, rows) for rows in batches) / sum(map(len, batches))
        for rows in batches:
            x = x - lr * (slopes(x, z, rows) - alpha * (slopes(snapshot, z, rows) - mean)) @ z / count
            points.append(x.numpy().copy())
    return np.stack(points)


@pytest.mark.parametrize(
    ("control", "alpha", "difference"),  # each pair of them
    [
        (Recompute(), 1.0, "central"),
        (Recompute(), 0.5, "forward"),
        (Replay(), 1.0, "forward"),
        (Replay(), 0.5, "central"),
    ],
)
def test_the_steps_are_those_of_an_independent_implementation(control, alpha, difference):
    callback = ZOSVRGCallback(3, mu=0.01, difference=difference, alpha=alpha, control=control, seed=3)
    points, plan, fit = train(callback, epochs=3)
    assert np.abs(points - reference(plan, 3, 0.05, 0.01, difference, alpha)).max() < 1e-9
    assert fit.callback_metrics["zosvrg/probes"] == 3
    assert fit.callback_metrics["zosvrg/mu"] == pytest.approx(0.03)
    assert str(callback.report).startswith("ZO-SVRG: the probes ")


def test_any_optimizer_steps_with_it():
    """Along all directions: the gradient is SVRG's, so momentum makes of it what it makes of SVRG's."""
    callback = ZOSVRGCallback(9, OrthonormalDirections(), mu=0.1, control=Replay(), seed=0)
    points, plan, _ = train(callback, sgd={"lr": 0.02, "momentum": 0.9})
    a, b = problem()
    x, velocity, expected = START.copy(), np.zeros(9), []

    def gradient(at, rows):
        return a[rows].T @ (a[rows] @ at - b[rows]) / len(rows)

    for batches in plan:
        snapshot, rows = x.copy(), [row for batch in batches for row in batch]
        for batch in batches:
            velocity = 0.9 * velocity + gradient(x, batch) - gradient(snapshot, batch) + gradient(snapshot, rows)
            x = x - 0.02 * velocity
            expected.append(x.copy())
    assert np.abs(points - np.stack(expected)).max() < 1e-10


@pytest.mark.parametrize("mu", [1e-3, "auto"])
def test_without_a_control_variate_it_is_mezo(mu):
    points, _, _ = train(ZOSVRGCallback(2, mu=mu, alpha=0.0, seed=3))
    expected, _, _ = train(MeZOCallback(2, mu=mu, update="gradient", seed=3))
    assert np.array_equal(points, expected)


def counts(control, difference, epochs=2):
    callback = ZOSVRGCallback(3, difference=difference, control=control, seed=0)
    train(callback, epochs=epochs)
    assert callback.report.backward_evaluations == 0
    assert callback.report.batches == 7 * epochs
    return callback.report.forward_evaluations


@pytest.mark.parametrize(
    ("probes", "difference", "own"), [(1, "central", 2), (1, "forward", 2), (3, "central", 6), (3, "forward", 4)]
)
def test_the_report_weighs_it_against_the_same_steps_without_a_control_variate(probes, difference, own, caplog):
    caplog.set_level("INFO")
    callback = ZOSVRGCallback(probes, difference=difference, control=Replay(every_n_epochs=2))
    train(callback, epochs=2)
    report = callback.report
    without = ZOSVRGCallback(probes, difference=difference, alpha=0)
    train(without, epochs=2)
    assert without.report.forward_evaluations == own * report.batches
    ratio = report.forward_evaluations / without.report.forward_evaluations
    assert ratio > 1.5  # a sweep every other epoch takes half as many evaluations as the steps, and some for checks
    assert report.relative_to_uncorrected == pytest.approx(ratio)
    assert report.worth_of_equal_batch == pytest.approx(1 - 1 / ratio)
    assert report.relative_cost == pytest.approx(ratio * own / 3)
    verdict = str(report).splitlines()[0]
    assert f"{ratio:.2f}× the compute of training with alpha=0" in verdict
    assert ("did not pay" in verdict) == (report.variance_removed <= 1 - 1 / ratio)
    assert f"{ratio:.2f}× the compute of training with alpha=0 so far." in caplog.text
    assert f"{own / 3:.2f}× the compute of plain training." in str(without.report)


def test_the_evaluations_are_those_documented():
    """Per batch of 7: a step's own, those at the snapshot, and the sweep's; what a sweep looks at beside is left out."""
    for difference, step, row in (("central", 6, 7), ("forward", 4, 4)):
        replayed, recomputed = counts(Replay(), difference), counts(Recompute(), difference)
        assert recomputed - replayed == 14 * row
        assert replayed - counts(Replay(every_n_epochs=2), difference) >= 7 * row
        assert replayed >= 14 * (step + row)


class Perceptrons(VAMOMixin, Perceptron):
    def __init__(self):
        super().__init__(lr=0.05)


@pytest.mark.parametrize("control", [Recompute(every_n_train_steps=2), Replay()])
def test_two_ranks_are_one_process_with_both_batches(control, tmp_path):
    data = classification_data(48)
    data.tensors = (data.tensors[0].double(), data.tensors[1])
    options = {"max_epochs": 2, "precision": "64-true"}
    callbacks = [ZOSVRGCallback(4, mu=1e-2, control=control, seed=2) for _ in range(2)]
    module = Perceptrons().double()
    one, other = run(module, tmp_path / "two", data, devices=2, batch_size=4, callback=callbacks[0], **options)
    [alone] = run(module, tmp_path / "one", data, devices=1, batch_size=8, callback=callbacks[1], **options)
    assert all(torch.equal(one["state"][name], other["state"][name]) for name in one["state"])
    assert all(torch.allclose(one["state"][name], alone["state"][name], rtol=0, atol=1e-8) for name in one["state"])


class Redrawn(Dataset):
    """Gives other inputs for some indices when it is read again, by a process that sees the reading."""

    def __init__(self, changes):
        self.data = classification_data(48)
        self.changes = changes
        self.generator = torch.Generator().manual_seed(4)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        inputs, label = self.data[index]
        if index in self.changes:
            inputs = inputs + torch.randn(len(inputs), generator=self.generator)
        return inputs.double(), label


class WithoutRow(ZOSVRGCallback, RunObserver):
    """Makes a row of the table the mean of all rows, which is to correct nothing."""

    def on_snapshot(self, fit, module, snapshot):
        snapshot.correction.control.rows[2] = 0


class Opaque:
    """A batch that has no fingerprint, as its tensors are not found."""

    def __init__(self, samples):
        self.parts = default_collate(samples)

    def __getitem__(self, index):
        return self.parts[index]

    def to(self, device):
        return self


class OpaqueData(Data):
    def train_dataloader(self):
        loader = super().train_dataloader()
        loader.collate_fn = Opaque
        return loader


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.filterwarnings("ignore:A training batch differs.*so its probe differences are not used")
def test_the_row_of_a_batch_that_differs_on_one_rank_is_left_out_on_all(accumulate, tmp_path):
    """Rank 0 has the even samples, four to a batch: all of its third batch changes."""

    def trained(name, cls, datamodule):
        callback = cls(4, mu=1e-2, control=Replay(), seed=2)
        options = {"precision": "64-true", "accumulate_grad_batches": accumulate, "use_distributed_sampler": False}
        data, module = Redrawn((16, 18, 20, 22)), Perceptrons().double()
        ranks = run(module, tmp_path / name, data, devices=2, batch_size=4, callback=callback, datamodule=datamodule, **options)
        assert all(torch.equal(ranks[0]["state"][key], ranks[1]["state"][key]) for key in ranks[0]["state"])
        return ranks[0]["state"], ranks[0]["metrics"]

    state, metrics = trained("left out", ZOSVRGCallback, Data)
    assert metrics["zosvrg/rows_unused"] == 1
    without, _ = trained("zero", WithoutRow, OpaqueData)
    used, metrics = trained("used", ZOSVRGCallback, OpaqueData)
    assert metrics["zosvrg/rows_unused"] == 0
    assert all(torch.allclose(state[name], without[name], rtol=1e-12, atol=1e-14) for name in state)
    assert not torch.allclose(state["net.0.weight"], used["net.0.weight"], rtol=1e-6)


def test_warnings_name_its_own_figures_and_arguments():
    class Noisy(Redrawn):
        def __getitem__(self, index):
            inputs, label = super().__getitem__(index)
            return inputs.float(), label

    callback = ZOSVRGCallback(2, control=Replay(), seed=2)
    fit = trainer(callbacks=[callback], max_epochs=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit.fit(Perceptrons(), DataLoader(Noisy(range(48)), 8))
    said = " ".join(str(warning.message) for warning in caught)
    assert "zosvrg/rows_unused. " in said
    assert "set control=Recompute(...), make the augmentation depend on the index only, or train with alpha=0." in said
    assert "no gradient is corrected: set control=Recompute(...), or alpha=0." in said
    assert "vamo/" not in said
    assert "probes=0" not in said
    assert "Set control=Recompute(...), or train with alpha=0." in str(callback.report)
    assert "vamo" not in " ".join(fit.callback_metrics)


CONFIGURATIONS = {
    "recomputed": lambda: ZOSVRGCallback(2, mu=1e-3, control=Recompute(every_n_train_steps=3), seed=4),
    "replayed, masked": lambda: ZOSVRGCallback(
        2, MaskedDirections(GaussianDirections(), 0.5), mu=1e-2, control=Replay(), seed=4
    ),
}


class Heavy(VAMOModule):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.005, momentum=0.5)


@pytest.mark.parametrize(("name", "kill"), [("recomputed", (1, 4, "end")), ("replayed, masked", (2, 5, "step"))])
@WARNINGS[0]
@WARNINGS[1]
def test_a_killed_run_goes_on_bit_for_bit(name, kill, tmp_path):
    """A mask is of the snapshot's weights, which a resumed run no longer has."""
    configuration = {"module": Heavy, "make": CONFIGURATIONS[name], "max_epochs": 3}
    uninterrupted = resuming(tmp_path / "whole", configuration)
    resuming(tmp_path / "killed", configuration, kill)
    checkpoint = last_checkpoint(tmp_path / "killed")
    assert_continues(resuming(tmp_path / "killed", configuration, ckpt=checkpoint, seed=99), uninterrupted, checkpoint)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probes": 0}, r"`probes` must be a whole number >= 1, got 0"),
        ({"alpha": -1.0}, r"`alpha` must be .*a finite number >= 0, got -1.0"),
        ({"alpha": "adaptive"}, r"`alpha` must be a finite number >= 0, got 'adaptive'"),
        ({"control": "replay"}, r"`control` must be Recompute\(...\) or Replay\(...\), got 'replay'"),
        ({"control": Carry()}, r"`control` must be Recompute\(...\) or Replay\(...\)"),
        ({"directions": GradientSubspaceDirections()}, r"`directions` must be a family of directions that does not learn"),
        ({"mu": -1}, r"`mu` must be a positive"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        ZOSVRGCallback(**arguments)


def test_more_directions_than_there_are_dimensions_are_refused():
    with pytest.raises(InvalidArgumentError, match="at most 9 probes"):
        train(ZOSVRGCallback(10, OrthonormalDirections()))


def test_shapes_of_data_do_not_matter_for_streams():
    """A stream cannot be swept: the mean of its rows is a running one."""

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            inputs, labels = classification_data(24).tensors
            yield from zip(inputs.double(), labels, strict=True)

    callback = ZOSVRGCallback(2, mu=1e-2, control=Recompute(every_n_train_steps=2), seed=0)
    fit = trainer(callbacks=[callback], max_epochs=2, precision="64-true")
    fit.fit(Perceptrons().double(), DataLoader(Stream(), 8))
    assert fit.global_step == 6
    assert callback.report.steps > 0
