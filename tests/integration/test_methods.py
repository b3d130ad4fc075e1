"""The contract that every method keeps: one test for each of its clauses, over the list of all methods."""

import functools

import lightning as L
import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_vamo import InvalidArgumentError, SVRGCallback, UnsupportedError, VAMOCallback, VAMOMixin
from lightning_vamo.cli import VAMOCLI
from tests.support.commands import one_subcommand
from tests.support.meddling import VAMOMeddling, everything
from tests.support.methods import METHODS
from tests.support.modules import Everything, MemoryLogger, Perceptron, VAMOEverything, classification_data, loaders, trainer
from tests.support.ranks import Regression, run
from tests.support.resuming import VAMOModule, assert_survives
from tests.support.resuming import run as run_until_killed
from tests.support.watched import Compare

every_method = pytest.mark.parametrize("claims", METHODS.values(), ids=METHODS)


class Network(VAMOMixin, Perceptron):
    """Tells those outside how often it is evaluated, and where its weights are after each step."""

    def __init__(self, factor=lambda step: 1.0):
        super().__init__(lr=0.1)
        self.factor = factor

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Points(L.Callback):
    def __init__(self):
        self.points = []

    def on_train_start(self, fit, module):
        self.on_train_batch_end(fit, module)

    def on_train_batch_end(self, fit, module, *arguments):
        self.points.append(torch.cat([p.detach().flatten() for p in module.parameters()]).clone())


def points(callback, size=6, samples=36, module=None, **options):
    """The weights at the start and after each batch, on batches in the order of the data."""
    L.seed_everything(3, verbose=False)
    watch, inputs = Points(), classification_data(samples).tensors
    options = {"precision": "64-true", "max_epochs": 3, **options}
    trainer(callbacks=[callback, watch], **options).fit(module or Network(), DataLoader(TensorDataset(*inputs), size))
    return torch.stack(watch.points)


@every_method
def test_accumulated_batches_are_one_batch_of_their_size(claims):
    whole = points(claims.make(), size=12)
    parts = points(claims.make(), size=4, accumulate_grad_batches=3)[::3]
    assert torch.allclose(parts, whole, rtol=0, atol=1e-8 * float(whole.abs().max()))
    assert (whole[-1] - whole[0]).abs().max() > 1e-3


@every_method
def test_clipping_bounds_every_step(claims):
    if not claims.adds_gradients:
        pytest.skip("the Trainer clips what is in .grad")
    norm, rate = 1e-3, 0.1
    lengths = points(claims.make(), gradient_clip_val=norm).diff(dim=0).norm(dim=1)
    assert torch.allclose(lengths, torch.full_like(lengths, norm * rate), rtol=1e-3)


@every_method
def test_what_the_run_cost_is_told_unless_that_is_switched_off(claims, caplog):
    def told(**arguments):
        caplog.clear()
        callback = claims.make(**arguments)
        points(callback, max_epochs=2)
        return callback.report, [one.message for one in caplog.records if one.message.startswith(f"{callback.report.method}")]

    caplog.set_level("INFO")
    report, lines = told()
    assert lines[-1] == str(report)
    assert len(lines) == (1 if report.made_of is None else 3)  # where something is corrected, a line for each epoch
    report, lines = told(verbose=False)
    assert lines == []
    assert report.batches == 12


@every_method
def test_schedulers_set_the_length_of_steps(claims):
    path = points(claims.make(), module=Network(lambda step: float(step < 4))).diff(dim=0).norm(dim=1)
    assert (path[:4] > 0).all()
    assert (path[4:] == 0).all()


@every_method
def test_training_lowers_the_loss_in_every_precision(claims):
    for precision in ("64-true", "32-true", "bf16-mixed"):
        L.seed_everything(3, verbose=False)
        module, data = Network(), classification_data(36)
        inputs, labels = data.tensors
        before = nn.functional.cross_entropy(module.net(inputs), labels)
        trainer(callbacks=[claims.make()], precision=precision, max_epochs=6).fit(module, DataLoader(data, 6))
        assert nn.functional.cross_entropy(module.float().net(inputs), labels) < before


def trained(cls, callbacks, **options):
    L.seed_everything(0, verbose=False)
    module, logger = cls(**options), MemoryLogger("somewhere")
    trainer(callbacks=callbacks, logger=logger, accumulate_grad_batches=2, gradient_clip_val=1.0).fit(module, *loaders())
    own = [(step, {name: v for name, v in row.items() if "/" not in name}) for step, row in logger.rows]
    return module.state_dict(), [row for row in own if row[1].keys() - {"epoch"}]


@functools.cache
def plainly_trained(optimizer):
    return trained(Everything, [], optimizer=optimizer)


@every_method
@pytest.mark.parametrize("how", ["off", "nothing"])
def test_without_a_correction_it_is_plain_training_bit_for_bit(claims, how):
    """Off: nothing is taken out. Nothing: all is evaluated, and what is taken out is nothing, so no evaluation left a trace."""
    arguments = getattr(claims, how)
    if arguments is None:
        pytest.skip("there is no such coefficient")
    optimizers = ("sgd", "adamw") if claims.nothing is None else {"off": ("adamw",), "nothing": ("sgd",)}[how]
    for optimizer in optimizers:
        plain, plain_logs = plainly_trained(optimizer)
        state, logs = trained(VAMOEverything, [claims.make(**arguments)], optimizer=optimizer)
        assert all(torch.equal(value, state[name]) for name, value in plain.items())
        assert logs == plain_logs


@every_method
def test_evaluations_outside_of_steps_leave_no_trace(claims):
    """In a module that does all that others do, and what none should."""
    L.seed_everything(0, verbose=False)
    expected, compares = claims.looks(6), {purpose: Compare(everything, purpose) for purpose in ("sweep", "row")}
    options = {"logger": MemoryLogger("somewhere"), "limit_train_batches": 6}
    trainer(callbacks=[claims.make(), *compares.values()], **options).fit(claims.fitting(VAMOMeddling)(), *loaders())
    assert {purpose: compare.compared for purpose, compare in compares.items() if compare.compared} == {
        purpose: 2 * count for purpose, count in expected.items()
    }


@every_method
def test_the_evaluations_that_are_counted_are_made_and_documented(claims):
    made = {"forwards": 0, "backwards": 0}

    class Counted(VAMOMixin, Perceptron):
        def training_step(self, batch, batch_idx):
            made["forwards"] += 1
            loss = super().training_step(batch, batch_idx)
            if loss.requires_grad:
                loss.register_hook(lambda gradient: made.update(backwards=made["backwards"] + 1))
            return loss

    callback = claims.make()
    trainer(callbacks=[callback], max_epochs=3).fit(Counted(), DataLoader(classification_data(60), 6))
    report = callback.report
    assert (report.forward_evaluations, report.backward_evaluations) == (made["forwards"], made["backwards"])
    assert made == {"forwards": claims.forwards(3, 10), "backwards": claims.backwards(3, 10)}
    assert report.batches == 30
    assert str(report).startswith(f"{callback.title}: ")
    assert f"{made['forwards']} forward and {made['backwards']} backward evaluations of a batch" in str(report)


# Of seven batches, two to a step, the last is a step alone: within a step, before an epoch's first, and where one is taken.
KILLS = [(0, 4, "end"), (1, 0, "start"), (1, 3, "step")]


@every_method
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint")
def test_a_run_that_dies_anywhere_resumes_bit_for_bit(claims, tmp_path):
    options = {"make": claims.make, "accumulate_grad_batches": 2, "saver": {"every_n_train_steps": 1}}
    options |= {"module": claims.fitting(VAMOModule), "max_epochs": 2}
    whole = run_until_killed(tmp_path / "whole", options)
    assert_survives(tmp_path / "killed", options, KILLS, whole)


@every_method
def test_two_ranks_are_one_with_the_same_global_batches(claims, tmp_path):
    data, options = TensorDataset(*classification_data(48).tensors), {"precision": "64-true", "use_distributed_sampler": False}
    [one] = run(
        claims.fitting(Regression)(), tmp_path / "one", data, devices=1, batch_size=8, callback=claims.make(), **options
    )
    first, second = run(
        claims.fitting(Regression)(), tmp_path / "two", data, devices=2, batch_size=4, callback=claims.make(), **options
    )
    for name, weight in one["state"].items():
        assert torch.equal(first["state"][name], second["state"][name])
        assert torch.allclose(first["state"][name], weight, rtol=1e-9, atol=1e-9 * float(weight.abs().max())), name
    assert one["metrics"].keys() == first["metrics"].keys()


@every_method
def test_bad_arguments_are_refused_when_the_callback_is_made(claims):
    for arguments, message in claims.bad:
        with pytest.raises(InvalidArgumentError, match=message):
            claims.make(**arguments)


@every_method
def test_what_cannot_be_trained_is_refused_before_any_work(claims):
    class Newton(Network):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters())

    name, data = type(claims.make()).__name__, DataLoader(classification_data(12), 6)
    for module, others, message in (
        (Perceptron(), [], rf"{name}.*lacks the VAMOMixin"),
        (Newton(), [], rf"LBFGS.*{name}"),
        (Network(), [SVRGCallback() if name == "VAMOCallback" else VAMOCallback()], "2 callbacks that change gradients.*keep"),
    ):
        before = [p.detach().clone() for p in module.parameters()]
        with pytest.raises(UnsupportedError, match=message):
            trainer(callbacks=[claims.make(), *others]).fit(module, data)
        assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))


@every_method
@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended to run")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.filterwarnings("ignore:The dirpath has changed from")
def test_a_configuration_goes_round(claims, tmp_path, caplog):
    """From a short name to the file that the command saves, and from that file to the same run."""
    caplog.set_level("INFO")
    config = {
        "seed_everything": 1,
        "model": {"class_path": "tests.support.modules.Everything", "init_args": {"optimizer": "plain"}},
        "data": {"class_path": "tests.support.modules.Data"},
        "method": claims.configuration,
        "trainer": {"max_epochs": 1, "limit_train_batches": 4, "log_every_n_steps": 1, "default_root_dir": str(tmp_path)},
    }
    config["trainer"] |= {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    with one_subcommand(VAMOCLI, "fit"):
        first = VAMOCLI(args=["fit", "--config", str(path)])
        [saved] = (tmp_path / "lightning_logs").rglob("config.yaml")
        second = VAMOCLI(args=["fit", "--config", str(saved)])
    name = claims.configuration["class_path"]
    for cli in (first, second):
        [callback] = [c for c in cli.trainer.callbacks if type(c).__name__ == name]
        assert str(callback.report) in caplog.text
    assert all(torch.equal(value, second.model.state_dict()[key]) for key, value in first.model.state_dict().items())
