"""The result of the finder: figures, a table, a file, a plot, and a sentence of advice."""

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning_vamo.core.probes.difference import Difference
from lightning_vamo.core.schedules.decision import KEPT
from lightning_vamo.errors import UnsupportedError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


CLEAR = 1.2
"""The efficiency above which probes are advised, and below whose inverse they are advised against: the clock of a busy machine
errs by so much."""


@dataclass(frozen=True)
class ProbeFigures:
    r"""The gradient noise that a number of probes removes, and the work of these probes.

    All shares are shares of the variance of held-out mini-batch gradients, with standard errors.

    Attributes:
        probes: ``q``, the number of probes.
        random: Share of the variance along random directions.
        learned: Share of the variance along learned directions, which exact slopes would remove.
        learned_error: Standard error of ``learned``.
        removed: Share of the variance that the finite differences of a sweep along the learned directions remove.
        removed_error: Standard error of ``removed``.
        worth: How many times larger a batch with the same noise would be, :math:`1/(1-\texttt{removed})`.
        work: The work of an epoch with a sweep, relative to an epoch without a sweep.
        efficiency: ``worth / work``. Probes pay if it is above 1.
    """

    probes: int
    random: float
    learned: float
    learned_error: float
    removed: float
    removed_error: float
    worth: float
    work: float
    efficiency: float


@dataclass(frozen=True)
class ProbeFinding:
    """The result of :func:`~lightning_vamo.find_probes`; printed, it is a table and a sentence of advice.

    Attributes:
        epoch: The epoch of the measurement.
        step: The global step of the measurement.
        parameters: ``d``, the number of trainable parameters.
        batches: Number of mini-batches whose gradients were computed; half of the batches are held out.
        batch_size: Number of samples of a mini-batch, over all ranks.
        batches_per_step: Number of mini-batches whose gradients an optimizer step accumulates.
        noise_to_signal: Variance of a mini-batch gradient relative to the squared length of its mean; a lower bound if the mean
            cannot be told from zero.
        signal_is_known: Whether the mean gradient can be told from zero.
        spectrum: Share of the held-out variance along each learned direction, without the part along the directions before.
            The shares fall, except by chance.
        mu: The smoothing radius that was used, and that training should use.
        difference: ``"forward"`` or ``"central"``.
        snr: Size of the probe differences relative to their own error; None if it cannot be computed.
        comes_twice: Whether the data gives the same batch when it is read again. If not, as with random augmentation, each step
            has to recompute its row, and ``removed`` holds for exact slopes.
        step_seconds: Time of a training step's forward and backward pass, including the loading of its batch.
        forward_seconds: Time of a sweep's forward pass, including all overhead.
        figures: The figures for each number of probes, whose rows a sweep makes.
        carried: Share of the noise that carried rows along all learned directions would remove after an epoch; None if no rows
            can be carried, or if that could not be measured.
        aged: Number of batches between the two measurements of the rows.
        epoch_batches: Number of batches of an epoch.
        only_carries: Whether the callback's ``control`` is to carry rows, so that the advice is carried rows or nothing. The
            figures are then those of a sweep in each epoch, or of recomputed rows where data does not come twice, neither of
            which such training makes.
    """

    epoch: int
    step: int
    parameters: int
    batches: int
    batch_size: float
    batches_per_step: int
    noise_to_signal: float
    signal_is_known: bool
    spectrum: tuple[float, ...]
    mu: float
    difference: Difference
    snr: float | None
    step_seconds: float
    forward_seconds: float
    figures: tuple[ProbeFigures, ...]
    comes_twice: bool = True
    carried: float | None = None
    aged: int = 0
    epoch_batches: int = 0
    only_carries: bool = False

    @property
    def noise_scale(self) -> float:
        """The batch size at which a gradient has as much signal as noise; a lower bound if the signal is not known."""
        return self.noise_to_signal * self.batch_size

    @property
    def best(self) -> ProbeFigures:
        """The figures of the number of probes with the highest efficiency."""
        return max(self.figures, key=lambda figures: figures.efficiency)

    @property
    def probes(self) -> int:
        """The number of probes to train with, together with :attr:`control`.

        It is 0 if probes do not pay clearly, if noise does not matter, or if only carried rows are asked for and could not be
        measured.
        """
        if self.carries:
            return len(self.spectrum)
        return self.best.probes if self.best.efficiency > CLEAR and self._noise_matters and not self.only_carries else 0

    @property
    def control(self) -> Literal["auto", "carry", "recompute"]:
        """The callback's ``control`` to train with, together with :attr:`probes`.

        ``"auto"`` stands for the control that was measured: if the Trainer's callback has a ``Replay(...)`` or a
        ``Recompute(...)``, keep that.
        """
        if self.carries:
            return "carry"
        return "recompute" if self.probes and not self.comes_twice else "auto"

    @property
    def carries(self) -> bool:
        """Whether carried rows are what pays most, counted in evaluations, of which they need none."""
        carried = 0.0 if self.carried is None else self.carried
        others = 1.0 if self.only_carries else max(1.0, self.best.efficiency)
        return self._noise_matters and 1 / (1 - carried) > others * KEPT

    @property
    def _noise_matters(self) -> bool:
        return not self.signal_is_known or self.noise_to_signal > self.batches_per_step

    @property
    def advice(self) -> str:
        """The advice in a sentence."""
        if not self._noise_matters:
            return self._again + (
                f"gradient noise does not slow the training down here: the noise scale is {_count(self.noise_scale)} samples,"
                f" and a step sees {_count(self.batch_size * self.batches_per_step)} samples. Train without probes"
            )
        return self._carried_advice if self.carries or self.only_carries else self._again + self._sweep_advice

    @property
    def _again(self) -> str:
        if self.comes_twice or self.only_carries:
            return ""
        return "the data gives other batches when it is read again, so rows are recomputed in each step; "

    @property
    def _carried_advice(self) -> str:
        if self.carried is None:
            return (
                "what carried rows would remove could not be measured here: measure at another checkpoint, or without a"
                " GradScaler, or train with VAMOCallback(control='carry'), which measures that in training"
            )
        count = len(self.spectrum)
        along = "1 direction" if count == 1 else f"{count} directions"
        what = f"carried rows along {along} remove {100 * self.carried:.0f} % of the gradient noise"
        if self.carries:
            return f"{what} at no extra evaluation: train with VAMOCallback(), or with probes={count} and control='carry'"
        return f"{what}, which does not pay: train without probes"

    @property
    def _sweep_advice(self) -> str:
        best = self.best
        worth = f"worth a {_factor(best.worth)}× larger batch for {_factor(best.work)}× the time"
        if self.probes:
            what = "one learned probe is" if best.probes == 1 else f"{best.probes} learned probes are"
            with_control = "" if self.comes_twice else " with control='recompute'"
            return f"{what} {worth}: use probes={best.probes}{with_control}"
        if best.efficiency * CLEAR > 1:
            return (
                f"whether probes pay here is too close to call: the best number, probes={best.probes}, would be {worth}, and"
                " the times are not that exact. Train without probes, or with VAMOCallback(), which measures in training"
            )
        return f"probes do not pay here: train without probes (the best number, probes={best.probes}, would be {worth})"

    def table(self) -> str:
        """The figures as a few lines of text."""
        at_least = "" if self.signal_is_known else "at least "
        snr = "unknown" if self.snr is None else f"{self.snr:.3g}"
        lines = [
            f"Gradients of {self.batches} batches of {_count(self.batch_size)} samples, {self.parameters:,} parameters,"
            f" at epoch {self.epoch}, step {self.step}",
            f"  noise     {at_least}{self.noise_to_signal:.3g} times the signal; noise scale {at_least}"
            f"{_count(self.noise_scale)} samples",
            "  spectrum  " + " ".join(f"{share:.3f}" for share in self.spectrum),
            f"  mu        {self.mu:.3g} ({self.difference} differences), signal-to-noise ratio {snr}",
            f"  cost      a sweep's forward pass takes {self.forward_seconds / self.step_seconds:.2f} of a training step",
            "",
            "  probes    random       learned          removed       worth    work   efficiency",
        ]
        for row in self.figures:
            learned, removed = (
                f"{share:6.3f} ± {error:.3f}"
                for share, error in ((row.learned, row.learned_error), (row.removed, row.removed_error))
            )
            lines.append(
                f"  {row.probes:>6}   {row.random:7.2g}  {learned}  {removed}  {_factor(row.worth):>6}×"
                f" {_factor(row.work):>6}×       {row.efficiency:.2f}"
            )
        if self.only_carries:
            others = "a sweep in each epoch" if self.comes_twice else "rows that each step recomputes"
            lines += ["", f"  what is removed, worth and work are those of {others}: control='carry' makes none"]
        if self.carried is not None:
            line = f"  carried  {self.carried:.3f} by rows of the epoch before, at no extra evaluation"
            lines += ["", f"{line} (from {self.aged} steps of {self.epoch_batches} batches)"]
        return "\n".join(lines)

    def __str__(self) -> str:
        """The table and the advice."""
        return f"{self.table()}\n\n{self.advice}"

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write all figures, and the advice, to a file.

        Args:
            path: The file.
        """
        derived = {name: getattr(self, name) for name in ("noise_scale", "probes", "control", "carries", "advice")}
        Path(path).write_text(json.dumps(asdict(self) | derived, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def plot(self) -> "Figure":
        """Plot the noise that probes remove, the spectrum of the noise, and the worth and the work of probes.

        Returns:
            A matplotlib figure; ``figure.savefig(path)`` writes it.

        Raises:
            UnsupportedError: If matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise UnsupportedError(
                "`plot` needs matplotlib, which is not installed: run pip install 'lightning-vamo[plot]'."
            ) from error
        figure = Figure(figsize=(13, 3.8), layout="constrained")
        shares, spectrum, worth = figure.subplots(1, 3)
        counts = [row.probes for row in self.figures]
        self._plot_shares(shares, counts)
        spectrum.bar(range(1, len(self.spectrum) + 1), self.spectrum, color="tab:blue")
        spectrum.set(xlabel="learned direction", ylabel="share of the held-out noise", title="Spectrum")
        worth.plot(counts, [row.worth for row in self.figures], "o-", label="worth: batch factor")
        worth.plot(counts, [row.work for row in self.figures], "s-", label="work")
        worth.plot(counts, [row.efficiency for row in self.figures], "^--", label="efficiency")
        worth.axhline(1, color="gray", linewidth=0.8)
        worth.set(xscale="log", xlabel="probes", title="Worth against work")
        for axes in (shares, worth):
            axes.set_xticks(counts, [str(count) for count in counts])
            axes.minorticks_off()
            axes.legend()
        figure.suptitle(self.advice, fontsize="medium")
        return figure

    def _plot_shares(self, axes: Any, counts: list[int]) -> None:
        for name, line in (("learned", "o-"), ("removed", "s--")):
            errors = [getattr(row, f"{name}_error") for row in self.figures]
            axes.errorbar(counts, [getattr(row, name) for row in self.figures], errors, fmt=line, capsize=3, label=name)
        axes.plot(counts, [row.random for row in self.figures], "k:", label="random")
        axes.set(xscale="log", xlabel="probes", ylabel="share of the noise", title="Removed variance")


def _factor(value: float) -> str:
    return f"{value:.2f}" if value < 1.95 else f"{value:.1f}" if value < 99.5 else f"{value:.0f}"


def _count(value: float) -> str:
    """A number of samples, rounded to a whole number with at most three significant digits."""
    digits = 3 - len(str(math.floor(abs(value))))
    return f"{round(value, min(0, digits)):,.0f}"
