"""The finder measures what probes would remove, advises, and leaves no trace."""

import copy
import json
import random
import signal
import sys
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, Sampler, TensorDataset

from lightning_vamo import InvalidArgumentError, ProbeFinding, Recompute, Replay, UnsupportedError, VAMOCallback, find_probes
from lightning_vamo.core.directions import GradientSubspaceDirections, SphereDirections
from lightning_vamo.loop import compat
from tests.support import scripts
from tests.support.clock import takes
from tests.support.modules import (
    Data,
    Everything,
    MemoryLogger,
    Perceptron,
    VAMOEverything,
    classification_data,
    loaders,
    trainer,
)
from tests.support.overlapping import overlapping

ROOT = Path(__file__).parents[2]


class Noisy(L.LightningModule):
    """A linear model whose gradients are a mean, noise along one direction, and a little noise along all."""

    def __init__(self, planted=3.0, rest=0.02, signal=0.5, dimension=60):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dimension))
        generator = torch.Generator().manual_seed(2)
        direction = torch.randn(dimension, generator=generator)
        self.register_buffer("direction", planted * direction / direction.norm())
        self.register_buffer("mean", signal * torch.randn(dimension, generator=generator) / dimension**0.5)
        self.rest = rest

    def training_step(self, batch, batch_idx):
        takes(3 if torch.is_grad_enabled() else 1)
        [z] = batch
        gradients = self.mean + z[:, :1] * self.direction + self.rest * z[:, 1:]
        return (gradients @ self.weight).mean() + 0.001 * self.weight.square().sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def noisy_loader(dimension=60, batch_size=4):
    z = torch.randn(64 * batch_size, 1 + dimension, generator=torch.Generator().manual_seed(3))
    return DataLoader(TensorDataset(z), batch_size, shuffle=True)


def found(model, loader=None, control="replay", **options):
    torch.manual_seed(7)
    run = trainer(callbacks=[] if control is None else [VAMOCallback(control=control)])
    return find_probes(run, model, train_dataloaders=loader or noisy_loader(), **{"seed": 1, **options})


# ---- what it finds


def test_planted_noise_of_rank_one_pays_with_one_probe(clock):
    finding = found(Noisy())
    assert [figures.probes for figures in finding.figures] == [1, 2, 4, 8, 16]
    one = finding.figures[0]
    share = 9 / (9 + 60 * 0.02**2)
    assert one.learned == pytest.approx(share, abs=0.01)
    assert one.removed == pytest.approx(share, abs=0.01)
    assert one.random < 0.3
    assert finding.spectrum[0] == pytest.approx(one.learned)
    assert finding.probes == 1
    assert finding.advice.startswith(f"one learned probe is worth a {one.worth:.0f}× larger batch for ")
    assert finding.advice.endswith("× the time: use probes=1")
    assert finding.signal_is_known == (finding.noise_to_signal < 20)
    assert finding.snr > 100


class Anew(torch.utils.data.Dataset):
    """Gives other numbers each time, with the same noise along one direction."""

    def __len__(self):
        return 128

    def __getitem__(self, index):
        return (torch.randn(61),)


def test_data_that_does_not_come_twice_is_seen_and_said(clock):
    finding = found(Noisy(), DataLoader(Anew(), 4, shuffle=True))
    assert not finding.comes_twice
    assert finding.advice.startswith("the data gives other batches when it is read again, so rows are recomputed in each step;")
    assert finding.advice.endswith("use probes=1 with control='recompute'")
    assert (finding.probes, finding.control) == (1, "recompute")
    one = finding.figures[0]
    assert one.removed == one.learned > 0.9
    assert one.work == pytest.approx(1 + 2 * 2 * finding.forward_seconds / finding.step_seconds)  # a sweep, and a row per step
    assert found(Noisy()).comes_twice


def test_the_noise_scale_is_that_of_the_samples():
    finding = found(Noisy(planted=1.0, signal=1.0), batches=64)
    assert finding.batch_size == 4
    assert finding.signal_is_known
    model = Noisy(planted=1.0, signal=1.0)
    expected = (1 + 60 * 0.02**2) / float(model.mean.square().sum())
    assert finding.noise_scale == pytest.approx(expected, rel=0.5)


def test_noise_in_all_directions_does_not_pay(clock):
    finding = found(Noisy(planted=0.0, rest=1.0, signal=0.1, dimension=400), noisy_loader(400), maximum=4)
    assert finding.probes == 0
    assert all(figures.learned < 0.2 for figures in finding.figures)
    assert finding.advice.startswith("probes do not pay here: train without probes (the best number, probes=")


def test_noise_that_does_not_matter(clock):
    finding = found(Noisy(planted=0.1, signal=3.0))
    assert finding.probes == 0
    assert finding.noise_scale < 1
    assert (
        "gradient noise does not slow the training down here: the noise scale is 0 samples, and a step sees 4 samples"
        in finding.advice
    )


@pytest.mark.parametrize("rank", [1, None], ids=["factored", "dense"])
def test_learned_directions_hold_what_random_ones_do_not(rank):
    loader = DataLoader(overlapping(), 8, shuffle=True)
    finding = found(
        Perceptron(20, 16, 4, nn.ReLU, lr=0.02), loader, directions=GradientSubspaceDirections(rank=rank), maximum=8
    )
    eight = finding.figures[-1]
    assert eight.learned > 0.4
    assert eight.learned > 10 * eight.random
    assert eight.removed == pytest.approx(eight.learned, abs=0.01)
    assert sum(finding.spectrum) == pytest.approx(eight.learned)
    assert finding.step_seconds > 0
    assert finding.forward_seconds > 0
    shares = [figures.learned for figures in finding.figures]
    assert shares == sorted(shares)


def test_rounded_losses_remove_less_and_say_so():
    class Shifted(Noisy):
        def training_step(self, batch, batch_idx):
            return 1 + super().training_step(batch, batch_idx)

    with pytest.warns(UserWarning, match="hardly stand out of their own error"):
        finding = found(Shifted(), mu=2e-8, maximum=1)
    assert finding.mu == 2e-8
    assert finding.snr < 2
    assert finding.figures[0].removed < finding.figures[0].learned - 0.05
    assert found(Shifted(), maximum=1).figures[0].removed > 0.9


def test_settings_are_those_of_the_callback():
    callback = VAMOCallback(mu=0.02, difference="central", directions=GradientSubspaceDirections(rank=None), seed=3)
    run = trainer(callbacks=[callback])
    finding = find_probes(run, Noisy(), train_dataloaders=noisy_loader(), maximum=2)
    assert (finding.mu, finding.difference) == (0.02, "central")
    assert find_probes(run, Noisy(), train_dataloaders=noisy_loader(), maximum=2, mu=0.01).mu == 0.01
    assert run.callbacks[0] is callback


def test_a_few_batches_allow_a_few_probes():
    finding = found(Everything(), loaders()[0])
    assert finding.batches == 12
    assert [figures.probes for figures in finding.figures] == [1, 2, 4, 5]


def test_batches_without_a_loss_or_a_finite_gradient_are_passed_over():
    class Skipping(Noisy):
        def training_step(self, batch, batch_idx):
            if batch_idx % 8 == 3:
                return None
            loss = super().training_step(batch, batch_idx)
            return loss * float("inf") if batch_idx == 41 else loss  # a batch to learn from, which is not swept

    finding = found(Skipping(), maximum=4)
    assert finding.batches == 64 - 8 - 1
    assert finding.figures[0].removed == pytest.approx(finding.figures[0].learned, abs=0.01)


# ---- no trace


def everything_of(run, module):
    """What a trainer and a module are, as far as it can be compared."""
    parts = [(type(part), {k: v for k, v in vars(part).items() if _plain(v)}) for part in compat.parts(run)]
    return parts, type(module), {name: value for name, value in vars(module).items() if _plain(value)}, module.training


def _plain(value):
    return isinstance(value, (int, float, str, bool, list, dict, tuple, type(None))) and "Tensor" not in repr(value)


def rng():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


class Data2(Data):
    """A data module with state of its own."""

    def setup(self, stage):
        self.permutation = torch.randperm(5)

    def train_dataloader(self):
        return loaders(num_workers=2)[0]


LOADERS = {
    "shuffled": lambda: {"train_dataloaders": loaders()[0], "val": loaders()[1]},
    "own generator": lambda: {"train_dataloaders": loaders(generator=torch.Generator().manual_seed(4))[0]},
    "own sampler": lambda: {
        "train_dataloaders": DataLoader(
            classification_data(), 8, sampler=RandomSampler(range(90), generator=torch.Generator().manual_seed(4))
        )
    },
    "workers": lambda: {"train_dataloaders": loaders(num_workers=2, persistent_workers=True)[0]},
    "data module": lambda: {"datamodule": Data2()},
}
OPTIONS = {
    "plain": (Everything, lambda: [], {}),
    "vamo": (VAMOEverything, lambda: [VAMOCallback(probes=2, directions=GradientSubspaceDirections(), seed=1)], {}),
    "all of Lightning": (
        Everything,
        lambda: [EarlyStopping("val_loss", patience=9), ModelCheckpoint(monitor="val_loss")],
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5, "enable_checkpointing": True, "precision": "bf16-mixed"},
    ),
    "double": (Everything, lambda: [], {"precision": "64-true"}),
}


def trained(find, data, cls, callbacks, options, tmp_path, scheduler="onecycle"):
    L.seed_everything(11, verbose=False)
    module, logger, data = cls(scheduler=scheduler), MemoryLogger(), data()
    run = trainer(tmp_path, callbacks=callbacks(), logger=logger, max_epochs=2, **options)
    validation = data.pop("val", None)
    if find:
        before, states = everything_of(run, module), rng()
        weights, listed = copy.deepcopy(module.state_dict()), list(run.callbacks)
        with_data = {} if find == "in vain" else data
        finding = find_probes(run, module, **with_data, maximum=3) if find != "in vain" else None
        assert isinstance(finding, ProbeFinding | None)
        assert everything_of(run, module) == before
        assert rng() == states
        assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
        assert all(value.dtype == weights[name].dtype for name, value in module.state_dict().items())
        assert run.callbacks == listed
        assert module._trainer is None
        assert logger.rows == []
        assert not list(tmp_path.rglob("*.ckpt"))
    if "datamodule" not in data:
        data["val_dataloaders"] = validation or loaders()[1]
    run.fit(module, **data)
    return module.state_dict(), logger.rows, rng(), run.global_step


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
@pytest.mark.parametrize("data", LOADERS.values(), ids=LOADERS)
def test_a_fit_after_it_is_the_fit_without_it(data, tmp_path):
    assert_same(*(trained(find, data, *OPTIONS["plain"], tmp_path / str(find)) for find in (False, True)))


@pytest.mark.filterwarnings("ignore:.*Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_with_whatever_else_there_is(options, tmp_path):
    assert_same(*(trained(find, LOADERS["shuffled"], *options, tmp_path / str(find), None) for find in (False, True)))


def assert_same(one, other):
    assert one[0].keys() == other[0].keys()
    assert all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    assert one[1] == other[1]
    assert len(one[1]) > 4
    assert one[2:] == other[2:]


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_an_error_leaves_no_trace_either(error, tmp_path):
    countdown = []  # not on the class, whose attributes are put back between two evaluations

    class Breaking(Everything):
        def training_step(self, batch, batch_idx):
            if countdown and countdown.pop() == 0:
                raise error
            return super().training_step(batch, batch_idx)

    def run(find):
        L.seed_everything(11, verbose=False)
        countdown[:] = range(20 if find else 0)
        module, logger, loader = Breaking(), MemoryLogger(), loaders(generator=torch.Generator().manual_seed(4))[0]
        run = trainer(tmp_path, logger=logger)
        if find:
            before, states, interrupt = everything_of(run, module), rng(), signal.getsignal(signal.SIGINT)
            with pytest.raises(RuntimeError if isinstance(error, RuntimeError) else SystemExit):
                find_probes(run, module, train_dataloaders=loader)
            assert everything_of(run, module) == before
            assert rng() == states
            assert type(module) is Breaking
            assert signal.getsignal(signal.SIGINT) is interrupt
        run.fit(module, loader, loaders()[1])
        return module.state_dict(), logger.rows, rng(), run.global_step

    assert_same(run(False), run(True))


def test_between_two_fits():
    def run(find):
        L.seed_everything(11, verbose=False)
        module, logger, data = Everything(), MemoryLogger(), Data()
        first = trainer(logger=logger, max_epochs=1)
        first.fit(module, datamodule=data)
        if find:
            finding = find_probes(first, module, data, maximum=2)
            assert (finding.epoch, finding.step) == (1, 12)
            assert module.trainer is first
        first.fit_loop.max_epochs = 2
        first.fit(module, datamodule=data)
        return module.state_dict(), logger.rows, rng(), first.global_step

    assert_same(run(False), run(True))


# ---- in the middle of training


def test_at_a_checkpoint(tmp_path):
    L.seed_everything(11, verbose=False)
    module = Everything()
    run = trainer(tmp_path, max_epochs=2, enable_checkpointing=True, callbacks=[ModelCheckpoint(tmp_path, save_last=True)])
    run.fit(module, datamodule=Data())
    trained_weights = copy.deepcopy(module.state_dict())
    fresh = Everything()
    weights = copy.deepcopy(fresh.state_dict())
    torch.manual_seed(5)
    finding = find_probes(trainer(max_epochs=2), fresh, Data(), ckpt_path=str(tmp_path / "last.ckpt"), seed=1)
    assert (finding.epoch, finding.step) == (2, 24)
    assert all(torch.equal(value, weights[name]) for name, value in fresh.state_dict().items())
    fresh.load_state_dict(trained_weights)
    torch.manual_seed(5)
    here = find_probes(trainer(max_epochs=2), fresh, Data(), seed=1)
    assert [figures.learned for figures in here.figures] == pytest.approx([f.learned for f in finding.figures], rel=1e-3)
    torch.manual_seed(5)
    start = find_probes(trainer(max_epochs=2), Everything(), Data(), seed=1)
    assert start.noise_to_signal != pytest.approx(here.noise_to_signal, rel=0.01)


def test_at_a_checkpoint_within_an_epoch(tmp_path):
    callback = ModelCheckpoint(tmp_path, every_n_train_steps=5, save_top_k=-1, filename="{step}")
    run = trainer(tmp_path, max_epochs=1, enable_checkpointing=True, callbacks=[callback])
    L.seed_everything(11, verbose=False)
    run.fit(Everything(), datamodule=Data())
    finding = find_probes(trainer(), Everything(), Data(), ckpt_path=str(tmp_path / "step=5.ckpt"))
    assert (finding.epoch, finding.step, finding.batches) == (0, 5, 12)


# ---- several processes


class Rankless(L.LightningDataModule):
    """Deals a shuffle that is the same for one process and for two out to them."""

    def train_dataloader(self):
        world, rank = self.trainer.world_size, self.trainer.global_rank
        order = torch.randperm(240, generator=torch.Generator().manual_seed(0)).tolist()[rank::world]
        return DataLoader(torch.utils.data.Subset(classification_data(240), order), 8 // world)


@pytest.mark.usefixtures("_spawned_with_imports")
@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_two_processes_find_what_one_does(start_method):
    L.seed_everything(3, verbose=False)
    module = Perceptron()
    options = {"mu": 0.01, "difference": "central", "seed": 1, "maximum": 4}
    one = find_probes(trainer(use_distributed_sampler=False), module, Rankless(), **options)
    run = trainer(use_distributed_sampler=False, devices=2, strategy=DDPStrategy(start_method=start_method))
    weights, states = copy.deepcopy(module.state_dict()), rng()
    two = find_probes(run, module, Rankless(), **options)
    assert rng() == states
    assert type(module) is Perceptron
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
    assert two.batch_size == one.batch_size == 8
    assert two.noise_to_signal == pytest.approx(one.noise_to_signal, rel=1e-3)
    for figures, expected in zip(two.figures, one.figures, strict=True):
        assert figures.learned == pytest.approx(expected.learned, rel=1e-3)
        assert figures.removed == pytest.approx(expected.removed, rel=1e-2)
    if start_method == "fork":  # it is the same trainer
        run.fit(module, datamodule=Rankless())
        assert not torch.equal(module.state_dict()["net.0.weight"], weights["net.0.weight"])


@pytest.mark.parametrize(
    ("arguments", "sweeps"),
    [
        ({}, 1.0),
        ({"control": Replay(every_n_epochs=5)}, 0.2),
        ({"control": "recompute"}, 2.0),
        ({"control": Recompute(every_n_train_steps=8)}, 1 + 64 / 8),
    ],
    ids=str,
)
def test_the_work_is_as_the_callback_would_spend_it(arguments, sweeps):
    run = trainer(callbacks=[VAMOCallback(**arguments)])
    finding = find_probes(run, Noisy(), train_dataloaders=noisy_loader(), maximum=2, seed=1)
    forward = finding.forward_seconds / finding.step_seconds
    assert [figures.work for figures in finding.figures] == pytest.approx([1 + sweeps * forward * (1 + q) for q in (1, 2)])
    assert all(figures.efficiency == pytest.approx(figures.worth / figures.work) for figures in finding.figures)


def test_the_samples_of_a_step_are_those_of_the_accumulation_scheduler():
    run = trainer(callbacks=[GradientAccumulationScheduler({0: 4})])
    assert find_probes(run, Noisy(), train_dataloaders=noisy_loader(), maximum=1, seed=1).batches_per_step == 4


# ---- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"maximum": 0}, "`maximum` must be a whole number >= 1, got 0"),
        ({"batches": 7}, "`batches` must be a whole number >= 8, got 7"),
        ({"directions": SphereDirections()}, "`directions` must be a family that learns"),
        ({"mu": -1.0}, "`mu` must be a positive"),
        ({"difference": "backward"}, "`difference` must be one of"),
        ({"datamodule": 3}, "`datamodule` must be a LightningDataModule, got int"),
    ],
)
def test_wrong_arguments(arguments, message):
    module = Everything()
    with pytest.raises(InvalidArgumentError, match=message):
        find_probes(trainer(), module, **arguments)
    assert type(module) is Everything


def test_what_is_not_supported():
    with pytest.raises(UnsupportedError, match=r"does not support ModelParallelStrategy.*strategy='ddp'"):
        find_probes(trainer(strategy=ModelParallelStrategy()), Everything(), Data())
    with pytest.raises(
        UnsupportedError, match="The number of batches in the epoch is 3, but to measure the noise of gradients takes at least"
    ):
        find_probes(trainer(limit_train_batches=3), Everything(), Data())
    with pytest.raises(UnsupportedError, match="The fit ended before its first batch"):
        find_probes(trainer(limit_train_batches=0), Everything(), Data())

    class Manual(Everything):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

    with pytest.raises(UnsupportedError, match="automatic_optimization=False"):
        find_probes(trainer(), Manual(), Data())


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.randn(512, 1, 61))

    def __len__(self):
        return 512


class Endless(Sampler):
    """Does not say how many batches there are."""

    def __iter__(self):
        return iter(BatchSampler(RandomSampler(range(256)), 4, drop_last=True))


@pytest.mark.parametrize("control", ["auto", "recompute"])
@pytest.mark.parametrize(
    "loader",
    [
        lambda: DataLoader(Stream(), 4),
        lambda: DataLoader(TensorDataset(torch.randn(512, 1, 61)), batch_size=None),
        lambda: list(torch.randn(512, 1, 4, 61)),
        lambda: DataLoader(noisy_loader().dataset, batch_sampler=Endless()),
    ],
    ids=["IterableDataset", "batch_size=None", "list", "no length"],
)
def test_batches_that_cannot_be_known_get_a_remedy_that_helps(loader, control):
    with pytest.raises(
        UnsupportedError, match="or pass `find_probes` a DataLoader over a map-style sample of the data"
    ) as error:
        find_probes(trainer(callbacks=[VAMOCallback(control=control)]), Noisy(), train_dataloaders=loader())
    assert "control='recompute'" not in str(error.value)
    assert "probes=0" not in str(error.value)


# ---- the table, the file, the plot, the command


def test_the_table_the_file_and_the_plot(tmp_path):
    finding = found(Noisy())
    lines = str(finding).splitlines()
    assert lines[0] == "Gradients of 64 batches of 4 samples, 60 parameters, at epoch 0, step 0"
    assert lines[-1] == finding.advice
    assert [int(line.split()[0]) for line in lines[7:12]] == [1, 2, 4, 8, 16]
    finding.to_json(tmp_path / "found.json")
    state = json.loads((tmp_path / "found.json").read_text())
    assert state["advice"] == finding.advice
    assert state["figures"][0]["worth"] == finding.figures[0].worth
    assert (state["probes"], state["control"]) == (1, "auto")
    figure = finding.plot()
    assert [axes.get_title() for axes in figure.axes] == ["Removed variance", "Spectrum", "Worth against work"]
    figure.savefig(tmp_path / "found.png")
    assert (tmp_path / "found.png").stat().st_size > 10_000
    unknown = replace(finding, snr=None, signal_is_known=False)
    assert "at least" in unknown.table()
    assert "signal-to-noise ratio unknown" in unknown.table()


def test_a_bar_counts_evaluations_where_the_trainer_shows_one(capsys):
    found(Noisy(), maximum=1)
    assert "Finding probes" not in capsys.readouterr().out
    find_probes(trainer(enable_progress_bar=True), Noisy(), train_dataloaders=noisy_loader(), maximum=1)
    output = capsys.readouterr().out
    assert "Finding probes" in output
    assert "Epoch" not in output
    # 32 batches to learn from, twice; 32 held out, their sweep with one probe, and what it looks at beside the table.
    assert f"/{2 * 32 + 32 + 32 * 2 + 1 + 8 + 4 + 4 * 2 * 9}" in output


def test_without_matplotlib(monkeypatch):
    finding = found(Noisy())
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UnsupportedError, match=r"needs matplotlib.*lightning-vamo\[plot\]"):
        finding.plot()


def test_the_command(tmp_path):
    def run(*arguments):
        command = ["-m", "lightning_vamo", *arguments, "--config", "examples/digits.yaml"]
        command += [f"--trainer.default_root_dir={tmp_path}", "--trainer.max_epochs=1"]
        done = scripts.run(*command, cwd=ROOT, scratch=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    output = run("find")
    state = json.loads((tmp_path / "lightning_logs" / "find" / "probes.json").read_text())
    assert state["advice"] in output
    assert (state["epoch"], state["batches"], state["parameters"]) == (0, 45, 2410)
    assert state["figures"][-1]["learned"] > 0.4
    assert (tmp_path / "lightning_logs" / "find" / "probes.png").exists()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["lightning_logs"]

    run("fit")
    [checkpoint] = tmp_path.rglob("*.ckpt")
    output = run("find", "--at", str(checkpoint), "--maximum=4", "--batches=20", f"--output={tmp_path / 'later'}")
    state = json.loads((tmp_path / "later" / "probes.json").read_text())
    assert (state["epoch"], state["step"], state["batches"]) == (1, 45, 20)
    assert [row["probes"] for row in state["figures"]] == [1, 2, 4]
    assert state["advice"] in output
