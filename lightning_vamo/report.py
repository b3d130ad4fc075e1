"""What the probes cost and what they were worth, in figures and in a sentence."""

from dataclasses import dataclass

# By whether they paid in evaluations, and by the clock.
_VERDICTS = {
    (True, True): "The probes paid for themselves on this run.",
    (True, False): "In evaluations the probes paid for themselves on this run; by the clock of this machine they did not.",
    (False, True): "In evaluations the probes did not pay on this run; by the clock of this machine they did.",
    (False, False): "The probes did not pay on this run: a larger batch, or probes=0, uses the work better.",
}


@dataclass(frozen=True)
class VAMOReport:
    """Totals over a training run, per rank.

    Attributes:
        snapshots: Snapshots taken.
        steps: Optimizer steps whose gradient was corrected.
        forward_evaluations: Forward passes of a batch, those of the sweeps included.
        backward_evaluations: Backward passes of a batch, those of the warm-up included.
        warmup_evaluations: Batches that were differentiated to learn directions from, without a step.
        sweep_seconds: Wall-clock time of the sweeps.
        warmup_seconds: Wall-clock time of the warm-up.
        training_seconds: Wall-clock time of the training epochs, warm-up, sweeps and validation within them included.
        variance_removed: Share of the mini-batch gradient's second moment that the corrections removed, over all corrected
            steps; negative if they added to it, and None if there were none.
        row_seconds: Time in which the losses of steps' batches at the snapshot were evaluated, where rows are recomputed.
    """

    snapshots: int
    steps: int
    forward_evaluations: int
    backward_evaluations: int
    warmup_evaluations: int
    sweep_seconds: float
    warmup_seconds: float
    training_seconds: float
    variance_removed: float | None
    row_seconds: float = 0.0

    @property
    def relative_cost(self) -> float:
        """Work relative to the same steps without probes, a backward pass counted as two forward passes."""
        plain = 3 * (self.backward_evaluations - self.warmup_evaluations)
        return (self.forward_evaluations + 2 * self.backward_evaluations) / plain if plain else 1.0

    @property
    def relative_time(self) -> float:
        """Wall-clock time of the training epochs relative to that without warm-up, sweeps and rows."""
        rest = self.training_seconds - self.sweep_seconds - self.row_seconds - self.warmup_seconds
        return self.training_seconds / rest if rest > 0 else 1.0

    @property
    def worth_of_equal_batch(self) -> float:
        """Share of the second moment that a larger batch could remove at most, for the same work."""
        return 1 - 1 / self.relative_cost

    def __str__(self) -> str:
        """The report as a few lines of text."""
        if self.variance_removed is None:
            return "VAMO: no step has been corrected."
        taken = "snapshots" if self.row_seconds else "sweeps"
        rows = f" and the rows of the steps {self.row_seconds:.1f} s," if self.row_seconds else ""
        pays = self.variance_removed > self.worth_of_equal_batch
        pays_by_clock = self.variance_removed > 1 - 1 / self.relative_time
        name, warmup = "the sweeps", ""
        if self.warmup_evaluations:
            name, warmup = "sweeps and warm-up", f", {self.warmup_evaluations} batches of warm-up"
        seconds = self.sweep_seconds + self.warmup_seconds
        return "\n".join(
            (
                f"VAMO: {self.snapshots} {taken}, {self.steps} corrected steps{warmup}.",
                f"  cost     {self.forward_evaluations} forward and {self.backward_evaluations} backward evaluations of a"
                f" batch: {self.relative_cost:.2f} times the work without probes;",
                f"           {name} took {seconds:.1f} s{rows} of {self.training_seconds:.1f} s:"
                f" {self.relative_time:.2f} times the time without them.",
                f"  benefit  {100 * self.variance_removed:.3g} % of the gradient's second moment removed;",
                f"           a batch {self.relative_cost:.2f} times larger, for the same work, removes at most"
                f" {100 * self.worth_of_equal_batch:.3g} %.",
                f"  {_VERDICTS[pays, pays_by_clock]}",
            )
        )
