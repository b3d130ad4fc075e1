"""The picture of a run shows what the run logged, from its report and from its logs."""

import sys

import lightning as L
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_vamo import InvalidArgumentError, UnsupportedError, VAMOCallback
from lightning_vamo.cli import main
from lightning_vamo.core.directions import SphereDirections
from lightning_vamo.core.schedules.decision import NUMBERS
from lightning_vamo.report.curves import Curve, curves_of, draw
from lightning_vamo.report.logs import read_run
from tests.support.modules import Data, VAMOEverything


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The callback of a run of two epochs, and the folders of its logs: TensorBoard's events, and a table."""
    folder = tmp_path_factory.mktemp("run")
    loggers = [TensorBoardLogger(folder, "events"), CSVLogger(folder, "table")]
    callback = VAMOCallback(probes=2, directions=SphereDirections())
    off = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=2, limit_train_batches=4, log_every_n_steps=1, logger=loggers, callbacks=[callback], **off
    )
    trainer.fit(VAMOEverything(), Data())
    return callback, *(logger.log_dir for logger in loggers)


def shown(figure):
    """The points of each curve, by the panel's title and the curve's name."""
    return {
        axes.get_title(): {
            line.get_label(): list(zip(*map(list, line.get_data()), strict=True))
            for line in axes.get_lines()
            if not line.get_label().startswith("_")
        }
        for axes in figure.axes
    }


def test_the_reports_picture_has_a_point_for_each_epoch(run):
    callback, *_ = run
    report = callback.report
    panels = shown(report.plot())
    assert list(panels) == ["Loss", "Noise removed", "Cost"]
    assert set(panels["Loss"]) == {"loss", "val_loss"}
    assert [step for step, _ in panels["Loss"]["val_loss"]] == [4, 8]
    [(_, _), (_, forwards)] = panels["Cost"]["forward_evaluations"]
    assert forwards == report.forward_evaluations
    removed = [value for _, value in panels["Noise removed"]["variance_removed"]]
    assert min(removed) <= report.variance_removed <= max(removed)
    assert report.plot().get_suptitle().replace("\n", " ").startswith("VAMO: the probes did")


def test_the_logs_of_both_loggers_hold_the_same_curves(run):
    callback, events, table = run
    of_events, of_table = read_run(events), read_run(table)
    assert set(of_table) <= set(of_events) | {"hp_metric"}
    for name in ("loss", "vamo/variance_removed", "vamo/snapshot_loss"):
        assert of_events[name].steps == of_table[name].steps
        assert of_events[name].values == pytest.approx(of_table[name].values, rel=1e-5)
    assert of_events["vamo/forward_evaluations"].values[-1] == callback.report.forward_evaluations
    assert "vamo/snapshot_loss" in shown(draw(of_table, "a run"))["Loss"]


def test_the_command_writes_the_picture_and_says_what_was_logged(run, capsys, tmp_path):
    _, events, table = run
    main(["report", events])
    assert f"Written: {events}/report.png" in capsys.readouterr().out
    main(["report", table, "--output", str(tmp_path / "new" / "run.png")])
    shown = capsys.readouterr().out
    assert all(f"\n{name} " in f"\n{shown}" for name in read_run(table))
    assert (tmp_path / "new" / "run.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_goes_into_a_folder_that_is_named(run, capsys, tmp_path):
    main(["report", run[2], "--output", str(tmp_path)])
    assert f"Written: {tmp_path}/report.png\n" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["report.png"]


@pytest.mark.parametrize("name", ["run.pdf", "run.SVG", "new/run.jpg", "run.svgz"])
def test_the_end_of_the_name_says_the_format(name, run, capsys, tmp_path):
    main(["report", run[2], "--output", str(tmp_path / name)])
    assert f"Written: {tmp_path / name}\n" in capsys.readouterr().out
    assert (tmp_path / name).stat().st_size > 1000


@pytest.mark.parametrize("name", ["plots", "run.txt", "new/run", "run.png.gz", ".png"])
def test_a_name_that_says_no_format_is_refused(name, run, tmp_path):
    with pytest.raises(SystemExit, match=rf"^lightning-vamo: `--output` must be a folder .*\.png.* got '.*{name}': write "):
        main(["report", run[2], "--output", str(tmp_path / name)])
    assert not list(tmp_path.iterdir())


def test_a_run_whose_folder_cannot_be_written_to_asks_for_another_place(run, monkeypatch):
    def fails(*_, **__):
        raise PermissionError("Permission denied")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fails)
    with pytest.raises(
        SystemExit, match=r"^lightning-vamo: The picture cannot .* Permission denied: name a file with `--output`"
    ):
        main(["report", run[2]])


def test_a_place_that_cannot_be_written_is_refused(run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        SystemExit, match=r"^lightning-vamo: `--output` must be a file that can be written, got .*: name another"
    ):
        main(["report", run[2], "--output", str(tmp_path / "file" / "run.png")])


def test_a_folder_without_logs_is_refused_with_what_it_holds(run, tmp_path):
    (tmp_path / "version_3").mkdir()
    with pytest.raises(InvalidArgumentError, match="which holds version_3: name one of them"):
        read_run(tmp_path)
    with pytest.raises(SystemExit, match=r"lightning-vamo: `run` must be the folder of a run.*which does not exist"):
        main(["report", str(tmp_path / "nowhere")])
    (tmp_path / "metrics.csv").write_text("step,loss\n")
    with pytest.raises(InvalidArgumentError, match="has logged nothing yet"):
        read_run(tmp_path)


@pytest.mark.parametrize("table", [b"loss\n1.0\n", b"step,loss\n1,low\n", b"\xff\xfe"])
def test_a_table_that_lightning_has_not_written_is_refused(table, tmp_path):
    (tmp_path / "metrics.csv").write_bytes(table)
    with pytest.raises(
        InvalidArgumentError, match=r"whose metrics.csv is not one of Lightning's, .*: name the folder of another"
    ):
        read_run(tmp_path)


def test_curves_leave_out_epochs_without_the_figure_and_panels_without_curves():
    curves = curves_of([{"step": 3, "loss": 2.0}, {"step": 6, "loss": 1.0, "variance_removed": 0.5}])
    assert curves == {"loss": Curve([3, 6], [2.0, 1.0]), "variance_removed": Curve([6], [0.5])}
    assert list(shown(draw(curves, "a run"))) == ["Loss", "Noise removed"]
    with pytest.raises(UnsupportedError, match="There is nothing to draw"):
        draw({"accuracy": Curve([1], [0.5])}, "a run")


def test_choices_are_drawn_by_their_names():
    curves = curves_of([{"step": 4, "vamo/decision": 0.0}, {"step": 8, "vamo/decision": 2.0}])
    [axes] = draw(curves, "a run").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["nothing", "look", "carried rows", "sweep"]
    assert list(axes.get_lines()[0].get_ydata()) == [0.0, 2.0]
    assert NUMBERS == {"nothing": 0, "look": 1, "carry": 2, "sweep": 3}  # what the names stand for


def test_a_picture_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'lightning-vamo\[plot\]'"):
        draw({"loss": Curve([1], [0.5])}, "a run")


def test_losses_that_fall_by_orders_of_magnitude_are_drawn_on_a_logarithmic_axis():
    scales = [
        draw({"loss": Curve([1, 2], [1.0, last])}, "a run").axes[0].get_yscale() for last in (0.5, 1e-3, -1.0, float("nan"))
    ]
    assert scales == ["linear", "log", "linear", "linear"]
