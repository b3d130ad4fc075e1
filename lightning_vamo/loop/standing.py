"""Where a run stands: its snapshot, and how far the epoch has come in the snapshot's batches."""

from dataclasses import dataclass, field

from torch import Tensor

from lightning_vamo.core.adaptive import Coefficient
from lightning_vamo.loop.snapshot import Taken


@dataclass
class Standing:
    """Where a run stands, on one rank.

    Attributes:
        taken: The snapshot whose rows the steps use; None if they are plain.
        order: The row of the plan that each step of the epoch takes, shape ``(K,)``.
        position: How many batches the epoch has trained on; None between two epochs.
        due: Whether the next batch takes a snapshot.
        rows: The rows of the batches whose gradients are accumulating.
        withheld: Whether this rank has kept its part of one of them out of the correction.
        unused: How many rows the epoch has not used, since their batches were other ones than the sweep saw.
        coefficient: What changes the effective coefficient from step to step, if anything does.
        steps: How many steps of the epoch have been corrected.
        factors: Sum over them of the mean factor of their rows.
        moments: Squared gradient norms and what the corrections removed of them, summed over the epoch's steps, shape ``(2,)``.
    """

    taken: Taken | None = None
    order: list[int] = field(default_factory=list)
    position: int | None = None
    due: bool = True
    rows: list[int] = field(default_factory=list)
    withheld: bool = False
    unused: int = 0
    coefficient: Coefficient | None = None
    steps: int = 0
    factors: Tensor | float = 0.0
    moments: Tensor | None = None

    @property
    def begun(self) -> int:
        """Position in the epoch of the batch that is being trained on."""
        assert self.position is not None, "a batch has started"
        return self.position

    @property
    def progress(self) -> float:
        """Share of the epoch's batches that has been trained on."""
        return self.begun / max(1, len(self.order))
