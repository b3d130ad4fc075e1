"""The counts behind a report."""

import random
from dataclasses import asdict, dataclass
from typing import Any

from lightning_vamo.loop.sweep.sweep import Sweep
from lightning_vamo.report import VAMOReport


@dataclass
class Totals:
    """The counts behind a report, which a checkpoint carries along, with the seed of the directions."""

    seed: int | None = None
    snapshots: int = 0
    steps: int = 0
    forward_evaluations: int = 0
    backward_evaluations: int = 0
    warmup_evaluations: int = 0
    sweep_seconds: float = 0.0
    row_seconds: float = 0.0
    warmup_seconds: float = 0.0
    training_seconds: float = 0.0
    moment_before: float = 0.0
    moment_removed: float = 0.0

    def seed_for(self, purpose: str) -> int:
        """A seed that depends on nothing but the run's and what it is for: the same on every rank, and after a resume."""
        return random.Random(f"{self.seed}: {purpose}").getrandbits(63)

    def add_snapshot(self, sweep: Sweep | None) -> None:
        """Count a snapshot, and its sweep if it had one."""
        self.snapshots += 1
        if sweep is None:
            return
        self.forward_evaluations += sweep.evaluations
        self.sweep_seconds += sweep.seconds

    def add_warmup(self, batches: int, seconds: float) -> None:
        """Count gradients that took no step."""
        self.warmup_seconds += seconds
        self.forward_evaluations += batches
        self.backward_evaluations += batches
        self.warmup_evaluations += batches

    def add_moments(self, before: float, removed: float) -> None:
        """Add squared gradient norms, summed over steps: what they were, and what the corrections took off them."""
        self.moment_before += before
        self.moment_removed += removed

    def report(self) -> VAMOReport:
        """The report of these totals."""
        return VAMOReport(
            snapshots=self.snapshots,
            steps=self.steps,
            forward_evaluations=self.forward_evaluations,
            backward_evaluations=self.backward_evaluations,
            warmup_evaluations=self.warmup_evaluations,
            sweep_seconds=self.sweep_seconds,
            row_seconds=self.row_seconds,
            warmup_seconds=self.warmup_seconds,
            training_seconds=self.training_seconds,
            variance_removed=self.moment_removed / self.moment_before if self.moment_before else None,
        )

    def state_dict(self) -> dict[str, Any]:
        """The totals as plain numbers."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over totals from a checkpoint."""
        for name, value in state.items():
            setattr(self, name, value)
