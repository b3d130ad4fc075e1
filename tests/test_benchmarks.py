"""The benchmark of what VAMO costs runs, and its tables hold what was measured."""

import json
import os
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.support import scripts

BENCHMARKS = Path(__file__).parents[1] / "examples" / "benchmarks"
TINY = ["--models", "mlp,nonsense", "--probes", "0", "2", "--rounds", "2", "--steps", "3", "--batch-size", "2"]


def run(tmp_path, script, *arguments):
    done = scripts.run(BENCHMARKS / script, *arguments, cwd=tmp_path, scratch=tmp_path)
    assert done.returncode == 0, done.stderr
    return done


def test_times(tmp_path):
    tables = run(tmp_path, "cost.py", *TINY, "--skip", "memory", "--json", tmp_path / "cost.json").stdout.splitlines()
    figures = json.loads((tmp_path / "cost.json").read_text())
    assert "nonsense" in figures["skipped"]
    [model] = figures["models"]
    assert model["dimension"] == 784 * 1024 + 1024 + 1024 * 1024 + 1024 + 1024 * 10 + 10
    families = [method["family"].removesuffix("Directions") for method in model["times"]]
    assert [method["probes"] for method in model["times"]] == [None, 0, 2, 2]
    assert families[2:] == ["Sphere", "GradientSubspace"]
    for method in model["times"]:
        assert len(method["step"]) == len(method["plain"]) == 2
        assert all(seconds > 0 for seconds in [*method["step"], *method["plain"]])
        assert all((seconds > 0) == bool(method["probes"]) for seconds in [*method["evaluation"], *method["bare"]])
    rows = [line for line in tables if line.startswith("| MLP")]
    assert [row.count("–") for row in rows] == [3, 3, 1, 1]  # as many quartile ranges as columns


def test_steps_in_each_way_of_training(tmp_path):
    arguments = ["--models", "softmax", "--rounds", "2", "--steps", "6", "--probes", "2", "--json", tmp_path / "steps.json"]
    table = run(tmp_path, "cost_steps.py", *arguments).stdout
    ways = json.loads((tmp_path / "steps.json").read_text())["softmax"]
    assert [name for name, times in ways.items() if any(times["evaluation"])] == ["sweeps, q=2"]
    assert all(seconds > 0 for times in ways.values() for seconds in [*times["step"], *times["plain"]])
    assert table.count("softmax regression") == len(ways) == 6


def test_an_epoch_over_processes(tmp_path):
    arguments = ["--samples", "512", "--most", "2", "--rounds", "1", "--json", tmp_path / "ranks.json"]
    table = run(tmp_path, "cost_ranks.py", *arguments).stdout
    [epochs] = json.loads((tmp_path / "ranks.json").read_text())
    assert [(each["ranks"], each["probes"], each["steps"]) for each in epochs] == [(1, 0, 8), (1, 4, 8), (2, 0, 4), (2, 4, 4)]
    # One snapshot and four probes for each batch; the first batch again, and the first eight along one probe again.
    assert [each["evaluations"] for each in epochs] == [0, 5 * (8 + 1) + 8, 0, 5 * (4 + 1) + 4]
    assert all(each["stepping"] > 0 for each in epochs)
    assert len(table.splitlines()) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from cost_memory import peak_memory
    from cost_models import load
    from cost_training import Method

    memory = peak_memory(partial(load, "mlp", batch_size=2), Method(1), torch.device("cpu"), threads=1, epochs=1)
    # Weights, gradients, and a direction.
    assert 3 * memory.parameters < memory.training < 6 * memory.parameters


def test_learned_directions(tmp_path):
    arguments = ["--epochs", "2", "--seeds", "1", "--probes", "2", "--json", tmp_path / "shares.json"]
    table = run(tmp_path, "subspace.py", *arguments).stdout
    [shares] = json.loads((tmp_path / "shares.json").read_text())
    assert set(shares) == {"exact", "random", "rank 1", "rank 2", "dense"}
    assert all(len(values) == 2 for values in shares.values())
    assert shares["random"][1] < 0.05 < shares["rank 1"][1] < 1
    assert table.splitlines()[-1].startswith("| 2 |")


@pytest.mark.skipif("MNIST" not in os.environ, reason="needs MNIST=FOLDER, with the gzipped test images and labels")
def test_on_mnist_learned_directions_hold_nearly_as_much_of_the_noise_as_the_exact_ones(tmp_path):
    arguments = ["--mnist", os.environ["MNIST"], "--epochs", "4", "--seeds", "1", "--json", tmp_path / "shares.json"]
    run(tmp_path, "subspace.py", *arguments)
    [shares] = json.loads((tmp_path / "shares.json").read_text())
    assert shares["rank 1"][3] >= 0.85 * shares["exact"][3] > 0.2  # eight directions, in the fourth epoch
    assert shares["dense"][3] >= 0.95 * shares["exact"][3]


def test_the_cost_of_learning_directions(tmp_path):
    file = tmp_path / "cost.json"
    run(tmp_path, "subspace.py", "--cost", "resnet", "--steps", "2", "--json", file)
    figures = json.loads(file.read_text())
    assert all(figures[name] > 0 for name in ("step", "observe", "subtract"))
    assert 0 < figures["bytes"] < 8 * figures["weights"]


def test_carried_rows(tmp_path):
    arguments = ["--epochs", "3", "--seeds", "1", "--last", "1", "--json", tmp_path / "runs.json"]
    arguments += ["--methods", "SGD", "no sweep, q = 8", "SVRG"]
    tables = [run(tmp_path, "carried.py", *arguments)]
    figures = json.loads((tmp_path / "runs.json").read_text())
    [carried] = figures["runs"]["carried, no sweep, q = 8"]
    assert carried["forwards"] == 0
    assert carried["removed"][-1] > 0.2
    assert all(loss > figures["least"] for [run] in filter(None, figures["runs"].values()) for loss in run["losses"])
    # A second run goes on from the file, which holds all there is to do.
    tables.append(run(tmp_path, "carried.py", *arguments))
    assert tables[0].stdout == tables[1].stdout
    assert "no sweep, q = 8: " in tables[0].stderr
    assert not tables[1].stderr
    assert len(tables[0].stdout.splitlines()) == 2 + 4


def test_the_gpu_benchmark_runs_dry(tmp_path):
    arguments = ["--dry-run", "--skip-tests", "--models", "MLP", "--json", tmp_path / "gpu.json"]
    done = run(tmp_path, "gpu.py", *arguments, "--markdown", tmp_path / "gpu.md")
    runs = json.loads((tmp_path / "gpu.json").read_text())["runs"]
    assert {(found["precision"], found["compiled"]) for found in runs} == {("32-true", None), ("bf16-mixed", "eager")}
    assert all(found["step"] > 0 and not found["note"] for found in runs), done.stderr
    swept = [found["method"] for found in runs if found["forward"] is not None]
    assert swept == ["plain", "VAMO, sweeps, q = 4"] * 2
    assert (tmp_path / "gpu.md").read_text() in done.stdout
