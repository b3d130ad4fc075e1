"""Each method trains scikit-learn's digits, from a configuration of its own, to the accuracy that the configuration states."""

import re
from pathlib import Path

import pytest

from lightning_vamo.cli import VAMOCLI
from tests.support.commands import one_subcommand

ROOT = Path(__file__).parents[1]
CONFIGURATIONS = sorted((ROOT / "examples").glob("digits_*.yaml"))


@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended to run")
@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_it_reaches_the_accuracy_that_it_states(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    stated = float(re.search(r"accuracy of at least ([0-9.]+)", path.read_text())[1])
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.logger=false"]
    quiet += ["--trainer.enable_checkpointing=false", f"--trainer.default_root_dir={tmp_path}"]
    with one_subcommand(VAMOCLI, "fit"):
        cli = VAMOCLI(args=["fit", "--config", str(path), *quiet], save_config_callback=None)
    assert cli.trainer.callback_metrics["val_acc"] >= stated
    assert "Last metrics:" in capsys.readouterr().out
