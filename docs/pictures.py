"""Draw the pictures of the documentation that need no downloads, each panel by itself, so that a phone can stack them.

python docs/pictures.py lightning_logs/version_0    # the folder of a run of examples/digits.yaml: make pictures
"""

import sys
from pathlib import Path

import lightning as L
from matplotlib.figure import Figure

from examples.digits import Digits, DigitsClassifier
from lightning_vamo import find_probes
from lightning_vamo.report.curves import draw
from lightning_vamo.report.logs import read_run

IMAGES = Path(__file__).parent / "images"


def save(figure: Figure, name: str) -> None:
    """Save a figure, and each of its panels with a number behind the name."""
    figure.savefig(IMAGES / f"{name}.png", dpi=110)
    scale = figure.dpi_scale_trans.inverted()
    for number, axes in enumerate(figure.axes, 1):
        box = axes.get_tightbbox().transformed(scale).padded(0.08)
        figure.savefig(IMAGES / f"{name}-{number}.png", dpi=110, bbox_inches=box)


def main() -> None:
    """Draw a run of ``examples/digits.yaml``, and what the finder says of its model."""
    save(draw(read_run(sys.argv[1]), "lightning-vamo fit --config examples/digits.yaml"), "demo")
    L.seed_everything(0)
    trainer = L.Trainer(accelerator="cpu", logger=False)
    save(find_probes(trainer, DigitsClassifier(lr=0.3), Digits()).plot(), "finder")


if __name__ == "__main__":
    main()
