"""MeZO: the steps are those of an independent implementation, and a batch leaves the trace of one evaluation."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional.classification import multiclass_f1_score

from lightning_vamo import InvalidArgumentError, MeZOCallback, UnsupportedError, VAMOMixin
from lightning_vamo.core.directions import (
    CoordinateDirections,
    GaussianDirections,
    GradientSubspaceDirections,
    MaskedDirections,
    OrthonormalDirections,
    RademacherDirections,
)
from lightning_vamo.loop.gradient.moving import check_parameters
from lightning_vamo.loop.ledger.seeds import Seeds, seeded
from tests.support.modules import MemoryLogger, Perceptron, VAMOEverything, classification_data, loaders, trainer
from tests.support.odd_steps import Normed, Taken


class Plain(VAMOMixin, Perceptron):
    pass


def data(samples=48, batch_size=8, dtype=torch.float64):
    inputs, labels = classification_data(samples).tensors
    return DataLoader(TensorDataset(inputs.to(dtype), labels), batch_size)


def built(module=Plain, dtype=torch.float64, seed=0, **arguments):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return module(**arguments).to(dtype)


def fitted(module, callback, loader=None, *others, dtype=torch.float64, **options):
    options = {"max_epochs": 2, **options}
    if dtype == torch.float64:
        options["precision"] = "64-true"
    fit = trainer(callbacks=[callback, *others], **options)
    fit.fit(module, data(dtype=dtype) if loader is None else loader)
    return fit


def differences(net, batch, directions, mu, difference):
    """Derivatives along the rows of a matrix, by copying weights out and in."""
    parameters = list(net.parameters())
    origin = nn.utils.parameters_to_vector(parameters).detach().clone()

    def loss(point):
        nn.utils.vector_to_parameters(point.clone(), parameters)
        with torch.no_grad():
            return cross_entropy(net(batch[0]), batch[1])

    plus = torch.stack([loss(origin + mu * z) for z in directions])
    minus = torch.stack([loss(origin - mu * z) for z in directions]) if difference == "central" else loss(origin)
    nn.utils.vector_to_parameters(origin, parameters)
    return (plus - minus) / (2 * mu if difference == "central" else mu)


def reference(module, batches, optimizer, family, count, mu=1e-3, difference="central", accumulated=1, clip=None, seed=3):
    """MeZO with dense directions and a gradient vector."""
    parameters = list(module.net.parameters())
    for step in range(len(batches) // accumulated):
        generator = seeded(Seeds(seed).of(f"directions of step {step}"))
        dense = family.draw(parameters, count, generator).dense(parameters)
        z = dense * dense.shape[1] ** 0.5
        group = batches[step * accumulated : (step + 1) * accumulated]
        slopes = sum(differences(module.net, batch, z, mu, difference) for batch in group) / accumulated
        slopes = slopes if clip is None else slopes.clamp(-clip, clip)
        flat = slopes @ z / count
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter).clone()
        optimizer.step()
    return nn.utils.parameters_to_vector(parameters).detach()


FAMILIES = [GaussianDirections(), RademacherDirections("stored"), OrthonormalDirections(), CoordinateDirections()]


@pytest.mark.parametrize("difference", ["central", "forward"])
@pytest.mark.parametrize("update", ["auto", "gradient"])
@pytest.mark.parametrize(("family", "probes"), [(FAMILIES[0], 1), (FAMILIES[1], 3), (FAMILIES[2], 4), (FAMILIES[3], 2)])
def test_the_steps_are_those_of_an_independent_implementation(family, probes, update, difference):
    module, other = (built(lr=0.05, weight_decay=0.1) for _ in range(2))
    callback = MeZOCallback(probes, family, difference=difference, update=update, seed=3)
    fitted(module, callback)
    expected = reference(other, [*data()] * 2, other.configure_optimizers(), family, probes, difference=difference)
    found = nn.utils.parameters_to_vector(module.net.parameters()).detach()
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)
    assert not torch.allclose(found, nn.utils.parameters_to_vector(built().net.parameters()).detach(), atol=1e-3)


def test_momentum_steps_with_the_estimate():
    module, other = (built(lr=0.02, momentum=0.9, weight_decay=0.1) for _ in range(2))
    fitted(module, MeZOCallback(2, seed=3))
    expected = reference(other, [*data()] * 2, other.configure_optimizers(), GaussianDirections(), 2)
    assert torch.allclose(nn.utils.parameters_to_vector(module.net.parameters()).detach(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("update", ["auto", "gradient"])
def test_accumulation_adds_up_differences(update):
    module, other = (built(lr=0.05) for _ in range(2))
    fitted(module, MeZOCallback(update=update, clip=0.3, seed=3), accumulate_grad_batches=2)
    expected = reference(other, [*data()] * 2, other.configure_optimizers(), GaussianDirections(), 1, accumulated=2, clip=0.3)
    assert torch.allclose(nn.utils.parameters_to_vector(module.net.parameters()).detach(), expected, rtol=0, atol=1e-10)


class Scheduled(Plain):
    def configure_optimizers(self):
        groups = [{"params": self.net[0].parameters(), "lr": 0.1}, {"params": self.net[2].parameters(), "weight_decay": 0.2}]
        optimizer = torch.optim.SGD(groups, lr=0.03)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def test_groups_and_schedulers_hold_in_place():
    modules = [built(Scheduled) for _ in range(2)]
    for module, update in zip(modules, ("in-place", "gradient"), strict=True):
        fit = fitted(module, MeZOCallback(update=update, seed=3))
        assert fit.global_step == 12
        assert fit.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.8**12)
    states = [module.state_dict() for module in modules]
    assert all(torch.allclose(one, other, rtol=0, atol=1e-12) for one, other in zip(*(s.values() for s in states), strict=True))


class Clips(Plain):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.clip_gradients(optimizer, 0.01, "value")


class Masks(Plain):
    def on_before_optimizer_step(self, optimizer):
        for parameter in self.net[0].parameters():
            parameter.grad.zero_()


class Declines(Plain):
    def optimizer_step(self, epoch, batch_idx, optimizer, closure):
        closure()


class MasksToo(L.Callback):
    def on_before_optimizer_step(self, fit, module, optimizer):
        Masks.on_before_optimizer_step(module, optimizer)


@pytest.mark.parametrize(("cls", "callbacks"), [(Clips, []), (Masks, []), (Declines, []), (Plain, [MasksToo()])])
def test_hooks_before_the_step_change_it_whatever_the_update(cls, callbacks):
    weights = []
    for update in ("auto", "gradient"):
        module = built(cls, lr=0.05)
        before = nn.utils.parameters_to_vector(module.net.parameters()).detach().clone()
        fitted(module, MeZOCallback(update=update, seed=3), None, *callbacks)
        weights.append(nn.utils.parameters_to_vector(module.net.parameters()).detach())
    assert torch.equal(*weights)
    assert torch.equal(weights[0], before) == (cls is Declines)
    assert (cls, callbacks) == (Clips, []) or torch.equal(weights[0][:8], before[:8])


class Watch(L.Callback):
    """What is in `.grad` when the optimizer steps, and how many batches the metrics have seen."""

    def __init__(self):
        self.gradients = []
        self.counts = []

    def on_train_batch_end(self, fit, module, *others):
        self.counts.append((module.calls, module.accuracy._update_count, module.auroc._update_count))

    def on_before_optimizer_step(self, fit, module, optimizer):
        self.gradients.append([parameter.grad is not None for parameter in module.parameters()])


GRAPHS = []  # of each evaluation, out of the reach of what puts modules back


class Graphless(VAMOEverything):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        GRAPHS.append(loss.requires_grad)
        return loss


@pytest.mark.parametrize(("probes", "difference", "evaluations"), [(1, "central", 2), (3, "central", 6), (3, "forward", 4)])
def test_a_batch_is_logged_and_counted_once(probes, difference, evaluations, monkeypatch):
    GRAPHS.clear()
    L.seed_everything(0, verbose=False)
    module = built(Graphless, torch.float32)
    sgd = torch.optim.SGD(module.parameters(), lr=1e-3)
    monkeypatch.setattr(module, "configure_optimizers", lambda: sgd)
    watch, logger = Watch(), MemoryLogger()
    callback = MeZOCallback(probes, difference=difference, update="in-place", seed=1)
    train, val = loaders()
    fit = trainer(callbacks=[callback, watch], logger=logger, max_epochs=1)
    fit.fit(module, train, val)
    steps = len(train)
    assert len(GRAPHS) == steps * evaluations == callback.report.forward_evaluations
    assert callback.report.backward_evaluations == sum(GRAPHS) == 0
    assert not any(map(any, watch.gradients))
    assert len(watch.gradients) == steps
    assert watch.counts == [(count, count, count) for count in range(1, steps + 1)]
    assert int(module.net[1].num_batches_tracked) == steps
    assert len([row for _, row in logger.rows if "loss" in row]) == steps
    figures = fit.callback_metrics
    assert figures["mezo/forward_evaluations"] == steps * evaluations
    assert figures["mezo/probes"] == probes
    assert figures["mezo/derivative"] > 0
    assert figures["mezo/not_finite"] == figures["mezo/clipped"] == 0


@pytest.mark.parametrize("write", ["version", "data"])
def test_what_a_step_does_to_its_batch_and_its_module_is_done_once(write):
    """With a learning rate of 0 the weights stay: so the trace is that of plain training on them."""
    module, plain = (built(Taken, lr=0.0, write=write) for _ in range(2))
    batches = [[part.clone() for part in batch] for batch in data()]

    class Lists(torch.utils.data.Dataset):
        def __len__(self):
            return len(batches)

        def __getitem__(self, index):
            return [part.clone() for part in batches[index]]

    loader = DataLoader(Lists(), batch_size=None)
    # The first evaluation is away from the weights, by next to nothing.
    fitted(module, MeZOCallback(mu=1e-12), loader)
    for _ in range(2):
        for index in range(len(batches)):
            plain.training_step(Lists()[index], index)
    assert module.calls == plain.calls == 12
    for name, value in plain.state_dict().items():
        assert torch.allclose(module.state_dict()[name], value, rtol=0, atol=1e-9), name


def test_statistics_are_updated_once_and_masks_are_the_same():
    module = built(Normed, torch.float32)
    fit = fitted(module, MeZOCallback(seed=0), data(dtype=torch.float32), dtype=None)
    assert int(module.net[1].num_batches_tracked) == 12
    assert int(module.frozen.num_batches_tracked) == 0
    assert torch.equal(module.frozen.running_mean, torch.zeros(6))
    assert fit.callback_metrics["mezo/derivative"] < 20  # with other masks: some hundreds


class Accuracy(Plain):
    """An objective without a gradient."""

    def probe_loss(self, batch, batch_idx):
        return 1 - (self.net(batch[0]).argmax(dim=1) == batch[1]).double().mean()


class F1(Plain):
    """The F1 score, of torchmetrics, as a user would write it."""

    def probe_loss(self, batch, batch_idx):
        return 1 - multiclass_f1_score(self.net(batch[0]), batch[1], num_classes=3, average="macro")


class Decoded(Plain):
    """The share of wrong letters in text that is decoded from the logits; nothing in it is a tensor."""

    def probe_loss(self, batch, batch_idx):
        text = "".join("abc"[index] for index in self.net(batch[0]).argmax(dim=1).tolist())
        wanted = "".join("abc"[index] for index in batch[1].tolist())
        return sum(letter != other for letter, other in zip(text, wanted, strict=True)) / len(wanted)


@pytest.mark.parametrize("objective", [Accuracy, F1, Decoded])
def test_an_objective_needs_no_gradient(objective):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 6, generator=generator, dtype=torch.float64)
    labels = inputs[:, :3].argmax(dim=1)
    module = built(objective, hidden=8, lr=0.05)

    def accuracy():
        return float((module.net(inputs).argmax(dim=1) == labels).double().mean())

    before = accuracy()
    fitted(module, MeZOCallback(4, mu=0.1, seed=0), DataLoader(TensorDataset(inputs, labels), 64), max_epochs=60)
    assert accuracy() > before + 0.2


@pytest.mark.parametrize(
    ("chosen", "moved"),
    [
        ("*.bias", {"net.0.bias", "net.2.bias"}),
        (["net.0.*", "*.2.bias"], {"net.0.weight", "net.0.bias", "net.2.bias"}),
        (lambda name, parameter: parameter.ndim == 2, {"net.0.weight", "net.2.weight"}),
    ],
)
@pytest.mark.parametrize("update", ["in-place", "gradient"])
def test_what_moves_is_chosen(chosen, moved, update):
    module, before = built(weight_decay=0.1), built().state_dict()
    fitted(module, MeZOCallback(parameters=chosen, update=update))
    assert {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])} == moved


def test_masked_directions_move_the_smallest_weights_of_the_epochs_beginning():
    module, before = built(lr=0.01), built().state_dict()
    fitted(module, MeZOCallback(directions=MaskedDirections(GaussianDirections(), 0.25)), max_epochs=1)
    for name, value in module.state_dict().items():
        size = before[name].abs()
        small = size <= size.flatten().kthvalue(-(-size.numel() // 4)).values
        assert torch.equal(value != before[name], small), name


@pytest.mark.parametrize("precision", ["bf16-true", "32-true", "64-true"])
def test_weights_come_back_to_the_bit(precision):
    """With a learning rate of 0 nothing is left of thirty steps; `tests/core/test_excursion.py` takes a thousand."""
    dtype = {"bf16-true": torch.bfloat16, "32-true": torch.float32, "64-true": torch.float64}[precision]
    module = built(dtype=dtype, lr=0.0)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fitted(module, MeZOCallback(seed=0), data(dtype=dtype), dtype=None, precision=precision, max_epochs=5)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_mixed_precision_evaluates_the_weights_as_they_are():
    """Autocast keeps the weights of the last forward pass in bfloat16; the second one is not to see them."""
    derivatives = []
    for precision in ("bf16-mixed", "32-true"):
        module = built(dtype=torch.float32, lr=0.0)
        callback = MeZOCallback(mu=0.05, seed=0)
        fit = fitted(module, callback, data(dtype=torch.float32), dtype=None, precision=precision)
        derivatives.append(float(fit.callback_metrics["mezo/derivative"]))
    assert derivatives[0] == pytest.approx(derivatives[1], rel=0.1)


CALLS = []


class Cursed(Plain):
    """Gives no finite loss, or fails, at a given evaluation."""

    def __init__(self, bad, value, **sgd):
        super().__init__(**sgd)
        self.bad, self.value = bad, value

    def training_step(self, batch, batch_idx):
        CALLS.append(batch_idx)
        if len(CALLS) == self.bad:
            if self.value is None:
                raise RuntimeError("no luck")
            return super().training_step(batch, batch_idx) * self.value
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("bad", [1, 2, 4])
def test_a_step_that_fails_leaves_the_weights_as_before(bad):
    CALLS.clear()
    module = built(Cursed, bad=bad, value=None, lr=0.0)
    with pytest.raises(RuntimeError, match="no luck"):
        fitted(module, MeZOCallback(2))
    assert all(torch.equal(value, built().state_dict()[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_losses_that_are_not_finite_move_nothing(value):
    CALLS.clear()
    module = built(Cursed, bad=2, value=value)
    callback = MeZOCallback()
    with pytest.warns(UserWarning, match=r"MeZOCallback: a loss is not finite.*set a smaller `mu` or learning rate"):
        fit = fitted(module, callback, max_epochs=1, limit_train_batches=1)
    assert fit.callback_metrics["mezo/not_finite"] == 1
    assert "  1 step left out a loss that was not finite" in str(callback.report)
    assert all(torch.equal(value, built().state_dict()[name]) for name, value in module.state_dict().items())


class Skips(Plain):
    def training_step(self, batch, batch_idx):
        return None if batch_idx % 2 else super().training_step(batch, batch_idx)


def test_batches_without_a_loss_are_skipped():
    module, other = built(Skips, lr=0.05), built(lr=0.05)
    fit = fitted(module, MeZOCallback(seed=3), max_epochs=1)
    assert fit.callback_metrics["mezo/forward_evaluations"] == 12
    batches = [*data()]
    family, sgd = GaussianDirections(), other.configure_optimizers()
    parameters = list(other.net.parameters())
    for step in (0, 2, 4):
        z = family.draw(parameters, 1, seeded(Seeds(3).of(f"directions of step {step}"))).dense(parameters)
        z = z * z.shape[1] ** 0.5
        flat = differences(other.net, batches[step], z, 1e-3, "central") @ z
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter).clone()
        sgd.step()
    expected = nn.utils.parameters_to_vector(parameters).detach()
    assert torch.allclose(nn.utils.parameters_to_vector(module.net.parameters()).detach(), expected, rtol=0, atol=1e-10)


def test_the_radius_follows_from_the_weights():
    derivatives = []
    for mu in ("auto", 1e-3):
        fit = fitted(built(lr=0.0), MeZOCallback(mu=mu, seed=0))
        derivatives.append(float(fit.callback_metrics["mezo/derivative"]))
    assert derivatives[0] == pytest.approx(derivatives[1], rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probes": 0}, r"`probes` must be a whole number >= 1, got 0"),
        ({"mu": 1e300}, r"`mu` must be at most 1e\+30, got 1e\+300.*set a smaller distance"),
        (
            {"parameters": lambda name: True},
            r"`parameters` must be .*a function of two arguments.*, got <function .*>\.$",
        ),
        ({"parameters": object()}, r"`parameters` must be a pattern.*, got <object object>\.$"),
        ({"mu": 0}, r"`mu` must be a positive, finite number or 'auto', got 0"),
        ({"clip": -1.0}, r"`clip` must be a positive, finite number or None, got -1.0"),
        ({"difference": "both"}, r"`difference` must be one of"),
        ({"update": "lazy"}, r"`update` must be one of 'auto', 'in-place', 'gradient', got 'lazy'"),
        ({"share": "all"}, r"`share` must be one of 'batches', 'probes', got 'all'"),
        ({"parameters": 3}, r"`parameters` must be a pattern of names"),
        ({"parameters": []}, r"`parameters` must be a pattern of names"),
        ({"directions": GradientSubspaceDirections()}, r"`directions` must be a family of directions that does not learn"),
        ({"directions": GaussianDirections}, r"`directions` must be a family of directions"),
        ({"seed": 1.5}, r"`seed` must be a whole number"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        MeZOCallback(**arguments)


@pytest.mark.parametrize(
    ("arguments", "sgd", "options", "error", "message"),
    [
        ({"parameters": "head.*"}, {}, {}, InvalidArgumentError, r"chooses none .* such as 'net.0.weight'"),
        ({"parameters": ["*.bias", "head.*"]}, {}, {}, InvalidArgumentError, r"matches no name of a parameter, 'head.\*'"),
        ({"update": "in-place"}, {"momentum": 0.9}, {}, UnsupportedError, r"SGD\(momentum=0.9\), with a step of its own"),
        (
            {"update": "in-place"},
            {},
            {"gradient_clip_val": 1.0},
            UnsupportedError,
            r"gradient_clip_val=1.0\) needs a gradient to clip",
        ),
        ({"directions": OrthonormalDirections(), "probes": 99}, {}, {}, InvalidArgumentError, "at most 53 probes"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(arguments, sgd, options, error, message):
    module = built(**sgd)
    with pytest.raises(error, match=message):
        fitted(module, MeZOCallback(**arguments), **options)
    assert all(torch.equal(value, built().state_dict()[name]) for name, value in module.state_dict().items())


def test_weights_that_are_elsewhere_are_refused():
    module = Plain().to("meta")
    with pytest.raises(UnsupportedError, match=r"on the meta device, without numbers that MeZOCallback could move"):
        check_parameters(list(module.parameters()), "MeZOCallback")


def test_gradient_clipping_clips_the_estimate():
    module = built(lr=1.0)
    fitted(module, MeZOCallback(seed=0), max_epochs=1, limit_train_batches=1, gradient_clip_val=0.01)
    moved = nn.utils.parameters_to_vector(module.parameters()) - nn.utils.parameters_to_vector(built().parameters())
    assert float(moved.detach().norm()) == pytest.approx(0.01, rel=1e-4)
