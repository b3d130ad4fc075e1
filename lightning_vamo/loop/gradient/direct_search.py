"""Direct search: compare the losses of a few points, and move the weights to the best point."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_vamo.core.directions import GaussianDirections
from lightning_vamo.core.gradient.excursion import Excursion
from lightning_vamo.core.gradient.kept import excursion as excursion_of
from lightning_vamo.core.gradient.update import descend
from lightning_vamo.core.probes.radius import check_radius
from lightning_vamo.errors import InvalidArgumentError, UnsupportedError
from lightning_vamo.loop import compat
from lightning_vamo.loop.gradient.base import Evaluated, Gradient, Step
from lightning_vamo.loop.gradient.evaluations import Evaluations, Others
from lightning_vamo.loop.gradient.moving import Moving, check_parameters, described, is_plain_sgd, rates
from lightning_vamo.loop.gradient.ranks import gathered
from lightning_vamo.loop.gradient.tally import one_more_lost
from lightning_vamo.loop.ledger.seeds import seeded

Variant = Literal["s2p", "stp", "vs2p"]

WINDOW = 100
"""The number of last steps whose differences ``"vs2p"`` takes the typical size from."""

RHO = 1e-3
"""The default of the distance at which ``"vs2p"`` compares losses."""

TAU = 3.0
r"""Both :math:`\tau_a` and :math:`\tau_b`, as the paper sets them."""


def check_variant(variant: object, rho: object) -> None:
    """Refuse an unknown variant or an invalid distance.

    Args:
        variant: The variant's name.
        rho: The distance at which losses are compared.

    Raises:
        InvalidArgumentError: If an argument is not allowed.
    """
    if variant not in get_args(Variant):
        raise InvalidArgumentError(f"`variant` must be one of {', '.join(map(repr, get_args(Variant)))}, got {variant!r}.")
    check_radius("rho", rho)
    if rho != RHO and variant != "vs2p":
        raise InvalidArgumentError(
            f"`rho` is the distance at which 'vs2p' compares losses, got rho={rho!r} with variant={variant!r}, which compares"
            " them at the learning rate: set variant='vs2p', or leave `rho` out."
        )


@dataclass
class _State:
    """The state that the next batch needs.

    Attributes:
        losses: Sum of the losses at each point over the batches of the coming step, shape ``(points,)``; None if there is none.
        differences: The differences of the last ``WINDOW`` steps.
        steps: Number of steps in the epoch.
        moved: Number of steps that moved the weights.
        length: Sum of the lengths of the moves, relative to the learning rate.
        lost: Number of steps of the run that did not move, since no loss or no difference of losses was finite.
    """

    losses: Tensor | None = None
    differences: list[float] = field(default_factory=list)
    steps: int = 0
    moved: int = 0
    length: float = 0.0
    lost: int = 0


class DirectSearch(Gradient):
    r"""Moves the weights to the best of :math:`x`, :math:`x + \alpha s` and :math:`x - \alpha s`, by the losses of a batch.

    Args:
        variant: Which points are compared, and how: see :class:`~lightning_vamo.S2PCallback`.
        rho: The distance from the weights at which ``"vs2p"`` compares losses.
    """

    uses_backward = False
    keeps_place = True

    def __init__(self, variant: Variant, rho: float) -> None:
        self._variant = variant
        self._rho = rho
        self._moving = Moving()
        self._others = Others()
        self._state = _State()
        self._name = "The callback"

    @property
    def forwards(self) -> int:
        """See :attr:`Gradient.forwards`."""
        return 3 if self._variant == "stp" else 2

    @property
    def lost(self) -> int:
        """See :attr:`Gradient.lost`."""
        return self._state.lost

    def begin(self, trainer: Trainer, module: LightningModule, name: str) -> None:
        """See :meth:`Gradient.begin`; the optimizer must be plain SGD, whose learning rate is the step length."""
        self._state, self._others, self._name = _State(), Others(), name
        compat.resharding(module)()
        check_parameters(self._moving.parameters(trainer, module), name)
        [optimizer] = trainer.optimizers
        if not is_plain_sgd(optimizer):
            raise UnsupportedError(
                f"{name} moves the weights itself, and uses only the optimizer's learning rate, as the step length, but"
                f" {described(optimizer)} has a step of its own: use torch.optim.SGD with neither momentum nor maximize."
            )
        if any(group.get("weight_decay") for group in optimizer.param_groups):
            raise UnsupportedError(
                f"{name} compares losses, and has no gradient that `weight_decay` could be added to: set weight_decay=0, and"
                " add the penalty to the loss."
            )
        if trainer.gradient_clip_val:
            raise UnsupportedError(
                f"{name} has no gradient that Trainer(gradient_clip_val=...) could clip: leave `gradient_clip_val` out."
            )
        if compat.grad_scale(trainer) is not None:
            raise UnsupportedError(
                f"{name} has no gradient that Trainer(precision={trainer.precision!r}) could scale: use the precision"
                " 'bf16-mixed' or '32-true'."
            )

    def release(self) -> None:
        """See :meth:`Gradient.release`."""
        self._others = Others()

    @torch.no_grad()
    def accumulate(self, step: Step) -> Evaluated:
        """See :meth:`Gradient.accumulate`; adds up the losses of each point, and moves the weights at the last batch."""
        trainer, state = step.trainer, self._state
        if step.first:
            compat.zero_grad(trainer, step.module, trainer.fit_loop.batch_idx)
            state.losses = None
        compat.resharding(step.module)()
        parameters = self._moving.parameters(trainer, step.module)
        seed = step.seeds.of(f"directions of step {trainer.global_step}")
        directions = GaussianDirections("seeded").draw(parameters, 1, seeded(seed))
        steps = rates(trainer.optimizers, parameters)
        points = self._points([rate.lr for rate in steps], directions.dimension**0.5)
        excursion = excursion_of(parameters, directions)
        try:
            with Evaluations(step, parameters, self._others, len(points)) as evaluate:
                losses = self._losses(evaluate, excursion, points)
            if losses is not None:
                state.losses = losses if state.losses is None else state.losses + losses
            if step.last:
                totals = self._totals(trainer, len(points))
                self._count(trainer, totals)
                if totals is not None and self._variant == "vs2p":
                    length = self._length(totals)
                    descend(parameters, directions, [length * directions.dimension**0.5], steps, excursion)
                elif totals is not None:
                    self._stay(excursion, points, totals)
        finally:
            excursion.back()
        return Evaluated(evaluate.outputs, forwards=evaluate.count, backwards=0, skipped=losses is None)

    def _points(self, lengths: Sequence[float], norm: float) -> list[list[float]]:
        r"""The points to compare, as distances along :math:`s/\sqrt d`, a distance for each parameter."""
        away = [norm * (self._rho if self._variant == "vs2p" else length) for length in lengths]
        pair = [away, [-distance for distance in away]]
        return [[0.0] * len(away), *pair] if self._variant == "stp" else pair

    def _losses(self, evaluate: Evaluations, excursion: Excursion, points: Sequence[Sequence[float]]) -> Tensor | None:
        """The losses of the batch at the points, float64, on the CPU; None if the batch has no loss."""
        losses = []
        for distances in points:
            if any(distances):
                excursion.go(0, distances)
            losses.append(evaluate())
        given = [loss.double() for loss in losses if loss is not None]
        return torch.stack(given).cpu() if len(given) == len(points) and evaluate.outputs else None

    def _totals(self, trainer: Trainer, count: int) -> Tensor | None:
        """The losses of the step's batches over all ranks; None if there are none."""
        losses, self._state.losses = self._state.losses, None
        given = torch.zeros(count, dtype=torch.float64, device="cpu") if losses is None else losses
        table = gathered(trainer, torch.cat([given, given.new_tensor([losses is not None])])).sum(dim=0)
        return table[:-1] if table[-1] > 0 else None

    def _count(self, trainer: Trainer, totals: Tensor | None) -> None:
        """Count a step whose losses are not finite, so that it cannot compare them."""
        finite = [True] if totals is None else totals.isfinite().tolist()
        by_differences = self._variant == "vs2p"
        if not (all(finite) if by_differences else any(finite)):
            smaller = "`rho`" if by_differences else "learning rate"
            self._state.lost = one_more_lost(self._state.lost, self._name, trainer.global_step, smaller)

    def _stay(self, excursion: Excursion, points: Sequence[Sequence[float]], totals: Tensor) -> None:
        """Leave the weights at the point with the least loss; at the first point if no loss is finite."""
        best = int(torch.where(totals.isfinite(), totals, torch.inf).argmin())
        moves = bool(totals[best].isfinite()) and any(points[best])
        if moves:
            excursion.go(0, points[best])
            excursion.stay()
        self._state.steps += 1
        self._state.moved += moves
        self._state.length += moves

    def _length(self, totals: Tensor) -> float:
        r"""The distance to move against :math:`s`, relative to the learning rate."""
        state, difference = self._state, float(totals[0] - totals[1])
        state.steps += 1
        if not abs(difference) < float("inf"):
            return 0.0
        state.differences = [*state.differences, difference][-WINDOW:]
        if difference == 0:
            return 0.0
        spread = math.sqrt(sum(one * one for one in state.differences) / len(state.differences))
        length: float = self._rho / (TAU * spread / abs(difference) + 1.0)
        state.moved += 1
        state.length += length
        return length if difference > 0 else -length

    # ---- epochs and checkpoints

    def end_epoch(self) -> dict[str, float]:
        """See :meth:`Gradient.end_epoch`."""
        state = self._state
        steps, moved, length = state.steps, state.moved, state.length
        state.steps = state.moved = 0
        state.length = 0.0
        figures = {"probes": 1.0}
        return figures | ({"moved": moved / steps, "length": length / steps} if steps else {})

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Gradient.state_dict`."""
        return dict(vars(self._state))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`Gradient.load_state_dict`."""
        self._state = _State(**state)
