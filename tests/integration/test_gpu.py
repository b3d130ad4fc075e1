"""On a GPU, where there is one: each in a process of its own, so that this one stays free to fork others."""

from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from lightning_vamo import VAMOCallback
from lightning_vamo.core.directions import OrthonormalDirections
from tests.support.modules import Everything, VAMOEverything, loaders, trainer
from tests.support.processes import in_processes
from tests.support.sharded import alone, as_ddp, check_as_ddp, what_it_costs

pytestmark = pytest.mark.gpu


def train(cls, callbacks, **options):
    L.seed_everything(0, verbose=False)
    module = cls()
    fit = trainer(callbacks=callbacks, **{"accelerator": "gpu", "devices": 1, **options})
    fit.fit(module, *loaders())
    return {name: value.cpu() for name, value in module.state_dict().items()}, fit


def identity_and_effect(folder, precision, strategy):
    # Otherwise two runs of the same plain training may differ.
    torch.use_deterministic_algorithms(True, warn_only=True)
    options = {"precision": precision}
    make = {"auto": lambda: "auto", "ddp": lambda: DDPStrategy(process_group_backend="nccl")}[strategy]
    plain, _ = train(Everything, [], strategy=make(), **options)
    results = []
    probes, recomputed = {"probes": 3}, {"probes": 3, "control": "recompute"}
    for arguments in ({"probes": 0}, {**probes, "alpha": 0.0}, {**recomputed, "alpha": 0.0}, probes, recomputed):
        callback = VAMOCallback(directions=OrthonormalDirections(), seed=1, **arguments)
        vamo, fit = train(VAMOEverything, [callback], strategy=make(), **options)
        same = all(torch.equal(plain[name], vamo[name]) for name in plain)
        finite = all(bool(value.isfinite().all()) for value in vamo.values())
        results.append([same, finite, float(fit.callback_metrics.get("vamo/variance_removed", 0)) != 0])
    return results


@pytest.mark.parametrize(
    ("precision", "strategy"),
    [("32-true", "auto"), ("64-true", "auto"), ("bf16-mixed", "auto"), ("16-mixed", "auto"), ("32-true", "ddp")],
)
def test_without_a_correction_training_is_plain_and_with_one_it_is_not(precision, strategy, tmp_path):
    [[*plain, replayed, recomputed]] = in_processes(identity_and_effect, tmp_path, precision, strategy, world=1)
    assert plain == [[True, True, False]] * 3
    assert replayed == recomputed == [False, True, True]


def storages(folder):
    """Both storages draw the same numbers on a GPU too, and correct as a CPU does."""
    point = [torch.zeros(300, 1000, device="cuda"), torch.zeros(7, device="cuda")]
    drawn = {}
    for storage in ("stored", "seeded"):
        directions = OrthonormalDirections(storage).draw(point, 4, torch.Generator().manual_seed(0))
        vectors = [torch.ones_like(part) for part in point]
        moments = directions.subtract_(vectors, torch.tensor([0.5, -1.0, 2.0, 0.1]))
        drawn[storage] = [directions.dense(point), torch.cat([vector.flatten() for vector in vectors]), moments.cpu()]
    u, rest, moments = drawn["stored"]
    expected = 1 - torch.tensor([0.5, -1.0, 2.0, 0.1], device="cuda", dtype=torch.float64) @ u.double()
    return {
        "same": torch.equal(u, drawn["seeded"][0]),
        "orthonormal": torch.allclose(u.double() @ u.double().T, torch.eye(4, device="cuda").double(), atol=1e-5),
        "subtracted": torch.allclose(rest.double(), expected, atol=1e-5),
        "moments": torch.allclose(moments, drawn["seeded"][2], rtol=1e-4),
    }


def test_directions(tmp_path):
    [checks] = in_processes(storages, tmp_path, world=1)
    assert all(checks.values()), checks


def test_one_sharded_gpu(tmp_path):
    assert in_processes(partial(alone, accelerator="gpu"), tmp_path, world=1) == [{"same": True, "plain": False}]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_sharded_gpus(tmp_path):
    check_as_ddp(*in_processes(partial(as_ddp, accelerator="gpu"), tmp_path / "equal"))
    first, second = in_processes(partial(what_it_costs, accelerator="gpu"), tmp_path / "costs")
    assert first["counts"][0] == first["counts"][1]
    assert second["counts"][0] == second["counts"][1]
