"""The sweep: one forward-only pass over the coming epoch's batches, at the snapshot and at the perturbed points around it."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_vamo.core.directions import ProbeDirections
from lightning_vamo.core.probes import Difference, Snapshot, probe_differences, probe_losses
from lightning_vamo.errors import NonFiniteLossError, UnsupportedError
from lightning_vamo.loop import compat
from lightning_vamo.loop.guards import no_trace
from lightning_vamo.loop.plan import Plan
from lightning_vamo.loop.progress import sweep_bar

Evaluate = Callable[[Any, int], Tensor | None]


@dataclass(frozen=True)
class Sweep:
    """What a sweep measured, the same on every rank.

    Attributes:
        deltas: Probe differences, shape ``(K, q)``.
        weights: Samples of each batch over all ranks, shape ``(K,)``; 0 where ``training_step`` gave no loss.
        snapshot_loss: The training loss at the snapshot, the weighted mean over the batches.
        evaluations: Forward passes of a batch that it took, on each rank.
        seconds: Wall-clock time.
    """

    deltas: Tensor
    weights: Tensor
    snapshot_loss: float
    evaluations: int
    seconds: float


def sweep(
    trainer: Trainer,
    module: LightningModule,
    plan: Plan,
    evaluate: Evaluate,
    parameters: Sequence[Tensor],
    directions: ProbeDirections,
    mu: float,
    difference: Difference,
) -> Sweep:
    """Evaluate every batch of the plan at the snapshot and along every direction, leaving no trace.

    Args:
        trainer: The trainer, between two training steps.
        module: Its module.
        plan: The epoch's batches.
        evaluate: The loss to probe, of a batch at its position; ``None`` where the batch is to be skipped.
        parameters: The parameters to perturb; they hold the snapshot.
        directions: The probe directions.
        mu: Smoothing radius.
        difference: ``"forward"`` or ``"central"``.

    Returns:
        The table of probe differences, and what it cost.

    Raises:
        NonFiniteLossError: If a loss is NaN or infinite.
        UnsupportedError: If the loader gives fewer batches than it announced.
    """
    start = time.perf_counter()
    rows: list[Tensor | None] = []
    reshard = compat.resharding(module)
    reshard()  # a validation epoch before this one leaves parameters whole
    with (
        compat.without_buffer_sync(trainer),
        no_trace(trainer, module, parameters) as state,
        Snapshot(parameters) as snapshot,
        plan.loaded() as batches,
        sweep_bar(trainer, plan.length) as show,
    ):
        for position, loaded in enumerate(batches):
            batch = compat.to_device(trainer, loaded)
            loss = _Loss(evaluate, batch, position, module.device, state.restore_tensors, reshard)
            try:
                rows.append(probe_losses(loss, snapshot, directions, mu, difference))
            except _NoLossError:
                rows.append(None)
            state.restore_attributes()
            show(position + 1)
    if len(rows) != plan.length:
        raise UnsupportedError(
            f"The training DataLoader announced {plan.length} batches but gave {len(rows)}: make its `__len__` agree with"
            " what it yields."
        )
    losses, weights, snapshot_loss = _reduced(trainer, rows, plan.sizes())
    _check_finite(losses, directions.count)
    return Sweep(
        deltas=probe_differences(losses, mu, difference),
        weights=weights,
        snapshot_loss=snapshot_loss,
        evaluations=sum(row.numel() for row in rows if row is not None),
        seconds=time.perf_counter() - start,
    )


class _NoLossError(Exception):
    """The training step skipped the batch by returning None."""


class _Loss:
    """The loss of one batch as a function of the parameters alone: same batch, same randomness, same buffers each time."""

    def __init__(
        self,
        evaluate: Evaluate,
        batch: Any,
        position: int,
        device: torch.device,
        restore: Callable[[], None],
        reshard: Callable[[], None],
    ) -> None:
        self._evaluate = evaluate
        self._batch = batch
        self._position = position
        self._restore = restore
        self._reshard = reshard
        self._random = compat.rng_states(device)

    def __call__(self) -> Tensor:
        compat.set_rng_states(self._random)
        # A copy, since a step may take its batch apart: `labels = batch.pop("labels")`, or `images /= 255`.
        batch = copy.deepcopy(self._batch)
        try:
            value = None if batch is None else self._evaluate(batch, self._position)
        finally:
            self._reshard()
        self._restore()
        if value is None:
            raise _NoLossError
        return value


def _reduced(trainer: Trainer, rows: list[Tensor | None], sizes: list[int]) -> tuple[Tensor, Tensor, float]:
    """Average the rows and add up the weights over the ranks, in one reduction."""
    given = next((row for row in rows if row is not None), None)
    if given is None:
        raise UnsupportedError(
            "`training_step` returned None for every batch of the epoch, so there is no loss to probe: return a loss."
        )
    losses = torch.stack([torch.zeros_like(given) if row is None else row for row in rows])
    weights = losses.new_tensor([0 if row is None else size for row, size in zip(rows, sizes, strict=True)])
    weighted = (weights.double() @ losses[:, 0].double()).to(losses).reshape(1)
    packed = torch.cat([losses.reshape(-1), weights, weighted])
    packed = trainer.strategy.reduce(packed, reduce_op="sum")
    table, weights, weighted = packed.split([losses.numel(), len(weights), 1])
    return table.view_as(losses) / trainer.world_size, weights, float(weighted / weights.sum())


def _check_finite(losses: Tensor, count: int) -> None:
    finite = losses.isfinite()
    if bool(finite.all()):
        return
    batch, point = (int(i) for i in (~finite).nonzero()[0])
    value = float(losses[batch, point])
    if point == 0:
        raise NonFiniteLossError(
            f"The training loss of batch {batch} is {value} at the snapshot: the training has diverged or the batch holds"
            " bad values. Lower the learning rate, clip gradients, or check the data. The weights are as before the sweep."
        )
    raise NonFiniteLossError(
        f"The training loss of batch {batch} is {value} at the point perturbed along direction {(point - 1) % count}: the"
        " step is too long for this model. Set a smaller `mu`. The weights are as before the sweep."
    )
