"""Sharded with FSDP2 over two processes, training is what it is with DDP; each process holds and draws its shards alone."""

import contextlib
import warnings
from unittest.mock import patch

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from lightning_vamo import VAMOCallback, VAMOMixin
from lightning_vamo.core.directions import CoordinateDirections, OrthonormalDirections, RademacherDirections, SphereDirections
from lightning_vamo.errors import UnsupportedError
from tests.integration.test_ddp import Data
from tests.modules import WatchedSweeps, classification_data, trainer
from tests.processes import in_processes

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


def train(cls, callbacks, sharded=True, dtype=torch.float32, resume=None, **options):
    if not torch.distributed.is_initialized():  # as the first strategy would, so that the others find it
        torch.distributed.init_process_group("nccl" if options.get("accelerator") == "gpu" else "gloo")
    torch.manual_seed(5)
    module = cls(sharded, dtype)
    world = torch.distributed.get_world_size()
    options = {"devices": world, "strategy": strategy_of(sharded), **options}
    data = Batches(data_in(dtype), 8 // world)
    trainer(callbacks=callbacks, **options).fit(module, datamodule=data, ckpt_path=resume, weights_only=resume and True)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
    return {name: whole(parameter.detach()) for name, parameter in module.named_parameters()}


def whole(parameter):
    return (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).cpu().clone()


def probing(family, **options):
    # Differences over a long step, whose rounding is that of the loss.
    arguments = {"probes": 4, "directions": family, "mu": 1e-2, "difference": "central", "seed": 1, **options}
    return WatchedSweeps(**arguments)


FAMILIES = {
    "stored": lambda: OrthonormalDirections(),
    "seeded": lambda: OrthonormalDirections("seeded"),
    "sphere": lambda: SphereDirections(),
    "rademacher": lambda: RademacherDirections("seeded"),
    "coordinates": lambda: CoordinateDirections(),
}


def as_ddp(folder, **options):
    found = {}
    for dtype, name in [*((torch.float64, name) for name in FAMILIES), (torch.float32, "stored"), (torch.float32, "seeded")]:
        results = {}
        for sharded in (False, True):
            callback = probing(FAMILIES[name](), alpha=0.1 if name in ("sphere", "rademacher") else "theory")
            weights = train(VAMO, [callback], sharded, dtype, **options)
            totals = callback.state_dict()["totals"]
            figures = [totals["moment_before"], totals["moment_removed"], *(s.snapshot_loss for s in callback.sweeps)]
            results[sharded] = {"weights": weights, "figures": figures, "deltas": callback.sweeps[0].deltas.cpu()}
        found[f"{name} {str(dtype).removeprefix('torch.')}"] = results
    plain = train(Plain, [], False, torch.float64, **options)
    with patch("lightning_vamo.loop.compat.resharding", lambda module: lambda: None), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The probe differences hardly stand out")  # of points that were never visited
        kept = train(VAMO, [probing(OrthonormalDirections())], True, torch.float64, **options)
    return {"found": found, "plain": plain, "kept": kept}


def close(some, others, tolerance):
    scale = max(float(other.abs().max()) for other in others.values())
    return all(
        torch.allclose(some[name].double(), others[name].double(), rtol=tolerance, atol=tolerance * scale) for name in others
    )


def test_training_is_what_it_is_with_ddp(tmp_path):
    check_as_ddp(*in_processes(as_ddp, tmp_path))


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


def recomputed_as_ddp(folder):
    found = {}
    for name, arguments in {"epochs": {"control": "recompute"}, "steps": {"every_n_train_steps": 2}}.items():
        callbacks = [probing(OrthonormalDirections("seeded"), **arguments) for _ in range(2)]
        runs = [train(VAMO, [callback], sharded, torch.float64) for sharded, callback in enumerate(callbacks)]
        removed = [callback.report.variance_removed for callback in callbacks]
        found[name] = {"ddp": runs[0], "fsdp": runs[1], "removed": removed}
    return {"found": found, "plain": train(Plain, [], False, torch.float64)}


def test_rows_are_recomputed_as_with_ddp(tmp_path):
    first, second = in_processes(recomputed_as_ddp, tmp_path)
    for name, results in first["found"].items():
        assert close(results["fsdp"], results["ddp"], 1e-12), name
        assert not close(results["ddp"], first["plain"], 1e-4), name
        assert results["removed"][0] == pytest.approx(results["removed"][1], rel=1e-9)
        assert all(torch.equal(results["fsdp"][key], second["found"][name]["fsdp"][key]) for key in results["fsdp"])


def without_a_correction(folder):
    same = []
    for options in (
        {},
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
        {"gradient_clip_val": 0.1, "max_steps": 7},
        {"precision": "bf16-mixed"},
        {"val_check_interval": 2},
    ):
        plain = train(Plain, [], **options)
        nothing = {"probes": 2, "alpha": 0.0}
        for arguments in ({"probes": 0}, nothing, {**nothing, "control": "recompute"}):
            vamo = train(VAMO, [VAMOCallback(**arguments)], **options)
            same.append([all(torch.equal(plain[name], vamo[name]) for name in plain), str(options), str(arguments)])
    return same


def test_without_a_correction_training_is_plain_to_the_bit(tmp_path):
    for result in in_processes(without_a_correction, tmp_path):
        assert len(result) == 15
        assert all(same for same, *_ in result), result


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


class Stored(L.Callback):
    """Counts the numbers that directions keep in this process."""

    def on_train_batch_end(self, fit, *arguments):
        [callback] = [callback for callback in fit.callbacks if isinstance(callback, VAMOCallback)]
        self.numbers = sum(rows.numel() for rows in callback._standing.taken.correction.directions.rows)


def what_it_costs(folder, **options):
    stored = Stored()
    paper = {"directions": SphereDirections(), "alpha": "theory"}
    train(VAMO, [VAMOCallback(probes=3, **paper), stored], **options)
    counts = []
    for cls, arguments in ((Layered, None), (VAMOLayered, paper), (VAMOLayered, {})):
        callbacks = [] if arguments is None else [VAMOCallback(probes=3, **arguments)]
        counting = Collectives()
        train(cls, [*callbacks, counting], limit_val_batches=0, **options)
        counts.append(counting.counts)
    return {"stored": stored.numbers, "counts": counts}


def test_a_step_communicates_no_more_and_a_process_keeps_its_share_of_the_directions(tmp_path):
    first, second = in_processes(what_it_costs, tmp_path)
    for plain, vamo, learned in (first["counts"], second["counts"]):
        assert vamo == plain
        assert learned == [count + 1 for count in plain]  # the slopes, for directions to be learned and coefficients
        assert len(plain) == 12
        assert min(plain) > 0
    dimension = sum(parameter.numel() for parameter in Plain(True).net.parameters())
    assert first["stored"] + second["stored"] == 3 * dimension
    assert 0 < second["stored"] < first["stored"]


class LeftOut(VAMO):
    def units(self):
        return self.net[0], self.teacher


def refused(folder):
    with pytest.raises(UnsupportedError, match=r"tensor_parallel_size=2.*data_parallel_size=N"):
        train(VAMO, [VAMOCallback(probes=2)], strategy=ModelParallelStrategy(1, 2))
    with pytest.raises(UnsupportedError, match=r"apply `fully_shard` to the whole model"):
        train(LeftOut, [VAMOCallback(probes=2)])


def test_what_is_sharded_in_other_ways_is_refused(tmp_path):
    assert in_processes(refused, tmp_path) == [None, None]


def alone(folder, **options):
    """One process: nothing is dealt out, but the forward passes still read copies of the parameters."""
    weights = {
        sharded: train(VAMO, [probing(OrthonormalDirections())], sharded, torch.float64, **options) for sharded in (False, True)
    }
    plain = train(Plain, [], True, torch.float64, **options)
    return {"same": close(weights[True], weights[False], 1e-12), "plain": close(weights[True], plain, 1e-4)}


def test_one_process(tmp_path):
    assert in_processes(alone, tmp_path, world=1) == [{"same": True, "plain": False}]


class Dies(L.Callback):
    def __init__(self, step):
        self.step = step

    def on_before_optimizer_step(self, fit, module, optimizer):
        if fit.global_step == self.step:
            raise RuntimeError("the process dies")


def killed_and_resumed(folder):
    def run(name, callbacks, **options):
        saver = ModelCheckpoint(folder / name, filename="{step}", every_n_train_steps=2, save_top_k=-1)
        callbacks = [VAMOCallback(probes=3, directions=OrthonormalDirections(), seed=1), saver, *callbacks]
        return train(VAMO, callbacks, enable_checkpointing=True, accumulate_grad_batches=2, max_epochs=2, **options)

    whole_run = run("whole", [])
    with contextlib.suppress(RuntimeError):
        run("killed", [Dies(3)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
        # While the next gradients accumulate, Lightning has forgotten that it has saved this step.
        warnings.filterwarnings("ignore", "Detected an existing checkpoint")
        return whole_run, run("killed", [], resume=folder / "killed" / "step=2.ckpt")


def test_a_run_that_dies_resumes_with_its_shards(tmp_path):
    for whole_run, resumed in in_processes(killed_and_resumed, tmp_path):
        assert all(torch.equal(resumed[name], weight) for name, weight in whole_run.items())


def with_other_batches(folder):
    class Noisy(Batches):
        """Its samples are new each time."""

        def train_dataloader(self):
            loader = super().train_dataloader()
            collate = loader.collate_fn
            loader.collate_fn = lambda samples: [
                part + torch.rand(()) if part.is_floating_point() else part for part in collate(samples)
            ]
            return loader

    with warnings.catch_warnings(record=True) as caught, patch("tests.integration.test_fsdp2.Batches", Noisy):
        warnings.simplefilter("always")
        figures = Figures()
        weights = train(VAMO, [probing(OrthonormalDirections()), figures])
    return {"weights": weights, "unused": figures.unused, "warnings": [str(warning.message) for warning in caught]}


class Figures(L.Callback):
    def on_train_end(self, fit, module):
        self.unused = float(fit.callback_metrics["vamo/rows_unused"])


def test_rows_of_other_batches_are_used_and_warned_of(tmp_path):
    """To leave out one rank's part, the others would have to be told in each step; ranks are not to differ."""
    first, second = in_processes(with_other_batches, tmp_path)
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])
    assert first["unused"] == second["unused"] == 0
    assert sum("but its probe differences are used" in message for message in first["warnings"]) == 1
