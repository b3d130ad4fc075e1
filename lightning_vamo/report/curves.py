"""The picture of a run: its losses, the share of the noise that was removed, and the evaluations that the run took."""

import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_vamo.errors import UnsupportedError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Curve:
    """A figure that was logged over a run.

    Attributes:
        steps: The optimizer steps at which the figure was logged, in order.
        values: The figure's values at these steps.
    """

    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class _Panel:
    title: str
    unit: str
    shows: Callable[[str], bool]


# The first part of a name, before a slash, is the method's prefix, or a heading that the user chose.
_PANELS = (
    _Panel("Loss", "loss", lambda name: "loss" in name),
    _Panel("Noise removed", "share of the gradient's second moment", lambda name: _last(name) == "variance_removed"),
    _Panel("Choice", "what corrects the steps", lambda name: _last(name) == "decision"),
    _Panel("Cost", "evaluations of a batch so far", lambda name: _last(name).endswith("ward_evaluations")),
)


_CHOICES = ("nothing", "look", "carried rows", "sweep")
"""What the numbers of the logged name ``decision`` mean, from 0."""


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def curves_of(epochs: Iterable[Mapping[str, float]]) -> dict[str, Curve]:
    """The curves of a run from the figures of its epochs.

    Args:
        epochs: The figures of each epoch, by name; ``step`` is the number of optimizer steps at the epoch's end.

    Returns:
        A curve for each name except ``step``, without the epochs in which the figure is missing.
    """
    curves: dict[str, Curve] = {}
    for figures in epochs:
        for name, value in figures.items():
            if name != "step":
                curve = curves.setdefault(name, Curve([], []))
                curve.steps.append(int(figures["step"]))
                curve.values.append(value)
    return curves


def draw(curves: Mapping[str, Curve], title: str) -> "Figure":
    """Draw the curves of a run.

    Args:
        curves: The curves of the run, by name.
        title: The title above the panels.

    Returns:
        A matplotlib figure of up to four panels: all curves whose names contain "loss", the share of the gradient's second
        moment that the corrections removed, what corrected the steps if that is chosen by measurement, and the evaluations of
        a batch so far. A panel without a curve is left out.

    Raises:
        UnsupportedError: If matplotlib is not installed, or the run has logged nothing that a panel shows.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnsupportedError(
            "The picture of a run needs matplotlib, which is not installed: run pip install 'lightning-vamo[plot]'."
        ) from error
    shown = [(panel, {name: curve for name, curve in curves.items() if panel.shows(name)}) for panel in _PANELS]
    shown = [(panel, own) for panel, own in shown if own]
    if not shown:
        raise UnsupportedError(
            "There is nothing to draw: the run has finished no epoch, and has logged neither a value whose name contains `loss`"
            " nor a figure of a method. Train for at least one epoch, or log a loss."
        )
    figure = Figure(figsize=(4.4 * len(shown), 3.6), layout="constrained")
    for axes, (panel, own) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        _draw_panel(axes, panel, own)
    figure.suptitle(textwrap.fill(title, 40 * len(shown)), fontsize="medium")
    return figure


def _draw_panel(axes: Any, panel: _Panel, curves: Mapping[str, Curve]) -> None:
    for name, curve in curves.items():
        often = len(curve.steps) > 60  # logged within epochs: markers would hide the line
        style: dict[str, Any] = {"alpha": 0.5, "linewidth": 0.8} if often else {"marker": ".", "markersize": 5}
        style |= {"drawstyle": "steps-pre"} if panel.title == "Choice" else {}
        axes.plot(curve.steps, curve.values, label=name, **style)
    values = [value for curve in curves.values() for value in curve.values]
    if panel.title == "Loss" and min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    if panel.title == "Noise removed":
        axes.axhline(0, color="gray", linewidth=0.8)  # below, the corrections added noise
    if panel.title == "Choice":
        axes.set_yticks(range(len(_CHOICES)), _CHOICES)
    if panel.title == "Cost":
        axes.set_ylim(bottom=0)
    axes.set(title=panel.title, xlabel="optimizer step", ylabel=panel.unit)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
