"""Direct search: each variant goes where an independent implementation goes, and no further than it says."""

import copy

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lightning_vamo import InvalidArgumentError, S2PCallback, UnsupportedError, VAMOMixin
from lightning_vamo.core.directions import GaussianDirections
from lightning_vamo.loop.ledger.seeds import Seeds, seeded
from tests.support.modules import Perceptron, classification_data, trainer
from tests.support.odd_steps import Normed
from tests.support.ranks import run
from tests.support.resuming import WARNINGS, VAMOModule, assert_survives
from tests.support.resuming import run as resuming


class Plain(VAMOMixin, Perceptron):
    pass


def data(samples=48, batch_size=8, dtype=torch.float64):
    inputs, labels = classification_data(samples).tensors
    return DataLoader(TensorDataset(inputs.to(dtype), labels), batch_size)


def built(module=Plain, dtype=torch.float64, **arguments):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return module(**arguments).to(dtype)


def fitted(module, callback, *others, loader=None, **options):
    options = {"max_epochs": 2, "precision": "64-true", **options}
    fit = trainer(callbacks=[callback, *others], **options)
    fit.fit(module, loader or data())
    return fit


def flat(module):
    return nn.utils.parameters_to_vector(module.net.parameters()).detach().clone()


def loss_at(module, point, batch):
    net = copy.deepcopy(module.net)
    nn.utils.vector_to_parameters(point.clone(), net.parameters())
    with torch.no_grad():
        return float(cross_entropy(net(batch[0]), batch[1]))


def reference(module, batches, variant, lr, rho, accumulated=1, seed=3):
    """The search with dense directions."""
    x, gammas = flat(module), []
    for step in range(len(batches) // accumulated):
        group = batches[step * accumulated : (step + 1) * accumulated]
        parameters = list(module.net.parameters())
        draw = GaussianDirections().draw(parameters, 1, seeded(Seeds(seed).of(f"directions of step {step}")))
        s = draw.dense(parameters)[0] * len(x) ** 0.5

        def loss(point, group=group):
            return sum(loss_at(module, point, batch) for batch in group)

        if variant == "vs2p":
            gamma = loss(x + rho * s) - loss(x - rho * s)
            gammas.append(gamma)
            sigma = (sum(g**2 for g in gammas) / len(gammas)) ** 0.5
            x = x - (1 if gamma > 0 else -1) * lr * rho / (3 * sigma / abs(gamma) + 1) * s
        else:
            points = [x + lr * s, x - lr * s] + [x] * (variant == "stp")
            x = min(points, key=loss)
    return x


@pytest.mark.parametrize(("variant", "lr"), [("s2p", 0.02), ("stp", 0.05), ("vs2p", 2.0)])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_steps_are_those_of_an_independent_implementation(variant, lr, accumulated):
    module, callback = built(lr=lr), S2PCallback(variant, seed=3, **({"rho": 0.01} if variant == "vs2p" else {}))
    before = flat(module)
    fit = fitted(module, callback, accumulate_grad_batches=accumulated)
    expected = reference(built(lr=lr), [*data()] * 2, variant, lr, 0.01, accumulated)
    assert torch.allclose(flat(module), expected, rtol=0, atol=1e-10)
    assert not torch.allclose(flat(module), before, atol=1e-3)
    forwards = 12 * (3 if variant == "stp" else 2)
    assert callback.report.forward_evaluations == fit.callback_metrics["s2p/forward_evaluations"] == forwards
    assert callback.report.backward_evaluations == 0
    assert str(callback.report).startswith(f"{variant.upper()}: 12 batches")


class Losses(L.Callback):
    """The loss of each batch before and after its step."""

    def __init__(self):
        self.before, self.after = [], []

    def on_train_batch_start(self, fit, module, batch, batch_idx):
        self.before.append(loss_at(module, flat(module), batch))

    def on_train_batch_end(self, fit, module, outputs, batch, batch_idx):
        self.after.append(loss_at(module, flat(module), batch))


@pytest.mark.parametrize("dtype", ["64-true", "32-true"])
def test_three_points_never_raise_the_loss_of_their_batch(dtype):
    losses = Losses()
    module = built(lr=0.3, dtype=torch.float64 if dtype == "64-true" else torch.float32)  # so far that many steps stay
    loader = data(dtype=torch.float64 if dtype == "64-true" else torch.float32)
    fit = fitted(module, S2PCallback("stp", seed=0), losses, loader=loader, precision=dtype, max_epochs=6)
    assert all(after <= before for before, after in zip(losses.before, losses.after, strict=True))
    stayed = [after == before for before, after in zip(losses.before, losses.after, strict=True)]
    assert 0 < sum(stayed) < len(stayed)
    assert fit.callback_metrics["s2p/moved"] == pytest.approx(1 - sum(stayed[-6:]) / 6)


class Scheduled(Plain):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(
            [{"params": self.net[0].parameters(), "lr": 0.0}, {"params": self.net[2].parameters()}], 0.1
        )
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Steps(L.Callback):
    def __init__(self):
        self.points = []

    def on_train_batch_start(self, fit, module, *others):
        self.points.append(flat(module))

    def on_train_end(self, fit, module):
        self.points.append(flat(module))


def test_the_step_length_is_the_learning_rate_of_each_group():
    module, steps = built(Scheduled), Steps()
    fitted(module, S2PCallback(seed=0), steps, max_epochs=1)
    moves = [after - before for before, after in zip(steps.points, steps.points[1:], strict=False)]
    first = module.net[0].weight.numel() + module.net[0].bias.numel()
    for number, move in enumerate(moves):
        assert not move[:first].any()
        assert float(move[first:].square().mean().sqrt()) == pytest.approx(0.1 * 0.5**number, rel=0.5)


def test_statistics_are_updated_once():
    module = built(Normed, torch.float32)
    fit = trainer(callbacks=[S2PCallback("stp")], max_epochs=2)
    fit.fit(module, data(dtype=torch.float32))
    assert int(module.net[1].num_batches_tracked) == 12


class Bad(Plain):
    def probe_loss(self, batch, batch_idx):
        return torch.tensor(float("nan"), dtype=torch.float64)


@pytest.mark.parametrize("variant", ["s2p", "stp", "vs2p"])
def test_losses_that_are_not_finite_move_nothing(variant):
    module = built(Bad)
    callback = S2PCallback(variant)
    with pytest.warns(UserWarning, match="S2PCallback: a loss is not finite at a point that step 0 compares") as given:
        fitted(module, callback)
    assert torch.equal(flat(module), flat(built()))
    assert len([warning for warning in given if "not finite" in str(warning.message)]) == 1
    lost = callback.report.batches
    assert callback.report.lost == lost > 1
    assert f"  {lost} steps left out a loss that was not finite" in str(callback.report)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "s3p"}, r"`variant` must be one of 's2p', 'stp', 'vs2p', got 's3p'"),
        ({"rho": 0.0}, r"`rho` must be a positive, finite number, got 0.0"),
        ({"rho": "auto"}, r"`rho` must be a positive, finite number, got 'auto'"),
        ({"rho": True}, r"`rho` must be a positive, finite number, got True"),
        ({"rho": 1e300, "variant": "vs2p"}, r"`rho` must be at most 1e\+30, got 1e\+300"),
        ({"rho": 0.1}, r"got rho=0.1 with variant='s2p', which compares them at the learning rate: set variant='vs2p'"),
        ({"verbose": "no"}, r"`verbose` must be True or False, got 'no'"),
        ({"seed": "a"}, r"`seed` must be a whole number"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        S2PCallback(**arguments)


class Adam(Plain):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


@pytest.mark.parametrize(
    ("cls", "sgd", "options", "message"),
    [
        (Adam, {}, {}, r"AdamW has a step of its own: use torch.optim.SGD with neither momentum nor maximize"),
        (Plain, {"momentum": 0.9}, {}, r"SGD\(momentum=0.9\) has a step of its own"),
        (Plain, {"maximize": True}, {}, r"SGD\(maximize=True\) has a step of its own"),
        (Plain, {"weight_decay": 0.1}, {}, r"set weight_decay=0"),
        (Plain, {}, {"gradient_clip_val": 1.0}, r"no gradient that Trainer\(gradient_clip_val=...\) could clip"),
    ],
)
def test_an_optimizer_with_a_step_of_its_own_is_refused(cls, sgd, options, message):
    module = built(cls, **sgd)
    with pytest.raises(UnsupportedError, match=message):
        fitted(module, S2PCallback(), **options)
    assert torch.equal(flat(module), flat(built()))


class Ranked(Plain):
    def __init__(self):
        super().__init__(lr=0.05)


@pytest.mark.parametrize("variant", ["stp", "vs2p"])
def test_two_ranks_are_one_process_with_both_batches(variant, tmp_path):
    samples = classification_data(48)
    samples.tensors = (samples.tensors[0].double(), samples.tensors[1])
    options = {"max_epochs": 2, "precision": "64-true"}
    callbacks = [S2PCallback(variant, seed=2) for _ in range(2)]
    one, other = run(Ranked().double(), tmp_path / "two", samples, devices=2, batch_size=4, callback=callbacks[0], **options)
    [alone] = run(Ranked().double(), tmp_path / "one", samples, devices=1, batch_size=8, callback=callbacks[1], **options)
    assert all(torch.equal(one["state"][name], other["state"][name]) for name in one["state"])
    assert all(torch.allclose(one["state"][name], alone["state"][name], rtol=0, atol=1e-9) for name in one["state"])


class Unaided(VAMOModule):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


@WARNINGS[0]
@WARNINGS[1]
def test_a_run_that_is_killed_twice_goes_on_bit_for_bit(tmp_path):
    """What the last steps have told of the slope's size is in the checkpoint, and losses that are adding up are too."""
    configuration = {"module": Unaided, "make": lambda: S2PCallback("vs2p", seed=4), "accumulate_grad_batches": 2}
    configuration |= {"val_check_interval": 3, "saver": {"every_n_epochs": 1, "save_on_train_epoch_end": False}}
    uninterrupted = resuming(tmp_path / "whole", configuration)
    assert_survives(tmp_path / "killed", configuration, [(1, 4, "end"), (2, 6, "step")], uninterrupted)
