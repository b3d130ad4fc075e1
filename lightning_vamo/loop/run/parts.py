"""The parts of a run that change from step to step; only the run assigns them."""

from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_vamo.core.small import Small, small, tensor_of
from lightning_vamo.loop.plan.plan import Plan


@dataclass
class Cursor:
    """The position of the epoch in the batches of its snapshot.

    Attributes:
        order: The row of the plan that each step of the epoch takes, shape ``(K,)``.
        first: Lightning's index of the plan's first batch; not 0 if the run resumed within the epoch without its plan.
        rows: The keys of the batches whose gradients are accumulating, from the snapshot's ``key``.
        begins: Whether the epoch has not trained on a batch yet.
        withheld: Whether this rank has kept its part of one of ``rows`` out of the correction.
    """

    order: list[int] = field(default_factory=list)
    first: int = 0
    rows: list[Any] = field(default_factory=list)
    begins: bool = False
    withheld: bool = False

    def begin_epoch(self) -> None:
        """Begin with the first batch of an epoch."""
        self.first, self.begins = 0, True

    def follow(self, plan: Plan | None) -> None:
        """Follow the batches of a plan in their drawn order."""
        self.order = [] if plan is None else list(range(plan.length))

    def reorder(self, order: list[int] | None) -> None:
        """Take the rows of the plan in another order; None keeps the order."""
        self.order = self.order if order is None else order

    def row(self, batch_idx: int) -> int | None:
        """The position in the plan of the epoch's batch with an index; None without a plan."""
        return self.order[batch_idx - self.first] if self.order else None

    def share(self, trainer: Trainer) -> float:
        """The share of the epoch's batches before the present step."""
        batch_idx = trainer.fit_loop.batch_idx
        first = batch_idx - batch_idx % trainer.accumulate_grad_batches  # the same for all batches of the step
        return (first - self.first) / max(1, len(self.order))


@dataclass
class Sums:
    """Sums over the steps of an epoch.

    Attributes:
        unused: Number of rows that were not used, since their batches differed from the batches of the sweep.
        steps: Number of corrected steps.
        factors: Sum of the factors of the rows over the corrected steps.
        moments: Squared gradient norms, and how much the corrections removed, summed over the corrected steps, shape ``(2,)``;
            None if no step was corrected.
    """

    unused: int = 0
    steps: int = 0
    factors: Small = 0.0
    moments: Small | None = None

    def add(self, factors: Small, moments: Small) -> None:
        """Add a corrected step."""
        self.steps += 1
        self.factors = self.factors + factors
        self.moments = moments if self.moments is None else self.moments + moments

    def forget_factors(self) -> None:
        """Reset the sum of factors."""
        self.steps, self.factors = 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """The sums, as plain types and tensors."""
        factors = self.factors if isinstance(self.factors, float) else tensor_of(self.factors)
        return {**vars(self), "factors": factors, "moments": None if self.moments is None else tensor_of(self.moments)}

    def place(self, device: torch.device) -> None:
        """Bring sums of :meth:`state_dict` to the form that gradients on a device use."""
        for name in ("factors", "moments"):
            value = getattr(self, name)
            if isinstance(value, Tensor):
                setattr(self, name, small(value.to(device)))


@dataclass
class SnapshotClock:
    """The clock that tells when the next snapshot is due.

    Attributes:
        due: Whether a snapshot is taken before the next batch.
        step: The optimizer step before which the last snapshot was due.
    """

    due: bool = True
    step: int = 0
