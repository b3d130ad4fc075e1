import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_vamo.core import ControlVariate
from lightning_vamo.errors import InvalidArgumentError
from tests import reference
from tests.support.problems import seeded


def table(batches, count, dtype=torch.float64, seed=0):
    """Probe differences with a mean that is far from zero."""
    return (torch.randn(batches, count, generator=seeded(seed), dtype=torch.float64) + 100).to(dtype)


def corrections(control):
    return torch.stack([control.correction(row) for row in range(len(control))])


def test_a_correction_is_a_scaled_difference_from_the_weighted_mean():
    deltas, weights = table(4, 3), torch.tensor([8.0, 8.0, 8.0, 3.0])
    control = ControlVariate(deltas, weights, 0.5)
    mean = reference.weighted_mean(deltas.numpy(), weights.tolist())
    assert len(control) == 4
    assert control.mean.numpy() == pytest.approx(mean, rel=1e-14)
    for row in range(4):
        assert control.correction(row).numpy() == pytest.approx(0.5 * (deltas[row].numpy() - mean), abs=1e-13)


def test_the_mean_is_that_over_samples_not_over_batches():
    deltas = torch.tensor([[1.0], [4.0]])
    control = ControlVariate(deltas, torch.tensor([2, 1]), 1.0)
    assert control.mean.tolist() == [2.0]
    assert corrections(control).tolist() == [[-1.0], [2.0]]


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 1e-7)])
@pytest.mark.parametrize("weights", ["equal", "last smaller", "random"])
def test_the_weighted_corrections_of_an_epoch_cancel_to_rounding(weights, dtype, most):
    batches = 2000
    w = torch.full((batches,), 64.0, dtype=dtype)
    if weights == "last smaller":
        w[-1] = 17
    if weights == "random":
        w = torch.randint(1, 100, (batches,), generator=seeded(1)).to(dtype)
    control = ControlVariate(table(batches, 5, dtype), w, 1.0)
    residue = (w.double() @ corrections(control).double()) / w.double().sum()
    assert float(residue.abs().max()) < most
    assert float(corrections(control).abs().mean()) > 0.5


def test_in_float32_the_corrections_cancel_as_the_rows_they_came_from_were_rounded_not_as_a_float32_mean_is():
    # A mean of 20,000 numbers near 100 that were added up in float32 would be off by far more.
    deltas, weights = table(20_000, 1, torch.float32), torch.ones(20_000)
    residue = corrections(ControlVariate(deltas, weights, 1.0)).double().mean()
    assert abs(float(residue)) < 1e-8


def test_a_batch_of_weight_zero_has_no_part_in_the_mean_and_no_correction():
    deltas = table(4, 3)
    deltas[1] = 0.0
    weights = torch.tensor([8.0, 0.0, 8.0, 4.0])
    control = ControlVariate(deltas, weights, 1.0)
    rest = ControlVariate(deltas[[0, 2, 3]], weights[[0, 2, 3]], 1.0)
    assert torch.equal(control.correction(1), torch.zeros(3, dtype=torch.float64))
    assert torch.allclose(control.mean, rest.mean, rtol=1e-15)
    assert torch.allclose(corrections(control)[[0, 2, 3]], corrections(rest), atol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.25, 1.0, 3.0])
def test_beta_scales_the_corrections_and_not_the_mean(beta):
    deltas, weights = table(6, 2), torch.ones(6)
    unit, scaled = ControlVariate(deltas, weights, 1.0), ControlVariate(deltas, weights, beta)
    assert torch.allclose(corrections(scaled), beta * corrections(unit), rtol=1e-14)
    assert torch.equal(scaled.mean, unit.mean)


def test_a_single_batch_needs_no_correction():
    assert torch.equal(ControlVariate(table(1, 3), torch.tensor([5.0]), 1.0).correction(0), torch.zeros(3).double())


def test_the_table_is_not_the_callers_and_keeps_its_type():
    deltas = table(3, 2, torch.float32)
    before = deltas.clone()
    control = ControlVariate(deltas, torch.ones(3), 1.0)
    expected = corrections(control).clone()
    assert torch.equal(deltas, before)
    deltas.zero_()
    assert torch.equal(corrections(control), expected)
    assert control.correction(0).dtype == control.mean.dtype == torch.float32


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(weights=st.lists(st.integers(0, 50), min_size=1, max_size=12), count=st.integers(1, 4), beta=st.floats(0, 3))
def test_the_corrections_cancel_whatever_the_weights(weights, count, beta):
    deltas, w = table(len(weights), count), torch.tensor(weights)
    if sum(weights) == 0:
        with pytest.raises(InvalidArgumentError, match="no batch gave a loss"):
            ControlVariate(deltas, w, beta)
        return
    control = ControlVariate(deltas, w, beta)
    assert (w.double() @ corrections(control)).numpy() == pytest.approx(np.zeros(count), abs=1e-10)


@pytest.mark.parametrize("row", [-1, 4, 100])
def test_a_row_outside_the_plan_is_an_index_error(row):
    control = ControlVariate(table(4, 3), torch.ones(4), 1.0)
    with pytest.raises(IndexError, match=rf"`key` must be in \[0, 4\), the batches of the plan, got {row}"):
        control.correction(row)


@pytest.mark.parametrize(("deltas", "weights"), [((4,), (4,)), ((4, 3), (3,)), ((4, 3), (4, 1)), ((2, 4, 3), (2,))])
def test_shapes_that_do_not_fit_are_refused(deltas, weights):
    with pytest.raises(InvalidArgumentError, match=r"`deltas` must have shape \(K, q\)") as error:
        ControlVariate(torch.ones(deltas), torch.ones(weights), 1.0)
    assert f"got {deltas} and {weights}" in str(error.value)


@pytest.mark.parametrize("weights", [[0.0, 0.0], [-1.0, 3.0], [-1.0, 0.0]])
def test_weights_that_are_negative_or_all_zero_are_refused(weights):
    with pytest.raises(InvalidArgumentError, match="`weights` must be non-negative with a positive sum"):
        ControlVariate(table(2, 3), torch.tensor(weights), 1.0)


def test_an_empty_plan_is_refused():
    with pytest.raises(InvalidArgumentError, match="no batch gave a loss"):
        ControlVariate(torch.ones(0, 3), torch.ones(0), 1.0)
