"""Pictures for the documentation: panels as wide as a phone's page, in SVG, whose text keeps its size there."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

SIZE = 3.7, 2.8
"""Of a panel, in inches."""

STYLE = {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "lightning_vamo"}


def panel(size: tuple[float, float] = SIZE) -> Any:
    """The axes of a new panel."""
    with mpl.rc_context(STYLE):
        axes = Figure(figsize=size, layout="constrained").subplots()
    axes.figure.get_layout_engine().set(w_pad=0.1)  # the page's font may be wider than the one that was laid out
    axes.grid(alpha=0.3)
    return axes


def legend(axes: Any) -> Figure:
    """A picture of what the lines of a panel are, each once."""
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(SIZE[0], 0.22 * len(handles) + 0.2))
        figure.legend(handles.values(), handles.keys(), loc="center", frameon=False)
    return figure


def save(figure: Figure, path: Path | str) -> None:
    """Write a picture that is the same file whenever it is drawn."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        figure.savefig(path, metadata={"Date": None})
