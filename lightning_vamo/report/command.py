"""The command ``lightning-vamo report``: the picture of a run, from the run's logs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lightning_vamo.report.curves import Curve, draw
from lightning_vamo.report.logs import read_run

REPORT_HELP = "lightning-vamo report RUN draws the logs of a run, such as lightning_logs/version_0."


def report_command(args: Sequence[str]) -> None:
    """Draw a run from its logs, and print the last value of each of the method's figures.

    Args:
        args: The words after ``report`` on the command line.

    Raises:
        InvalidArgumentError: If the folder holds no logs.
        UnsupportedError: If matplotlib is not installed, or the logs hold nothing to draw.
    """
    parser = argparse.ArgumentParser("lightning-vamo report", description="Draw a run from its logs.")
    parser.add_argument("run", type=Path, help="folder of the run, such as lightning_logs/version_0")
    parser.add_argument("--output", type=Path, help="file of the picture; by default report.png in the folder of the run")
    given = parser.parse_args(args)
    curves = read_run(given.run)
    output = given.output or given.run / "report.png"
    figure = draw(curves, str(given.run))
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150)
    print("\n".join(_last_values(curves)))
    print(f"Written: {output}")


def _last_values(curves: dict[str, Curve]) -> list[str]:
    width = max(map(len, curves))
    return [f"{name:<{width}}  {curve.values[-1]:.4g}" for name, curve in curves.items()]
