"""What the probes of a fit cost and were worth, for its logs and its report."""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer

from lightning_vamo.loop.control.probe_count import ProbeChoice
from lightning_vamo.loop.ledger.clocks import Stopwatch
from lightning_vamo.loop.ledger.totals import Totals
from lightning_vamo.loop.run.standing import Standing
from lightning_vamo.report import VAMOReport


class Ledger:
    """Keeps the totals of a fit, and closes each epoch with the figures to log.

    Attributes:
        totals: What has been counted so far.
    """

    def __init__(self) -> None:
        self.totals = Totals()
        self._row_time = Stopwatch()
        self._row_evaluations = 0
        # What of them belongs to snapshots that the epoch has used up already.
        self._told = (0.0, 0)
        self._epoch_began: float | None = None

    def begin_epoch(self) -> None:
        """Start the clock of the training epochs."""
        self._epoch_began = time.perf_counter()

    def stop(self) -> None:
        """Stop that clock, if it runs."""
        if self._epoch_began is not None:
            self.totals.training_seconds += time.perf_counter() - self._epoch_began
            self._epoch_began = None

    @contextmanager
    def timing_row(self, device: torch.device) -> Iterator[None]:
        """Count what is done, and evaluated, in the context as a row that is recomputed on that device."""
        before = self.totals.forward_evaluations
        with self._row_time.running(device):
            yield
        self._row_evaluations += self.totals.forward_evaluations - before

    def report(self, standing: Standing) -> VAMOReport:
        """The report of the totals, and of the epoch so far."""
        totals = self._so_far()
        # Within an epoch, and after an exception, these are the figures of this rank's shards alone: to add those of the others
        # takes the others.
        if standing.moments is not None:
            totals.add_moments(*standing.moments.tolist())
        return totals.report()

    def state_dict(self) -> dict[str, Any]:
        """The totals up to now, as plain numbers."""
        return self._so_far().state_dict()

    def _so_far(self) -> Totals:
        totals = copy.copy(self.totals)
        totals.row_seconds += self._row_time.read()
        if self._epoch_began is not None:
            totals.training_seconds += time.perf_counter() - self._epoch_began
        return totals

    def pending_row_seconds(self) -> float:
        """Time of the rows since the choice of the number of probes was last told of them."""
        return self._row_time.read() - self._told[0]

    def tell(self, trainer: Trainer, standing: Standing, choice: ProbeChoice) -> None:
        """Tell the choice of the number of probes what the steps since the last time have used, and begin anew."""
        seconds, evaluations = self._row_time.read(), self._row_evaluations
        rows = (seconds - self._told[0], evaluations - self._told[1])
        choice.used(trainer, standing.factors, standing.steps, *rows)
        self._told = (seconds, evaluations)
        standing.steps, standing.factors = 0, 0.0

    def end_epoch(self, trainer: Trainer, standing: Standing, choice: ProbeChoice | None) -> dict[str, float]:
        """Add an epoch to the totals.

        Args:
            trainer: The trainer, at the epoch's end.
            standing: Where the run stands; what it has summed up over the epoch's steps begins anew.
            choice: What chooses the number of probes by measurement, if that is how it is chosen.

        Returns:
            The figures to log.
        """
        self.stop()
        taken = standing.taken
        return {
            **({} if taken is None else taken.logs),
            **self._factors(trainer, standing, choice),
            **({} if choice is None else choice.figures),
            **self._moments(standing),
            "vamo/probes": 0 if taken is None else taken.correction.directions.count,
            "vamo/forward_evaluations": self.totals.forward_evaluations,
            "vamo/backward_evaluations": self.totals.backward_evaluations,
            **({} if taken is None else {"vamo/rows_unused": standing.unused}),
            **self._rows(standing),
        }

    def _moments(self, standing: Standing) -> dict[str, float]:
        """What the epoch's corrections removed."""
        moments, standing.moments = standing.moments, None
        if moments is None:
            return {}
        if standing.taken is not None:
            moments = standing.taken.correction.total(moments)
        before, removed = moments.tolist()
        self.totals.add_moments(before, removed)
        return {"vamo/variance_removed": removed / before if before else 0.0}

    def _factors(self, trainer: Trainer, standing: Standing, choice: ProbeChoice | None) -> dict[str, float]:
        """The mean effective coefficient of the epoch's steps, where it changes from step to step."""
        steps, factors = standing.steps, standing.factors
        if choice is not None:
            self.tell(trainer, standing, choice)
        standing.steps, standing.factors = 0, 0.0
        if not steps or standing.coefficient is None:
            return {}
        return {"vamo/alpha": float(torch.as_tensor(factors).mean()) / steps}

    def _rows(self, standing: Standing) -> dict[str, float]:
        """The time of the epoch's rows."""
        seconds, self._row_time = self._row_time.read(), Stopwatch()
        self._row_evaluations, self._told = 0, (0.0, 0)
        self.totals.row_seconds += seconds
        recomputation = None if standing.taken is None else standing.taken.recomputation
        return {} if recomputation is None else {"vamo/rows_unused": recomputation.control.unused, "vamo/row_seconds": seconds}
