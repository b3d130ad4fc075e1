"""How well the table is measured: the signal-to-noise ratio, the sweep's own precision, and the Trainer's precisions."""

import re
from types import SimpleNamespace
from unittest.mock import patch

import lightning as L
import pytest
import torch
from torch import nn

from lightning_vamo import InvalidArgumentError, UnsupportedError, VAMOCallback, VAMOMixin
from lightning_vamo.core.directions import OrthonormalDirections
from lightning_vamo.loop.sweep.losses import Row, reduced
from lightning_vamo.loop.sweep.precision import arithmetic
from lightning_vamo.loop.sweep.quality import quality_of
from tests.support.modules import VAMOEverything, loaders, trainer
from tests.support.watched import WatchedSweeps

NOISY = "The probe differences hardly stand out of their own error"


# The types that the present run computes in. Whatever a module holds is put back, so this is a global of Python's module.
COMPUTED_IN = {"sweep": set(), "step": set()}


class Perceptron(VAMOMixin, L.LightningModule):
    """Without dropout and BatchNorm; it notes the type that it computes in."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 3))

    def loss(self, batch, where):
        logits = self.net(batch[0])
        COMPUTED_IN[where].add(logits.dtype)
        return nn.functional.cross_entropy(logits, batch[1])

    def training_step(self, batch, batch_idx):
        return self.loss(batch, "step")

    def probe_loss(self, batch, batch_idx):
        return self.loss(batch, "sweep")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def fit(precision="32-true", cls=Perceptron, **arguments):
    L.seed_everything(0, verbose=False)
    for types in COMPUTED_IN.values():
        types.clear()
    module = cls()
    callback = WatchedSweeps(**{"probes": 4, "seed": 1, **arguments})
    run = trainer(callbacks=[callback], precision=precision)
    run.fit(module, loaders()[0])
    return run.callback_metrics, module, callback


# The signal-to-noise ratio


def test_a_radius_that_drowns_in_rounding_is_noticed_and_a_float32_sweep_helps():
    with pytest.warns(UserWarning, match=NOISY) as caught:
        mixed, _, _ = fit("bf16-mixed", mu=1e-4)
    messages = [str(warning.message) for warning in caught if NOISY in str(warning.message)]
    assert len(messages) == 1  # of two sweeps
    assert "sweep_precision='32-true'" in messages[0]
    assert mixed["vamo/probe_snr"] < 2
    assert (COMPUTED_IN["sweep"], COMPUTED_IN["step"]) == ({torch.bfloat16}, {torch.bfloat16})

    full, _, _ = fit("bf16-mixed", mu=1e-4, sweep_precision="32-true")
    assert full["vamo/probe_snr"] > 20 * mixed["vamo/probe_snr"]
    assert (COMPUTED_IN["sweep"], COMPUTED_IN["step"]) == ({torch.float32}, {torch.bfloat16})


def test_in_float32_the_advice_is_another():
    with pytest.warns(UserWarning, match=NOISY + r".*larger `mu`, `difference='central'`, or Trainer\(precision='64-true'\)"):
        metrics, _, _ = fit(mu=1e-7)
    assert metrics["vamo/probe_snr"] < 2
    metrics, _, _ = fit("64-true", mu=1e-7)
    assert metrics["vamo/probe_snr"] > 100


@pytest.mark.parametrize("difference", ["forward", "central"])
def test_with_the_automatic_radius_float32_is_good_enough(difference):
    metrics, _, _ = fit(difference=difference)
    assert metrics["vamo/probe_snr"] > 20


class Slopes(L.LightningModule):
    """A table of two directions, forward differences, mu = 1, whose losses are given."""

    def table(self, deltas, wide, weights):
        rows = [
            Row(
                torch.tensor([5.0, 5 + a, 5 + b]) if weight else None,
                None if w is None else torch.tensor([5 + w]),
                evaluations=3,
                epsilon=0.1,
            )
            for (a, b), weight, w in zip(deltas, weights, [*wide, *[None] * len(weights)], strict=False)
        ]
        strategy = SimpleNamespace(reduce=lambda packed, reduce_op: packed)
        return reduced(SimpleNamespace(strategy=strategy, world_size=1), rows, weights, "forward")


@pytest.mark.parametrize(
    ("deltas", "wide", "weights", "usable", "expected"),
    [
        # The signal is 1 in each column; at twice the radius slopes are off by 0.5, in rows 0 and 2 along the first direction.
        ([(1, 2), (-1, 4), (1, 2), (-1, 4)], [3, 7, 3, 7], [1, 1, 1, 1], [1, 1], 2.0),
        ([(1, 2), (-1, 4), (1, 2), (-1, 4)], [3, 9, 3, 9], [1, 1, 1, 1], [1, 0], 2.0),  # the second direction is dropped
        # Nothing is known but that losses of 5 with an epsilon of 0.1 are rounded.
        ([(1, 2), (-1, 4), (1, 2), (-1, 4)], [2, 8, 2, 8], [1, 1, 1, 1], [1, 1], (6 / 0.5**2) ** 0.5),
        ([(1, 2), (-1, 4), (9, 9)], [3, 9, None], [2, 2, 0], [1, 1], 2.0),  # a row that was skipped
        ([(1, 2), (-1, 4)], [float("nan"), 7], [1, 1], [1, 1], 2.0),  # not finite at twice the radius
        ([(1, 2), (-1, 4)], [float("nan"), float("inf")], [1, 1], [1, 1], None),
        ([(0, 0), (0, 0)], [0, 0], [1, 1], [1, 1], 0.0),  # no loss changed
        ([(1, 2), (1, 2)], [3, 7], [1, 1], [1, 1], None),  # all rows the same
        ([(1, 2)], [3], [1], [1, 1], None),  # a single row
        ([(1, 2), (-1, 4)], [3, 7], [1, 1], [0, 0], None),
    ],
)
def test_the_ratio(deltas, wide, weights, usable, expected):
    table = Slopes().table(deltas, wide, weights)
    quality = quality_of(table, 1.0, "forward", torch.tensor(usable, dtype=torch.bool))
    assert quality.snr == (None if expected is None else pytest.approx(expected))


def test_one_batch_has_no_ratio():
    callback = VAMOCallback(probes=2, directions=OrthonormalDirections())
    run = trainer(callbacks=[callback], limit_train_batches=1)
    run.fit(Perceptron(), loaders()[0])
    assert "vamo/probe_snr" not in run.callback_metrics
    assert run.callback_metrics["vamo/directions_dropped"] == 0


# The sweep's own precision


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.filterwarnings("ignore:You passed `Trainer.accelerator='cpu', precision='16-mixed'")
def test_a_float32_sweep_under_mixed_precision_takes_float32s_radius(precision):
    _, _, callback = fit(precision, sweep_precision="32-true")
    assert (COMPUTED_IN["sweep"], COMPUTED_IN["step"]) == ({torch.float32}, {torch.bfloat16})
    _, _, plain = fit()
    _, _, coarse = fit(precision)
    # Within a step of the search, where directions were learned from gradients that differ; bfloat16 needs a larger one.
    assert plain.sweeps[0].mu / 4.1 < callback.sweeps[0].mu < 4.1 * plain.sweeps[0].mu
    assert coarse.sweeps[0].mu > 10 * callback.sweeps[0].mu
    assert callback.report.steps == 24


def test_under_32_true_it_changes_nothing():
    _, one, _ = fit()
    _, other, _ = fit(sweep_precision="32-true")
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "16-true"])
def test_parameters_that_are_not_float32_are_refused(precision):
    message = rf"needs float32 parameters, but Trainer\(precision='{precision}'\) trains parameters of type torch\..*: leave"
    with pytest.raises(UnsupportedError, match=message):
        fit(precision, sweep_precision="32-true")


@pytest.mark.parametrize("precision", ["64-true", "bf16", 32, True])
def test_other_precisions_are_refused(precision):
    with pytest.raises(InvalidArgumentError, match=re.escape(f"must be '32-true' or None, got {precision!r}")):
        VAMOCallback(sweep_precision=precision)


@pytest.mark.parametrize(
    ("device", "precision", "matmul", "sweep_precision", "expected"),
    [
        ("cuda", "32-true", "highest", None, None),
        ("cuda", "32-true", "high", None, torch.float16),
        ("cuda", "32-true", "medium", "32-true", torch.float16),
        ("cuda", "bf16-mixed", "high", None, torch.bfloat16),
        ("cuda", "bf16-mixed", "high", "32-true", torch.float16),
        ("cuda", "bf16-mixed", "highest", "32-true", None),
        ("cuda", "64-true", "high", None, None),
        ("cuda", "bf16-true", "high", None, None),
        ("cpu", "32-true", "high", None, None),
        ("cpu", "16-mixed", "highest", None, torch.float16),
    ],
)
def test_the_arithmetic_behind_the_automatic_radius(device, precision, matmul, sweep_precision, expected):
    run = SimpleNamespace(precision=precision, strategy=SimpleNamespace(root_device=torch.device(device)))
    with patch("torch.get_float32_matmul_precision", lambda: matmul):
        assert arithmetic(run, sweep_precision) is expected


# The Trainer's precisions


TYPES = {"32-true": torch.float32, "64-true": torch.float64, "bf16-mixed": torch.float32, "bf16-true": torch.bfloat16}


@pytest.mark.parametrize("precision", [*TYPES, "16-true", "16-mixed"])
@pytest.mark.parametrize("difference", ["forward", "central"])
@pytest.mark.filterwarnings(f"ignore:{NOISY}")
@pytest.mark.filterwarnings("ignore:You passed `Trainer.accelerator='cpu', precision='16-mixed'")
def test_vamo_trains_in_every_precision(difference, precision):
    weights = []
    for _ in range(2 if difference == "forward" else 1):
        metrics, module, callback = fit(
            precision, Everywhere, directions=OrthonormalDirections(), difference=difference, probes=8
        )
        weights.append([parameter.detach().clone() for parameter in module.parameters()])
        assert callback.report.steps == 24
        assert metrics["vamo/directions_dropped"] == metrics["vamo/rows_unused"] == 0
        assert torch.isfinite(metrics["vamo/snapshot_loss"])
        assert 0 < metrics["vamo/variance_removed"] < 1
    assert all(torch.equal(one, other) for one, other in zip(weights[0], weights[-1], strict=True))
    assert {parameter.dtype for parameter in module.parameters()} == {
        {**TYPES, "16-true": torch.float16, "16-mixed": torch.float32}[precision]
    }


class Everywhere(Perceptron):
    """Few parameters, so that the probes remove something that shows."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 3)


def test_the_suites_module_is_measured_well_in_float32():
    metrics, _, _ = fit(cls=VAMOEverything)
    assert metrics["vamo/probe_snr"] > 5
