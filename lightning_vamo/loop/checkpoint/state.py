"""The state of a run in a checkpoint, in addition to Lightning's own state.

Lightning's checkpoints hold weights, optimizers and counters. Each rank adds its own state: its plan of batches, its position
in the plan, the rows that its steps still need, its random states, and the values that the epoch has logged so far.
"""

from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_vamo.core.sharding import local
from lightning_vamo.errors import InvalidArgumentError, UnsupportedError
from lightning_vamo.loop import compat
from lightning_vamo.loop.checkpoint.checksum import checksum
from lightning_vamo.loop.checkpoint.packing import packed, unpacked
from lightning_vamo.loop.checkpoint.random_state import random_state
from lightning_vamo.loop.parameters import trainable_parameters
from lightning_vamo.loop.plan.plan import Plan, has_plan, plan_of
from lightning_vamo.loop.plan.recorder import Pass
from lightning_vamo.loop.run.parts import Sums
from lightning_vamo.loop.run.run import Run

_State = TypeVar("_State")
_UNREADABLE = (
    "The checkpoint's state of {name} cannot be read: another version of lightning_vamo saved it, or it is damaged. Resume with"
    " the version that saved the state, or delete the state from the checkpoint's `callbacks`: then the run goes on with a new"
    " snapshot."
)


@dataclass
class RankState:
    """The state of one rank, as plain types and tensors.

    Attributes:
        position: Number of batches of the plan that have been trained on; None between two epochs.
        validating: Whether a validation has begun but not ended.
        reloaded: The epoch in which the training loaders were made last.
        cursor: The run's :class:`~lightning_vamo.loop.run.parts.Cursor`.
        sums: The run's :class:`~lightning_vamo.loop.run.parts.Sums`.
        clock: The run's :class:`~lightning_vamo.loop.run.parts.SnapshotClock`.
        learning: The run's :class:`~lightning_vamo.loop.control.learning.Learning`.
        plan: The epoch's batches; None if the data has no plan.
        snapshot: The state of the snapshot; None if there is no snapshot.
        random: The random states.
        logs: The values that the epoch has logged.
        metrics: The states of the module's metrics.
        gradients: Gradients that are accumulating.
        gradient: The state of the method's :class:`~lightning_vamo.loop.gradient.base.Gradient`.
        parameters: Name and shape of each trainable parameter, in the optimizer's order.
        data: The number of samples and the batch size of each training loader; None if a loader has no such number.
        frozen: Names of the parameters that needed no gradient when the fit was set up, and of those that need none now.
        checksum: The checksum of all other fields.
    """

    position: int | None
    validating: bool
    reloaded: float
    cursor: dict[str, Any]
    sums: dict[str, Any]
    clock: dict[str, Any]
    learning: dict[str, Any]
    plan: dict[str, Any] | None
    snapshot: dict[str, Any] | None
    random: dict[str, Any]
    logs: dict[str, Any]
    metrics: dict[str, Any]
    gradients: list[Tensor | None]
    gradient: dict[str, Any]
    parameters: list[list[Any]]
    data: list[dict[str, int | None]]
    frozen: dict[str, list[str]]
    checksum: int = 0

    @classmethod
    def read(cls, state: Any, name: str) -> "RankState":
        """Make a state from its fields in a checkpoint.

        Args:
            state: The fields' values, by name.
            name: Name of the callback, for the message.

        Returns:
            The state.

        Raises:
            InvalidArgumentError: If the state cannot be read, or differs from what was saved.
        """
        own = read(cls, state, name)
        if own.checksum != own.content():
            raise InvalidArgumentError(_UNREADABLE.format(name=name))
        return own

    def content(self) -> int:
        """The checksum of all fields except ``checksum``."""
        return checksum({field: value for field, value in vars(self).items() if field != "checksum"})


def saved(trainer: Trainer, run: Run) -> list[dict[str, Any]]:
    """The states of all ranks for a checkpoint; all ranks must call this function together.

    Args:
        trainer: The trainer, which is training.
        run: The run.

    Returns:
        On rank 0, which writes the checkpoint, a state for each rank; on other ranks, only their own state. Empty if a
        checkpoint cannot hold the state; a warning says why.
    """
    try:
        own: dict[str, Any] | None = vars(_state(trainer, run))
    except UnsupportedError as error:
        rank_zero_warn(f"{error} A run that resumes from this checkpoint will take a new snapshot.")
        own = None
    states = [own]
    if trainer.world_size > 1:
        gathered: list[Any] | None = [None] * trainer.world_size if trainer.is_global_zero else None
        torch.distributed.gather_object(own, gathered)
        states = gathered or states
    return [] if None in states else states  # type: ignore[return-value]  # None has been ruled out


def plan_within(trainer: Trainer, run: Run) -> Plan | None:
    """The plan of the present epoch or of the coming epochs; None if the data has no plan."""
    if run.snapshot is not None and run.snapshot.plan is not None:
        return run.snapshot.plan
    if compat.position(trainer) is None:
        return None
    return run.plan or (plan_of(trainer) if has_plan(trainer) else None)


def _state(trainer: Trainer, run: Run) -> RankState:
    module, position = trainer.lightning_module, compat.position(trainer)
    within, plan = position is not None, plan_within(trainer, run)
    order = run.cursor.order if run.snapshot is not None and run.snapshot.plan is not None else _in_order(plan)
    # After the end of an epoch, only its number of unused rows is needed again.
    sums = run.sums if within else Sums(unused=run.sums.unused)
    parameters = trainable_parameters(trainer.optimizers) if _accumulating(trainer, position) else []
    state = RankState(
        position=None if position is None else position - run.cursor.first,
        validating=compat.in_validation(trainer),
        reloaded=compat.last_reload(trainer),
        cursor={**vars(run.cursor), "order": torch.tensor(order, dtype=torch.int64, device="cpu")},
        sums=sums.state_dict(),
        clock=asdict(run.clock),
        learning=run.learning.state_dict(),
        plan=None if plan is None else plan_state(plan),
        snapshot=None if run.snapshot is None else run.snapshot.state_dict(trainer),
        random=random_state(module, compat.train_loaders(trainer)),
        logs=compat.log_state(trainer, within),
        metrics=compat.metric_states(module) if within else {},
        gradients=[None if p.grad is None else local(p.grad) for p in parameters],
        gradient=run.method.gradient.state_dict(),
        parameters=parameters_of(trainer),
        data=data_of(trainer),
        frozen={"before": run.frozen, "now": frozen(module)},
    )
    # Copies in host memory, since the live tensors go on changing.
    copied = apply_to_collection(dict(vars(state)), Tensor, lambda tensor: tensor.detach().to("cpu", copy=True))
    state = RankState(**copied)
    state.checksum = state.content()
    return state


def _in_order(plan: Plan | None) -> range:
    return range(0 if plan is None else plan.length)


def _accumulating(trainer: Trainer, position: int | None) -> bool:
    """Whether gradients are accumulating; unlike `compat.accumulates`, which describes a batch that has begun."""
    within = position is not None and position < trainer.num_training_batches
    return within and position % trainer.accumulate_grad_batches > 0  # type: ignore[operator]


def read(cls: type[_State], state: Any, name: str = "VAMOCallback") -> _State:
    """Make an object of a dataclass from its fields in a checkpoint.

    Args:
        cls: The dataclass.
        state: The values, by name.
        name: Name of the callback, for the message.

    Returns:
        The object.

    Raises:
        InvalidArgumentError: If fields are missing or unknown.
    """
    names = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    if not isinstance(state, Mapping) or state.keys() != names:
        raise InvalidArgumentError(_UNREADABLE.format(name=name))
    return cls(**state)


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Make a context in which a part of a state that is missing is reported as :func:`read` reports it.

    Args:
        name: Name of the callback, for the message.

    Yields:
        Nothing.

    Raises:
        InvalidArgumentError: If a part is missing.
    """
    try:
        yield
    except KeyError as error:
        raise InvalidArgumentError(_UNREADABLE.format(name=name)) from error


def parameters_of(trainer: Trainer) -> list[list[Any]]:
    """Name and shape of each trainable parameter, in the optimizer's order."""
    names = {id(parameter): name for name, parameter in trainer.lightning_module.named_parameters()}
    parameters = trainable_parameters(trainer.optimizers)
    return [[names.get(id(parameter), "a parameter outside the module"), list(parameter.shape)] for parameter in parameters]


def data_of(trainer: Trainer) -> list[dict[str, int | None]]:
    """The number of samples and the batch size of each training loader; None if a loader has no such number."""
    return [
        {"samples": _samples(loader), "batch_size": getattr(loader, "batch_size", None)}
        for loader in compat.train_loaders(trainer)
    ]


def _samples(loader: Any) -> int | None:
    dataset = getattr(loader, "dataset", None)
    return len(dataset) if isinstance(dataset, Sized) else None


def frozen(module: LightningModule) -> list[str]:
    """Names of the parameters that need no gradient."""
    return [name for name, parameter in module.named_parameters() if not parameter.requires_grad]


def plan_state(plan: Plan) -> dict[str, Any]:
    """A plan as plain types and tensors."""
    loaders = [[packed(batches) for batches in passes] for passes in plan.batches()]
    return {"length": plan.length, "keeps_order": plan.keeps_order, "loaders": loaders}


def resumed_plan(trainer: Trainer, state: dict[str, Any]) -> Plan:
    """The plan of :func:`plan_state`, for the loaders of the present run."""
    loader = compat.train_loader(trainer)
    assert loader is not None, "the training loader is set up before the training starts"
    return Plan(loader, [[Pass.of(unpacked(batches)) for batches in passes] for passes in state["loaders"]], state["length"])
