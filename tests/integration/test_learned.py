"""Directions learned in training: what they remove, with what Lightning does around the steps, and on several processes."""

import functools

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from lightning_vamo import VAMOCallback
from lightning_vamo.core.directions import GradientSubspaceDirections, OrthonormalDirections
from lightning_vamo.core.directions.learned.dense_learner import DenseLearner
from lightning_vamo.core.directions.learned.factored_learner import FactoredLearner
from lightning_vamo.core.schedules import LinearProbes
from tests.support.modules import VAMOEverything, loaders, trainer
from tests.support.overlapping import Classifier, fit, overlapping
from tests.support.processes import in_processes
from tests.support.ranks import Save
from tests.support.sharded import VAMO, train
from tests.support.watched import WatchedCounts, WatchedSweeps

FORMS = {"factored": GradientSubspaceDirections(), "dense": GradientSubspaceDirections(rank=None)}


ADAPTIVE = {"probes": 4, "alpha": "adaptive", "mu": 1e-3, "seed": 1}


@functools.cache
def by_random_ones():
    return fit(VAMOCallback(directions=OrthonormalDirections(), **ADAPTIVE), epochs=2)[2]


@pytest.mark.parametrize("directions", FORMS.values(), ids=FORMS)
def test_they_remove_a_hundred_times_what_random_ones_do(directions):
    _, _, learned = fit(VAMOCallback(directions=directions, **ADAPTIVE), epochs=2)
    drawn = by_random_ones()
    assert learned["vamo/variance_removed"] > 0.25
    assert drawn["vamo/variance_removed"] < 0.02
    assert learned["vamo/probes"] == 4


@pytest.mark.parametrize("options", [{"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.5}, {"precision": "bf16-mixed"}])
def test_they_learn_whatever_lightning_does_around_a_step(options):
    radius = "auto" if "precision" in options else 1e-3
    callback = VAMOCallback(**{**ADAPTIVE, "directions": GradientSubspaceDirections(), "mu": radius})
    _, _, metrics = fit(callback, epochs=2, **options)
    assert metrics["vamo/variance_removed"] > 0.15


def test_without_a_warm_up_the_first_epoch_is_plain():
    callback = WatchedSweeps(probes=3, directions=GradientSubspaceDirections(warmup_batches=0), seed=1)
    _, one, metrics = fit(callback, epochs=1)
    assert metrics["vamo/probes"] == 0
    assert callback.sweeps == []
    _, plain, _ = fit(VAMOCallback(probes=0), epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), plain.parameters(), strict=True))
    _, _, metrics = fit(callback, epochs=2)
    assert metrics["vamo/probes"] == 3
    assert len(callback.sweeps) == 1


def test_a_warm_up_takes_no_step_leaves_no_trace_and_is_counted():
    def run(alpha, **arguments):
        L.seed_everything(0, verbose=False)
        module = VAMOEverything()
        callback = VAMOCallback(directions=GradientSubspaceDirections(warmup_batches=5), alpha=alpha, mu=0.01, **arguments)
        fit = trainer(callbacks=[callback], max_epochs=2)
        fit.fit(module, *loaders())  # 12 batches
        return module, callback, fit

    plain, _, plain_fit = run("theory", probes=0)
    learned, callback, learned_fit = run(0.0, probes=2)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in learned.state_dict().items())
    assert all(
        torch.equal(learned_fit.callback_metrics[name], value)
        for name, value in plain_fit.callback_metrics.items()
        if not name.startswith("vamo/")
    )
    assert callback.report.backward_evaluations == 2 * 12 + 5
    assert callback.report.forward_evaluations == 2 * (12 * 3 + 1 + 8 + 4) + 2 * 12 + 5


def test_they_follow_the_schedule():
    schedule = LinearProbes(start=2, end=6, epochs=3)
    callback = WatchedCounts(probes=schedule, directions=GradientSubspaceDirections(), alpha="adaptive", seed=1)
    _, _, metrics = fit(callback)
    assert callback.counts == [2, 4, 6, 6]
    assert metrics["vamo/variance_removed"] > 0.2


class Dealt(L.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(overlapping(160), 8, shuffle=True)


@pytest.mark.parametrize("directions", FORMS.values(), ids=FORMS)
def test_ranks_learn_the_same_to_the_bit(directions, tmp_path):
    L.seed_everything(1, verbose=False)
    callback = VAMOCallback(probes=3, mu=1e-2, directions=directions, alpha="adaptive", seed=1)
    strategy = DDPStrategy(start_method="fork")
    run = trainer(callbacks=[callback, Save(tmp_path)], strategy=strategy, devices=2, max_epochs=3)
    run.fit(Classifier(), datamodule=Dealt())
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(first["state"][name], second["state"][name]) for name in first["state"])
    assert first["metrics"]["vamo/variance_removed"] == second["metrics"]["vamo/variance_removed"] > 0.1


def sharded_and_not(folder):
    arguments = {"probes": 3, "mu": 1e-2, "difference": "central", "alpha": "adaptive", "seed": 1}
    results = {}
    for name, rank in (("factored", 1), ("dense", None)):
        for sharded in (False, True):
            callback = VAMOCallback(directions=GradientSubspaceDirections(rank), **arguments)
            results[f"{name} {sharded}"] = train(VAMO, [callback], sharded, torch.float64, limit_train_batches=4)
    return results


def test_shards_learn_what_the_whole_does(tmp_path):
    for result in in_processes(sharded_and_not, tmp_path):
        for name in ("factored", "dense"):
            whole, sharded = result[f"{name} False"], result[f"{name} True"]
            assert all(torch.allclose(sharded[key], value, rtol=1e-8, atol=1e-10) for key, value in whole.items())


class Epochs(L.Callback):
    """Keeps some figures of each epoch."""

    def __init__(self):
        self.probes, self.evaluations, self.removed = [], [], []

    def on_train_epoch_end(self, run, module):
        self.probes.append(int(run.callback_metrics["vamo/probes"]))
        self.evaluations.append(int(run.callback_metrics["vamo/backward_evaluations"]))
        self.removed.append(float(run.callback_metrics.get("vamo/variance_removed", 0)))


@pytest.mark.parametrize("directions", FORMS.values(), ids=FORMS)
def test_the_batches_of_a_short_epoch_are_gone_through_again(directions):
    epochs = Epochs()
    callback = VAMOCallback(probes=4, mu=1e-2, directions=directions, seed=1)
    fit(callback, epochs=3, limit_train_batches=3, callbacks=[epochs])
    assert epochs.probes == [4, 4, 4]
    assert epochs.evaluations == [8, 11, 14]  # warmed up once
    assert epochs.removed[0] > 0.15


def test_a_warm_up_takes_as_many_gradients_as_tell_the_directions_apart():
    callback = VAMOCallback(probes=6, directions=GradientSubspaceDirections(warmup_batches=2), seed=1)
    _, _, metrics = fit(callback, epochs=1)
    assert metrics["vamo/probes"] == 6
    assert callback.report.warmup_evaluations == 7


@pytest.mark.filterwarnings("ignore:`training_step` returned None")
def test_without_enough_gradients_the_first_epoch_is_plain_and_a_warning_says_why():
    class Skipping(Classifier):
        def training_step(self, batch, batch_idx):
            return None if batch_idx % 2 else super().training_step(batch, batch_idx)

    epochs = Epochs()
    message = "Epoch 0 trains without probes: .* 4 directions .* 5 finite gradients, .* which saw 3 gradients, had fewer"
    with pytest.warns(UserWarning, match=message) as caught:
        fit(VAMOCallback(probes=4, seed=1), Skipping, limit_train_batches=4, callbacks=[epochs])
    assert sum("trains without probes" in str(warning.message) for warning in caught) == 1
    assert epochs.probes == [0, 4, 4, 4]
    assert epochs.evaluations == [5, 7, 9, 11]  # warmed up once


@pytest.mark.filterwarnings("ignore:`training_step` returned None")
@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("learner", [DenseLearner, FactoredLearner])
def test_a_step_without_a_loss_is_not_learned_from(learner, accumulated, monkeypatch):
    class Skipping(Classifier):
        def training_step(self, batch, batch_idx):
            return None if batch_idx % 4 < accumulated else super().training_step(batch, batch_idx)

    seen, observe = [], learner.observe

    def observed(self, gradients):
        seen.append(any(gradient is not None for gradient in gradients))
        observe(self, gradients)

    monkeypatch.setattr(learner, "observe", observed)
    directions = GradientSubspaceDirections(rank=None if learner is DenseLearner else 1, warmup_batches=0)
    fit(VAMOCallback(probes=2, directions=directions, seed=1), Skipping, epochs=1, accumulate_grad_batches=accumulated)
    assert len(seen) > 2
    assert all(seen)


@pytest.mark.parametrize("batches", [True, 3])
def test_a_trial_run_sweeps(batches):
    callback = WatchedSweeps(probes=4)
    fit(callback, fast_dev_run=batches)
    assert len(callback.sweeps) == 1


def test_callbacks_see_the_backward_passes_of_training_alone():
    class Counting(L.Callback):
        before = after = 0

        def on_before_backward(self, run, module, loss):
            self.before += 1

        def on_after_backward(self, run, module):
            self.after += 1

    counting = Counting()
    fit(VAMOCallback(probes=2, mu=1e-2), epochs=1, limit_train_batches=8, callbacks=[counting])
    assert (counting.before, counting.after) == (8, 8)


def test_a_progress_bar_is_there_throughout_the_warm_up():
    class Bar(ProgressBar):  # Rich's is looked for among the callbacks by the thread that draws it
        def __init__(self):
            super().__init__()
            self.found = []

        def on_before_backward(self, run, module, loss):
            self.found.append(run.progress_bar_callback is self)

    bar = Bar()
    fit(VAMOCallback(probes=2, mu=1e-2), epochs=1, limit_train_batches=8, callbacks=[bar], enable_progress_bar=True)
    assert bar.found == [True] * 16  # as many in the warm-up


class Thawing(Classifier):
    def __init__(self):
        super().__init__()
        self.net[0].requires_grad_(False)

    def on_train_epoch_start(self):
        self.net[0].requires_grad_(self.current_epoch > 0)


class Looking(Thawing):
    """Looks at its gradients before they are zeroed, which keeps them until then."""

    def on_before_zero_grad(self, optimizer):
        seen = self.net[2].bias.grad
        object.__setattr__(self, "looked", [*getattr(self, "looked", []), None if seen is None else seen.clone()])


@pytest.mark.parametrize("cls", [Thawing, Looking])
def test_a_warm_up_in_a_later_epoch_begins_without_the_last_steps_gradient(cls):
    learners = []

    class Recorded(GradientSubspaceDirections):
        """Keeps the first gradient that each learner sees."""

        def learner(self, parameters, count, generator):
            learner = super().learner(parameters, count, generator)
            observe, seen = learner.observe, []
            learners.append(seen)

            def observed(gradients):
                seen.append([gradient.clone() for gradient in gradients])
                observe(gradients)

            learner.observe = observed
            return learner

    class Reference(L.Callback):
        def on_train_batch_start(self, run, module, batch, batch_idx):
            if run.current_epoch == 1 and batch_idx == 0:
                self.gradients = torch.autograd.grad(module.training_step(batch, batch_idx), list(module.parameters()))

    reference = Reference()
    callback = VAMOCallback(probes=2, directions=Recorded(), seed=1)
    _, module, _ = fit(callback, cls, epochs=2, limit_train_batches=4, callbacks=[reference])
    first = learners[1][0]
    assert len(first) == 4  # thawed
    assert all(torch.allclose(a, b) for a, b in zip(first, reference.gradients, strict=True))
    if cls is Looking:
        assert [gradient is None for gradient in module.looked] == [True] + 7 * [False]


class Masks(L.Callback):
    """Keeps a row of the weights where it is, by its gradient."""

    def on_after_backward(self, run, module):
        module.net[0].weight.grad[0] = 0.0


@pytest.mark.parametrize("control", ["replay", "recompute"])
def test_gradients_that_a_callback_masks_are_learned_from_steps(control):
    """A warm-up would bypass the callback, and directions that it learned would move what the callback holds."""
    L.seed_everything(0, verbose=False)
    module = VAMOEverything()
    before = module.net[0].weight[0].clone()
    callback = WatchedCounts(probes=2, control=control, mu=0.01)
    run = trainer(callbacks=[callback, Masks()], max_epochs=3)
    run.fit(module, *loaders())
    assert callback.report.warmup_evaluations == 0
    assert callback.report.steps > 0
    assert (module.net[0].weight[0] - before).abs().max() < 1e-6
    assert (module.net[0].weight[1:]).isfinite().all()
