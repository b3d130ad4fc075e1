"""Runs over two processes whose parameters FSDP2 shards."""

import warnings
from unittest.mock import patch

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from lightning_vamo import RunObserver, VAMOCallback, VAMOMixin
from lightning_vamo.core.directions import CoordinateDirections, OrthonormalDirections, RademacherDirections, SphereDirections
from lightning_vamo.loop import compat
from tests.support.modules import classification_data, trainer
from tests.support.ranks import Data
from tests.support.watched import WatchedSweeps

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


class Plain(L.LightningModule):
    """Over two processes its shards are uneven, some of them empty; its root module owns parameters, and so does a part.

    The frozen teacher changes in the training step, which the sweep has to undo.
    """

    def __init__(self, sharded, dtype=torch.float32):
        super().__init__()
        self.sharded = sharded
        self.net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1), nn.Tanh(), nn.Linear(1, 3)).to(dtype)
        self.teacher = nn.Linear(6, 3).to(dtype).requires_grad_(False)

    def units(self):
        return self.net[0], self.net, self.teacher

    def configure_model(self):
        for part in self.units() if self.sharded else ():
            fully_shard(part, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, batch_idx):
        if self.sharded:
            self.teacher.reshard()  # as after validation, its parameters may be whole: the shards are what is kept
        for parameter in self.teacher.parameters():
            parameter.detach().mul_(0.9)
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1]) + self.teacher(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.net(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.2, momentum=0.5)


class VAMO(VAMOMixin, Plain):
    pass


class Batches(Data):
    """With validation batches, after whose forward passes FSDP2 keeps the root's parameters whole."""

    def val_dataloader(self):
        return DataLoader(self.data, 12)


def data_in(dtype):
    inputs, labels = classification_data(48).tensors
    return TensorDataset(inputs.to(dtype), labels)


def strategy_of(sharded):
    if not sharded:
        return DDPStrategy()
    return ModelParallelStrategy(data_parallel_size=torch.distributed.get_world_size(), tensor_parallel_size=1)


def train(cls, callbacks, sharded=True, dtype=torch.float32, resume=None, batches=Batches, **options):
    if not torch.distributed.is_initialized():  # as the first strategy would, so that the others find it
        torch.distributed.init_process_group("nccl" if options.get("accelerator") == "gpu" else "gloo")
    torch.manual_seed(5)
    module = cls(sharded, dtype)
    world = torch.distributed.get_world_size()
    options = {"devices": world, "strategy": strategy_of(sharded), **options}
    data = batches(data_in(dtype), 8 // world)
    trainer(callbacks=callbacks, **options).fit(module, datamodule=data, ckpt_path=resume, weights_only=resume and True)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
    return {name: whole(parameter.detach()) for name, parameter in module.named_parameters()}


def whole(parameter):
    return (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).cpu().clone()


def probing(family, **options):
    # Differences over a long step, whose rounding is that of the loss.
    arguments = {"probes": 2, "directions": family, "mu": 1e-2, "difference": "central", "seed": 1, **options}
    return WatchedSweeps(**arguments)


FEW = {"limit_train_batches": 3, "limit_val_batches": 1}
"""As many batches as it takes for a snapshot's rows to be used, and for a second snapshot after validation."""


FAMILIES = {
    "stored": lambda: OrthonormalDirections(),
    "seeded": lambda: OrthonormalDirections("seeded"),
    "sphere": lambda: SphereDirections(),
    "rademacher": lambda: RademacherDirections("seeded"),
    "coordinates": lambda: CoordinateDirections(),
}


def as_ddp(folder, **options):
    found, options = {}, {**FEW, **options}
    for dtype, name in [*((torch.float64, name) for name in FAMILIES), (torch.float32, "seeded")]:
        # Directions that are drawn anew are those that are stored, to the bit, so that one run with DDP does for both.
        results = {False: found["stored float64"][False]} if name == "seeded" and dtype == torch.float64 else {}
        for sharded in (True,) if results else (False, True):
            callback = probing(FAMILIES[name](), alpha=0.04 if name in ("sphere", "rademacher") else "theory")
            weights = train(VAMO, [callback], sharded, dtype, **options)
            totals = callback.state_dict()["totals"]
            figures = [totals["moment_before"], totals["moment_removed"], *(s.snapshot_loss for s in callback.sweeps)]
            results[sharded] = {"weights": weights, "figures": figures, "deltas": callback.sweeps[0].deltas.cpu()}
        found[f"{name} {str(dtype).removeprefix('torch.')}"] = results
    plain = train(Plain, [], False, torch.float64, **options)
    with patch.object(compat, "resharding", lambda module: lambda: None), warnings.catch_warnings():
        for message in ("The probe differences hardly stand out", "A training batch has the loss"):  # of points never visited
            warnings.filterwarnings("ignore", message)
        kept = train(VAMO, [probing(OrthonormalDirections())], True, torch.float64, **options)
    return {"found": found, "plain": plain, "kept": kept}


def close(some, others, tolerance):
    scale = max(float(other.abs().max()) for other in others.values())
    return all(
        torch.allclose(some[name].double(), others[name].double(), rtol=tolerance, atol=tolerance * scale) for name in others
    )


def check_as_ddp(first, second):
    for name, results in first["found"].items():
        tolerance = TOLERANCE[getattr(torch, name.split()[1])]
        ddp, fsdp = results[False], results[True]
        assert close(fsdp["weights"], ddp["weights"], tolerance), name
        assert torch.allclose(fsdp["deltas"], ddp["deltas"], rtol=0, atol=100 * tolerance), name
        assert fsdp["figures"] == pytest.approx(ddp["figures"], rel=100 * tolerance), name
        other = second["found"][name][True]
        assert all(torch.equal(fsdp["weights"][key], other["weights"][key]) for key in fsdp["weights"]), name
        assert fsdp["figures"] == other["figures"]
        assert torch.equal(fsdp["deltas"], other["deltas"])
        assert not close(ddp["weights"], first["plain"], 1e-4), name
    # Were the shards not gathered anew after each forward pass of the sweep, the probes would not be felt.
    assert not close(first["kept"], first["found"]["stored float64"][False]["weights"], 1e-6)


class Counting(TorchDispatchMode):
    """Counts collective operations, by whatever name Python calls them."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.count += function.namespace in ("c10d", "_c10d_functional")
        return function(*arguments, **(options or {}))


class Collectives(L.Callback):
    """Counts the collectives of training steps; behind the VAMOCallback, whose sweep comes before it starts to count."""

    def __init__(self):
        self.counts = []

    def on_train_batch_start(self, *arguments):
        self.counting = Counting().__enter__()

    def on_train_batch_end(self, *arguments):
        self.counting.__exit__(None, None, None)
        self.counts.append(self.counting.count)


class Layered(Plain):
    """Its root owns no parameters: after a sweep, FSDP2's prefetching would gather a layer for nothing."""

    def units(self):
        return *self.net[::2], self.net, self.teacher


class VAMOLayered(VAMOMixin, Layered):
    pass


class Stored(RunObserver):
    """Counts the numbers that directions keep in this process."""

    def on_snapshot(self, fit, module, snapshot):
        self.numbers = sum(rows.numel() for rows in snapshot.directions.rows)


def what_it_costs(folder, **options):
    stored = Stored()
    paper = {"directions": SphereDirections(), "alpha": "theory", "mu": 1e-3}
    train(VAMO, [VAMOCallback(probes=3, **paper), stored], **{**FEW, "max_epochs": 1, **options})
    counts = []
    for cls, arguments in ((Layered, None), (VAMOLayered, paper), (VAMOLayered, {"mu": 1e-3})):
        callbacks = [] if arguments is None else [VAMOCallback(probes=3, **arguments)]
        counting = Collectives()
        train(cls, [*callbacks, counting], limit_train_batches=4, limit_val_batches=0, **options)
        counts.append(counting.counts)
    return {"stored": stored.numbers, "counts": counts}


def alone(folder, **options):
    """One process: nothing is dealt out, but the forward passes still read copies of the parameters."""
    weights = {
        sharded: train(VAMO, [probing(OrthonormalDirections())], sharded, torch.float64, **options) for sharded in (False, True)
    }
    plain = train(Plain, [], True, torch.float64, **options)
    return {"same": close(weights[True], weights[False], 1e-12), "plain": close(weights[True], plain, 1e-4)}
