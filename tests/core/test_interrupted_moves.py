"""Weights come back bit for bit from a move that an exception interrupts, wherever it does."""

import sys
from itertools import count as from_zero
from pathlib import Path

import pytest
import torch

import lightning_vamo.core.gradient as package
from lightning_vamo.core.directions import GaussianDirections
from lightning_vamo.core.directions.random import streams
from lightning_vamo.core.gradient import excursion as module
from lightning_vamo.core.gradient import moved
from lightning_vamo.core.gradient.excursion import Excursion
from lightning_vamo.core.gradient.kept import KeptExcursion
from lightning_vamo.core.gradient.update import Rate, descend
from tests.support.bits import bits, same_bits
from tests.support.points import each, irregular, noise
from tests.support.problems import seeded

FOLDER = str(Path(package.__file__).parent)
KINDS = [Excursion, KeptExcursion]


class Interrupted(BaseException):
    """Stands for a KeyboardInterrupt, which pytest would take for its own."""


def interrupted(work, line):
    """Whether an exception interrupted some work before the given line of those that the package runs in the work."""
    lines, before = from_zero(), sys.gettrace()

    def trace(frame, event, argument):
        name = frame.f_code.co_filename
        if not name.startswith(FOLDER) or name.endswith("remainder.py"):  # what it does, it does to a copy
            return None
        if event == "line" and next(lines) == line:
            raise Interrupted
        return trace

    sys.settrace(trace)
    try:
        work()
    except Interrupted:
        return True
    finally:
        sys.settrace(before)
    return False


def moves(away):
    """Moves of each kind, and the way back."""
    away.go(0, 0.3)
    away.go(0, -0.3)
    away.go(1, 0.1)
    away.back()


def start(kind, dtype, count=2):
    """Parameters, directions, an excursion, and a copy of the parameters."""
    matrix, vector = irregular(dtype)[0][:2], noise([(9,)], dtype)[0]
    parameters = [matrix if kind is Excursion else matrix.contiguous(), vector]
    directions = GaussianDirections("seeded").draw(parameters, count, seeded(4))
    return parameters, directions, kind(parameters, directions), [parameter.clone() for parameter in parameters]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(streams, "CHUNK", 6)
    monkeypatch.setattr(module, "BLOCK", 4)
    monkeypatch.setattr(moved, "SMALL", 2)  # of both kinds: blocks of 2 are copied, blocks of 4 are not


@each("kind", KINDS)
@each("dtype", [torch.float32, torch.bfloat16])
def test_weights_come_back_wherever_a_move_is_interrupted(kind, dtype):
    for line in from_zero(step=5 if kind is Excursion else 1):
        parameters, _, away, before = start(kind, dtype)
        if not interrupted(lambda away=away: moves(away), line):
            break
        interrupted(away.back, 5 + line % 150)  # the way back is interrupted as well
        away.back()
        assert not away.away
        assert same_bits(parameters, before), line
        away.go(1, 0.2)
        assert not same_bits(parameters, before)
        away.back()
        assert same_bits(parameters, before), line
    assert line > 40


@each("kind", KINDS)
@each("dtype", [torch.float32, torch.bfloat16])
def test_each_weight_is_back_or_has_stepped_if_a_step_is_interrupted(kind, dtype):
    def step():
        descend(parameters, directions, [0.5], [Rate(0.1, 0.3), Rate(0.7)], away)

    parameters, directions, away, _ = start(kind, dtype, 1)
    away.go(0, 0.3)
    step()
    stepped = [parameter.clone() for parameter in parameters]
    for line in from_zero(step=5 if kind is Excursion else 1):
        parameters, directions, away, before = start(kind, dtype, 1)
        away.go(0, 0.3)
        if not interrupted(step, line):
            break
        away.back()
        for found, *either in zip(parameters, before, stepped, strict=True):
            one, other = (bits(found) == bits(allowed) for allowed in either)
            assert bool((one | other).all()), line
            assert kind is Excursion or bool(one.all()) or bool(other.all())
    assert same_bits(parameters, stepped)
    assert line > 15
