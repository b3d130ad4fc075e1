"""Callbacks that keep what a run does."""

from lightning_vamo import RunObserver, VAMOCallback
from lightning_vamo.core.directions import SphereDirections


class WatchedSweeps(VAMOCallback, RunObserver):
    """Keeps what its sweeps measure."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.sweeps = []

    def on_sweep(self, fit, module, sweep):
        self.sweeps.append(sweep)


class WatchedCounts(VAMOCallback, RunObserver):
    """Keeps the number of probes of each snapshot that was due."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.counts = []

    def on_snapshot(self, fit, module, snapshot):
        self.counts.append(0 if snapshot is None else snapshot.directions.count)


class Watched(VAMOCallback, RunObserver):
    """Keeps each snapshot, and of recomputed ones each row and the slopes of the gradient that it corrects."""

    def __init__(self, **arguments):
        super().__init__(**{"directions": SphereDirections(), "alpha": "theory", **arguments})
        self.snapshots = []
        self.rows = []
        self.slopes = []

    def on_snapshot(self, fit, module, snapshot):
        self.snapshots.append((fit.global_step, fit.fit_loop.batch_idx, snapshot))

    def on_gradient(self, fit, module, snapshot, row):
        if snapshot is not None and snapshot.kind == "recompute":
            self.rows.append(row)
            self.slopes.append(snapshot.directions.project([p.grad for p in snapshot.parameters]))


class Compare(RunObserver):
    """Compares what there is before and after batches are evaluated outside of a step.

    Args:
        everything: Gives what is to be compared.
        purpose: Which evaluations to look at.
    """

    def __init__(self, everything, purpose):
        self.everything = everything
        self.purpose = purpose
        self.compared = 0

    def on_probing_start(self, fit, module, purpose):
        if purpose == self.purpose:
            self.before = self.everything(fit, module)

    def on_probing_end(self, fit, module, purpose):
        if purpose == self.purpose:
            after = self.everything(fit, module)
            assert [key for key in self.before if self.before[key] != after[key]] == []
            self.compared += 1
