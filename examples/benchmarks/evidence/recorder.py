"""Measures a run every few steps, with what the training has cost until then; the measurements are not counted."""

import math
import time
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from examples.benchmarks.evidence.data import Part
from examples.benchmarks.evidence.networks import data_loss
from lightning_vamo.callbacks.base import MethodCallback

SAMPLES = 32
"""Samples whose gradient tells the machine's speed."""


class Recorder(L.Callback):
    """Keeps measurements of a run; behind the method's callback, so that the clock sees all of its step.

    Args:
        parts: What to measure on, by name.
        every: Steps from one measurement to the next.
        gradient: Whether the norm of the gradient over the training data is measured.
    """

    def __init__(self, parts: dict[str, Part], every: int, gradient: bool) -> None:
        self.parts, self.every, self.gradient = parts, every, gradient
        self.points: list[dict[str, float]] = []
        self.paused = 0.0
        self.before: list[Tensor] = []

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Start the clock. The first sweep and the warm-up come later, with the first batch."""
        self.started = time.process_time()
        self.record(trainer, module)

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Keep the weights before a step that is measured, to tell how long the step is."""
        if self.due(trainer.global_step + 1):
            self.before = [weight.detach().clone() for weight in module.parameters() if weight.requires_grad]

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Measure, if it is time to, and stop a run that has diverged."""
        if self.due(trainer.global_step) and self.points[-1]["step"] != trainer.global_step:
            self.record(trainer, module)
            trainer.should_stop |= not math.isfinite(self.points[-1]["train_loss"])

    def due(self, step: int) -> bool:
        """Whether a measurement follows a step."""
        return step % self.every == 0

    def record(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Measure now."""
        now, step = time.process_time(), trainer.global_step
        methods = [callback for callback in trainer.callbacks if isinstance(callback, MethodCallback)]
        report = methods[0].report if methods else None
        point = {
            "cpu_seconds": now - self.started - self.paused,
            "step": step,
            "forward": step if report is None else report.forward_evaluations,
            "backward": step if report is None else report.backward_evaluations,
        }
        if self.before:
            weights = [weight.detach() for weight in module.parameters() if weight.requires_grad]
            moved = sum(float((new - old).square().sum()) for new, old in zip(weights, self.before, strict=True))
            point["step_length"] = moved**0.5
        point |= self.figures(module)
        self.points.append(point)
        self.paused += time.process_time() - now

    def figures(self, module: L.LightningModule) -> dict[str, float]:
        """The machine's speed, losses and accuracies in eval mode, and the norm of the gradient where it is asked for."""
        module.eval()
        found = {"yardstick": yardstick(module, self.parts["train"])}
        for name, part in self.parts.items():
            found |= {f"{name}_{figure}": value for figure, value in measure(module, part).items()}
        if self.gradient:
            found["gradient_norm"] = gradient_norm(module, self.parts["train"])
        module.train()
        return found


def yardstick(module: L.LightningModule, part: Part) -> float:
    """Processor seconds of a fixed piece of work: they tell the machine's speed at a time.

    Python, matrices and memory do not slow down alike where a machine is shared. So the work is the model's own: its loss and
    gradient for a few samples, at copies of its weights.

    Args:
        module: The model, in eval mode; it stays as it is.
        part: What it is measured on.

    Returns:
        The seconds.
    """
    inputs, targets = part[0]
    if isinstance(inputs, Tensor) and len(inputs) > SAMPLES:
        targets = targets[: SAMPLES * len(targets) // len(inputs)]  # of a sequence, one for each position
        inputs = inputs[:SAMPLES]
    weights = {name: weight.detach().clone().requires_grad_() for name, weight in module.named_parameters()}
    repeats = 16 if sum(weight.numel() for weight in weights.values()) < 1e6 else 1
    start = time.process_time()
    with torch.enable_grad():
        for _ in range(repeats):
            loss = data_loss(torch.func.functional_call(module, weights, (inputs,)), targets)
            torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return time.process_time() - start


def measure(module: L.LightningModule, part: Part) -> dict[str, float]:
    """The mean loss of a part of the data, and the accuracy where targets are classes."""
    with torch.no_grad():
        outputs = torch.cat([module(inputs) for inputs, _ in part])
        targets = torch.cat([targets for _, targets in part])
        found = {"loss": float(data_loss(outputs, targets) + penalty(module))}
    if not targets.is_floating_point():
        found["accuracy"] = float((outputs.argmax(1) == targets).float().mean())
    return found


def penalty(module: nn.Module) -> Tensor | float:
    """What a module adds to the loss of the data."""
    return module.penalty() if hasattr(module, "penalty") else 0.0


def gradient_norm(module: L.LightningModule, part: Part) -> float:
    """The norm of the gradient of the mean loss, and of what the module adds to it, of a part of the data: one batch."""
    [(inputs, targets)] = part
    with torch.enable_grad():
        loss = data_loss(module(inputs), targets) + penalty(module)
        gradient = torch.autograd.grad(loss, [weight for weight in module.parameters() if weight.requires_grad])
    return float(torch.cat([each.flatten() for each in gradient]).norm())
