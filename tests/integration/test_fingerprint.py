"""The fingerprint of a batch: the same by the short way through numpy and by the way that every tensor can go."""

import pytest
import torch

from lightning_vamo.loop.plan.fingerprint import fingerprint


class Subclass(torch.Tensor):
    """A tensor that cannot go the short way."""


TENSORS = {
    "float32": torch.arange(5000.0).view(50, 100),
    "float64": torch.arange(7.0, dtype=torch.float64),
    "int64": torch.arange(3000),
    "int32": torch.arange(12, dtype=torch.int32).view(3, 4),
    "uint8": torch.arange(200, dtype=torch.uint8),
    "bool": torch.arange(9) % 2 == 0,
    "transposed": torch.arange(6000.0).view(60, 100).t(),
    "strided": torch.arange(6000.0)[::3],
    "number": torch.tensor(3.5),
    "empty": torch.zeros(0, 4),
}


@pytest.mark.parametrize("name", TENSORS)
def test_both_ways_give_the_same(name):
    tensor = TENSORS[name]
    assert fingerprint([tensor]) == fingerprint([tensor.as_subclass(Subclass)])


def test_other_numbers_shapes_and_types_are_told_apart():
    tensor = torch.arange(12.0)
    others = [tensor + 1, tensor.view(3, 4), tensor.double(), tensor.bfloat16(), tensor.to(torch.int64)]
    assert len({fingerprint(each) for each in [tensor, *others]}) == 6


def test_a_batch_without_numbers_has_none():
    assert fingerprint({"text": ["a", "b"]}) is None
    assert fingerprint(torch.zeros(3, device="meta")) is None
