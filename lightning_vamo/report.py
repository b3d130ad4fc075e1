"""What a method cost and what it was worth, in figures and in a sentence."""

from dataclasses import dataclass
from typing import Literal

MadeOf = Literal["probes", "gradients"]
"""What a control variate is made of: probe differences, or gradients at a snapshot or of earlier steps."""

# How a sentence names what a control variate is made of, and what to write for a run without it.
_WORDS: dict[MadeOf, tuple[str, str]] = {"probes": ("probes", "probes=0"), "gradients": ("kept gradients", "alpha=0")}

# By whether they paid in evaluations, and by the clock.
_VERDICTS = {
    (True, True): "The {what} paid for themselves on this run.",
    (True, False): "In evaluations the {what} paid for themselves on this run; by the clock of this machine they did not.",
    (False, True): "In evaluations the {what} did not pay on this run; by the clock of this machine they did.",
    (False, False): "The {what} did not pay on this run: a larger batch, or {off}, uses the work better.",
}


@dataclass(frozen=True)
class MethodReport:
    """Totals over a training run, per rank; printed, they read as a few lines of text.

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
        batches: Batches that were trained on, those that gave no loss left out.
        row_seconds: Time in which steps' batches were evaluated at the snapshot, where rows are recomputed.
        method: Name of the method.
        made_of: What the control variate is made of; None where nothing is taken out of the gradient.
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
    batches: int
    row_seconds: float = 0.0
    method: str = "VAMO"
    made_of: MadeOf | None = "probes"

    @property
    def relative_cost(self) -> float:
        """Work relative to plain training on the same batches, a backward pass counted as two forward passes."""
        plain = 3 * self.batches
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
        evaluations = f"{self.forward_evaluations} forward and {self.backward_evaluations} backward evaluations of a batch"
        if self.made_of is None:
            return (
                f"{self.method}: {self.batches} batches trained on.\n"
                f"  cost     {evaluations}: {self.relative_cost:.2f} times the work of plain training."
            )
        if self.variance_removed is None:
            return f"{self.method}: no step has been corrected."
        what, off = _WORDS[self.made_of]
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
                f"{self.method}: {self.snapshots} {taken}, {self.steps} corrected steps{warmup}.",
                f"  cost     {evaluations}: {self.relative_cost:.2f} times the work without {what};",
                f"           {name} took {seconds:.1f} s{rows} of {self.training_seconds:.1f} s:"
                f" {self.relative_time:.2f} times the time without them.",
                f"  benefit  {100 * self.variance_removed:.3g} % of the gradient's second moment removed;",
                f"           a batch {self.relative_cost:.2f} times larger, for the same work, removes at most"
                f" {100 * self.worth_of_equal_batch:.3g} %.",
                f"  {_VERDICTS[pays, pays_by_clock].format(what=what, off=off)}",
            )
        )
