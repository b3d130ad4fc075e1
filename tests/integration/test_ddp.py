"""Two processes with DDP train as one process with the same global batches, and never differ by a bit."""

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.multiprocessing import ProcessRaisedException
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_vamo import Recompute, VAMOCallback, with_vamo
from lightning_vamo.core.directions import OrthonormalDirections
from tests.support.modules import Everything, VAMOEverything, classification_data, trainer
from tests.support.processes import in_processes
from tests.support.ranks import Collectives, Data, Regression, Save, run


class Padded(DistributedSampler):
    """Gives one process what two get between them: a sample twice where their number is odd."""

    def __iter__(self):
        indices = list(super().__iter__())
        return iter(indices + indices[: len(indices) % 2])


class Shuffled(Data):
    """Leaves it to Lightning to deal the shuffled samples out to the ranks."""

    def train_dataloader(self):
        if self.trainer.world_size > 1:
            return DataLoader(self.data, self.batch_size, shuffle=True)
        return DataLoader(self.data, self.batch_size, sampler=Padded(self.data, 1, 0, seed=5))


STRATEGIES = {
    "fork": {},
    "unused parameters": {"find_unused_parameters": True},
    "bucket view": {"gradient_as_bucket_view": True},
    "static graph": {"static_graph": True},
}


def probing(directions, **arguments):
    # Differences over a long step, whose rounding is that of the loss.
    return VAMOCallback(probes=4, directions=directions, mu=1e-2, difference="central", seed=1, **arguments)


def one_and_two(tmp_path, data, directions=None, **options):
    strategy, arguments = options.pop("strategy", None), options.pop("arguments", {})
    options["batch_size"], options["callback"] = 8, probing(directions, **arguments)
    [one] = run(Regression(), tmp_path / "one", data, devices=1, **options)
    options |= {"batch_size": 4, "callback": probing(directions, **arguments), "strategy": strategy}
    first, second = run(Regression(), tmp_path / "two", data, devices=2, **options)
    for name in one["state"]:
        assert torch.equal(first["state"][name], second["state"][name])
    return one, first


def assert_same(one, two, tolerance):
    for name, weight in one["state"].items():
        assert torch.allclose(two["state"][name], weight, rtol=tolerance, atol=tolerance * float(weight.abs().max())), name
    for figure in ("vamo/snapshot_loss", "vamo/variance_removed"):
        assert two["metrics"][figure] == pytest.approx(float(one["metrics"][figure]), rel=1e-4)


@pytest.mark.parametrize(
    ("strategy", "directions"),
    [
        ("fork", None),
        ("fork", OrthonormalDirections()),
        ("unused parameters", OrthonormalDirections()),
        ("bucket view", None),
        ("static graph", None),
        ("static graph", OrthonormalDirections()),  # without gradients before the first step
    ],
    ids=lambda value: value if isinstance(value, str) else "orthonormal" if value else "default",
)
def test_two_processes_equal_one(strategy, directions, tmp_path):
    arguments = STRATEGIES[strategy]
    inputs, labels = classification_data(48).tensors
    data = TensorDataset(inputs.double(), labels)
    options = {"precision": "64-true", "use_distributed_sampler": False}
    one, two = one_and_two(tmp_path, data, directions, strategy=DDPStrategy(start_method="fork", **arguments), **options)
    assert_same(one, two, 1e-12 if directions else 1e-9)
    [plain] = run(Regression(), tmp_path / "plain", data, devices=1, batch_size=8, callback=VAMOCallback(probes=0), **options)
    assert not torch.allclose(plain["state"]["net.0.weight"], one["state"]["net.0.weight"], rtol=1e-6)


@pytest.mark.parametrize(
    "arguments", [{"control": "recompute"}, {"control": Recompute(every_n_train_steps=2)}], ids=["epochs", "steps"]
)
def test_two_processes_equal_one_with_rows_that_are_recomputed(arguments, tmp_path):
    inputs, labels = classification_data(48).tensors
    data = TensorDataset(inputs.double(), labels)
    options = {"precision": "64-true", "use_distributed_sampler": False, "accumulate_grad_batches": 2}
    one, two = one_and_two(tmp_path, data, OrthonormalDirections(), arguments=arguments, **options)
    assert_same(one, two, 1e-12)


def test_two_processes_equal_one_in_single_precision(tmp_path):
    one, two = one_and_two(tmp_path, classification_data(48), OrthonormalDirections(), use_distributed_sampler=False)
    assert_same(one, two, 1e-5)


@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp_notebook"])
def test_the_sampler_that_lightning_injects_and_a_sample_too_few(strategy, tmp_path):
    """45 samples: one rank gets one of them twice, and the last batches are smaller."""
    inputs, labels = classification_data(45).tensors
    data = TensorDataset(inputs.double(), labels)
    options = {"strategy": strategy, "datamodule": Shuffled, "precision": "64-true"}
    one, two = one_and_two(tmp_path, data, OrthonormalDirections(), **options)
    assert_same(one, two, 1e-12)
    assert two["step"] == 2 * 6


TWO = {"probes": 2, "mu": 1e-3}
NOTHING = [{"probes": 0}, {**TWO, "alpha": 0.0}, {**TWO, "alpha": 0.0, "control": "recompute"}]
ACCUMULATED = {"devices": 2, "batch_size": 5, "accumulate_grad_batches": 2}


@pytest.fixture(scope="module")
def plain_ddp(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp") / "plain"
    return run(Everything(), folder, classification_data(60), callback=None, **ACCUMULATED)[0]


@pytest.mark.parametrize("arguments", [*NOTHING, TWO, {**TWO, "control": "recompute"}])
def test_batch_norm_dropout_and_accumulation(arguments, plain_ddp, tmp_path):
    """Ranks agree to the bit, BatchNorm's buffers included; without a correction, with plain DDP too."""
    data, plain = classification_data(60), plain_ddp
    first, second = run(VAMOEverything(), tmp_path / "vamo", data, callback=VAMOCallback(**arguments), **ACCUMULATED)
    assert all(torch.equal(first["state"][name], second["state"][name]) for name in dict(VAMOEverything().named_parameters()))
    assert first["step"] == plain["step"]
    same = all(torch.equal(first["state"][name], plain["state"][name]) for name in plain["state"])
    assert same == (arguments in NOTHING)


@pytest.mark.usefixtures("_spawned_with_imports")
def test_spawned_processes_get_a_class_made_on_the_fly(tmp_path):
    """Such a class has no name to import, so it has to be pickled by the class that it was made from."""
    module = with_vamo(Everything())
    first, second = run(
        module,
        tmp_path / "spawn",
        classification_data(24),
        devices=2,
        batch_size=6,
        callback=VAMOCallback(probes=1, mu=1e-3),
        strategy=DDPStrategy(start_method="spawn"),
        max_epochs=1,
    )
    assert all(torch.equal(first["state"][name], second["state"][name]) for name in dict(module.named_parameters()))


def test_a_training_step_communicates_no_more_than_without_vamo(tmp_path):
    def counts(name, module, callbacks):
        folder = tmp_path / name
        folder.mkdir()
        callbacks = [*callbacks, Collectives(folder)]
        strategy = DDPStrategy(start_method="fork")
        fit = trainer(callbacks=callbacks, strategy=strategy, devices=2, max_epochs=2)
        fit.fit(module, datamodule=Data(classification_data(48), 4))
        return [(folder / f"{rank}.txt").read_text() for rank in range(2)]

    plain = counts("plain", Everything(), [])
    assert counts("vamo", VAMOEverything(), [VAMOCallback(probes=3, mu=1e-3)]) == plain
    assert len(plain[0].split()) == 12
    recomputed = counts("recomputed", VAMOEverything(), [VAMOCallback(probes=3, mu=1e-3, control="recompute")])
    assert [[int(count) - 1 for count in rank.split()] for rank in recomputed] == [[*map(int, rank.split())] for rank in plain]


def on_a_node(folder):
    L.seed_everything(5, verbose=False)
    fit = trainer(callbacks=[Save(folder), VAMOCallback(probes=2, mu=1e-3, seed=1)], strategy="ddp", num_nodes=2, devices=1)
    fit.fit(Regression(), datamodule=Data(classification_data(24), 4))


def test_two_nodes_started_as_torchrun_starts_them(tmp_path):
    in_processes(on_a_node, tmp_path, nodes=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(first["state"][name], second["state"][name]) for name in first["state"])
    assert first["metrics"]["vamo/probes"] == 2


class Skipping(Regression):
    """Has no loss for a batch of the warm-up, on one rank."""

    def training_step(self, batch, batch_idx):
        skipped = self.trainer.global_rank == 1 and batch_idx == 1 and torch.is_grad_enabled()
        return None if skipped else super().training_step(batch, batch_idx)


def test_a_batch_that_one_rank_skips_in_the_warm_up_is_refused_before_others_wait(tmp_path):
    with pytest.raises(ProcessRaisedException, match="returned None on one of several ranks"):
        run(Skipping(), tmp_path / "skip", classification_data(48), devices=2, batch_size=4, callback=VAMOCallback(probes=2))
