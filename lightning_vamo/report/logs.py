"""Read the logs of a run, from the files of Lightning's TensorBoardLogger or CSVLogger."""

import csv
from pathlib import Path

from lightning_vamo.errors import InvalidArgumentError
from lightning_vamo.report.curves import Curve


def read_run(folder: str | Path) -> dict[str, Curve]:
    """Read the curves of a run from its folder of logs.

    Args:
        folder: The folder of one run, such as ``lightning_logs/version_0``, with the events files of a TensorBoardLogger or
            the ``metrics.csv`` of a CSVLogger. A resumed run may have written several events files.

    Returns:
        A curve for each scalar that was logged, by name, in the order of the names.

    Raises:
        InvalidArgumentError: If the folder holds neither kind of file, or no scalar.
    """
    folder = Path(folder)
    table = folder / "metrics.csv"
    if not table.is_file() and not list(folder.glob("events.out.tfevents.*")):
        raise InvalidArgumentError(
            "`run` must be the folder of a run, with an events file of TensorBoard or a metrics.csv, such as"
            f" lightning_logs/version_0, got {str(folder)!r}, which {_what(folder)}."
        )
    try:
        curves = _from_csv(table) if table.is_file() else _from_events(folder)
    except (KeyError, ValueError) as error:  # among the latter, text that is not UTF-8
        raise InvalidArgumentError(
            f"`run` must be the folder of a run, got {str(folder)!r}, whose metrics.csv is not one of Lightning's, which gives"
            f" {error!r}: name the folder of another run."
        ) from None
    if not curves:
        raise InvalidArgumentError(f"The run in {str(folder)!r} has logged nothing yet: wait for its first epoch to end.")
    return dict(sorted(curves.items()))


def _what(folder: Path) -> str:
    if not folder.exists():
        return "does not exist"
    runs = sorted(path.name for path in folder.glob("version_*"))
    return f"holds {', '.join(runs)}: name one of them" if runs else "holds neither"


def _from_csv(table: Path) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    with table.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name not in ("step", "epoch"):
                    curve = curves.setdefault(name, Curve([], []))
                    curve.steps.append(int(row["step"]))
                    curve.values.append(float(value))
    return curves


def _from_events(folder: Path) -> dict[str, Curve]:
    # Here, since the import takes long.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})  # all of them
    events.Reload()
    curves = {}
    for name in events.Tags()["scalars"]:
        scalars = events.Scalars(name)
        curves[name] = Curve([scalar.step for scalar in scalars], [scalar.value for scalar in scalars])
    curves.pop("epoch", None)
    return curves
