"""Draw the curves of a training run from its TensorBoard logs.

python examples/plot_run.py lightning_logs/version_0 run.png
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PANELS = {
    "loss": ["train_loss", "val_loss", "vamo/snapshot_loss"],
    "validation accuracy": ["val_acc"],
    "share of the second moment removed": ["vamo/variance_removed"],
}


def draw(run: Path) -> Figure:
    """Draw a run.

    Args:
        run: Folder of the run, with its events file.

    Returns:
        A figure with one panel for each of ``PANELS``.
    """
    events = EventAccumulator(str(run))
    events.Reload()
    known = events.Tags()["scalars"]
    figure, axes = plt.subplots(1, len(PANELS), figsize=(12, 3.2), layout="constrained")
    for axis, (title, names) in zip(axes, PANELS.items(), strict=True):
        for name in names:
            if name in known:
                scalars = events.Scalars(name)
                faint = {"alpha": 0.5, "linewidth": 0.8} if name == "train_loss" else {"marker": ".", "markersize": 4}
                axis.plot([s.step for s in scalars], [s.value for s in scalars], label=name, **faint)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend()
    axes[0].set_yscale("log")
    return figure


def main() -> None:
    """Read the logs and save the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run, with its events file")
    parser.add_argument("picture", type=Path, help="file to write")
    arguments = parser.parse_args()
    if not list(arguments.run.glob("events.out.tfevents.*")):
        parser.error(f"no TensorBoard events file in {arguments.run}: pass the folder of a run, lightning_logs/version_N")
    draw(arguments.run).savefig(arguments.picture, dpi=110)


if __name__ == "__main__":
    main()
