"""Evaluate the batch of a step several times, with the side effects of one evaluation."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from lightning_vamo.core.probes.difference import as_tensor, scalar
from lightning_vamo.core.sharding import local
from lightning_vamo.loop import compat
from lightning_vamo.loop.checks import check_none
from lightning_vamo.loop.gradient.base import Step
from lightning_vamo.loop.guards.module_state import ModuleState
from lightning_vamo.loop.guards.randomness import RandomState
from lightning_vamo.loop.guards.silence import silent
from lightning_vamo.loop.guards.tensors import checksum
from lightning_vamo.loop.plan.tensors import fresh_copy
from lightning_vamo.loop.sweep.oracle import check_differentiates

_BLOCK = 2**20


class Others:
    """Finds the parameters that a method does not move but ``training_step`` writes to, such as a teacher's.

    Such parameters have to be put back after all evaluations of a batch but one. Copies of all parameters would take as much
    memory as a frozen backbone does. So only parameters are copied that an evaluation has been seen to write to.
    """

    def __init__(self) -> None:
        self.states: dict[str, ModuleState] = {}
        """States of the module before and after the last step's first evaluation; their copies are used again."""
        self.written: dict[int, Tensor] = {}
        """The parameters that an evaluation has been seen to write to, by ``id``."""
        self._epoch: int | None = None

    def left_alone(self, parameters: list[Tensor], moving: Sequence[Tensor]) -> list[Tensor]:
        """The parameters whose numbers need no copy.

        Args:
            parameters: The module's parameters.
            moving: The parameters that the method moves, and puts back itself.

        Returns:
            All parameters except those that were seen to be written to.
        """
        if not self.written:
            return parameters
        kept = {id(parameter) for parameter in moving}
        return [p for p in parameters if id(p) in kept or self.written.get(id(p)) is not p]

    def watch(self, step: Step, parameters: Sequence[Tensor], moving: Sequence[Tensor]) -> "Watched":
        """Record the parameters, to find out later which parameters the next evaluation writes to.

        Version counters do not show a write through ``.data``, so once in an epoch checksums are compared too.

        Args:
            step: The step.
            parameters: The module's parameters.
            moving: The parameters that the method moves.

        Returns:
            The record.
        """
        kept = {id(parameter) for parameter in moving} | self.written.keys()
        closely, self._epoch = step.trainer.current_epoch != self._epoch, step.trainer.current_epoch
        return Watched([p for p in parameters if id(p) not in kept], self.written, closely=closely)


class Watched:
    """The state of parameters before an evaluation.

    Args:
        parameters: The parameters.
        written: Gets the parameters that turn out to be written to, by their ``id``.
        closely: Whether to compare checksums as well.
    """

    def __init__(self, parameters: Sequence[Tensor], written: dict[int, Tensor], *, closely: bool) -> None:
        self._parameters = parameters
        self._written = written
        self._closely = closely
        self._before = self._marks()

    def look(self) -> None:
        """Find which parameters were written to."""
        for parameter, before, after in zip(self._parameters, self._before, self._marks(), strict=True):
            if before != after:
                self._written[id(parameter)] = parameter

    def _marks(self) -> list[tuple[Any, ...]]:
        return [(p._version, *((_checksum(p),) if self._closely else ())) for p in self._parameters]


def _checksum(tensor: Tensor) -> tuple[tuple[int, ...], ...]:
    """Checksums of this process's part of a tensor, block by block."""
    return tuple(map(checksum, torch.split(local(tensor).reshape(-1), _BLOCK))) if local(tensor).numel() else ()


class Evaluations:
    """Evaluates the batch of a step at one point after another, with the same randomness and from the same module state.

    The first evaluation is the step's own: its logs, its counts and its changes of the module stay. The other evaluations leave
    no trace. If the module defines ``probe_loss``, it is evaluated instead of ``training_step``.

    Args:
        step: The step.
        moving: The parameters that are moved between the evaluations.
        others: The parameters that are not moved.
        most: How often the batch will be evaluated.

    Attributes:
        outputs: The outputs of the step, for callbacks.
        count: Number of forward passes so far.
    """

    def __init__(self, step: Step, moving: Sequence[Tensor], others: Others, most: int) -> None:
        self.outputs: dict[str, Any] = {}
        self.count = 0
        self._step = step
        self._moving = moving
        self._others = others
        self._most = most
        self._own_loss = type(step.module).has_own_probe_loss()  # type: ignore[attr-defined]
        self._reshard = compat.resharding(step.module)
        self._device = step.module.device
        self._reshard()
        self._parameters: list[Tensor] = [*step.module.parameters()]

    def __enter__(self) -> "Evaluations":
        """Evaluate the batch within the context."""
        self._before = self._state("before")
        self._random = RandomState(self._device)
        self._rest = fresh_copy(self._step.batch)  # a step may take its batch apart: `labels = batch.pop("labels")`
        self._after: tuple[ModuleState, RandomState, bool] | None = None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Restore the state that the first evaluation left."""
        if self._after is not None:
            state, random, self._step.trainer.should_stop = self._after
            state.restore()
            random.settle()
            random.set()
        check_differentiates(error)

    def __call__(self) -> Tensor | None:
        """Evaluate the batch at the present parameters.

        Returns:
            The loss, shape ``()``, float32 or wider; None if there is no loss.

        Raises:
            UnsupportedError: If ``training_step`` returns None on one of several ranks.
        """
        torch.clear_autocast_cache()  # the cache may hold the weights of the last evaluation, in another type
        self.count += 1
        value = self._first() if self.count == 1 else self._silent()
        if value is None and not self._own_loss:
            check_none(self._step.trainer)
        return None if value is None else scalar(value).clone()

    def _first(self) -> Tensor | None:
        step, watched = self._step, self._others.watch(self._step, self._parameters, self._moving)
        with compat.step_context(step.trainer):
            output = self._loss(step.batch) if self._own_loss else step.user_step()
        self._reshard()
        watched.look()
        _, self.outputs = compat.step_output(output, step.trainer.accumulate_grad_batches)
        return compat.step_loss(output)

    def _silent(self) -> Tensor | None:
        step = self._step
        if self._after is None:
            self._random.settle()
            # Most steps change nothing: then one state is both that before and that after the first evaluation. A parameter
            # that the first evaluation has been seen to write to is not in that state yet.
            same = not self._others.written and self._before.is_as_it_was()
            after = self._before if same else self._state("after")
            self._after = after, RandomState(self._device), step.trainer.should_stop
        if self.count > 2 or self._after[0] is not self._before:
            self._before.restore()
        self._random.set()
        with silent(step.trainer, step.module), compat.step_context(step.trainer):
            value = self._loss(self._rest if self.count == self._most else fresh_copy(self._rest))
        self._reshard()
        return value

    def _loss(self, batch: Any) -> Tensor | None:
        with compat.within_step(self._step.module):
            loss = self._step.module.probe_loss(batch, self._step.trainer.fit_loop.batch_idx)  # type: ignore[operator]
        value: Tensor | None = as_tensor(loss, self._device)
        return value

    def _state(self, when: str) -> ModuleState:
        left_alone = self._others.left_alone(self._parameters, self._moving)
        state = ModuleState(self._step.module, left_alone, self._others.states.get(when))
        self._others.states[when] = state
        return state
