"""The report of a run: the cost and the benefit of the method, in figures and in a sentence."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lightning_vamo.report.curves import curves_of, draw

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MadeOf = Literal["probes", "gradients"]
"""What a control variate is made of: probe differences, or gradients at a snapshot or of earlier steps."""

# The words for each in a sentence: the name, and the argument that trains without a control variate.
_WORDS: dict[MadeOf, tuple[str, str]] = {"probes": ("probes", "probes=0"), "gradients": ("kept gradients", "alpha=0")}

# The work of a batch in plain training, in forward passes.
_PLAIN = 3


@dataclass(frozen=True)
class Decided:
    """A change of what corrects the steps, where that is chosen by measurement.

    Attributes:
        epoch: The epoch of the change.
        step: The optimizer step before which the change was made.
        kind: ``"nothing"``, ``"look"``, ``"carry"`` or ``"sweep"``.
        probes: The number of directions; 0 for nothing.
        removed: Share of the gradient noise that the choice was expected to remove.
        work: Work that the choice was expected to take, relative to plain training.
        reason: The same in words.
    """

    epoch: int
    step: int
    kind: str
    probes: int
    removed: float
    work: float
    reason: str


@dataclass(frozen=True)
class MethodReport:
    """Totals of a training run, per rank; printed, the report is a few lines of text.

    Attributes:
        snapshots: Number of snapshots.
        steps: Number of optimizer steps whose gradient was corrected.
        forward_evaluations: Number of forward passes of a batch, including sweeps.
        backward_evaluations: Number of backward passes of a batch, including the warm-up.
        warmup_evaluations: Number of batches that were differentiated without a step, to learn directions.
        sweep_seconds: Wall-clock time of the sweeps.
        warmup_seconds: Wall-clock time of the warm-up.
        training_seconds: Wall-clock time of the training epochs, including warm-up, sweeps and validation within the epochs.
        variance_removed: Share of the mini-batch gradient's second moment that the corrections removed, over all corrected
            steps; negative if the corrections added noise; None if no step was corrected.
        batches: Number of batches that were trained on, without batches that gave no loss.
        rows_unused: Number of batches whose rows were not used, because the sweep had seen another batch in their place.
        row_seconds: Time of the evaluations of steps' batches at the snapshot, if rows are recomputed.
        method: Name of the method.
        made_of: What the control variate is made of; None if the method has no control variate.
        plain: The argument that trains without a control variate; by default that of VAMO or SVRG, depending on ``made_of``.
        recompute: The argument that makes each step evaluate its own batch at the snapshot.
        step_forwards: Number of forward passes of a batch in a step without a backward pass, without those of the control
            variate; None if a step makes one forward and one backward pass.
        lost: Number of steps without a backward pass that left out a loss that was not finite.
        epochs: The figures of each epoch, by name: ``step``, the number of optimizer steps at the epoch's end; the losses that
            the module logged; and the method's figures that :meth:`plot` draws.
        decisions: The changes of what corrects the steps, if that is chosen by measurement.
        measured: Whether what corrects the steps is chosen by measurement.
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
    rows_unused: int = 0
    row_seconds: float = 0.0
    method: str = "VAMO"
    made_of: MadeOf | None = "probes"
    plain: str | None = None
    recompute: str = "control='recompute'"
    step_forwards: int | None = None
    decisions: tuple[Decided, ...] = ()
    measured: bool = False
    lost: int = 0
    epochs: tuple[Mapping[str, float], ...] = ()

    @property
    def relative_cost(self) -> float:
        """Work relative to plain training on the same batches; a backward pass counts as two forward passes."""
        return self._relative(_PLAIN)

    @property
    def relative_to_uncorrected(self) -> float:
        """Work relative to the same steps without a control variate; see :attr:`step_forwards` for steps that are not plain."""
        return self._relative(self.step_forwards or _PLAIN)

    def _relative(self, work_of_a_batch: int) -> float:
        work = work_of_a_batch * self.batches
        return (self.forward_evaluations + 2 * self.backward_evaluations) / work if work else 1.0

    @property
    def relative_time(self) -> float:
        """Wall-clock time of the training epochs, relative to the same time without warm-up, sweeps and rows.

        The time that steps take for learning and correcting is part of both.
        """
        rest = self.training_seconds - self.sweep_seconds - self.row_seconds - self.warmup_seconds
        return self.training_seconds / rest if rest > 0 else 1.0

    @property
    def worth_of_equal_batch(self) -> float:
        """The largest share of the second moment that a larger batch could remove instead, for the same work."""
        return 1 - 1 / self.relative_to_uncorrected

    def __str__(self) -> str:
        """The report as a few lines of text; the first line says whether the method paid."""
        if not self.batches and not self.forward_evaluations:
            return f"{self.method}: no batch has been trained on."
        return "\n".join((f"{self.method}: {self._sentence()}", *self._cost()))

    def interrupted(self) -> str:
        """The report of a run that was interrupted; within the first epoch without a verdict, as a sweep was hardly used."""
        if self.epochs or self.made_of is None:
            return str(self)
        batches = _counted(self.batches, "batch", "batches")
        return "\n".join((f"{self.method}: interrupted after {batches}, too soon for a verdict.", *self._cost()))

    def plot(self) -> "Figure":
        """Draw the run epoch by epoch: the losses, the share of the noise that was removed, and the evaluations so far.

        Returns:
            A matplotlib figure; ``figure.savefig(path)`` writes it.

        Raises:
            UnsupportedError: If matplotlib is not installed, or no epoch has ended.
        """
        return draw(curves_of(self.epochs), str(self).partition("\n")[0])

    def _why_plain(self) -> str:
        """Why nothing was chosen that corrects a step."""
        if not self.decisions:
            return "it was too short to find out what pays"
        return self.decisions[-1].reason if self.decisions[-1].kind == "nothing" else "it ended before its rows were used"

    def _sentence(self) -> str:
        """The benefit of the method, in a sentence."""
        if self.made_of is None:
            batches = _counted(self.batches, "batch was", "batches were")
            return f"{batches} trained on, at {self.relative_cost:.2f}× the compute of plain training."
        what, off = _WORDS[self.made_of]
        off, compute = self.plain or off, _compute(self)
        if self.variance_removed is None and self.measured:
            return f"the training was plain, at {compute}: {self._why_plain()}."
        if self.variance_removed is None:
            return f"no step was corrected, and you paid {compute}: {self._cause(off)}"
        share = f"{100 * self.variance_removed:.3g} % of the gradient's second moment"
        if self.relative_to_uncorrected <= 1.005 and self.variance_removed > 0:
            return f"the {what} paid. They removed {share} at no extra evaluation."
        at_most = f"{100 * self.worth_of_equal_batch:.3g} %"
        by_clock = self.variance_removed > 1 - 1 / self.relative_time
        if self.variance_removed > self.worth_of_equal_batch:
            but = "" if by_clock else " By the clock of this machine they did not pay."
            return (
                f"the {what} paid. For {compute} they removed {share}, where a larger batch for the same compute"
                f" removes {at_most} at most.{but}"
            )
        but = f" Train with {off}, or with a larger batch."
        if by_clock:
            but = (
                " By the clock of this machine they did pay, the time of learning and correcting within the steps not counted."
            )
        return (
            f"the {what} did not pay. You paid {compute}, for which a larger batch removes up to {at_most} of the"
            f" gradient's second moment, and the {what} removed {100 * self.variance_removed:.3g} %.{but}"
        )

    def _cause(self, off: str) -> str:
        """The reason why no step was corrected, in a sentence."""
        if self.rows_unused:
            return (
                f"{_counted(self.rows_unused, 'batch', 'batches')} differed from what the sweep had seen in the same place, as"
                f" happens with random augmentation. Set {self.recompute}, or train with {off}."
            )
        if not self.snapshots and self.made_of == "gradients":
            return "there was no snapshot, as in a run of one epoch with carried gradients, which are used from the second on."
        if not self.snapshots:
            return (
                "there was no snapshot, because no probes were scheduled or chosen, no directions had been learned yet, or the"
                f" data could not be swept. If no snapshot is to be expected, train with {off}."
            )
        return "no row of a batch was finite, or the run ended before the first optimizer step after the snapshot."

    def _cost(self) -> list[str]:
        """The lines about the method's work and its cost."""
        forwards = _counted(self.forward_evaluations, "forward", "forward")
        lines = [f"  {forwards} and {self.backward_evaluations} backward evaluations of a batch"]
        if self.lost:
            steps = _counted(self.lost, "step", "steps")
            lines.append(f"  {steps} left out a loss that was not finite, and moved the weights less or not at all")
        if self.made_of is None:
            return lines
        parts = [_counted(self.snapshots, "snapshot", "snapshots"), _counted(self.steps, "corrected step", "corrected steps")]
        if self.warmup_evaluations:
            parts.append(_counted(self.warmup_evaluations, "batch of warm-up", "batches of warm-up"))
        extra = self.sweep_seconds + self.warmup_seconds + self.row_seconds
        clock = f"  {extra:.1f} s of {self.training_seconds:.1f} s were spent beside the steps: {self.relative_time:.2f}× the"
        clock += " time of the steps, their corrections included"
        return [*lines, f"  {', '.join(parts)}", clock]


def _compute(report: MethodReport) -> str:
    """The work of a method with a control variate, relative to that of the same steps without it."""
    without = "plain training" if report.step_forwards is None else f"training with {report.plain or 'alpha=0'}"
    return f"{report.relative_to_uncorrected:.2f}× the compute of {without}"


def _counted(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"


def epoch_in_words(figures: Mapping[str, float], report: MethodReport) -> str:
    """The result of an epoch, in a few words.

    Args:
        figures: The epoch's figures, by name.
        report: The report so far.

    Returns:
        The words, without a full stop.
    """
    removed, probes = figures.get("variance_removed"), figures.get("probes")
    if removed is None:
        return "no gradient was corrected"
    what = "" if probes is None else f" with {int(probes)} {'probe' if probes == 1 else 'probes'}"
    share = f"{100 * removed:.3g} % of the gradient's second moment removed{what}"
    return f"{share}, at {_compute(report)} so far"
