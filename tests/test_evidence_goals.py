"""The goals of the choice by measurement are judged from the runs that are kept."""

import math
from dataclasses import replace

import pytest

from examples.benchmarks.evidence import auto as command
from examples.benchmarks.evidence import decay, goals
from examples.benchmarks.evidence.experiment import Experiment, merged
from examples.benchmarks.evidence.goals import Goal
from examples.benchmarks.evidence.runs import train

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended to run from within Python")


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Lightning 2.6 calls jsonargparse 4.49 by names that it deprecates."""
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


def made(losses, seconds=1.0, forwards=1, seed=0, val=1.0, decisions=()):
    points = [
        {
            "step": step,
            "forward": forwards * step,
            "backward": step,
            "cpu_seconds": seconds * step,
            "train_loss": loss,
            "val_loss": val,
        }
        for step, loss in enumerate(losses)
    ]
    return {"diverged": False, "lr": 0.1, "seed": seed, "points": points, "removed": None, "decisions": list(decisions)}


def judged(groups, **settings):
    [one] = goals.judged(Experiment("made", "Made", {}, {}, [0.1], **settings), groups, "")
    return one


def test_a_loss_that_is_reached_in_half_of_the_steps_costs_half():
    plain, quick = made([8, 7, 6, 5, 4, 3, 2, 1]), made([8, 6, 4, 2, 1, 1, 1, 1], seconds=3.0)
    assert goals.slower(quick, plain, "evaluations") == pytest.approx(4 / 7)
    assert goals.slower(quick, plain, "CPU seconds") == pytest.approx(3 * 4 / 7)
    assert goals.slower(plain, plain, "evaluations") == 1
    # Of a run that ends higher, plain training's cost to that loss is what counts.
    assert goals.slower(plain, quick, "evaluations") == pytest.approx(7 / 4)


def test_goals_that_are_met_and_missed():
    look = {"epoch": 2, "kind": "look"}
    groups = {
        "plain": [made([4.0] * 8, seed=seed, val=val) for seed, val in enumerate((1.0, 1.2))],
        "auto": [made([3.0] * 8, seconds=1.5, seed=seed, val=1.1, decisions=[look]) for seed in range(2)],
        "auto by evaluations": [made([2.1] * 8)],
        "carry": [made([2.0] * 8, seed=0)],
    }
    one = judged(groups, goals={"evaluations": 0.7})
    figures = {name: goal.figure for name, goal in one.goals.items()}
    assert figures["evaluations to plain's loss"] == 1
    assert figures["loss at equal evaluations"] == 0.75
    assert figures["of the best's loss at equal evaluations"] == 1.5
    assert figures['the same at equal evaluations, with cost="evaluations"'] == 1.05
    assert one.missed == [
        "CPU seconds to plain's loss",
        "loss at equal evaluations",
        "of the best's loss at equal evaluations",
        "of the best's loss at equal CPU seconds",
    ]
    assert one.goals["CPU seconds to plain's loss"].most == 1.06  # steps of a second are not short
    text = goals.table([one, judged({name: runs for name, runs in groups.items() if name != "auto by evaluations"})])
    assert "| – |" in text
    assert "| Made | 2 | 1000.0 ms |" in text
    assert "**0.75** (> 0.70)" in text
    assert "2: a look" in text


def test_plain_training_is_a_fixed_choice_only_where_probes_0_was_not_run():
    groups = {"plain": [made([1.0] * 8)], "auto": [made([2.0] * 8)], "carry": [made([4.0] * 8)]}
    assert judged(groups).goals["of the best's loss at equal evaluations"].figure == 2
    assert judged({**groups, "probes=0": [made([2.0] * 8)]}).goals["of the best's loss at equal evaluations"].figure == 1


def test_a_goal_is_judged_as_it_is_printed():
    assert Goal(1.0249, 1.02).met
    assert not Goal(1.0251, 1.02).met
    assert not Goal(math.inf, 1.02).met


def test_the_least_loss_of_a_convex_model():
    experiment = Experiment.load("auto_softmax")
    small = {
        "model": {"init_args": {"sizes": [64, 10], "l2": 0.1}},
        "data!": {"class_path": "examples.benchmarks.evidence.data.Digits", "init_args": {"batch_size": 1408}},
    }
    experiment = replace(experiment, fit=merged(experiment.fit, small))
    least = goals.least_of(experiment, "")
    end = train(experiment.config("plain", 1.0, 0), "", 16, False)["points"][-1]["train_loss"]
    assert least < end < least + 0.05
    assert goals.least_of(replace(experiment, gap=False), "") == 0


def test_the_command_runs_and_prints_the_table(monkeypatch, tmp_path, capsys):
    whole = Experiment.load

    def shorter(name, *, small=False):
        found = whole(name, small=small)
        fit = {**found.fit, "trainer": {"max_epochs": 2}}
        return replace(found, fit=fit, methods={name: found.methods[name] for name in ("plain", "auto", "carry")})

    monkeypatch.setattr(Experiment, "load", shorter)
    monkeypatch.setattr("sys.argv", ["auto", "--quick", "--runs", str(tmp_path / "runs"), "--into", str(tmp_path)])
    command.main()
    text = (tmp_path / "auto.txt").read_text()
    assert text in capsys.readouterr().out
    assert [line.split(",")[0] for line in text.splitlines()[2:]] == ["| Digits", "| Label noise"]


def test_the_command_compares_decays(monkeypatch, tmp_path, capsys):
    whole = Experiment.load

    def shorter(name, *, small=False):
        found = whole(name, small=small)
        return replace(found, fit={**found.fit, "trainer": {"max_epochs": 4}})

    monkeypatch.setattr(Experiment, "load", shorter)
    monkeypatch.setattr(decay, "QUICK", ("auto_digits",))
    monkeypatch.setattr("sys.argv", ["decay", "--quick", "--runs", str(tmp_path / "runs"), "--into", str(tmp_path)])
    decay.main()
    text = (tmp_path / "decay.txt").read_text()
    assert text in capsys.readouterr().out
    header, _, row = text.splitlines()
    assert header == "| task | decay 0 | decay 0.3 | decay 0.5 | decay 0.7 |"
    cells = row.strip("| ").split(" | ")[1:]
    assert len(set(cells)) == 4, "each decay trains in its own way"
    assert all(0.5 < float(cell.split(",")[0]) < 1.1 for cell in cells)


def test_experiments_that_need_packages_are_left_out(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "auto_sst2" not in command.experiments(quick=False)
    assert len(command.experiments(quick=False)) == 10


def test_seconds_are_those_of_a_machine_of_one_speed():
    steady, slowed = made([4.0, 3.0, 2.0, 1.0, 1.0]), made([4.0, 3.0, 2.0, 1.0, 1.0], seed=1)
    for point in steady["points"]:
        point["yardstick"] = 0.002
    for point, seconds in zip(slowed["points"], (0.0, 2.0, 4.0, 6.0, 8.0), strict=True):
        point |= {"yardstick": 0.004, "cpu_seconds": seconds}
    runs = goals.at_one_speed({"plain": {0: steady, 1: steady}, "auto": {1: slowed}})
    assert [point["cpu_seconds"] for point in runs["auto"][1]["points"]] == pytest.approx([0, 1, 2, 3, 4])
    assert runs["plain"][0] == steady
    without = {"plain": {0: made([1.0] * 8)}, "auto": {0: slowed}}
    assert goals.at_one_speed(without) is without
