"""Tables of gradients: each batch's gradient at the snapshot, or (as in SAGA) at the batch's last training step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_vamo.core.control.anchored import GradientCorrection
from lightning_vamo.core.control.correction import any_present
from lightning_vamo.core.control.gradients import GradientTable
from lightning_vamo.errors import InvalidArgumentError
from lightning_vamo.loop.control.anchored import Anchored, AnchoredControl, is_finite
from lightning_vamo.loop.control.base import Snapshot
from lightning_vamo.loop.control.here import Here
from lightning_vamo.loop.control.memory import check_memory
from lightning_vamo.loop.ledger.advice import Advice
from lightning_vamo.loop.parameters import same_tensors
from lightning_vamo.loop.plan.plan import Plan
from lightning_vamo.loop.sweep.gradient_sweep import sample_counts

TableType = Literal["float64", "float32", "bfloat16"]


class KeptGradients(Anchored):
    """A snapshot with a table of the gradients of a plan's batches.

    Args:
        epoch: See :class:`~lightning_vamo.loop.control.base.Snapshot`.
        correction: See :class:`Anchored`.
        logs: See :class:`~lightning_vamo.loop.control.base.Snapshot`.
        period: See :class:`Anchored`.
        plan: The batches that the rows belong to.
        table: The rows.
    """

    def __init__(
        self,
        epoch: int,
        correction: GradientCorrection,
        logs: dict[str, float],
        period: int,
        plan: Plan | None,
        table: GradientTable,
    ) -> None:
        super().__init__(epoch, correction, logs, period)
        self.plan = plan
        self.table = table
        self._row = correction.zeros()

    def row(self, keys: Sequence[Any], accumulated: int, scale: Callable[[Tensor], Tensor] | None) -> list[Tensor] | None:
        """See :meth:`Anchored.row`."""
        for part in self._row:
            part.zero_()
        for key in keys:
            self.table.add_centred(key, self._row, 1 / accumulated)
        return self._row

    def row_state(self) -> dict[str, Any]:
        """See :meth:`Anchored.row_state`."""
        return {"table": self.table.state_dict()}


class CachedGradients(KeptGradients):
    """A snapshot with the gradients of the epoch's batches at the snapshot's weights.

    Attributes:
        fingerprints: Fingerprints of this rank's batches; empty if batches cannot be told apart.
    """

    kind = "cache-gradients"
    fingerprints: Sequence[int | None] = ()

    def fingerprint(self, row: int) -> int | None:
        """See :meth:`Snapshot.fingerprint`."""
        return self.fingerprints[row] if self.fingerprints else None

    def row_state(self) -> dict[str, Any]:
        """See :meth:`Anchored.row_state`."""
        return {**super().row_state(), "fingerprints": list(self.fingerprints)}


class CarriedGradients(KeptGradients):
    """A snapshot with each batch's gradient at the batch's last training step: each step replaces its own row."""

    kind = "carry-gradients"

    def row(self, keys: Sequence[Any], accumulated: int, scale: Callable[[Tensor], Tensor] | None) -> list[Tensor] | None:
        """See :meth:`Anchored.row`; the step's uncorrected gradient replaces the row."""
        row = super().row(keys, accumulated, scale) if self.table.ready else None
        place = self.table.row_of(keys)
        if place is not None:
            gradients = [parameter.grad for parameter in self.parameters]
            any_present(gradients)  # refuses sparse gradients
            factor: float | Tensor = accumulated / len(keys)
            if scale is not None:
                factor = factor / scale(torch.ones((), device=self._row[0].device))
            self.table.put(place, gradients, factor, is_finite(self.correction, gradients))
        return row

    def begin_epoch(self, generator: torch.Generator) -> list[int] | None:
        """See :meth:`Snapshot.begin_epoch`."""
        self.table.begin_epoch()
        return None if self.plan is None else self.plan.again(generator, self.table.group)

    def fits(self, accumulated: int) -> bool:
        """See :meth:`Snapshot.fits`; accumulation may change between two epochs."""
        return self.table.group == accumulated


@dataclass(frozen=True)
class KeepGradients(AnchoredControl):
    """Base class of control variates with a table of gradients.

    Args:
        dtype: Type of the table; None for the type of the parameters.
        device: Device of the table, such as ``"cpu"``; None for the device of the parameters.

    Raises:
        InvalidArgumentError: If the type or the device is not allowed.
    """

    dtype: TableType | None = None
    device: str | None = None

    records = "always"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype is not None and self.dtype not in get_args(TableType):
            raise InvalidArgumentError(
                f"`table_dtype` must be one of {', '.join(map(repr, get_args(TableType)))}, or None, got {self.dtype!r}: other"
                " types cannot hold all gradients."
            )
        try:
            torch.device(self.device or "cpu")
        except RuntimeError:
            raise InvalidArgumentError(
                f"`table_device` must be the name of a device, such as 'cpu', or None, got {self.device!r}."
            ) from None

    @property
    def _dtype(self) -> torch.dtype | None:
        return None if self.dtype is None else getattr(torch, self.dtype)

    @property
    def _device(self) -> torch.device | None:
        return None if self.device is None else torch.device(self.device)

    def _check_device(self) -> None:
        """Refuse a device from which a table could not be read; only where the training runs can that be known."""
        try:
            torch.zeros(1, device=self._device).cpu()
        except (AssertionError, RuntimeError, NotImplementedError) as error:
            raise InvalidArgumentError(
                f"`table_device` must be a device that this machine has, got {self.device!r}, which gives {error}: name"
                " another, such as 'cpu', or None."
            ) from None

    def table(self, here: Here, plan: Plan, group: int = 1) -> GradientTable:
        """An empty table for the batches of a plan.

        Args:
            here: The present state of the run.
            plan: The batches.
            group: How many batches share a row.

        Returns:
            The table.

        Raises:
            InvalidArgumentError: If this machine does not have the table's device.
            UnsupportedError: If the table does not fit in memory.
        """
        self._check_device()
        parameters, weights = here.parameters, sample_counts(here.trainer, plan)
        count = -(-plan.length // group)
        size = GradientTable.size(parameters, count, self._dtype)
        check_memory(here.trainer, size, count, parameters, self._device)
        return GradientTable(parameters, weights, group, self._dtype, self._device)

    def table_again(self, here: Here, state: dict[str, Any]) -> GradientTable:
        """Restore the table from a checkpoint."""
        return GradientTable.of(state["rows"]["table"], here.parameters, self._device)


@dataclass(frozen=True)
class CacheGradients(KeepGradients):
    """Keep the gradients of the coming epoch's batches at the snapshot, then train on the same batches."""

    kinds = (CachedGradients.kind,)
    watches = True

    def take(self, here: Here, before: Snapshot | None) -> CachedGradients:
        """See :meth:`Control.take`."""
        period, plan, correction = self.period(here), here.epoch_plan, self.correction(here)
        table = self.table(here, plan)

        def see(position: int, gradients: list[Tensor | None]) -> None:
            table.put(position, gradients, 1.0, is_finite(correction, gradients))

        swept = self.sweep(here, plan, see)
        table.begin_epoch()
        here.advice.on_lost_rows(table.unknown, plan.length)
        logs, epoch = {"sweep_seconds": swept.seconds}, here.trainer.current_epoch
        snapshot = CachedGradients(epoch, correction, logs, period, plan, table)
        snapshot.fingerprints = swept.fingerprints
        return snapshot

    def restore(self, here: Here, state: dict[str, Any], plan: Plan | None) -> CachedGradients:
        """See :meth:`Control.restore`."""
        table, correction = self.table_again(here, state), self.correction(here)
        snapshot = CachedGradients(state["epoch"], correction, state["logs"], state["period"], plan, table)
        snapshot.steps, snapshot.fingerprints = state["steps"], state["rows"]["fingerprints"]
        return snapshot


@dataclass(frozen=True)
class CarryGradients(KeepGradients):
    """Keep each batch's gradient from its last training step: an epoch of plain training fills the table."""

    kinds = (CarriedGradients.kind,)

    def ends(self, epoch: int) -> bool:
        """See :meth:`Control.ends`."""
        return False

    def replaces(self, epoch: int) -> bool:
        """See :meth:`Control.replaces`."""
        return False

    def warn_of_reload(self, advice: Advice) -> None:
        """See :meth:`Control.warn_of_reload`."""
        advice.on_reloaded_rows()

    def take(self, here: Here, before: Snapshot | None) -> CarriedGradients:
        """See :meth:`Control.take`."""
        if isinstance(before, CarriedGradients) and same_tensors(before.parameters, here.parameters):
            return before
        self.period(here)  # refuses data without a length
        plan, correction = here.epoch_plan, self.correction(here)
        table = self.table(here, plan, here.trainer.accumulate_grad_batches)
        return CarriedGradients(here.trainer.current_epoch, correction, {}, 0, plan, table)

    def restore(self, here: Here, state: dict[str, Any], plan: Plan | None) -> CarriedGradients:
        """See :meth:`Control.restore`."""
        table, correction = self.table_again(here, state), self.correction(here)
        snapshot = CarriedGradients(state["epoch"], correction, state["logs"], state["period"], plan, table)
        snapshot.steps = state["steps"]
        return snapshot
