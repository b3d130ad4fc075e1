"""Hooks of a step: all that are overridden are called, in Lightning's order, whatever the package passes over."""

import copy
import functools
import json
import subprocess
import sys

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.profilers import SimpleProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy

from lightning_vamo import MeZOCallback, SVRGCallback, VAMOCallback, VAMOMixin
from lightning_vamo.core.directions import SphereDirections
from tests.support.bits import same_bits
from tests.support.modules import classification_data, trainer
from tests.support.watched import WatchedSweeps

CALLS = []  # a list of the test module, since guards put back what the module's own objects hold
HOOKS = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(6, 3)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Noting(Callback):
    pass


def noting(hook, who):
    def note(self, *arguments):
        CALLS.append((who, hook))

    return note


for name in HOOKS:
    setattr(Noting, name, noting(name, "callback"))


def fit(module, method=None, **options):
    CALLS.clear()
    L.seed_everything(3, verbose=False)
    callbacks = [*([method] if method else []), *options.pop("callbacks", [])]
    fitted = trainer(callbacks=callbacks, max_epochs=2, **options)
    fitted.fit(module, torch.utils.data.DataLoader(classification_data(12), 4))
    return fitted


def with_hooks(*hooks):
    return type("Hooked", (VAMOMixin, Module), {hook: noting(hook, "module") for hook in hooks})()


@pytest.mark.parametrize("hooks", [HOOKS, HOOKS[2:3], ()])
def test_overridden_hooks_are_called_as_in_plain_training(hooks):
    plain = type("Plain", (Module,), {hook: noting(hook, "module") for hook in hooks})
    fit(plain(), callbacks=[Noting()])
    expected = list(CALLS)
    assert len(expected) == 6 * (len(HOOKS) + len(hooks))
    module = with_hooks(*hooks)
    fit(module, SVRGCallback(gradients="carry", verbose=False), callbacks=[Noting()])
    assert expected == CALLS
    fit(with_hooks(*hooks), MeZOCallback(verbose=False), callbacks=[Noting()])
    assert [call for call in expected if "backward" not in call[1]] == CALLS


STEP_HOOKS = (*HOOKS, "on_train_batch_start", "on_train_batch_end")


def reading(hook, who):
    """A hook that notes what it may read of the training's state."""

    def note(self, *arguments):
        module = self if who == "module" else arguments[1]
        CALLS.append((who, hook, module.trainer.global_step, module.automatic_optimization))

    return note


class ReadsInStep(Module):
    """Notes what user code within a step may read, too."""

    def training_step(self, batch, batch_idx):
        CALLS.append(("module", "training_step", self.trainer.global_step, self.automatic_optimization))
        return super().training_step(batch, batch_idx)

    def backward(self, loss):
        CALLS.append(("module", "backward", self.trainer.global_step, self.automatic_optimization))
        super().backward(loss)

    def optimizer_step(self, epoch, batch_idx, optimizer, closure=None):
        CALLS.append(("module", "optimizer_step", self.trainer.global_step, self.automatic_optimization))
        super().optimizer_step(epoch, batch_idx, optimizer, closure)


for name in STEP_HOOKS:
    setattr(ReadsInStep, name, reading(name, "module"))
Reading = type("Reading", (Callback,), {name: reading(name, "callback") for name in STEP_HOOKS})


class LogsAround(Module):
    """Logs one name from the step and from two hooks around it; each is a result of its own."""

    def training_step(self, batch, batch_idx):
        self.log("same", 1.0, on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)

    def backward(self, loss):
        super().backward(loss)
        self.log("same", 2.0, on_step=False, on_epoch=True)

    def optimizer_step(self, epoch, batch_idx, optimizer, closure=None):
        super().optimizer_step(epoch, batch_idx, optimizer, closure)
        self.log("same", 3.0, on_step=True, on_epoch=True)  # refused where the name has been logged otherwise in the same hook


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"profiler": "simple"}, {"precision": "bf16-mixed"}])
def test_what_hooks_log_is_kept_apart(options):
    expected = fit(LogsAround(), **options).callback_metrics
    assert float(expected["same"]) == 3
    mixed = type("Mixed", (VAMOMixin, LogsAround), {})
    for method in (probing(), SVRGCallback(gradients="carry")):
        figures = fit(mixed(), method, **options).callback_metrics
        assert {name: float(value) for name, value in figures.items() if "/" not in name} == expected


class Written(Callback):
    def __init__(self, path):
        self.path = path

    def on_train_end(self, fit, module):
        if fit.is_global_zero:
            self.path.write_text(json.dumps(CALLS))


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16-mixed"},
        {"precision": "bf16-mixed", "accumulate_grad_batches": 2},
        {"profiler": "simple", "accumulate_grad_batches": 2},
        {"strategy": DDPStrategy(start_method="fork"), "devices": 2, "accumulate_grad_batches": 2},
        {"strategy": DDPStrategy(start_method="fork"), "devices": 2, "precision": "bf16-mixed"},
    ],
    ids=lambda options: " ".join(name for name in options),
)
def test_hooks_read_the_state_that_they_read_in_plain_training(options, tmp_path):
    """A hook that goes by the number of the step, or by the flag, does in a step what it does without the package."""
    mixed = type("Mixed", (VAMOMixin, ReadsInStep), {})
    runs = {"plain": (ReadsInStep, None), "probes": (mixed, probing()), "gradients": (mixed, SVRGCallback(gradients="carry"))}
    read = {}
    for name, (cls, method) in runs.items():
        fit(cls(), method, callbacks=[Reading(), Written(tmp_path / "calls.json")], **copy.deepcopy(options))
        read[name] = json.loads((tmp_path / "calls.json").read_text())
        assert {flag for *_, flag in read[name]} == {True}
    assert len({step for _, _, step, _ in read["plain"]}) > 2
    assert read["gradients"] == read["plain"]
    # A sweep calls the step, too.
    plain, probes = ([call for call in read[name] if call[1] != "training_step"] for name in ("plain", "probes"))
    assert probes == plain


@pytest.mark.parametrize("method", [MeZOCallback, SVRGCallback])
def test_a_hook_set_on_an_object_is_called(method):
    callback = Callback()
    callback.on_before_optimizer_step = lambda *arguments: CALLS.append("object")
    fit(with_hooks(), method(verbose=False), callbacks=[callback])
    assert CALLS == ["object"] * 6


class Stepping(VAMOMixin, Module):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        CALLS.append("own step")
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)


class Clipping(VAMOMixin, Module):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        CALLS.append("own clipping")


class Zeroing(VAMOMixin, Module):
    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        CALLS.append("own zeroing")
        optimizer.zero_grad()


class Transferring(VAMOMixin, Module):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        CALLS.append("own transfer")
        return batch


@pytest.mark.parametrize(
    ("kind", "method", "count"),
    [
        *((kind, method, 6) for kind in (Stepping, Clipping, Zeroing) for method in (MeZOCallback, SVRGCallback)),
        (Transferring, MeZOCallback, 6),
        (Transferring, SVRGCallback, 12),  # once more for each batch of the two sweeps
    ],
)
def test_hooks_of_the_optimizer_and_of_the_transfer_are_called(kind, method, count):
    fitted = fit(kind(), method(verbose=False))
    assert len(CALLS) == count
    assert fitted.global_step == 6


class Hooked(VAMOMixin, Module):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        optimizer.register_step_pre_hook(lambda *arguments: CALLS.append("before"))
        optimizer.register_step_post_hook(lambda *arguments: CALLS.append("after"))
        return optimizer


@pytest.mark.parametrize("method", [MeZOCallback, SVRGCallback])
def test_hooks_that_torch_calls_around_a_step_are_called(method):
    fit(Hooked(), method(verbose=False))
    assert CALLS == ["before", "after"] * 6


class Scheduled(VAMOMixin, Module):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5), "interval": "step"}]


@pytest.mark.parametrize("method", [MeZOCallback, SVRGCallback])
def test_a_scheduler_sees_the_steps(method):
    # A scheduler that sees no step of its optimizer gives a warning, which is an error in tests.
    fitted = fit(Scheduled(), method(verbose=False))
    assert fitted.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 / 8)


@pytest.mark.parametrize("method", [MeZOCallback, SVRGCallback])
def test_a_profiler_changes_nothing_and_sees_each_hook(method):
    unseen = with_hooks()
    seen = copy.deepcopy(unseen)
    fit(unseen, method(seed=1, verbose=False))
    profiler = SimpleProfiler()
    fit(seen, method(seed=1, verbose=False), profiler=profiler)
    assert torch.equal(unseen.net.weight, seen.net.weight)
    recorded = profiler.recorded_durations
    assert len(recorded["[LightningModule]Hooked.on_before_optimizer_step"]) == 6


class ClipsFromNowOn(Callback):
    """Decides on clipping where the gradient is known, as adaptive clipping does."""

    def on_before_optimizer_step(self, fit, module, optimizer):
        fit.gradient_clip_val = 0.01


class Mixed(VAMOMixin, Module):
    pass


def probing():
    return VAMOCallback(probes=2, alpha=0.0, directions=SphereDirections())


def fitted(module, *callbacks):
    fit(module, callbacks=callbacks)
    return module


def seeded_module(cls):
    torch.manual_seed(0)
    return cls()


def test_clipping_that_a_hook_of_the_step_sets_clips_that_step():
    plain = fitted(seeded_module(Module), ClipsFromNowOn())
    ours = fitted(seeded_module(Mixed), probing(), ClipsFromNowOn())
    assert same_bits(plain.parameters(), ours.parameters())


def halved(step):
    @functools.wraps(step)
    def decorated(self, *args, **kwargs):
        CALLS.append("decorator")
        return 0.5 * step(self, *args, **kwargs)

    return decorated


def test_a_decorator_around_the_mixins_step_is_called():
    decorated = type("Decorated", (Mixed,), {"training_step": halved(Mixed.training_step)})
    ours = fitted(seeded_module(decorated), probing())
    assert "decorator" in CALLS
    plain = fitted(seeded_module(type("Plain", (Module,), {"training_step": halved(Module.training_step)})))
    assert same_bits(plain.parameters(), ours.parameters())


def test_a_method_that_is_replaced_on_lightnings_class_is_called(monkeypatch):
    def recorded(self, *arguments, **options):
        CALLS.append("backward")
        return backward(self, *arguments, **options)

    backward = Strategy.backward
    monkeypatch.setattr(Strategy, "backward", recorded)
    fitted(seeded_module(Mixed), probing())
    assert CALLS == ["backward"] * 6


def tripled(function):
    @functools.wraps(function)
    def decorated(self, batch, batch_idx=0):
        return function(self, [batch[0] * 3, batch[1]], batch_idx)

    return decorated


def first_deltas(module, **options):
    callback = WatchedSweeps(probes=3, mu=1e-2, seed=1, sweep_precision=options.pop("sweep_precision", None))
    fit(module, callback, **options)
    return callback.sweeps[0].deltas


def test_a_sweep_in_float32_goes_through_a_decorator_once():
    decorated = type("Decorated", (Mixed,), {"training_step": tripled(Mixed.training_step)})
    inside = type("Inside", (VAMOMixin, Module), {"training_step": tripled(Module.training_step)})
    options = {"precision": "bf16-mixed", "sweep_precision": "32-true"}
    outer, inner = (first_deltas(seeded_module(cls), **options) for cls in (decorated, inside))
    assert torch.equal(outer, inner)


def indexed(function):
    @functools.wraps(function)
    def decorated(self, batch, batch_idx=0):
        return function(self, batch) * (1 + batch_idx)

    return decorated


class TakesNoIndex(Module):
    @indexed
    def training_step(self, batch):
        return super().training_step(batch, 0)


def test_a_decorator_that_hides_an_argument_gets_what_lightning_gives_it():
    # Lightning looks at the function that is decorated, which takes no index, and so the decorator gets none.
    ours = fitted(seeded_module(type("Mixed", (VAMOMixin, TakesNoIndex), {})), probing())
    plain = fitted(seeded_module(TakesNoIndex))
    assert same_bits(plain.parameters(), ours.parameters())
    assert torch.equal(
        first_deltas(seeded_module(type("Mixed", (VAMOMixin, TakesNoIndex), {}))), first_deltas(seeded_module(Mixed))
    )


class Triples(Callback):
    """Transfers batches in a way of its own, which it puts in the strategy's place."""

    def on_train_start(self, fit, module):
        transfer = fit.strategy.batch_to_device

        @functools.wraps(transfer)
        def tripling(batch, *args, **kwargs):
            inputs, labels = transfer(batch, *args, **kwargs)
            return [inputs * 3, labels]

        fit.strategy.batch_to_device = tripling


def test_a_sweep_transfers_batches_as_the_steps_do():
    outside = first_deltas(seeded_module(Mixed), callbacks=[Triples()])
    inside = first_deltas(seeded_module(type("Inside", (VAMOMixin, Module), {"training_step": tripled(Module.training_step)})))
    assert torch.allclose(outside, inside)


class ClipsByPlugin(Precision):
    def clip_gradients(self, optimizer, clip_val=0.0, gradient_clip_algorithm=None):
        CALLS.append("plugin clips")


class StepsByPlugin(Precision):
    def _after_closure(self, model, optimizer):
        CALLS.append("plugin steps")
        super()._after_closure(model, optimizer)


class StepsByStrategy(SingleDeviceStrategy):
    def optimizer_step(self, optimizer, closure, model=None, **kwargs):
        CALLS.append("strategy steps")
        return super().optimizer_step(optimizer, closure, model, **kwargs)


@pytest.mark.parametrize("method", [MeZOCallback, SVRGCallback])
@pytest.mark.parametrize(
    ("options", "call"),
    [
        (lambda: {"plugins": ClipsByPlugin()}, "plugin clips"),
        (lambda: {"plugins": StepsByPlugin()}, "plugin steps"),
        (lambda: {"strategy": StepsByStrategy(device=torch.device("cpu"))}, "strategy steps"),
    ],
)
def test_a_plugin_or_strategy_with_a_step_of_its_own_steps(options, call, method):
    fit(with_hooks(), method(verbose=False), **options())
    assert [call] * 6 == CALLS


class ClipsOnce(Callback):
    """Puts a way of clipping in place of the module's when the gradient is known, for that step only."""

    def on_before_optimizer_step(self, fit, module, optimizer):
        def clip(optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            CALLS.append("clipped")
            del module.configure_gradient_clipping

        module.configure_gradient_clipping = clip


def test_clipping_that_a_hook_puts_in_place_is_called():
    fit(with_hooks(), SVRGCallback(gradients="carry", verbose=False), callbacks=[ClipsOnce()])
    assert CALLS == ["clipped"] * 6


@pytest.mark.parametrize("base", ["LightningModule", "Precision", "LightningOptimizer"])
def test_a_method_that_was_replaced_before_the_import_is_called(base):
    script = f"""
import lightning as L, torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch import LightningModule
name = "step" if {base} is LightningOptimizer else "optimizer_step"
method, calls = getattr({base}, name), []
def counted(*args, **kwargs):
    calls.append(name)
    return method(*args, **kwargs)
setattr({base}, name, counted)
from tests.integration.test_hooks import Mixed, fit, probing
fit(Mixed(), probing())
assert len(calls) == 6, calls
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=300)
