"""The state that a run learns from gradients: directions, coefficients and the smoothing radius."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from lightning_vamo.core.control.anchored import GradientRegression
from lightning_vamo.core.control.coefficients import Coefficient, Regression
from lightning_vamo.core.directions import Directions
from lightning_vamo.core.directions.learner import Learner
from lightning_vamo.loop.ledger.seeds import seeded
from lightning_vamo.loop.sweep.gradients import gradients_of


@dataclass
class Learning:
    """The state that a run learns from gradients: directions, coefficients and the smoothing radius.

    Attributes:
        learner: Learns probe directions; None if the family does not learn.
        parameters: The parameters whose gradients the learner sees: those of the last snapshot.
        learned_at: The optimizer step before which to ask for a snapshot again, within an epoch: when directions have been
            learned from enough plain steps, or rows have been judged; None where there is no such step.
        turn_at: The optimizer step before which the learner turns to what it has learned, for a second pass; None for none.
        mu: The best smoothing radius so far, for the next snapshot; None before the first snapshot, and if the user gives the
            radius.
        changing_data: Whether the rows of a sweep could not be used, since the data gives other batches when it is read again.
        coefficient: Changes the effective coefficient from step to step; None if the coefficient stays the same.
    """

    learner: Learner | None = None
    parameters: Sequence[Tensor] = ()
    learned_at: int | None = None
    turn_at: int | None = None
    mu: float | None = None
    changing_data: bool = False
    coefficient: Coefficient | None = None

    def observe(self, trainer: Trainer) -> None:
        """Let the learner see the step's gradient; a step in which no batch had a loss has none, and takes no step.

        Args:
            trainer: The trainer, before its optimizer steps.
        """
        if self.learner is not None and any(parameter.grad is not None for parameter in self.parameters):
            self.learner.observe(gradients_of(trainer, self.parameters))

    def state_dict(self) -> dict[str, Any]:
        """The learned state, as plain types and tensors."""
        regression = self.coefficient if isinstance(self.coefficient, (Regression, GradientRegression)) else None
        return {
            "learner": None if self.learner is None else self.learner.state_dict(),
            "learned_at": self.learned_at,
            "turn_at": self.turn_at,
            "mu": self.mu,
            "changing_data": self.changing_data,
            "coefficient": None if regression is None else regression.state_dict(),
        }

    def take_up_learner(self, state: dict[str, Any], family: Directions, parameters: Sequence[Tensor]) -> None:
        """Continue to learn directions from a state of :meth:`state_dict`.

        Args:
            state: The part ``learner`` of the state.
            family: The family of directions, which learns.
            parameters: The parameters whose gradients the learner will see.

        Raises:
            InvalidArgumentError: If the state belongs to other parameters, or to another kind of directions.
        """
        learner = family.learner(parameters, state["count"], seeded(0))
        learner.load_state_dict(state)
        self.learner, self.parameters = learner, parameters
