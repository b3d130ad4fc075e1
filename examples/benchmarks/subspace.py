"""How much of the gradient noise do learned directions hold? A perceptron trains, and each epoch tries the directions anew.

For each epoch of plain SGD, the share of the variance of that epoch's gradient noise that lies in the span of ``q``
directions, learned in the epochs before it: in factored form, in dense form, and, for comparison, the exact principal
directions of the last epoch's noise, which take all of its gradients in memory.

Run it with ``python examples/benchmarks/subspace.py`` for scikit-learn's digits, with ``--mnist FOLDER`` for MNIST's test
images, of which 8,192 are used, and with ``--minilm`` for MiniLM on sentences of SST-2. With ``--oversampling 0 2 4`` it
compares learners that follow so many more directions than the ``q`` that are used. With ``--cost MODEL`` it measures instead
what learning adds to a training step of one of the models of ``cost.py``. It prints Markdown tables; ``--json FILE`` writes the
figures.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from cost_models import MODELS, load, perceptron
from torch import Tensor, nn

from lightning_vamo.core.directions import GradientSubspaceDirections
from lightning_vamo.core.directions.learned.products import MANY_ROWS

FORMS = {"rank 1": 1, "rank 2": 2, "dense": None}


def digits() -> tuple[Tensor, Tensor]:
    """The 1,797 images of scikit-learn's digits, and their labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)


def noise(gradients: Sequence[Sequence[Tensor]]) -> Tensor:
    """Samples of the noise in an epoch's gradients, a row each."""
    rows = torch.stack([torch.cat([part.reshape(-1) for part in gradient]) for gradient in gradients])
    return (rows[1:] - rows[:-1]) / 2**0.5


def principal(samples: Tensor, count: int) -> Tensor:
    """The exact directions of the most variance, as columns, from the Gram matrix of the samples."""
    values, vectors = torch.linalg.eigh((samples @ samples.T).double())
    return samples.T @ (vectors[:, -count:] / values[-count:].sqrt()).to(samples)


def share(samples: Tensor, directions: Tensor) -> float:
    """The share of the samples' variance in the span of some columns."""
    basis = torch.linalg.qr(directions.double())[0].to(samples)
    return float((samples @ basis).square().sum() / samples.square().sum())


class Task:
    """What is trained: an epoch's batches, anew at each call, and the loss of a batch.

    Args:
        module: The model.
        loss: Gives the loss of a batch.
        epoch: Gives the batches of an epoch, with a generator for their order.
    """

    def __init__(
        self, module: nn.Module, loss: Callable[[Any], Tensor], epoch: Callable[[torch.Generator], Sequence[Any]]
    ) -> None:
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.loss = loss
        self.epoch = epoch


def task(arguments: argparse.Namespace) -> Task:
    """What the command asks for."""
    if arguments.minilm:
        problem = load("minilm", sst2=arguments.sst2, batch_size=arguments.batch_size)
        module = problem.module()
        return Task(module, lambda batch: module.training_step(batch, 0), lambda _: problem.loader(arguments.steps))
    images, labels = digits() if arguments.mnist is None else perceptron(arguments.mnist).data[:8192]
    width = 64 if arguments.mnist is None else 128
    if arguments.mnist is not None:
        images = (images - images.mean()) / images.std()
    net = nn.Sequential(nn.Linear(images.shape[1], width), nn.ReLU(), nn.Linear(width, 10))
    return Task(
        net,
        lambda rows: nn.functional.cross_entropy(net(images[rows]), labels[rows]),
        lambda generator: torch.randperm(len(images), generator=generator).split(arguments.batch_size),
    )


def learn(arguments: argparse.Namespace, seed: int) -> dict[str, list[float]]:
    """Train once, with all learners looking on; the shares by epoch."""
    torch.manual_seed(seed)
    trained = task(arguments)
    generator = torch.Generator().manual_seed(seed)
    parameters, count = trained.parameters, arguments.probes
    learners = {
        name: family.learner(parameters, count, generator.manual_seed(seed)) for name, family in compared(arguments).items()
    }
    shares: dict[str, list[float]] = {"exact": [], "random": [], **{name: [] for name in learners}}
    gradients: list[Any] = []
    for epoch in range(arguments.epochs + 1):
        tried = {}
        if epoch:
            tried = {name: learner.directions(count, generator).dense(parameters).T for name, learner in learners.items()}
            tried["exact"] = principal(noise(gradients), count)
            tried["random"] = torch.randn(tried["exact"].shape, generator=generator)
        gradients = []
        for batch in trained.epoch(generator):
            gradients.append(torch.autograd.grad(trained.loss(batch), parameters))
            for learner in learners.values():
                learner.observe(gradients[-1])
            with torch.no_grad():
                for parameter, part in zip(parameters, gradients[-1], strict=True):
                    parameter.sub_(part, alpha=arguments.lr)
        samples = noise(gradients)
        for name, directions in tried.items():
            shares[name].append(share(samples, directions))
    return shares


def compared(arguments: argparse.Namespace) -> dict[str, GradientSubspaceDirections]:
    """The families of directions that are compared, by name."""
    if not arguments.oversampling:
        return {name: GradientSubspaceDirections(rank) for name, rank in FORMS.items()}
    return {f"{more} more": GradientSubspaceDirections(oversampling=more) for more in arguments.oversampling}


def learning(arguments: argparse.Namespace) -> list[dict[str, list[float]]]:
    """The shares of several trainings, and their table: means over the trainings, and their least ratios to the exact ones."""
    runs = [learn(arguments, seed) for seed in range(arguments.seeds)]
    names = list(compared(arguments))
    print("| epochs learned in | random | exact | " + " | ".join(names) + " |")
    print("|---" * (3 + len(names)) + "|")
    for epoch in range(arguments.epochs):
        means = {name: statistics.mean(run[name][epoch] for run in runs) for name in runs[0]}
        cells = [f"{means['random']:.2g}", f"{means['exact']:.3f}"]
        for name in names:
            ratio = min(run[name][epoch] / run["exact"][epoch] for run in runs)
            cells.append(f"{means[name]:.3f} (at least {ratio:.0%})")
        print(f"| {epoch + 1} | " + " | ".join(cells) + " |")
    return runs


def passes(module: Any, optimizer: torch.optim.Optimizer, batches: Iterable[Any]) -> dict[str, list[float]]:
    """Seconds to read a step's gradient, and to read and write all of it but long embeddings: no learner can save them."""
    seconds: dict[str, list[float]] = {"read": [], "write": []}
    for index, batch in enumerate(batches):
        optimizer.zero_grad()
        module.training_step(batch, index).backward()
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        short = [gradient for gradient in gradients if len(gradient) < MANY_ROWS]
        times = [time.perf_counter()]
        for gradient in gradients:
            torch.dot(gradient.view(-1), gradient.view(-1))
        times.append(time.perf_counter())
        for gradient in short:
            gradient.mul_(0.999)
        times.append(time.perf_counter())
        seconds["read"].append(times[1] - times[0])
        seconds["write"].append(times[2] - times[1])
        optimizer.step()
    return seconds


def cost(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of a training step, and of what learning adds to it, the least of many; and the bytes kept."""
    problem = load(arguments.cost)
    module, count = problem.module(), arguments.probes
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = getattr(torch.optim, arguments.optimizer)(parameters, lr=1e-5)
    generator = torch.Generator().manual_seed(0)
    learner = GradientSubspaceDirections().learner(parameters, count, generator)
    seconds: dict[str, list[float]] = {"step": [], "observe": [], "subtract": []}
    for index, batch in enumerate(problem.loader(arguments.steps + count + 1)):
        times = [time.perf_counter()]
        optimizer.zero_grad()
        module.training_step(batch, index).backward()
        times.append(time.perf_counter())
        gradients = [parameter.grad for parameter in parameters]
        learner.observe(gradients)
        times.append(time.perf_counter())
        if learner.ready:
            directions = learner.current or learner.directions(count, generator)
            start = time.perf_counter()
            directions.subtract_(gradients, torch.full((count,), 1e-6), learner.slopes)
            seconds["subtract"].append(time.perf_counter() - start)
        del gradients
        times.append(time.perf_counter())
        optimizer.step()
        times.append(time.perf_counter())
        seconds["step"].append(times[1] - times[0] + times[4] - times[3])
        seconds["observe"].append(times[2] - times[1])
    seconds |= passes(module, optimizer, list(problem.loader(arguments.steps)))
    state = learner.state_dict()
    kept = sum(part.numel() * part.element_size() for key in ("directions", "sums", "last") for part in state[key])
    weights = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    least = {name: min(values) for name, values in seconds.items()}
    added, floor = ((least[one] + least[other]) / least["step"] for one, other in (("observe", "subtract"), ("read", "write")))
    print(
        "| model | step | observing | subtracting | time added | reading and writing alone | bytes kept, per byte of weights |"
    )
    print("|---|---|---|---|---|---|---|")
    milliseconds = " | ".join(f"{1000 * least[name]:.1f} ms" for name in ("step", "observe", "subtract"))
    print(f"| {problem.title} | {milliseconds} | {added:.1%} | {floor:.1%} | {kept / weights:.1%} |")
    return {**least, "bytes": kept, "weights": weights}


def main() -> None:
    """Measure, print, and write as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, metavar="FOLDER")
    parser.add_argument("--minilm", action="store_true")
    parser.add_argument("--sst2", type=Path, metavar="FILE", help="train.tsv of SST-2")
    parser.add_argument("--oversampling", type=int, nargs="+", default=[], metavar="N")
    parser.add_argument("--cost", choices=MODELS, metavar="MODEL")
    parser.add_argument("--probes", type=int)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--optimizer", choices=["SGD", "AdamW"], default="AdamW", help="of the steps to time")
    parser.add_argument("--steps", type=int, default=16, help="steps to time, or steps of MiniLM's epochs")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    small = arguments.mnist is None
    defaults = {"probes": 4 if arguments.cost else 8, "batch_size": 16 if small else 64, "lr": 0.1 if small else 0.05}
    for name, value in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    figures = cost(arguments) if arguments.cost else learning(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
