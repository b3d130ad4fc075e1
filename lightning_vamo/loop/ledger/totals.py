"""The counts behind a report."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lightning_vamo.report import MethodReport


@dataclass
class Totals:
    """The counts of a run so far, on one rank: see :class:`~lightning_vamo.MethodReport`.

    Attributes:
        moment_before: Squared gradient norms, summed over the corrected steps.
        moment_removed: How much of ``moment_before`` the corrections removed.
        epochs: The figures of each epoch that has ended, by name.
    """

    snapshots: int = 0
    steps: int = 0
    batches: int = 0
    forward_evaluations: int = 0
    backward_evaluations: int = 0
    warmup_evaluations: int = 0
    sweep_seconds: float = 0.0
    row_seconds: float = 0.0
    warmup_seconds: float = 0.0
    training_seconds: float = 0.0
    rows_unused: int = 0
    moment_before: float = 0.0
    moment_removed: float = 0.0
    epochs: list[dict[str, float]] = field(default_factory=list)

    def add_batch(self, forwards: int, backwards: int, trained: bool) -> None:
        """Count a batch of a training step.

        Args:
            forwards: Forward passes of the batch.
            backwards: Backward passes.
            trained: Whether the batch gave a gradient.
        """
        self.forward_evaluations += forwards
        self.backward_evaluations += backwards
        self.batches += trained

    def add_sweep(self, evaluations: int, seconds: float, backwards: int = 0) -> None:
        """Count a sweep.

        Args:
            evaluations: Forward passes of a batch.
            seconds: Wall-clock time.
            backwards: Backward passes of a batch.
        """
        self.forward_evaluations += evaluations
        self.backward_evaluations += backwards
        self.sweep_seconds += seconds

    def add_warmup(self, batches: int, seconds: float) -> None:
        """Count gradients of a warm-up, which take no step.

        Args:
            batches: Number of gradients.
            seconds: Wall-clock time.
        """
        self.warmup_seconds += seconds
        self.forward_evaluations += batches
        self.backward_evaluations += batches
        self.warmup_evaluations += batches

    def add_moments(self, before: float, removed: float) -> None:
        """Count squared gradient norms, summed over steps.

        Args:
            before: The sum before the corrections.
            removed: How much the corrections removed.
        """
        self.moment_before += before
        self.moment_removed += removed

    def add_epoch(self, step: int, figures: Mapping[str, float]) -> None:
        """Keep the figures of an epoch that has ended.

        Args:
            step: The number of optimizer steps so far.
            figures: The figures, by name.
        """
        self.epochs = [*self.epochs, {"step": step, **figures}]

    def report(self) -> MethodReport:
        """The report of these totals."""
        counts = {**vars(self), "epochs": tuple(map(dict, self.epochs))}
        before, removed = counts.pop("moment_before"), counts.pop("moment_removed")
        return MethodReport(**counts, variance_removed=removed / before if before else None)

    def state_dict(self) -> dict[str, Any]:
        """The totals as plain numbers."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the totals of a checkpoint."""
        for name, value in state.items():
            setattr(self, name, value)
