"""Gradients of batches as control variates, against sums written out by hand."""

import pytest
import torch

from lightning_vamo.core.control.anchored import Falling, Fixed, GradientCorrection, GradientRegression
from lightning_vamo.core.control.gradients import GradientTable
from lightning_vamo.errors import UnsupportedError
from tests.support.problems import LogisticRegression, batches_of, seeded

WIDE = {"dtype": torch.float64}


def problem():
    found = LogisticRegression(samples=22, shapes=[(2, 3), (), (4,)])
    return found, found.start(requires_grad=True), batches_of(22, 5, seed=3)


def table_of(found, point, batches, **options):
    table = GradientTable(point, torch.tensor([float(len(batch)) for batch in batches]), **options)
    for row, batch in enumerate(batches):
        table.put(row, found.gradients(point, batch), 1.0, torch.tensor(True))
    table.begin_epoch()
    return table


def centred(table, batch, point):
    into = [torch.zeros_like(p) for p in point]
    table.add_centred(batch, into, 1.0)
    return into


def test_rows_are_gradients_against_the_full_one_and_cancel():
    found, point, batches = problem()
    table, full = table_of(found, point, batches), found.gradients(point)
    total = [torch.zeros_like(p) for p in point]
    for k, batch in enumerate(batches):
        for row, gradient, mean, added in zip(
            centred(table, k, point), found.gradients(point, batch), full, total, strict=True
        ):
            assert torch.allclose(row, gradient - mean, **{"rtol": 1e-12, "atol": 1e-14})
            added += len(batch) * row
    assert all(torch.allclose(part, torch.zeros_like(part), atol=1e-13) for part in total)
    with pytest.raises(IndexError, match=r"in \[0, 5\).*got 5"):
        centred(table, 5, point)


def test_a_batch_without_a_finite_gradient_or_without_samples_has_no_row_and_no_part_in_the_mean():
    point, ones = [torch.zeros(3, **WIDE)], torch.ones(3, **WIDE)
    table = GradientTable(point, torch.tensor([1.0, 2.0, 0.0, 1.0]))
    for row, (factor, finite) in enumerate([(1.0, True), (4.0, True), (9.0, True), (float("inf"), False)]):
        table.put(row, [ones], factor, torch.tensor(finite))
    table.begin_epoch()
    assert table.unknown == 1
    assert [centred(table, k, point)[0][0].item() for k in range(4)] == [1 - 3, 4 - 3, 0, 0]


def test_rows_put_within_an_epoch_are_used_in_the_next():
    point = [torch.zeros(2, **WIDE)]
    table = GradientTable(point, torch.ones(4), group=2)
    assert not table.ready
    table.put(0, [torch.tensor([1.0, 2.0])], 1.0, torch.tensor(True))
    table.put(1, [torch.tensor([3.0, 6.0])], 1.0, torch.tensor(True))
    assert centred(table, 0, point)[0].tolist() == [0, 0]  # they had no part in the mean
    table.begin_epoch()
    assert table.ready
    assert centred(table, 1, point)[0].tolist() == [-1, -2]
    assert centred(table, 2, point)[0].tolist() == [1, 2]
    table.put(0, [None], 1.0, torch.tensor(True))  # zeros, against the mean as it was
    assert centred(table, 0, point)[0].tolist() == [-2, -4]
    assert (table.row_of([2, 3]), table.row_of([1, 2]), len(table)) == (1, None, 4)


def test_a_table_goes_on_from_its_state_in_the_type_that_it_has():
    found, point, batches = problem()
    table = table_of(found, point, batches, dtype=torch.bfloat16)
    assert GradientTable.size(point, len(batches), torch.bfloat16) == 5 * 11 * 2
    assert GradientTable.size(point, len(batches)) == 5 * 11 * 8
    again = GradientTable.of(table.state_dict(), point)
    for k in range(len(batches)):
        for one, other in zip(centred(table, k, point), centred(again, k, point), strict=True):
            assert torch.equal(one, other)
            assert one.dtype == torch.float64


def test_what_is_taken_out_and_what_that_removed():
    point = [torch.zeros(4, **WIDE, requires_grad=True), torch.zeros(2, **WIDE, requires_grad=True), torch.zeros(3)]
    gradient, row = (torch.randn(6, generator=seeded(k), **WIDE) for k in range(2))
    for scale in (None, lambda tensor: 8 * tensor):
        factor = 1 if scale is None else 8
        point[0].grad, point[1].grad = (part.clone() * factor for part in gradient.split([4, 2]))
        correction = GradientCorrection(point, Fixed(0.3))
        before, removed = correction.apply([*row.split([4, 2]), torch.ones(3)], scale)
        left = torch.cat([point[0].grad, point[1].grad]) / factor
        assert torch.allclose(left, gradient - 0.3 * row, rtol=1e-12)
        assert before.item() == pytest.approx(gradient.square().sum().item(), rel=1e-12)
        assert (before - removed).item() == pytest.approx(left.square().sum().item(), rel=1e-12)
        assert point[2].grad is None


def test_a_row_that_is_not_finite_is_left_out_everywhere():
    point = [torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)]
    for parameter in point:
        parameter.grad = torch.ones(2)
    correction = GradientCorrection(point, regression := GradientRegression())
    before, removed = correction.apply([torch.ones(2), torch.tensor([1.0, float("inf")])])
    assert all(parameter.grad.tolist() == [1, 1] for parameter in point)
    assert (before.item(), removed.item(), bool(correction.usable)) == (4, 0, False)
    assert regression.factors().tolist() == [1]


def test_sparse_gradients_are_refused():
    point = [torch.zeros(3, 2, requires_grad=True)]
    point[0].grad = torch.zeros(3, 2).to_sparse()
    with pytest.raises(UnsupportedError, match="sparse gradient"):
        GradientCorrection(point, Fixed(1.0)).apply([torch.zeros(3, 2)])


def test_the_coefficients():
    assert [Falling().factors(share) for share in (0.0, 0.5, 1.0)] == [0.75, 0.375, 0.0]
    regression, generator = GradientRegression(), seeded(5)
    assert regression.factors().item() == 1
    for _ in range(400):
        row, noise = torch.randn(50, generator=generator, **WIDE), torch.randn(50, generator=generator, **WIDE)
        gradient = 0.6 * row + noise
        regression.see(gradient @ row, row @ row)
    assert regression.factors().item() == pytest.approx(0.6, abs=0.03)
    known = regression.factors()
    regression.see(torch.tensor(float("nan")), torch.tensor(1.0))
    regression.see(torch.tensor(0.0), torch.tensor(0.0))
    assert regression.factors() == known
    assert GradientRegression.of(regression.state_dict()).factors() == known
    for _ in range(800):
        regression.see(torch.tensor(-1.0, **WIDE), torch.tensor(1.0, **WIDE))
    assert regression.factors().item() == 0
