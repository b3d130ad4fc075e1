import numpy as np
import pytest
import torch

from lightning_vamo.core.control.carried import CarriedRows
from lightning_vamo.core.control.coefficients import Regression
from lightning_vamo.core.control.correction import Correction
from lightning_vamo.core.directions import CoordinateDirections, GradientSubspaceDirections, OrthonormalDirections
from lightning_vamo.core.directions.slopes import Slopes
from lightning_vamo.errors import InvalidArgumentError
from tests import reference
from tests.support.learning import fed, gradients
from tests.support.problems import LeastSquares, batches_of, seeded

WEIGHTS = torch.tensor([8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 3.0])


def slopes(number, count=3, seed=0):
    return torch.randn(number, count, generator=seeded(seed), dtype=torch.float64) + 100


def steps_of(batches, group):
    return [list(range(first, min(first + group, batches))) for first in range(0, batches, group)]


def epoch(table, measured, group=1, order=None):
    """Use and refresh each row; what each step was corrected with, as a mean over its batches."""
    used = []
    steps = steps_of(len(table), group)
    for index in order or range(len(steps)):
        used.append((index, torch.stack([table.correction(batch) for batch in steps[index]]).mean(dim=0)))
        table.refresh(steps[index], Slopes.of(measured[index] * len(steps[index]) / group), group)
    return torch.stack([row for _, row in sorted(used, key=lambda pair: pair[0])])


@pytest.mark.parametrize("decay", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("group", [1, 2, 3])
def test_an_epoch_is_corrected_with_the_centred_means_of_the_rows_before(group, decay):
    number = -(-7 // group)
    table = CarriedRows(WEIGHTS, 3, 0.5, group, decay=decay)
    weights = torch.stack([WEIGHTS[step].sum() for step in steps_of(7, group)]).double()
    last = None
    for number_of_epoch in range(4):
        table.begin_epoch()
        measured = slopes(number, seed=number_of_epoch)
        order = torch.randperm(number, generator=seeded(number_of_epoch)).tolist()
        used = epoch(table, measured, group, order)
        assert table.ready == (last is not None)
        if last is None:
            assert not used.any()
        else:
            mean = reference.weighted_mean(last.numpy(), weights.tolist())
            assert table.mean.numpy() == pytest.approx(mean, rel=1e-14)
            assert used.numpy() == pytest.approx(0.5 * (last.numpy() - mean), abs=1e-12)
        # However the rows change meanwhile, the corrections of the epoch cancel.
        assert float((weights @ used).abs().max()) < 1e-10
        last = measured if last is None else decay * last + (1 - decay) * measured


def test_the_mean_stays_exact_over_hundreds_of_epochs():
    table, state = CarriedRows(WEIGHTS, 2, deltas=slopes(7, 2)), slopes(7, 2).clone()
    for index in range(300):
        order = torch.randperm(7, generator=seeded(index)).tolist()[:5]  # as if some steps had not come
        fresh = slopes(7, 2, seed=index) * 10.0 ** (index % 7 - 3)
        for row in order:
            table.refresh([row], Slopes.of(fresh[row]))
            state[row] = 0.5 * state[row] + 0.5 * fresh[row]
        table.begin_epoch()
        exact = reference.weighted_mean(state.numpy(), WEIGHTS.tolist())
        assert np.abs(table.mean.numpy() - exact).max() <= 1e-14 * np.abs(state.numpy()).max()


def test_a_swept_table_begins_with_the_means_of_its_groups():
    deltas, weights = slopes(5, 2), torch.tensor([8.0, 8.0, 0.0, 8.0, 3.0])
    deltas[2] = torch.nan  # of a batch that gave no loss
    table = CarriedRows(weights, 2, group=2, deltas=deltas)
    rows = torch.stack([deltas[:2].mean(dim=0), deltas[3], deltas[4]])
    mean = (16 * rows[0] + 8 * rows[1] + 3 * rows[2]) / 27
    assert table.ready
    assert torch.allclose(table.mean, mean, rtol=1e-14)
    for batch, row in enumerate((0, 0, 1, 1, 2)):
        assert torch.allclose(table.correction(batch), rows[row] - mean, atol=1e-12)


def test_rows_that_the_filling_epoch_left_out_have_no_part():
    table, measured = CarriedRows(WEIGHTS, 3), slopes(7)
    for batch in (0, 2, 3, 6):
        table.refresh([batch], Slopes.of(measured[batch]))
    assert not table.correction(0).any()  # until the epoch ends
    table.begin_epoch()
    assert not table.correction(1).any()
    used = torch.stack([table.correction(batch) for batch in range(7)])
    assert torch.allclose(WEIGHTS.double() @ used, torch.zeros(3, dtype=torch.float64), atol=1e-10)
    table.refresh([1], Slopes.of(measured[1]))
    assert not table.correction(1).any()  # the mean of this epoch is without it
    table.begin_epoch()
    assert table.correction(1).any()


def test_nothing_of_a_step_that_is_skipped_is_kept():
    table = CarriedRows(torch.ones(3), 2)
    table.refresh([1], Slopes.of(torch.tensor([1.0, torch.inf])))
    table.begin_epoch()
    assert not torch.stack([table.correction(batch) for batch in range(3)]).any()
    table = CarriedRows(torch.ones(3), 2, deltas=slopes(3, 2))
    before = [table.correction(batch) for batch in range(3)]
    table.refresh([1], Slopes.of(torch.tensor([torch.nan, 1.0])))
    table.begin_epoch()
    assert all(torch.equal(table.correction(batch), row) for batch, row in enumerate(before))


def test_a_step_across_two_rows_refreshes_neither():
    table = CarriedRows(torch.ones(4), 2, group=2, deltas=slopes(4, 2))
    before = table.correction(0), table.correction(2)
    table.refresh([1, 2], Slopes.of(torch.ones(2)), 2)
    assert torch.equal(table.correction(0), before[0])
    assert torch.equal(table.correction(2), before[1])


def test_the_batches_of_a_step_that_gave_a_gradient_stand_for_its_row():
    table = CarriedRows(torch.ones(4), 1, group=2)
    table.refresh([1], Slopes.of(torch.tensor([3.0])), 2)  # half of a mean over two
    table.refresh([2, 3], Slopes.of(torch.tensor([4.0])), 2)
    table.begin_epoch()
    assert table.mean.tolist() == [5.0]
    assert table.correction(0).tolist() == [1.0]


@pytest.mark.parametrize("row", [-1, 7])
def test_a_batch_outside_the_plan_is_an_index_error(row):
    with pytest.raises(IndexError, match=rf"`key` must be in \[0, 7\), the batches of the plan, got {row}"):
        CarriedRows(WEIGHTS, 3, group=2).correction(row)


@pytest.mark.parametrize(("weights", "deltas"), [((7, 1), None), ((7,), (7, 2)), ((7,), (6, 3))])
def test_shapes_that_do_not_fit_are_refused(weights, deltas):
    with pytest.raises(InvalidArgumentError, match=r"`weights` must have shape \(K,\) and `deltas` must have shape \(K, 3\)"):
        CarriedRows(torch.ones(weights), 3, deltas=None if deltas is None else torch.ones(deltas))


def test_a_table_goes_on_from_its_state():
    table = CarriedRows(WEIGHTS, 3, 0.5, 2, slopes(7), decay=0.25)
    epoch(table, slopes(4, seed=1), 2, [2, 0])
    state = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in table.state_dict().items()}
    other = CarriedRows.of(state, torch.device("cpu"), 0.5, 0.25)
    for one in (table, other):
        epoch(one, slopes(4, seed=2), 2, [1, 3])
        one.begin_epoch()
    assert len(other) == 7
    assert torch.equal(table.mean, other.mean)
    assert all(torch.equal(table.correction(batch), other.correction(batch)) for batch in range(7))


def test_a_table_that_goes_on_follows_the_present_decay():
    table = CarriedRows(WEIGHTS, 3, deltas=slopes(7))
    other = CarriedRows.of(table.state_dict(), torch.device("cpu"), 1.0, 0.0)
    epoch(other, slopes(7, seed=1))
    other.begin_epoch()
    assert other.mean.numpy() == pytest.approx(reference.weighted_mean(slopes(7, seed=1).numpy(), WEIGHTS.tolist()))


# Turning


@pytest.mark.parametrize("rank", [1, 2, None], ids=["rank-1", "rank-2", "dense"])
@pytest.mark.parametrize("others", [2, 3, 5])
def test_coordinates_turn_as_the_vector_in_the_span_does(rank, others):
    shapes = [(6, 5), (4, 3), (7,)]
    points = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
    learner, one = fed(GradientSubspaceDirections(rank), points, gradients(shapes, 30))
    for step in gradients(shapes, 30, seed=8):
        learner.observe(step)
    other = learner.directions(others, seeded(5))
    turning = one.turning(other, points)
    bases = [torch.stack([each.whiten(row) for row in torch.eye(each.count, dtype=torch.float64)]) for each in (one, other)]
    dense = [basis @ each.dense(points) for basis, each in zip(bases, (one, other), strict=True)]
    assert torch.allclose(turning, dense[0] @ dense[1].T, atol=1e-12)
    coordinates = torch.randn(4, 3, generator=seeded(2), dtype=torch.float64)
    table = CarriedRows(torch.ones(4), 3, deltas=coordinates)
    table.turn(turning)
    centred = (coordinates - coordinates.mean(dim=0)) @ dense[0]
    for batch in range(4):
        assert torch.allclose(table.correction(batch), centred[batch] @ dense[1].T, atol=1e-12)


def test_turning_to_the_same_span_loses_nothing():
    points = [torch.zeros(3, 2), torch.zeros(4)]
    one = OrthonormalDirections().draw(points, 10, seeded(0))
    other = CoordinateDirections().draw(points, 10, seeded(1))
    turning = one.turning(other, points)
    assert torch.allclose(turning.T @ turning, torch.eye(10), atol=1e-5)
    vector = [torch.randn(part.shape, generator=seeded(2)) for part in points]
    assert torch.allclose(one.project(vector) @ turning, other.project(vector), atol=1e-5)


# In a correction


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("scale", [None, lambda value: 1024 * value], ids=["", "scaled"])
def test_a_step_uses_its_row_then_refreshes_it(group, scale):
    problem, family = LeastSquares(34, [(3, 2), (2,)]), OrthonormalDirections()
    parameters = problem.start()
    directions = family.draw(parameters, 8, seeded(0))
    batches = batches_of(34, 6, seed=1)
    table = CarriedRows(torch.tensor([float(len(batch)) for batch in batches]), 8, group=group)
    correction = Correction(parameters, directions, table)
    unit = 1.0 if scale is None else 1024.0
    points, corrected = [], []
    for index in range(2):
        table.begin_epoch()
        for steps in steps_of(len(batches), group):
            with torch.no_grad():
                for parameter in parameters:
                    parameter.add_(0.1)
            points.append([parameter.clone() for parameter in parameters])
            for position, parameter in enumerate(parameters):
                parts = [problem.gradients(parameters, batches[batch])[position] for batch in steps]
                parameter.grad = unit * sum(parts) / group
            moments = correction.apply(steps, group, scale)
            assert (moments is None) == (index == 0)
            corrected.append(torch.cat([parameter.grad.reshape(-1) for parameter in parameters]) / unit)
    number = len(steps_of(len(batches), group))
    sizes = torch.tensor([float(sum(len(batches[batch]) for batch in steps)) for steps in steps_of(len(batches), group)])

    def gradient(point, steps):  # the mean over the batches of a step
        parts = [torch.cat([part.reshape(-1) for part in problem.gradients(point, batches[batch])]) for batch in steps]
        return torch.stack(parts).mean(dim=0)

    rows = torch.stack([gradient(points[index], steps) for index, steps in enumerate(steps_of(len(batches), group))])
    mean = sizes.double() @ rows / sizes.sum()
    for index, steps in enumerate(steps_of(len(batches), group)):
        share = len(steps) / group
        assert torch.allclose(corrected[index], share * rows[index], atol=1e-12)
        expected = share * (gradient(points[number + index], steps) - rows[index] + mean)
        assert torch.allclose(corrected[number + index], expected, atol=1e-12)


def test_a_filling_epoch_teaches_the_regression_nothing():
    parameters = [torch.zeros(4)]
    directions = CoordinateDirections().draw(parameters, 2, seeded(0))
    regression = Regression(2)
    table = CarriedRows(torch.ones(3), 2)
    correction = Correction(parameters, directions, table, coefficient=regression)
    gradient = torch.arange(4.0)
    parameters[0].grad = gradient.clone()
    assert correction.apply([0]) is None
    assert torch.equal(parameters[0].grad, gradient)
    assert not regression.state_dict()["sums"][4].any()
    table.begin_epoch()
    assert correction.apply([0]) is not None
    assert regression.state_dict()["sums"][4].all()
