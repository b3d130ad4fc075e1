"""The study of methods runs, goes on where it was, and compares at equal cost."""

import gzip
import json
import math

import pytest
import torch

from examples.benchmarks import study, study_runs, study_tables
from examples.benchmarks.study_runs import final_loss, search, train
from examples.benchmarks.study_tasks import Mnist

pytestmark = pytest.mark.filterwarnings("ignore:.*is an empty string or does not exist.*")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """MNIST's two files, with stripes for digits and some noise."""
    folder = tmp_path_factory.mktemp("mnist")
    labels = (torch.arange(8192 + 100) % 10).to(torch.uint8)
    noise = torch.randint(0, 60, (len(labels), 28, 28), generator=torch.Generator().manual_seed(0))
    images = noise + 100 * (torch.arange(28) // 2 == labels[:, None]).view(-1, 28, 1)
    for name, header, tensor in [("t10k-images-idx3", 16, images.to(torch.uint8)), ("t10k-labels-idx1", 8, labels)]:
        (folder / f"{name}-ubyte.gz").write_bytes(gzip.compress(bytes(header) + tensor.numpy().tobytes(), 1))
    return folder


def command(module, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["study", *map(str, arguments)])
    module.main()


def test_the_study_and_its_tables(folder, tmp_path, monkeypatch, capsys):
    runs, grid = tmp_path / "runs", (0.01, 0.03, 0.1)
    monkeypatch.setattr(study, "GRID", grid)
    arguments = ["mnist", "--data", folder, "--runs", runs, "--methods", "sgd", "sgd+learned", "--epochs", 1]
    command(study, monkeypatch, *arguments, "--seeds", 0)
    rates = {json.loads(path.read_text())["lr"] for path in (runs / "tuning").glob("sgd-*.json")}
    assert {0.03, 0.1} <= rates <= set(grid)

    with monkeypatch.context() as patch:
        patch.setattr(study_runs, "train", lambda *arguments: pytest.fail(f"trained {arguments} again"))
        command(study, patch, *arguments, "--seeds", 0)
    command(study, monkeypatch, *arguments, "--seeds", 0, 1)

    methods = study_tables.load(runs)
    assert {name: [run["seed"] for run in group] for name, group in methods.items()} == {"sgd": [0, 1], "sgd+learned": [0, 1]}
    for plain, probed in zip(*methods.values(), strict=True):
        first, last = plain["points"][0], plain["points"][-1]
        assert first["train_loss"] == probed["points"][0]["train_loss"]
        assert last["train_loss"] < first["train_loss"]
        assert (last["step"], last["forward"], last["backward"]) == (128, 128, 128)
        end = probed["points"][-1]
        assert (end["step"], end["backward"]) == (128, 128 + Mnist.warmup)
        assert end["forward"] >= 128 + Mnist.warmup + 128 * (1 + Mnist.probes)
        assert math.isfinite(probed["removed"])
        assert end["train_loss"] != last["train_loss"]
        seconds = [point["cpu_seconds"] for point in plain["points"]]
        assert seconds == sorted(seconds)
    capsys.readouterr()
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    command(study_tables, monkeypatch, runs, "--plot", tmp_path / "plot.png")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| sgd")]
    assert len(lines) == 2 * 4
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_diverges(folder):
    result = train(Mnist(folder), "sgd", 1e30, 0, 1, ["train"])
    assert result["diverged"]
    assert final_loss(result) == math.inf
    assert result["points"][-1]["step"] == Mnist.every


def test_the_search_asks_once_for_each_rate_on_its_way_to_the_best():
    asked = []

    def loss(rate):
        asked.append(rate)
        return abs(rate - 7) if rate < 9 else math.inf

    assert search(loss, range(10), 4) == 7
    assert sorted(asked) == [3, 4, 5, 6, 7, 8]
    assert search(lambda rate: rate, range(10), 1) == 0
    assert search(lambda rate: -rate, range(10), 8) == 9


def run(losses, cost, **settings):
    points = [
        {"step": step, "forward": cost * step, "backward": step, "cpu_seconds": 2.0 * step, "seconds": 3.0 * step, "loss": loss}
        for step, loss in enumerate(losses)
    ]
    return {"diverged": False, "lr": 0.1, "points": points, **settings}


def test_values_at_equal_cost():
    methods = {"sgd": [run([4.0, 2.0, 1.0], 1), run([4.0, 4.0, 3.0], 1)], "sgd+learned": [run([3.0, 1.0, 0.0], 4)] * 2}
    limits = study_tables.budgets(methods)
    assert limits == {"steps": 2, "evaluations": 2, "CPU seconds": 4, "wall-clock seconds": 6}
    assert study_tables.value_at(methods["sgd+learned"][0], "evaluations", 2, "loss") == 1.0
    assert study_tables.value_at(methods["sgd+learned"][0], "evaluations", 3, "loss") == 0.5
    assert math.isnan(study_tables.value_at(methods["sgd"][0], "evaluations", 2.5, "loss"))
    table = study_tables.values_table(methods, "loss", lambda value: f"{value:.2f}").splitlines()
    assert table[2:] == [
        "| sgd | 0.1 | 2.25 ± 1.41 | 2.25 ± 1.41 | 2.25 ± 1.41 | 2.25 ± 1.41 |",
        "| sgd+learned | 0.1 | 0.25 ± 0.00 | 1.25 ± 0.00 | 0.25 ± 0.00 | 0.25 ± 0.00 |",
    ]
    methods["sgd"].append(run([4.0, math.nan, math.nan], 1, diverged=True))
    assert study_tables.budgets(methods) == limits
    assert "diverged" in study_tables.values_table(methods, "loss", str)
