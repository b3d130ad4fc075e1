"""The sweep: evaluate the coming epoch's batches at the snapshot and at perturbed weights, with forward passes only."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_vamo.core.directions import ProbeDirections
from lightning_vamo.core.probes.difference import Difference, probe_differences
from lightning_vamo.core.probes.point import Point
from lightning_vamo.core.probes.radius import Trend
from lightning_vamo.errors import UnsupportedError
from lightning_vamo.loop import compat
from lightning_vamo.loop.guards.module_state import ModuleState
from lightning_vamo.loop.guards.no_trace import no_trace
from lightning_vamo.loop.guards.randomness import RandomState
from lightning_vamo.loop.plan.fingerprint import fingerprint
from lightning_vamo.loop.plan.reread import Swept
from lightning_vamo.loop.sweep.agree import check_batches, least
from lightning_vamo.loop.sweep.batch import SweptBatch
from lightning_vamo.loop.sweep.groups import groups, probe
from lightning_vamo.loop.sweep.losses import Row, reduced
from lightning_vamo.loop.sweep.oracle import Oracle
from lightning_vamo.loop.sweep.progress import progress_bar
from lightning_vamo.loop.sweep.quality import quality_of
from lightning_vamo.loop.sweep.radius import RadiusSearch
from lightning_vamo.loop.sweep.repeat import check_repeats


@dataclass(frozen=True)
class Sweep:
    """The result of a sweep; the same on every rank, except ``own`` and ``fingerprints``.

    Attributes:
        deltas: Probe differences, shape ``(K, q)``.
        fingerprints: A fingerprint of each batch of this rank, length ``K``; None for a batch that cannot be told from other
            batches.
        own: The probe differences of this rank's batches alone; ``deltas`` is the mean over the ranks.
        weights: Number of samples of each batch over all ranks, shape ``(K,)``; 0 for a batch without a row, because
            ``training_step`` gave no loss, or a loss that is not finite.
        snapshot_loss: The training loss at the snapshot, the weighted mean over the batches.
        not_finite: Number of batches whose loss at the snapshot is not finite.
        directions_dropped: Directions along which a probe difference was not finite; their columns of ``deltas`` are zero.
        mu: Smoothing radius.
        snr: Size of the probe differences relative to their error: see :func:`~lightning_vamo.loop.sweep.quality.quality_of`.
        trend: Whether the error of rounding or that of curvature is larger; None if neither stands out.
        evaluations: Number of forward passes of a batch on each rank.
        seconds: Wall-clock time of the sweep.
    """

    deltas: Tensor
    fingerprints: list[int | None]
    own: Tensor
    weights: Tensor
    snapshot_loss: float
    not_finite: int
    directions_dropped: int
    mu: float
    snr: float | None
    trend: Trend | None
    evaluations: int
    seconds: float


def sweep(
    oracle: Oracle,
    plan: Swept,
    parameters: Sequence[Tensor],
    directions: ProbeDirections,
    mu: float,
    difference: Difference,
    *,
    search: bool = False,
) -> Sweep:
    """Evaluate every batch of the plan at the snapshot and along every direction, and leave no trace.

    Args:
        oracle: Evaluates the loss of a batch; call this function between two training steps.
        plan: The epoch's batches, or a reading of the data.
        parameters: The parameters to perturb; they hold the snapshot.
        directions: The probe directions.
        mu: Smoothing radius.
        difference: ``"forward"`` or ``"central"``.
        search: Whether to search for a better radius on the first batches, beginning with ``mu``.

    Returns:
        The table of probe differences, and the costs of the sweep.

    Raises:
        ChangingLossError: If a batch gives another loss when it is evaluated again.
        NonFiniteLossError: If no batch has a finite loss at the snapshot.
        UnsupportedError: If the loader gives fewer batches than it announced, or if ranks have different numbers of batches.
    """
    start = time.perf_counter()
    trainer = oracle.trainer
    check_batches(trainer, plan.length)
    fingerprints: list[int | None] = []
    sides = 2 if difference == "central" else 1
    with progress_bar(trainer, "VAMO sweep", plan.length * (1 + sides * directions.count)) as show, oracle.counting(show):
        rows, mu = _rows(oracle, plan, parameters, directions, mu, difference, fingerprints, search=search)
    if len(rows) != plan.length and plan.exact:
        raise UnsupportedError(
            f"The training DataLoader announced {plan.length} batches but gave {len(rows)}: correct its `__len__`, or that of"
            " its dataset or batch sampler."
        )
    rows += [Row(None)] * (plan.length - len(rows))  # the tables of all ranks must have the same shape
    table = reduced(trainer, rows, plan.sizes(), difference)
    usable = table.usable(mu, difference)
    quality = quality_of(table, mu, difference, usable)
    return Sweep(
        deltas=torch.where(usable, probe_differences(table.losses, mu, difference), 0.0),
        fingerprints=fingerprints,
        own=torch.where(usable, probe_differences(table.own, mu, difference), 0.0),
        weights=table.weights,
        snapshot_loss=table.snapshot_loss,
        not_finite=table.not_finite,
        directions_dropped=int((~usable).sum()),
        mu=mu,
        snr=quality.snr,
        trend=quality.trend,
        evaluations=sum(row.evaluations for row in rows),
        seconds=time.perf_counter() - start,
    )


def _rows(
    oracle: Oracle,
    plan: Swept,
    parameters: Sequence[Tensor],
    directions: ProbeDirections,
    mu: float,
    difference: Difference,
    fingerprints: list[int | None],
    *,
    search: bool,
) -> tuple[list[Row], float]:
    """The row of each batch that the plan gives, and the radius."""
    trainer, module = oracle.trainer, oracle.module
    rows: list[Row] = []
    reshard = compat.resharding(module)
    reshard()  # a validation epoch before this one leaves parameters whole
    with (
        compat.without_buffer_sync(trainer),
        no_trace(trainer, module, parameters) as state,
        Point(parameters) as point,
        plan.loaded() as loaded,
    ):
        batches = _swept(oracle, loaded, point, state, reshard, fingerprints)
        agree = partial(least, trainer) if trainer.world_size > 1 else None
        for group in groups(batches, parameters, agree):
            random = RandomState(module.device)
            if search and not rows:
                mu = RadiusSearch(trainer, group, point, directions, difference).best(mu)
            rows += probe(group, point, directions, mu, difference)
            random.settle()
            random.set()
            group.clear()  # frees its memory for the next group, which is loaded before the name is bound again
    return rows, mu


def _swept(
    oracle: Oracle,
    loaded: Iterator[Any],
    point: Point,
    state: ModuleState,
    reshard: Callable[[], None],
    fingerprints: list[int | None],
) -> Iterator[SweptBatch]:
    """The batches on the module's device; each batch is evaluated at the snapshot when it is loaded."""
    for position, batch in enumerate(loaded):
        prepared = compat.before_transfer(oracle.trainer, batch)
        fingerprints.append(fingerprint(prepared))
        swept = SweptBatch(compat.to_device(oracle.trainer, prepared), position, oracle, point, state, reshard)
        if position == 0:  # before a second batch: state that alternates would be back at its first value after two batches
            random = RandomState(oracle.module.device)
            check_repeats(oracle.trainer, swept)
            random.settle()
            random.set()
        yield swept
