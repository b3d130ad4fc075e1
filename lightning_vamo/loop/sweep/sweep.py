"""The sweep: one forward-only pass over the coming epoch's batches, at the snapshot and at the perturbed points around it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_vamo.core.directions import ProbeDirections
from lightning_vamo.core.probes.difference import Difference, probe_differences
from lightning_vamo.core.probes.point import Point
from lightning_vamo.errors import UnsupportedError
from lightning_vamo.loop import compat
from lightning_vamo.loop.guards.no_trace import no_trace
from lightning_vamo.loop.guards.randomness import RandomState
from lightning_vamo.loop.plan.fingerprint import fingerprint
from lightning_vamo.loop.plan.reread import Swept
from lightning_vamo.loop.sweep.batch import Evaluate, SweptBatch
from lightning_vamo.loop.sweep.groups import groups, probe
from lightning_vamo.loop.sweep.losses import Row, reduced
from lightning_vamo.loop.sweep.progress import progress_bar


@dataclass(frozen=True)
class Sweep:
    """What a sweep measured, the same on every rank but for ``own`` and ``fingerprints``.

    Attributes:
        deltas: Probe differences, shape ``(K, q)``.
        fingerprints: Of this rank's batches, length ``K``; None for a batch that cannot be told from others.
        own: Those of this rank's batches alone, of which ``deltas`` is the mean over the ranks.
        weights: Samples of each batch over all ranks, shape ``(K,)``; 0 where ``training_step`` gave no loss.
        snapshot_loss: The training loss at the snapshot, the weighted mean over the batches.
        directions_dropped: Directions along which a loss was not finite; their columns of ``deltas`` are zero.
        snr: See :meth:`~lightning_vamo.loop.sweep.losses.Table.snr`.
        evaluations: Forward passes of a batch that it took, on each rank.
        seconds: Wall-clock time.
    """

    deltas: Tensor
    fingerprints: list[int | None]
    own: Tensor
    weights: Tensor
    snapshot_loss: float
    directions_dropped: int
    snr: float | None
    evaluations: int
    seconds: float


def sweep(
    trainer: Trainer,
    module: LightningModule,
    plan: Swept,
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
        plan: The epoch's batches, or a reading of the data.
        evaluate: The loss to probe, of a batch at its position; ``None`` where the batch is to be skipped.
        parameters: The parameters to perturb; they hold the snapshot.
        directions: The probe directions.
        mu: Smoothing radius.
        difference: ``"forward"`` or ``"central"``.

    Returns:
        The table of probe differences, and what it cost.

    Raises:
        NonFiniteLossError: If a loss at the snapshot is NaN or infinite.
        UnsupportedError: If the loader gives fewer batches than it announced.
    """
    start = time.perf_counter()
    rows: list[Row] = []
    fingerprints: list[int | None] = []
    reshard = compat.resharding(module)
    reshard()  # a validation epoch before this one leaves parameters whole
    with (
        compat.without_buffer_sync(trainer),
        no_trace(trainer, module, parameters) as state,
        Point(parameters) as snapshot,
        plan.loaded() as batches,
        progress_bar(trainer, "VAMO sweep", plan.length) as show,
    ):

        def load(position: int, batch: Any) -> SweptBatch:
            batch = compat.before_transfer(trainer, batch)
            fingerprints.append(fingerprint(batch))
            return SweptBatch(compat.to_device(trainer, batch), position, evaluate, snapshot, state, reshard)

        swept = (load(position, batch) for position, batch in enumerate(batches))
        for group in groups(swept, parameters):
            random = RandomState(module.device)
            for row in probe(group, snapshot, directions, mu, difference):
                rows.append(row)
                show(len(rows))
            random.settle()
            random.set()
            group.clear()  # its memory is for the next one, which is loaded before the name is bound again
    if len(rows) != plan.length and plan.exact:
        raise UnsupportedError(
            f"The training DataLoader announced {plan.length} batches but gave {len(rows)}: make its `__len__` agree with"
            " what it yields."
        )
    rows += [Row(None, None, 0, 0.0)] * (plan.length - len(rows))  # ranks have tables of one shape
    table = reduced(trainer, rows, plan.sizes(), difference)
    usable = table.usable(directions.count)
    return Sweep(
        deltas=torch.where(usable, probe_differences(table.losses, mu, difference), 0.0),
        fingerprints=fingerprints,
        own=torch.where(usable, probe_differences(table.own, mu, difference), 0.0),
        weights=table.weights,
        snapshot_loss=table.snapshot_loss,
        directions_dropped=int((~usable).sum()),
        snr=table.snr(mu, difference, usable),
        evaluations=sum(row.evaluations for row in rows),
        seconds=time.perf_counter() - start,
    )
