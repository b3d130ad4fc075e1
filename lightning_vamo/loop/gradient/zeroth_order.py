"""The gradient from forward passes alone: differences of the loss along random directions at the present weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_vamo.core.directions import Directions, ProbeDirections
from lightning_vamo.core.gradient.excursion import Excursion
from lightning_vamo.core.gradient.kept import excursion as excursion_of
from lightning_vamo.core.gradient.update import descend, write_gradient
from lightning_vamo.core.probes.along import Along
from lightning_vamo.core.probes.clipping import check_clip, clipped
from lightning_vamo.core.probes.difference import Difference, check_difference, numbers_of
from lightning_vamo.core.probes.radius import auto_mu, check_mu
from lightning_vamo.core.sharding import is_sharded
from lightning_vamo.errors import InvalidArgumentError, UnsupportedError, shown
from lightning_vamo.loop import compat
from lightning_vamo.loop.checks import check_whole
from lightning_vamo.loop.gradient.base import Evaluated, Gradient, Step
from lightning_vamo.loop.gradient.evaluations import Evaluations, Others
from lightning_vamo.loop.gradient.moving import Chosen, Moving, check_chosen, check_parameters, described, is_plain_sgd, rates
from lightning_vamo.loop.gradient.ranks import gathered
from lightning_vamo.loop.gradient.tally import Tally, one_more_lost
from lightning_vamo.loop.ledger.seeds import seeded
from lightning_vamo.loop.sweep.precision import arithmetic

Update = Literal["auto", "in-place", "gradient"]
Share = Literal["batches", "probes"]


@dataclass(frozen=True)
class Settings:
    """The settings of the estimate; :class:`~lightning_vamo.MeZOCallback` explains each setting.

    Raises:
        InvalidArgumentError: If a setting is not allowed.
    """

    probes: int
    directions: Directions
    mu: float | Literal["auto"] = 1e-3
    difference: Difference = "central"
    update: Update = "auto"
    clip: float | None = None
    parameters: Chosen = None
    share: Share = "batches"

    def __post_init__(self) -> None:
        check_whole("probes", self.probes)
        check_mu(self.mu)
        check_difference(self.difference)
        check_clip(self.clip)
        check_chosen(self.parameters)
        if not isinstance(self.directions, Directions) or self.directions.learns:
            raise InvalidArgumentError(
                "`directions` must be a family of directions that does not learn from gradients, such as"
                f" GaussianDirections(), got {shown(self.directions)}."
            )
        for name, allowed in (("update", get_args(Update)), ("share", get_args(Share))):
            if getattr(self, name) not in allowed:
                names = ", ".join(map(repr, allowed))
                raise InvalidArgumentError(f"`{name}` must be one of {names}, got {getattr(self, name)!r}.")

    @property
    def evaluations(self) -> int:
        """The number of forward passes of a batch."""
        return 2 * self.probes if self.difference == "central" else 1 + self.probes


@dataclass
class _State:
    """The state that the next batch needs.

    Attributes:
        slopes: Sums of the ``q`` derivatives over the batches of the coming step; None if there are none.
        epoch: The epoch that ``masks`` and ``radius`` were made in; None before the first epoch.
        masks: The state that the family keeps of its point.
        radius: Smoothing radius along a direction; None if the arguments give the radius.
        tally: Statistics of the epoch.
        lost: Number of steps of the run that left out a derivative that was not finite.
    """

    slopes: list[float] | None = None
    epoch: int | None = None
    masks: Any = None
    radius: float | None = None
    tally: Tally = field(default_factory=Tally)
    lost: int = 0


class ZerothOrder(Gradient):
    r"""Estimates the gradient of a batch from ``2q`` or ``1 + q`` evaluations of its loss, without a backward pass.

    .. math:: g = \frac{1}{q} \sum_j \delta_j z_j,
        \qquad \delta_j = \frac{f_B(x + \mu z_j) - f_B(x - \mu z_j)}{2\mu}, \qquad z_j = \sqrt d\, u_j

    With plain SGD the weights move by the step in place. For any other optimizer the estimate is put into ``.grad``.

    Args:
        settings: The settings of the estimate.
    """

    uses_backward = False
    keeps_place = True

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._moving = Moving(settings.parameters)
        self._state = _State()
        self._others = Others()
        self._family: Directions | None = None
        self._name = "The callback"
        self._is_read = False  # whether the user's code may read the gradient before the step

    @property
    def forwards(self) -> int:
        """See :attr:`Gradient.forwards`."""
        return self.settings.evaluations

    @property
    def lost(self) -> int:
        """See :attr:`Gradient.lost`."""
        return self._state.lost

    def begin(self, trainer: Trainer, module: LightningModule, name: str) -> None:
        """See :meth:`Gradient.begin`."""
        settings, self._name = self.settings, name
        self._moving, self._others = Moving(settings.parameters), Others()
        self._state, self._family = _State(), None
        self._is_read = compat.reads_gradients(trainer, module)
        compat.resharding(module)()
        parameters = self._moving.parameters(trainer, module)
        check_parameters(parameters, name)
        count = settings.probes * (trainer.world_size if settings.share == "probes" else 1)
        settings.directions.check_count(count, sum(parameter.numel() for parameter in parameters))
        if settings.share == "probes" and any(map(is_sharded, parameters)):
            raise UnsupportedError(
                f"{name}(share='probes') needs whole weights on each rank, since ranks evaluate different points, but the"
                " weights are sharded: use share='batches', or train with DDP."
            )
        if settings.update == "in-place" and (reason := _hindrance(trainer)):
            raise UnsupportedError(
                f"{name}(update='in-place') moves the weights as plain SGD does, but {reason}: use update='auto', or"
                " torch.optim.SGD without momentum and maximize, and neither gradient clipping nor '16-mixed'."
            )

    def release(self) -> None:
        """See :meth:`Gradient.release`."""
        self._others = Others()

    @torch.no_grad()
    def accumulate(self, step: Step) -> Evaluated:
        """See :meth:`Gradient.accumulate`; adds up derivatives, and at the last batch moves weights or writes a gradient."""
        trainer, settings, state = step.trainer, self.settings, self._state
        if step.first:
            compat.zero_grad(trainer, step.module, trainer.fit_loop.batch_idx)
            state.slopes = None
        compat.resharding(step.module)()
        along = step.shared or self._along(step)
        parameters, directions = along.parameters, along.directions
        own = self._own(trainer)
        excursion = excursion_of(parameters, directions)
        try:
            with Evaluations(step, parameters, self._others, settings.evaluations) as evaluate:
                slopes = self._slopes(evaluate, excursion, own, along.mu, directions.dimension**0.5)
            if slopes is not None:
                slopes = [slope / trainer.accumulate_grad_batches for slope in slopes]
                before = state.slopes or [0.0] * len(slopes)
                state.slopes = [sum(pair) for pair in zip(before, slopes, strict=True)]
            if step.last:
                self._step(trainer, parameters, directions, excursion)
        finally:
            excursion.back()
        return Evaluated(evaluate.outputs, forwards=evaluate.count, backwards=0, skipped=slopes is None)

    # ---- directions

    def _own(self, trainer: Trainer) -> range:
        """The directions that this rank evaluates."""
        first = trainer.global_rank * self.settings.probes if self.settings.share == "probes" else 0
        return range(first, first + self.settings.probes)

    def _along(self, step: Step) -> Along:
        """The directions of an optimizer step, the same for all its batches, and the radius along them."""
        trainer, settings, state = step.trainer, self.settings, self._state
        parameters = self._moving.parameters(trainer, step.module)
        if self._family is None or state.epoch != trainer.current_epoch:
            resumed = state.epoch == trainer.current_epoch
            self._family = settings.directions.seeded().at(parameters, state.masks if resumed else None)
            state.masks, state.epoch = self._family.state(), trainer.current_epoch
            state.radius = (state.radius if resumed else None) or self._radius(trainer, parameters)
        count = settings.probes * (trainer.world_size if settings.share == "probes" else 1)
        seed = step.seeds.of(f"directions of step {trainer.global_step}")
        directions = self._family.draw(parameters, count, seeded(seed))
        radius = directions.dimension**0.5 * settings.mu if settings.mu != "auto" else state.radius
        assert radius is not None
        return Along(parameters, directions, radius)

    def _radius(self, trainer: Trainer, parameters: Sequence[Tensor]) -> float | None:
        if self.settings.mu != "auto":
            return None
        return auto_mu(parameters, self.settings.difference, arithmetic(trainer, None), robust=True)

    # ---- derivatives

    def _slopes(
        self, evaluate: Evaluations, excursion: Excursion, own: range, radius: float, length: float
    ) -> list[float] | None:
        r"""The ``q`` derivatives of the batch along :math:`z_j`; None if the batch has no loss."""
        central = self.settings.difference == "central"
        origin = None if central else evaluate()
        pairs: list[tuple[Tensor | None, Tensor | None]] = []
        for index in own:
            excursion.go(index, radius)
            plus = evaluate()
            minus = origin
            if central:
                excursion.go(index, -radius)
                minus = evaluate()
            pairs.append((plus, minus))
        losses = [loss for pair in pairs for loss in pair if loss is not None]
        if not evaluate.outputs or len(losses) < 2 * len(pairs):
            return None
        numbers = numbers_of(losses)
        factor = length / (2 * radius if central else radius)
        return [(plus - minus) * factor for plus, minus in zip(numbers[::2], numbers[1::2], strict=True)]

    def _step(self, trainer: Trainer, parameters: Sequence[Tensor], directions: ProbeDirections, excursion: Excursion) -> None:
        r"""Move the weights, or write the gradient, by the derivatives of the step's batches."""
        settings, slopes, self._state.slopes = self.settings, self._state.slopes, None
        together = self._together(trainer, slopes)
        if together is None:
            return
        used, ranks = together
        weight = 1 / settings.probes / (ranks if settings.share == "probes" else 1)
        bounded = clipped(used, settings.clip)
        self._state.tally.add(used, bounded)
        if not all(map(math.isfinite, used)):
            lost = self._state.lost
            self._state.lost = one_more_lost(lost, self._name, trainer.global_step, "`mu` or learning rate")
        coefficients = [slope * (weight * directions.dimension**0.5) for slope in bounded]
        if self._in_place(trainer):
            descend(parameters, directions, coefficients, rates(trainer.optimizers, parameters), excursion)
        else:
            excursion.back()
            given = torch.tensor(coefficients, dtype=torch.float64, device="cpu")
            write_gradient(parameters, directions, given, compat.grad_scale(trainer))

    def _together(self, trainer: Trainer, slopes: list[float] | None) -> tuple[list[float], int] | None:
        """The derivatives to step with, from those of all ranks, and the number of ranks that have some; None if none has."""
        if trainer.world_size == 1:
            return None if slopes is None else (slopes, 1)
        own = [0.0] * self.settings.probes if slopes is None else slopes
        table = gathered(trainer, torch.tensor([*own, slopes is not None], dtype=torch.float64, device="cpu"))
        given, ranks = table[:, :-1], int(table[:, -1].sum())
        if ranks == 0:
            return None
        used = given.flatten() if self.settings.share == "probes" else given.sum(dim=0) / ranks
        return used.tolist(), ranks

    def _in_place(self, trainer: Trainer) -> bool:
        asked = self.settings.update
        return (asked == "in-place" or (asked == "auto" and not self._is_read)) and _hindrance(trainer) is None

    # ---- epochs and checkpoints

    def end_epoch(self) -> dict[str, float]:
        """See :meth:`Gradient.end_epoch`."""
        figures, self._state.tally = self._state.tally.figures(), Tally()
        return {"probes": self.settings.probes, **figures}

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Gradient.state_dict`."""
        return {**vars(self._state), "tally": dict(vars(self._state.tally))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`Gradient.load_state_dict`."""
        self._state = _State(**{**state, "tally": Tally(**state["tally"])})
        self._family = None


def _hindrance(trainer: Trainer) -> str | None:
    """The reason why the optimizer's step cannot be taken in place; None if it can be."""
    [optimizer] = trainer.optimizers
    if not is_plain_sgd(optimizer):
        return f"the optimizer is {described(optimizer)}, with a step of its own"
    if trainer.gradient_clip_val:
        return f"Trainer(gradient_clip_val={trainer.gradient_clip_val}) needs a gradient to clip"
    if compat.grad_scale(trainer) is not None:
        return f"Trainer(precision={trainer.precision!r}) needs a gradient to scale"
    return None
