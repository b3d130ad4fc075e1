"""`lightning-vamo fit --help` begins with the method, has no markup, and its example is a configuration that works."""

import io
import re
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

import lightning_vamo
from lightning_vamo.cli import VAMOCLI
from lightning_vamo.help import EXAMPLE, short_names


@pytest.fixture(scope="module")
def shown():
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", printed)
        with pytest.raises(SystemExit):
            VAMOCLI(args=["fit", "--help"])
    return printed.getvalue()


pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended to run")


def test_the_method_comes_first(shown):
    assert shown.index("--method METHOD") < shown.index("--vamo.probes PROBES") < shown.index("--trainer.accelerator")
    assert len(shown.splitlines()[0]) < 128


def test_no_markup(shown):
    ours = shown[shown.index("The method:") : shown.index("options:")]
    assert "--vamo.probes" in ours
    assert not re.findall(r":\w+:`|``", ours)


def test_every_short_name_is_listed_and_exists(shown):
    end = shown[shown.index("short names:") :]
    for names in short_names().values():
        assert names
        assert all(name in end for name in names)
    methods = {name for name in lightning_vamo.__all__ if name.endswith("Callback")}
    assert set(short_names()["method"]) == methods


def test_the_example_is_that_of_the_readme():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    example = EXAMPLE[EXAMPLE.index("  model:") : EXAMPLE.index("\nrun it")]
    assert textwrap.dedent(example) in readme


@pytest.mark.filterwarnings("ignore:No seed found")
@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
def test_the_example_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = EXAMPLE[EXAMPLE.index("  model:") : EXAMPLE.index("\nrun it")]
    config = yaml.safe_load(text.replace("my_project.LitClassifier", "tests.support.modules.Everything"))
    config["data"]["class_path"] = "tests.support.modules.Data"
    Path("config.yaml").write_text(yaml.safe_dump(config))
    words = EXAMPLE[EXAMPLE.index("lightning-vamo fit") :].splitlines()[0].split()[1:]
    cli = VAMOCLI(args=[*words, "--trainer.fast_dev_run=2"])
    [callback] = [c for c in cli.trainer.callbacks if isinstance(c, lightning_vamo.VAMOCallback)]
    assert callback.report.snapshots == 1
