"""SVRGCallback against an SVRG that shares nothing with the package but torch: float64, a network, every way of gradients."""

import copy
import itertools

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_vamo import Carry, InvalidArgumentError, SVRGCallback, VAMOCallback, VAMOMixin
from lightning_vamo.core.directions import OrthonormalDirections
from tests.support.modules import classification_data, trainer

SAMPLES, SIZE, RATE = 41, 6, 0.3


class Network(L.LightningModule):
    """Keeps the samples of each batch that it trains on, and its weights after each step."""

    def __init__(self, momentum=0.0):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        self.momentum = momentum
        self.plan, self.points = [], []

    def training_step(self, batch, batch_idx):
        inputs, labels, indices = batch
        self.plan.append(indices.tolist())  # what a sweep or a row appends is taken back
        return nn.functional.cross_entropy(self.net(inputs), labels)

    def on_train_batch_end(self, *arguments):
        self.points.append([p.detach().clone() for p in self.parameters()])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=RATE, momentum=self.momentum)


class VAMONetwork(VAMOMixin, Network):
    pass


def samples():
    inputs, labels = classification_data(SAMPLES).tensors
    return inputs.double(), labels


def run(callback, epochs=3, momentum=0.0, accumulated=1, **loader):
    L.seed_everything(2, verbose=False)
    module = VAMONetwork(momentum)
    start = copy.deepcopy(module.net)
    inputs, labels = samples()
    data = TensorDataset(inputs, labels, torch.arange(SAMPLES))
    loader = DataLoader(data, **{"batch_size": SIZE, "shuffle": True, **loader})
    fit = trainer(callbacks=[callback], max_epochs=epochs, accumulate_grad_batches=accumulated)
    fit.fit(module, loader)
    return module, start


def gradient(net, point, rows):
    """Of the mean loss over some samples, at a point."""
    inputs, labels = samples()
    names = [name for name, _ in net.named_parameters()]
    leaves = [p.clone().requires_grad_() for p in point]
    logits = torch.func.functional_call(net, dict(zip(names, leaves, strict=True)), (inputs[rows],))
    return torch.autograd.grad(nn.functional.cross_entropy(logits, labels[rows]), leaves)


def dot(one, other):
    return sum((a * b).sum() for a, b in zip(one, other, strict=True))


def independent(net, plan, alpha, every=1, momentum=0.0, accumulated=1):
    """The points of first-order SVRG on the batches of `plan`, a list for each epoch, with a snapshot every so many epochs."""
    point = [p.detach().clone() for p in net.parameters()]
    speed = [torch.zeros_like(p) for p in point]
    weight = product = square = 0.0
    prior, points = 10.0, []
    for epoch, batches in enumerate(plan):
        if epoch % every == 0:
            anchor, full, step = point, gradient(net, point, list(range(SAMPLES))), 0
            span = plan[epoch : epoch + every]
            total = sum(-(-len(part) // accumulated) for part in span)
            if len(span) < every:
                total = -(-len(batches) * every // accumulated)
        for first in range(0, len(batches), accumulated):
            group = batches[first : first + accumulated]
            g = [sum(parts) / accumulated for parts in zip(*(gradient(net, point, rows) for rows in group), strict=True)]
            then = [gradient(net, anchor, rows) for rows in group]
            r = [sum(parts) / accumulated - len(group) / accumulated * mean for *parts, mean in zip(*then, full, strict=True)]
            if alpha == "linear-decay":
                factor = 0.75 * (1 - step / total)
            elif alpha == "adaptive":
                estimate = product / square if square else 1.0
                factor = min(1.0, max(0.0, float((weight * estimate + prior) / (weight + prior))))
                decay = 0.99
                weight, prior = weight * decay + 1, prior * decay
                product, square = product * decay + dot(g, r), square * decay + dot(r, r)
            else:
                factor = alpha
            v = [a - factor * b for a, b in zip(g, r, strict=True)]
            speed = [momentum * s + c for s, c in zip(speed, v, strict=True)]
            point = [p - RATE * s for p, s in zip(point, speed, strict=True)]
            points.append(point)
            step += 1
    return points


def farthest(module, points, accumulated=1):
    """The largest difference of the weights after any optimizer step."""
    length = -(-SAMPLES // SIZE)
    ends = [i for i in range(len(module.points)) if (i % length + 1) % accumulated == 0 or i % length + 1 == length]
    assert len(ends) == len(points)
    pairs = zip((module.points[i] for i in ends), points, strict=True)
    return max(apart(one, other) for one, other in pairs)


def apart(one, other):
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def by_epoch(module):
    length = -(-SAMPLES // SIZE)
    return [module.plan[start : start + length] for start in range(0, len(module.plan), length)]


@pytest.mark.parametrize("gradients", ["recompute", "cache"])
@pytest.mark.parametrize("alpha", [1.0, 0.4, "linear-decay", "adaptive"])
def test_it_is_first_order_svrg(gradients, alpha):
    module, start = run(SVRGCallback(alpha=alpha, gradients=gradients))
    assert farthest(module, independent(start, by_epoch(module), alpha)) < 1e-10
    assert farthest(module, independent(start, by_epoch(module), 0.0)) > 1e-4  # plain SGD goes elsewhere


OPTIONS = [{"every": 2}, {"momentum": 0.8}, {"accumulated": 3}, {"accumulated": 2, "every": 2}]


@pytest.mark.parametrize("gradients", ["recompute", "cache"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_snapshots_kept_for_longer_momentum_and_accumulated_batches(gradients, options):
    callback = SVRGCallback(alpha="linear-decay", gradients=gradients, every_n_epochs=options.get("every", 1))
    others = {name: value for name, value in options.items() if name != "every"}
    module, start = run(callback, epochs=4, **others)
    points = independent(start, by_epoch(module), "linear-decay", **options)
    assert farthest(module, points, options.get("accumulated", 1)) < 1e-10


def test_carried_gradients_are_what_carried_rows_become_with_as_many_directions_as_parameters():
    net = Network().net
    dimension = sum(p.numel() for p in net.parameters())
    ways = {
        "gradients": SVRGCallback(gradients="carry", seed=1),
        "rows": VAMOCallback(dimension, OrthonormalDirections(), "theory", Carry(decay=0), seed=1),
        "plain": SVRGCallback(alpha=0, gradients="carry", seed=1),
    }
    for accumulated in (1, 3):
        ends = {name: run(callback, 4, accumulated=accumulated)[0].points[-1] for name, callback in ways.items()}
        differences = {
            name: max(float((a - b).abs().max()) for a, b in zip(ends["gradients"], ends[name], strict=True)) for name in ends
        }
        assert differences["rows"] < 1e-9
        assert differences["plain"] > 1e-4


def test_evaluations_are_those_of_the_docstring():
    batches, epochs = -(-SAMPLES // SIZE), 2
    sweeps, steps = batches * epochs, batches * epochs
    for gradients, expected in (("recompute", sweeps + 2 * steps), ("cache", sweeps + steps), ("carry", steps)):
        callback = SVRGCallback(gradients=gradients)
        run(callback, epochs)
        report = callback.report
        assert (report.forward_evaluations, report.backward_evaluations) == (expected, expected)
        assert report.batches == steps
        assert report.relative_cost == pytest.approx(expected / steps)
        assert report.snapshots == (0 if gradients == "carry" else epochs)
        assert 0 < report.variance_removed < 1
        assert str(report).startswith("SVRG: ")


def test_a_table_may_be_of_another_type_and_elsewhere():
    exact = run(SVRGCallback(gradients="cache"))[0].points[-1]
    for dtype, tolerance in (("float32", 1e-5), ("bfloat16", 0.1)):
        rounded = run(SVRGCallback(gradients="cache", table_dtype=dtype, table_device="cpu"))[0].points[-1]
        assert 0 < apart(exact, rounded) < tolerance


def test_the_adaptive_coefficient_is_near_one_at_first_and_logged():
    callback = SVRGCallback(alpha="adaptive", gradients="cache")
    L.seed_everything(2, verbose=False)
    module, logged = VAMONetwork(), []

    class Logs(L.Callback):
        def on_train_epoch_end(self, fit, module):
            logged.append({k: float(v) for k, v in fit.callback_metrics.items()})

    inputs, labels = samples()
    data = DataLoader(TensorDataset(inputs, labels, torch.arange(SAMPLES)), SIZE, shuffle=True)
    trainer(callbacks=[callback, Logs()], max_epochs=3).fit(module, data)
    names = {"svrg/alpha", "svrg/variance_removed", "svrg/forward_evaluations", "svrg/backward_evaluations"}
    assert names <= logged[-1].keys()
    assert "svrg/probes" not in logged[-1]
    assert all(0.2 < epoch["svrg/alpha"] <= 1 for epoch in logged)
    assert [a["svrg/forward_evaluations"] for a in logged] == list(itertools.accumulate([14] * 3))


@pytest.mark.parametrize("gradients", ["cache", "carry"])
def test_a_table_on_a_device_that_cannot_be_read_is_refused(gradients):
    with pytest.raises(InvalidArgumentError, match=r"`table_device` must be a device that this machine has, got 'meta'"):
        run(SVRGCallback(gradients=gradients, table_device="meta"))
