"""The experiments of the evidence run from their files, go on where they were, and compare at equal cost."""

import json
import math

import pytest
import yaml

from examples.benchmarks.evidence import __main__ as command
from examples.benchmarks.evidence import experiment as experiments
from examples.benchmarks.evidence import runs, tables
from examples.benchmarks.evidence.experiment import Experiment, expanded, merged, names
from examples.benchmarks.evidence.runs import search
from lightning_vamo.cli import main as lightning_vamo

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended to run from within Python")

TINY = """
title: Tiny
every: 2
rates: [0.1, 0.3, 1.0]
start: 0.1
figures: [gradient_norm]
fit:
  model:
    class_path: examples.benchmarks.evidence.networks.Network
    init_args: {sizes: [4, 1], loss: sigmoid_squared, bias: false, zeros: true}
  data:
    class_path: examples.benchmarks.evidence.data.LeastSquares
    init_args: {samples: 60, dimension: 4, batch_size: 10}
  trainer: {max_epochs: 3}
methods:
  SGD: {}
  orthonormal, q =:
    method:
      class_path: VAMOCallback
      init_args:
        directions: {class_path: lightning_vamo.core.directions.OrthonormalDirections}
        alpha: theory
        control: replay
        difference: central
    each: {method.init_args.probes: [1, 4]}
  FO-SVRG:
    method: {class_path: SVRGCallback, init_args: {gradients: cache}}
small: {only: [SGD], seeds: [0]}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder for experiments with one in it."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.setattr(experiments, "FOLDER", tmp_path)
    return tmp_path


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["evidence", *map(str, arguments)])
    command.main()


def test_an_experiment_and_its_report(folder, monkeypatch):
    kept, into = folder / "runs", folder / "report"
    run(monkeypatch, "run", "tiny", "--runs", kept, "--seeds", 2)
    with monkeypatch.context() as patch:
        patch.setattr(runs, "train", lambda *arguments: pytest.fail(f"trained {arguments} again"))
        run(patch, "run", "tiny", "--runs", kept, "--seeds", 2)
    experiment = Experiment.load("tiny")
    groups = tables.load(experiment, kept)
    assert {name: [one["seed"] for one in group] for name, group in groups.items()} == {
        key: [0, 1] for key in experiment.methods
    }
    ends = {name: group[0]["points"][-1] for name, group in groups.items()}
    assert {end["step"] for end in ends.values()} == {18}
    assert ends["SGD"]["forward"] == ends["SGD"]["backward"] == 18
    assert ends["orthonormal, q = 4"]["forward"] >= 18 + 18 * (1 + 2 * 4)
    assert ends["orthonormal, q = 4"]["backward"] == 18
    assert groups["SGD"][0]["removed"] is None
    assert groups["orthonormal, q = 4"][0]["removed"] > groups["orthonormal, q = 1"][0]["removed"]
    # With as many probes as weights it is SVRG.
    assert ends["orthonormal, q = 4"]["gradient_norm"] == pytest.approx(ends["FO-SVRG"]["gradient_norm"], rel=0.01)
    assert all(end["step_length"] > 0 for end in ends.values())

    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    run(monkeypatch, "report", "tiny", "--runs", kept, "--into", into)
    lines = (into / "tiny.txt").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {name}" for name in experiment.methods]
    panels = sorted(path.name for path in into.glob("*.svg"))  # two figures over three costs, and what the lines are
    assert panels == [*(f"tiny-{number}.svg" for number in range(1, 7)), "tiny-legend.svg"]
    assert "FO-SVRG" in (into / "tiny-legend.svg").read_text()


def test_all_rates_and_the_table_of_their_window(folder, monkeypatch):
    (folder / "rates.yaml").write_text(
        "extends: tiny\ntune: all\nplot: rates\nmethods!: {'SGD, constant': {}}\nrates!: [0.1, 1.0]"
    )
    run(monkeypatch, "run", "rates", "--runs", folder, "--seeds", 1)
    experiment = Experiment.load("rates")
    groups = tables.load(experiment, folder)
    assert [one["lr"] for one in groups["SGD, constant"]] == [0.1, 1.0]
    [row] = tables.window_table(experiment, groups).splitlines()[2:]
    assert row.startswith("| SGD, constant | 1 | ")
    assert tables.rates_table(experiment, groups).splitlines()[0] == "| method | 0.1 | 1 |"


def test_a_shown_configuration_is_one_of_the_command(folder, monkeypatch, capsys):
    run(monkeypatch, "show", "tiny", "--method", "orthonormal, q = 1", "--lr", 0.25)
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown)["model"]["init_args"]["lr"] == 0.25
    (folder / "run.yaml").write_text(shown)
    monkeypatch.chdir(folder)  # for the logs
    lightning_vamo(["fit", "--config", str(folder / "run.yaml"), "--trainer.max_epochs", "1"])


def test_another_configuration_is_another_run(folder):
    experiment = Experiment.load("tiny")
    first = runs.kept(experiment, "SGD", 0.1, 0, folder, "")
    (folder / "tiny.yaml").write_text(TINY.replace("max_epochs: 3", "max_epochs: 1"))
    again = runs.kept(Experiment.load("tiny"), "SGD", 0.1, 0, folder, "")
    assert (first["points"][-1]["step"], again["points"][-1]["step"]) == (18, 6)
    assert [one["config"] for one in tables.load(Experiment.load("tiny"), folder)["SGD"]] == [again["config"]]


def test_a_run_that_diverges(folder):
    experiment = Experiment.load("tiny")
    run = runs.train(experiment.config("SGD", math.inf, 0), "", 2, True)
    assert run["diverged"]
    assert runs.final(run, "train_loss") == math.inf
    assert run["points"][-1]["step"] == 2


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", names())
def test_every_experiment_can_be_read(name, small):
    experiment = Experiment.load(name, small=small)
    assert small or len(experiment.seeds) >= 3
    for method, change in experiment.methods.items():
        assert experiment.begins(method) in experiment.rates or experiment.tune == "all"
        assert set(change) <= {"start", "model", "method", "trainer"}
    json.dumps([experiment.config(method, 0.1, 0) for method in experiment.methods])


def test_methods_with_one_for_each_value():
    methods = expanded(
        {"a": {"x": 1}, "b =": {"x": {"y": 2}, "each": {"x.z": [3, {"class_path": "m.C", "init_args": {"k": 4}}]}}}
    )
    assert methods == {
        "a": {"x": 1},
        "b = 3": {"x": {"y": 2, "z": 3}},
        "b = C(k=4)": {"x": {"y": 2, "z": {"class_path": "m.C", "init_args": {"k": 4}}}},
    }
    assert merged({"a": {"b": 1}, "c": {"d": 2}}, {"a": {"e": 3}, "c!": {"f": 4}}) == {"a": {"b": 1, "e": 3}, "c": {"f": 4}}


def test_the_search_asks_once_for_each_rate_on_its_way_to_the_best():
    asked = []

    def loss(rate):
        asked.append(rate)
        return abs(rate - 7) if rate < 9 else math.inf

    assert search(loss, range(10), 4) == 7
    assert sorted(asked) == [3, 4, 5, 6, 7, 8]
    assert search(lambda rate: rate, range(10), 1) == 0
    assert search(lambda rate: -rate, range(10), 8) == 9


def made(losses, cost, **settings):
    points = [
        {"step": step, "forward": cost * step, "backward": step, "cpu_seconds": 2.0 * step, "train_loss": loss}
        for step, loss in enumerate(losses)
    ]
    return {"diverged": False, "lr": 0.1, "points": points, "removed": None, **settings}


def test_values_at_equal_cost():
    groups = {
        "plain": [made([4.0, 2.0, 1.0], 1), made([4.0, 4.0, 3.0], 1)],
        "probed": [made([3.0, 1.0, 0.0], 4, removed=0.5)] * 2,
    }
    assert tables.value_at(groups["probed"][0], "evaluations", 2, "train_loss") == 1.0
    assert tables.value_at(groups["probed"][0], "evaluations", 3, "train_loss") == 0.5
    assert math.isnan(tables.value_at(groups["plain"][0], "evaluations", 2.5, "train_loss"))
    experiment = Experiment("made", "", {}, {}, [0.1])
    assert tables.cost_table(experiment, groups).replace("\u00a0", " ").splitlines()[2:] == [
        "| plain | 2.0 ± 1.4 | 2.2 ± 1.4 | 1.00× | 1.00× | – |",
        "| probed | 0 | 1.25 | 2.00× | 1.00× | 50.0 % |",
    ]
    groups["plain"].append(made([4.0, math.nan, math.nan], 1, diverged=True))
    plain, _ = tables.cost_table(experiment, groups).splitlines()[2:]
    assert plain.startswith("| plain | 3 | diverged | – |")  # three seeds, where the other has two
    halves = [made([4.0, 2.0], 1, removed=0.0)] * 2
    assert tables.cost_table(experiment, {"plain": groups["plain"][:2], "short": halves}).splitlines()[3].count(" – ") == 1
