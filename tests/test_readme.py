"""What the README shows runs."""

import re
from pathlib import Path

import lightning as L
import pytest
import yaml

import lightning_vamo
from lightning_vamo.cli import VAMOCLI
from tests.support.modules import Data, Everything

README = (Path(__file__).parents[1] / "README.md").read_text()


def block(language, containing):
    [found] = [code for code in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if containing in code]
    return found


def test_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"LitClassifier": Everything, "datamodule": Data()}
    code = block("python", "VAMOClassifier").replace("max_epochs=10", "max_epochs=2")
    exec(code, names)
    callback = next(c for c in names["trainer"].callbacks if isinstance(c, lightning_vamo.VAMOCallback))
    assert callback.report.snapshots == 2
    assert isinstance(names["trainer"], L.Trainer)


@pytest.mark.filterwarnings("ignore:No seed found")
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended to run")
@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
def test_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = block("yaml", "class_path: my_project").replace("my_project.LitClassifier", "tests.support.modules.Everything")
    config = yaml.safe_load(config.replace("my_project.MyData", "tests.support.modules.Data"))
    Path("config.yaml").write_text(yaml.safe_dump(config))
    for line in block("console", "--vamo.probes").splitlines():
        words = line.split()[2:]
        cli = VAMOCLI(args=[*words, "--trainer.fast_dev_run=2", "--vamo.mu=0.01"])
        callback = next(c for c in cli.trainer.callbacks if isinstance(c, lightning_vamo.VAMOCallback))
        probes = 8 if "--vamo.probes" in words else 4
        assert callback.report.forward_evaluations == 2 + 2 * (1 + probes) + (1 + 2 + 2) + (probes + 1)


def test_links_to_files():
    for target in re.findall(r"\]\(((?!https?:|#)[^)]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
