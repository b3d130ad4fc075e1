"""Draw the pictures of the documentation that need no downloads, each panel by itself, so that a phone can stack them.

python docs/pictures.py lightning_logs/version_0    # the folder of a run of examples/digits.yaml: make pictures
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import lightning as L
from matplotlib.figure import Figure

from examples.digits import Digits, DigitsClassifier
from lightning_vamo import find_probes
from lightning_vamo.report.curves import draw
from lightning_vamo.report.logs import read_run

IMAGES = Path(__file__).parent / "images"


def save_panels(figure: Figure, name: str, numbers: Sequence[int]) -> None:
    """Save panels of a figure, each with its number, from 1, behind the name."""
    scale = figure.dpi_scale_trans.inverted()
    figure.draw_without_rendering()  # lays the panels out
    for number in numbers:
        box = figure.axes[number - 1].get_tightbbox().transformed(scale).padded(0.08)
        figure.savefig(IMAGES / f"{name}-{number}.png", dpi=110, bbox_inches=box)


def main() -> None:
    """Draw a run of ``examples/digits.yaml``, and what the finder says of its model, which the pages quote."""
    run = draw(read_run(sys.argv[1]), "lightning-vamo fit --config examples/digits.yaml")
    run.savefig(IMAGES / "digits.png", dpi=110)
    save_panels(run, "digits", (1, 2, 3))
    L.seed_everything(0)
    finding = find_probes(L.Trainer(accelerator="cpu", logger=False), DigitsClassifier(lr=0.3), Digits())
    print(finding)
    save_panels(finding.plot(), "finder", (1, 3))


if __name__ == "__main__":
    main()
