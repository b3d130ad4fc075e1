"""The costs and the benefit of a run, for its logs and its report."""

import copy
import time
from dataclasses import asdict
from typing import Any

from lightning_vamo.core.small import Small
from lightning_vamo.loop.ledger.clocks import Stopwatch
from lightning_vamo.loop.ledger.losses import EpochLosses
from lightning_vamo.loop.ledger.totals import Totals
from lightning_vamo.report import MethodReport


class Ledger:
    """Keeps the totals of a run, and the time of its training epochs and of its recomputed rows.

    Args:
        losses: The mean training losses of the last epochs, where a measured choice reads them; else None.

    Attributes:
        totals: The counts so far.
        losses: As described.
        row_time: The time of the epoch's recomputed rows.
    """

    def __init__(self, losses: EpochLosses | None = None) -> None:
        self.totals = Totals()
        self.losses = losses
        self.row_time = Stopwatch()
        self._row_evaluations = 0
        # The part of the rows' seconds and evaluations that `tell_rows` has returned already.
        self._told = (0.0, 0)
        self._epoch_began: float | None = None

    def begin_epoch(self, epoch: int) -> None:
        """Start the clock of the training epochs.

        Args:
            epoch: The epoch that begins, or goes on.
        """
        self._epoch_began = time.perf_counter()
        if self.losses is not None:
            self.losses.begin_epoch(epoch)

    def stop(self) -> None:
        """Stop the clock of the training epochs, if it runs."""
        if self._epoch_began is not None:
            self.totals.training_seconds += time.perf_counter() - self._epoch_began
            self._epoch_began = None

    def add_row(self, evaluations: int) -> None:
        """Count the evaluations of a row that is recomputed; its time is that of :attr:`row_time`."""
        self.totals.forward_evaluations += evaluations
        self._row_evaluations += evaluations

    def stepped_plainly(self, outputs: Any) -> None:
        """Count a batch that Lightning's own step has trained on.

        Args:
            outputs: The outputs of the step; empty if the step had no loss.
        """
        self.add_batch(outputs, 1, int(bool(outputs)), bool(outputs))

    def add_batch(self, outputs: Any, forwards: int, backwards: int, trained: bool) -> None:
        """Count a batch that has been trained on.

        Args:
            outputs: The outputs of its step; empty if the step had no loss.
            forwards: Number of forward passes.
            backwards: Number of backward passes.
            trained: Whether the batch gave a gradient.
        """
        self.totals.add_batch(forwards, backwards, trained)
        if self.losses is not None:
            self.losses.add(outputs)

    def report(self, moments: Small | None) -> MethodReport:
        """The report of the totals, and of the epoch so far.

        Args:
            moments: The epoch's squared gradient norms and how much of them was removed, shape ``(2,)``; None if no step was
                corrected. For sharded gradients, this rank's part, since a sum over the ranks would need all ranks.

        Returns:
            The report.
        """
        totals = self._so_far()
        if moments is not None:
            totals.add_moments(*moments.tolist())
        return totals.report()

    def state_dict(self) -> dict[str, Any]:
        """The totals up to now, as plain numbers."""
        return asdict(self._so_far())

    def _so_far(self) -> Totals:
        totals = copy.copy(self.totals)
        totals.row_seconds += self.row_time.read()
        if self._epoch_began is not None:
            totals.training_seconds += time.perf_counter() - self._epoch_began
        return totals

    def tell_rows(self) -> tuple[float, int]:
        """Seconds and evaluations of the rows since the last call."""
        before, self._told = self._told, (self.row_time.read(), self._row_evaluations)
        return self._told[0] - before[0], self._told[1] - before[1]

    def end_rows(self) -> float:
        """Close an epoch's rows: add their time to the totals, and return the time."""
        seconds, self.row_time = self.row_time.read(), Stopwatch()
        self._row_evaluations, self._told = 0, (0.0, 0)
        self.totals.row_seconds += seconds
        return seconds
