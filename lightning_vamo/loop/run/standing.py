"""Where a run stands: its snapshot, and how far the epoch has come in the snapshot's batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from lightning_vamo.core.control.coefficients import Coefficient
from lightning_vamo.core.directions.learner import Learner
from lightning_vamo.loop.control.probed import Taken
from lightning_vamo.loop.plan.plan import Plan


@dataclass
class Standing:
    """Where a run stands, on one rank.

    Attributes:
        taken: The snapshot whose rows the steps use; None if they are plain.
        order: The row of the plan that each step of the epoch takes, shape ``(K,)``.
        first: Lightning's index of the plan's first batch; not 0 where the run resumed within the epoch without its plan.
        due: Whether the next batch takes a snapshot.
        rows: The rows of the batches whose gradients are accumulating, as :meth:`row` gives them.
        withheld: Whether this rank has kept its part of one of them out of the correction.
        unused: How many rows the epoch has not used, since their batches were other ones than the sweep saw.
        learner: What learns directions from the gradients, if the family does.
        parameters: Those whose gradients it sees, which are those of the last snapshot.
        coefficient: What changes the effective coefficient from step to step, if anything does.
        steps: How many steps of the epoch have been corrected.
        factors: Sum over them of the mean factor of their rows.
        plan: The epoch's plan, where the loaders do not have all of it: after an exception, and in an epoch that was resumed.
        step: The optimizer step before which the last snapshot was due.
        learned_at: The optimizer step at which directions have been learned from enough plain steps, where there was nothing to
            warm up with; None once that is past.
        moments: Squared gradient norms and what the corrections removed of them, summed over the epoch's steps, shape ``(2,)``.
    """

    taken: Taken | None = None
    order: list[int] = field(default_factory=list)
    first: int = 0
    due: bool = True
    rows: list[Any] = field(default_factory=list)
    withheld: bool = False
    unused: int = 0
    learner: Learner | None = None
    parameters: Sequence[Tensor] = ()
    coefficient: Coefficient | None = None
    steps: int = 0
    factors: Tensor | float = 0.0
    plan: Plan | None = None
    step: int = 0
    learned_at: int | None = None
    moments: Tensor | None = None

    def row(self, batch_idx: int) -> Any:
        """The row of the epoch's batch of that index: its place in the plan, or the row itself where it has been recomputed."""
        if self.taken is not None and self.taken.recomputation is not None:
            return self.taken.recomputation.row
        return self.order[batch_idx - self.first]

    def fingerprint(self, batch_idx: int) -> int | None:
        """Fingerprint of what the sweep saw in the place of the epoch's batch of that index, if its row is from there."""
        if self.taken is None or self.taken.recomputation is not None or self.taken.sweep is None:
            return None
        seen: int | None = self.taken.sweep.fingerprints[self.row(batch_idx)]
        return seen

    def progress(self, trainer: Trainer) -> float:
        """Share of the epoch's batches before the present step, or of a recomputing snapshot's steps."""
        if self.taken is not None and self.taken.recomputation is not None:
            return self.taken.recomputation.progress
        batch_idx = trainer.fit_loop.batch_idx
        first = batch_idx - batch_idx % trainer.accumulate_grad_batches  # the same for all whose gradients accumulate in it
        return (first - self.first) / max(1, len(self.order))
