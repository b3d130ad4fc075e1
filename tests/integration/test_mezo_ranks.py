"""MeZO on two processes: what they tell each other, and that they never differ."""

import pytest
import torch
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.utils.data import DataLoader

from lightning_vamo import MeZOCallback, UnsupportedError, VAMOMixin
from lightning_vamo.core.directions import GaussianDirections, MaskedDirections, OrthonormalDirections
from tests.support.modules import Perceptron, classification_data
from tests.support.processes import in_processes
from tests.support.ranks import Collectives, Data, run
from tests.support.sharded import FEW, VAMO, train
from tests.support.sharded import close as sharded_close


class Plain(VAMOMixin, Perceptron):
    def __init__(self, **sgd):
        super().__init__(**{"lr": 0.05, "weight_decay": 0.1, **sgd})


def states(folder, callback, devices, batch_size=4, module=None, **options):
    arguments = {"max_epochs": 2, "precision": "64-true", **options}
    module = Plain() if module is None else module
    found = run(module.double(), folder, double(48), devices=devices, batch_size=batch_size, callback=callback, **arguments)
    return [one["state"] for one in found], [one["metrics"] for one in found]


def double(samples):
    data = classification_data(samples)
    data.tensors = (data.tensors[0].double(), data.tensors[1])
    return data


def same_weights(some, others):
    return all(torch.equal(some[name], others[name]) for name in some)


def close(some, others):
    return all(torch.allclose(some[name], others[name], rtol=0, atol=1e-9) for name in some)


@pytest.mark.parametrize(
    ("arguments", "sgd", "options"),
    [
        ({}, {}, {}),
        ({"probes": 2, "directions": MaskedDirections(OrthonormalDirections(), 0.5)}, {}, {"accumulate_grad_batches": 2}),
        ({"clip": 0.2}, {"momentum": 0.9}, {}),
    ],
)
def test_two_ranks_are_one_process_with_both_batches(arguments, sgd, options, tmp_path):
    """In order: plain SGD in place, with accumulation, and another optimizer."""
    ranks, metrics = states(tmp_path / "two", MeZOCallback(seed=2, **arguments), 2, module=Plain(**sgd), **options)
    # A rank's samples are every other one, so batches of twice the size hold the same samples.
    [alone], [figures] = states(tmp_path / "one", MeZOCallback(seed=2, **arguments), 1, 8, module=Plain(**sgd), **options)
    assert same_weights(*ranks)
    assert close(ranks[0], alone)
    for name in ("derivative", "forward_evaluations", "clipped"):
        assert float(metrics[0][f"mezo/{name}"]) == pytest.approx(float(figures[f"mezo/{name}"]), rel=1e-5)


@pytest.mark.parametrize("share", ["batches", "probes"])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_step_takes_one_exchange(share, accumulated, tmp_path):
    folder = tmp_path / "two"
    callback = MeZOCallback(3, share=share, seed=2)
    states_of = run(
        Plain(),
        folder,
        classification_data(48),
        devices=2,
        batch_size=4,
        callback=callback,
        max_epochs=1,
        accumulate_grad_batches=accumulated,
        behind=Collectives(folder),
    )
    assert same_weights(*(one["state"] for one in states_of))
    for rank in range(2):
        counts = [int(count) for count in (folder / f"{rank}.txt").read_text().split()]
        assert counts == [int((batch + 1) % accumulated == 0) for batch in range(6)]


class Dealt(Data):
    """Gives both ranks the same samples."""

    def train_dataloader(self):
        return DataLoader(self.data, self.batch_size)


def test_shared_probes_are_one_process_with_all_of_them(tmp_path):
    """On the same batch, two ranks with two probes each are one process with four."""
    two = MeZOCallback(2, directions=GaussianDirections(), share="probes", seed=2)
    ranks, metrics = states(tmp_path / "two", two, 2, 8, datamodule=Dealt, use_distributed_sampler=False)
    [alone], [figures] = states(tmp_path / "one", MeZOCallback(4, seed=2), 1, 8, datamodule=Dealt)
    assert same_weights(*ranks)
    assert close(ranks[0], alone)
    assert metrics[0]["mezo/forward_evaluations"] == figures["mezo/forward_evaluations"] / 2


class Unaided(VAMO):
    """Plain SGD, which is stepped in place."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.05, weight_decay=0.1)


class Offloaded(Unaided):
    """Keeps its shards in host memory."""

    def configure_model(self):
        for part in self.units():
            fully_shard(part, mesh=self.device_mesh["data_parallel"], offload_policy=CPUOffloadPolicy(pin_memory=False))


def shards(folder):
    found = {}
    for name, cls in (("in place", Unaided), ("gradient", VAMO)):
        callbacks = [MeZOCallback(2, seed=2) for _ in range(2)]
        found[name] = [train(cls, [callback], sharded, torch.float64, **FEW) for sharded, callback in enumerate(callbacks)]
    offloaded = train(Offloaded, [MeZOCallback(2, seed=2)], True, torch.float64, **FEW)
    assert same_weights(offloaded, found["in place"][1])
    try:
        train(VAMO, [MeZOCallback(share="probes")])
    except UnsupportedError as error:
        return {"found": found, "refused": str(error)}


def test_shards_move_as_whole_weights_do(tmp_path):
    """On each rank the teacher of the module, which is frozen, changes once per batch."""
    one, other = in_processes(shards, tmp_path)
    for name, (ddp, fsdp) in one["found"].items():
        assert same_weights(fsdp, other["found"][name][1])
        assert sharded_close(fsdp, ddp, 1e-8), name  # rounding of the loss, divided by a radius of 1e-3
    assert "MeZOCallback(share='probes') needs whole weights on each rank" in one["refused"]
