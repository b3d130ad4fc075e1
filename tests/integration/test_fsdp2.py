"""Sharded with FSDP2 over two processes, training is what it is with DDP; each process holds and draws its shards alone."""

import contextlib
import warnings

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy

from lightning_vamo import Recompute, VAMOCallback
from lightning_vamo.core.directions import OrthonormalDirections
from lightning_vamo.errors import UnsupportedError
from tests.support.processes import in_processes
from tests.support.sharded import FEW, VAMO, Batches, Plain, alone, as_ddp, check_as_ddp, close, probing, train, what_it_costs


def test_training_is_what_it_is_with_ddp(tmp_path):
    check_as_ddp(*in_processes(as_ddp, tmp_path))


def recomputed_as_ddp(folder):
    found = {}
    for name, arguments in {"epochs": {"control": "recompute"}, "steps": {"control": Recompute(every_n_train_steps=2)}}.items():
        callbacks = [probing(OrthonormalDirections("seeded"), **arguments) for _ in range(2)]
        runs = [train(VAMO, [callback], sharded, torch.float64, **FEW) for sharded, callback in enumerate(callbacks)]
        removed = [callback.report.variance_removed for callback in callbacks]
        found[name] = {"ddp": runs[0], "fsdp": runs[1], "removed": removed}
    return {"found": found, "plain": train(Plain, [], False, torch.float64, **FEW)}


def test_rows_are_recomputed_as_with_ddp(tmp_path):
    first, second = in_processes(recomputed_as_ddp, tmp_path)
    for name, results in first["found"].items():
        assert close(results["fsdp"], results["ddp"], 1e-12), name
        assert not close(results["ddp"], first["plain"], 1e-4), name
        assert results["removed"][0] == pytest.approx(results["removed"][1], rel=1e-9)
        assert all(torch.equal(results["fsdp"][key], second["found"][name]["fsdp"][key]) for key in results["fsdp"])


def without_a_correction(folder):
    same = []
    replayed = {"probes": 1, "alpha": 0.0, "mu": 1e-3}
    recomputed = {**replayed, "control": "recompute"}
    for options, controls in (
        # Without probes a step is Lightning's own, whatever the options say.
        ({}, [{"probes": 0}, recomputed]),
        (
            {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
            [{**replayed, "probes": 2}, recomputed],
        ),
        ({"gradient_clip_val": 0.1, "max_steps": 5, "val_check_interval": 2}, [replayed]),
        ({"precision": "bf16-mixed"}, [{**recomputed, "mu": "auto"}]),
    ):
        plain = train(Plain, [], **FEW, **options)
        for arguments in controls:
            vamo = train(VAMO, [VAMOCallback(**arguments)], **FEW, **options)
            same.append([all(torch.equal(plain[name], vamo[name]) for name in plain), str(options), str(arguments)])
    return same


def test_without_a_correction_training_is_plain_to_the_bit(tmp_path):
    for result in in_processes(without_a_correction, tmp_path):
        assert len(result) == 6
        assert all(same for same, *_ in result), result


def test_a_step_communicates_no_more_and_a_process_keeps_its_share_of_the_directions(tmp_path):
    first, second = in_processes(what_it_costs, tmp_path)
    for plain, vamo, learned in (first["counts"], second["counts"]):
        assert vamo == plain
        assert learned == [count + 1 for count in plain]  # the slopes, for directions to be learned and coefficients
        assert len(plain) == 8
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
        callbacks = [VAMOCallback(probes=3, directions=OrthonormalDirections(), mu=1e-3, seed=1), saver, *callbacks]
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

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figures = Figures()
        weights = train(VAMO, [probing(OrthonormalDirections()), figures], batches=Noisy)
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
