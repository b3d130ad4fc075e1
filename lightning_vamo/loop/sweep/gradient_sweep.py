"""The first-order sweep: the gradient of each batch of the coming epoch at the snapshot, without a step and without a trace."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_vamo.errors import UnsupportedError
from lightning_vamo.loop import compat
from lightning_vamo.loop.plan.fingerprint import fingerprint
from lightning_vamo.loop.plan.reread import Swept
from lightning_vamo.loop.sweep.agree import check_batches, least, total
from lightning_vamo.loop.sweep.gradients import differentiate
from lightning_vamo.loop.sweep.progress import progress_bar


@dataclass(frozen=True)
class GradientSweep:
    """The costs of a first-order sweep; the caller has received the gradients.

    Attributes:
        fingerprints: A fingerprint of each batch of this rank; None for a batch that cannot be told from other batches, and for
            all batches if no fingerprints were taken.
        evaluations: Number of batches that were differentiated on each rank: a forward pass and a backward pass each.
        seconds: Wall-clock time.
    """

    fingerprints: list[int | None]
    evaluations: int
    seconds: float


def sample_counts(trainer: Trainer, plan: Swept) -> Tensor:
    """The number of samples of each batch over all ranks, which takes one communication between the ranks.

    Args:
        trainer: The trainer; every rank has to call this.
        plan: The batches.

    Returns:
        Shape ``(K,)``, float64, on the device of the gradients.

    Raises:
        UnsupportedError: If ranks have different numbers of batches.
    """
    check_batches(trainer, plan.length)
    return total(trainer, torch.tensor(plan.sizes(), dtype=torch.float64, device="cpu")).to(trainer.strategy.root_device)


def sweep_gradients(
    trainer: Trainer,
    module: LightningModule,
    plan: Swept,
    parameters: list[Tensor],
    see: Callable[[int, list[Tensor | None]], None],
    title: str,
    *,
    tells: bool = True,
) -> GradientSweep:
    """Differentiate every batch of the plan at the present parameters, and leave no trace.

    Under DDP and FSDP2 the gradients are averaged over the ranks, as the gradients of steps are.

    Args:
        trainer: The trainer, between two training steps.
        module: Its module, whose ``training_step`` is called plainly.
        plan: The epoch's batches, or a reading of the data.
        parameters: The parameters that have gradients.
        see: Called for each batch that gives a loss, with the batch's position in the plan and the batch's gradient. The
            gradient's tensors are not kept after the call.
        title: Name of the sweep in the progress bar.
        tells: Whether to take a fingerprint of each batch.

    Returns:
        The costs of the sweep.

    Raises:
        UnsupportedError: If the loader gives fewer batches than it announced, or if a loss cannot be trained on.
    """
    start = time.perf_counter()
    fingerprints: list[int | None] = []
    seen = 0

    def counted(position: int, gradients: list[Tensor | None], began: float) -> None:
        nonlocal seen
        seen += 1
        see(position, gradients)

    with (
        progress_bar(trainer, title, plan.length) as show,
        compat.without_buffer_sync(trainer),
        plan.loaded() as loaded,
    ):
        batches = _prepared(trainer, loaded, fingerprints, show, together=not plan.exact, tells=tells)
        differentiate(trainer, module, batches, parameters, counted, transferred=True)
    if plan.exact and len(fingerprints) != plan.length:
        raise UnsupportedError(
            f"The training DataLoader announced {plan.length} batches but gave {len(fingerprints)}: correct its `__len__`, or"
            " that of its dataset or batch sampler."
        )
    return GradientSweep(fingerprints, seen, time.perf_counter() - start)


def _prepared(
    trainer: Trainer,
    loaded: Iterator[Any],
    fingerprints: list[int | None],
    show: Callable[[int], None],
    *,
    together: bool,
    tells: bool,
) -> Iterator[tuple[int, Any]]:
    """The batches on the module's device, with their positions; if ``together``, until one rank has no more batches."""
    end = object()
    while True:
        batch = next(loaded, end)
        is_there = batch is not end
        if together:  # ranks may read streams of different lengths, and would wait for each other's gradients
            is_there = bool(least(trainer, int(is_there)))
        if not is_there:
            return
        show(len(fingerprints))
        prepared = compat.before_transfer(trainer, batch)
        fingerprints.append(fingerprint(prepared) if tells else None)
        yield len(fingerprints) - 1, compat.to_device(trainer, prepared)
