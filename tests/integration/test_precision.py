"""Under a GradScaler the correction is applied at the gradients' scale, and skipped steps stay skipped."""

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision

from lightning_vamo import VAMOCallback, VAMOMixin
from lightning_vamo.core.directions import GradientSubspaceDirections, OrthonormalDirections
from tests.support.modules import Everything, VAMOEverything, loaders, trainer


class Fused(VAMOEverything):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, fused=True)


def run(scale, cls=VAMOEverything, callbacks=None, **options):
    L.seed_everything(0, verbose=False)
    module = cls()
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10_000)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    callbacks = [VAMOCallback(probes=3, directions=OrthonormalDirections(), seed=1)] if callbacks is None else callbacks
    fit = trainer(callbacks=callbacks, plugins=[plugin], max_epochs=2, **options)
    fit.fit(module, *loaders())
    return module.state_dict(), scaler.get_scale(), fit


@pytest.mark.parametrize("cls", [VAMOEverything, Fused])
def test_the_scale_makes_no_difference(cls):
    """Powers of two, so that scaling rounds nothing."""
    one, _, fit = run(1.0, cls)
    other, scale, _ = run(2.0**10, cls)
    assert scale == 2.0**10
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)
    plain, _, _ = run(2.0**10, cls, callbacks=[VAMOCallback(probes=0)])
    assert not torch.allclose(one["net.0.weight"], plain["net.0.weight"], atol=1e-3)
    assert fit.callback_metrics["vamo/variance_removed"] != 0


@pytest.mark.parametrize("arguments", [{"probes": 0}, {"probes": 2, "alpha": 0.0}])
@pytest.mark.parametrize("options", [{}, {"gradient_clip_val": 0.1, "accumulate_grad_batches": 2}])
def test_without_a_correction_training_is_plain(arguments, options):
    plain, _, fit = run(2.0**8, Everything, callbacks=[], **options)
    with_vamo, _, other = run(2.0**8, callbacks=[VAMOCallback(**arguments)], **options)
    assert all(torch.equal(plain[name], with_vamo[name]) for name in plain)
    assert fit.global_step == other.global_step


def test_overflowing_steps_are_skipped():
    L.seed_everything(0, verbose=False)
    before = {name: p.detach().clone() for name, p in VAMOEverything().named_parameters()}

    class Overflow(VAMOEverything):
        """Its gradients overflow whatever the scale."""

        def on_after_backward(self):
            self.net[0].weight.grad.fill_(float("inf"))

    state, scale, fit = run(2.0**10, Overflow)
    assert scale < 2.0**10
    assert fit.callback_metrics["vamo/variance_removed"] == 0
    assert all(torch.equal(state[name], before[name]) for name in before)


@pytest.mark.parametrize("rank", [1, None])
def test_steps_that_overflow_are_not_learned_from(rank):
    class Overflow(VAMOEverything):
        """Some of its gradients overflow whatever the scale."""

        def on_after_backward(self):
            if self.trainer.fit_loop.batch_idx % 4 == 2:
                self.net[0].weight.grad.fill_(float("inf"))

    directions = GradientSubspaceDirections(rank, warmup_batches=0)
    state, scale, fit = run(2.0**10, Overflow, callbacks=[VAMOCallback(probes=2, mu=1e-2, directions=directions, seed=1)])
    assert scale < 2.0**10
    assert fit.callback_metrics["vamo/probes"] == 2
    assert all(value.isfinite().all() for value in state.values())


@pytest.mark.filterwarnings("ignore:.training_step. returned")
def test_skipped_batches_under_a_scaler():
    class Skipping(Everything):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx % 3 == 1 else loss

    plain, _, _ = run(2.0**8, Skipping, callbacks=[])
    mixed = type("Mixed", (VAMOMixin, Skipping), {})
    with_vamo, _, _ = run(2.0**8, mixed, callbacks=[VAMOCallback(probes=0)])
    assert all(torch.equal(plain[name], with_vamo[name]) for name in plain)
