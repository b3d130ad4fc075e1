"""The command ``lightning-vamo report``: the picture of a run, from the run's logs."""

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path

from lightning_vamo.errors import InvalidArgumentError
from lightning_vamo.report.curves import Curve, draw
from lightning_vamo.report.logs import read_run

REPORT_HELP = "lightning-vamo report RUN draws the logs of a run, such as lightning_logs/version_0."


def report_command(args: Sequence[str]) -> None:
    """Draw a run from its logs, and print the last value of each name that the run has logged.

    Args:
        args: The words after ``report`` on the command line.

    Raises:
        InvalidArgumentError: If the folder holds no logs, or if the picture cannot be written where it is to go.
        UnsupportedError: If matplotlib is not installed, or the logs hold nothing to draw.
    """
    parser = argparse.ArgumentParser("lightning-vamo report", description="Draw a run from its logs.")
    parser.add_argument("run", type=Path, help="folder of the run, such as lightning_logs/version_0")
    parser.add_argument(
        "--output",
        type=Path,
        help="file of the picture, such as run.png or run.pdf, or a folder for report.png; by default the folder of the run",
    )
    given = parser.parse_args(args)
    curves = read_run(given.run)
    figure = draw(curves, str(given.run))
    output = _file(given.output or given.run, figure.canvas.get_supported_filetypes())
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, dpi=150)
    except OSError as error:
        if given.output is None:
            raise InvalidArgumentError(
                f"The picture cannot be written into the folder of the run, which gives {error}: name a file with `--output`."
            ) from error
        raise InvalidArgumentError(
            f"`--output` must be a file that can be written, got {str(output)!r}, which gives {error}: name another file."
        ) from error
    print("\n".join(_last_values(curves)))
    print(f"Written: {output}")


def _file(output: Path, formats: Collection[str]) -> Path:
    """The file of the picture: the file that is named, or a file in the folder that is named."""
    if output.is_dir():
        return output / "report.png"
    if output.suffix.lower().removeprefix(".") not in formats:
        endings = ", ".join(f".{name}" for name in sorted(formats))
        raise InvalidArgumentError(
            f"`--output` must be a folder that exists, or a file whose name ends in one of {endings}, got"
            f" {str(output)!r}: write {str(output.with_suffix('.png'))!r}, or make the folder first."
        )
    return output


def _last_values(curves: dict[str, Curve]) -> list[str]:
    width = max(map(len, curves))
    return [f"{name:<{width}}  {curve.values[-1]:.4g}" for name, curve in curves.items()]
