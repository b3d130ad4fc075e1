"""All state that a forward pass can change: whatever the module and the Trainer's optimizers and schedulers reach."""

from collections.abc import Sequence
from operator import is_

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_vamo.loop.guards.found import Found, LeftBehind
from lightning_vamo.loop.guards.walk import Walk
from lightning_vamo.loop.guards.watch import Learned


class ModuleState:
    """Remembers all state that a forward pass can change, except the values of the probed parameters.

    A walk finds the state, see :mod:`~lightning_vamo.loop.guards.walk`: the attributes, parameters, buffers and submodules of
    the module, of every module within it, of plain objects and of the user's classes; the items of containers; the numbers of
    tensors and arrays, including torchmetrics; flags and gradients of parameters; random generators; iterators that can be
    copied; and the state and settings of optimizers and schedulers.

    Args:
        module: The module to remember.
        probed: The parameters that the caller perturbs and restores.
        last: The previous state, which has been put back and must not be used any more. Its copies of unchanged parameters are
            used again, and no walk is needed if only numbers and the like were exchanged since.
        trainer: The trainer, if its optimizers and schedulers, and the user's attributes on it, are to be remembered. Without
            the trainer, iterators are left alone too: while they have stand-ins, only forward passes may run.
    """

    def __init__(
        self,
        module: nn.Module,
        probed: Sequence[Tensor] = (),
        last: "ModuleState | None" = None,
        trainer: Trainer | None = None,
    ) -> None:
        self._start = (module, trainer, *probed)
        self._found: Found
        if last is not None and last._is_of(self._start) and (last.is_as_it_was() or last._found.refresh()):
            self._found = last._found
            return
        walk = Walk(probed).go(module, trainer)
        if trainer is None:
            walk.iterators.clear()
        self._found = Found(walk, None if last is None else last._found)

    def _is_of(self, start: Sequence[object]) -> bool:
        return len(self._start) == len(start) and all(map(is_, self._start, start))

    @property
    def learned(self) -> Learned:
        """The way in which ``training_step`` writes to tensors, as far as this state and earlier states have found out."""
        return self._found.learned

    def put_back(self) -> None:
        """Put back the state that a forward pass has changed; this takes next to no time if nothing has changed.

        A write through ``.data`` is not always found here: see :class:`~lightning_vamo.loop.guards.watch.Watch`.
        """
        self._found.put_back()

    def is_as_it_was(self) -> bool:
        """Whether the state is the same as when it was remembered; False also where to find out takes as long as to restore."""
        return self._found.is_as_it_was()

    def left_behind(self) -> LeftBehind:
        """Put back the state that a transfer hook has changed, and remember the changes.

        Returns:
            The changes, which can be made again.
        """
        if self.is_as_it_was():
            return LeftBehind(None)
        left = LeftBehind(self._found)
        self.put_back()
        return left

    def restore(self) -> None:
        """Put back everything, including tensors that were written to through ``.data``, which version counters do not show."""
        if self.is_as_it_was():
            return
        self._found.restore()
        if self._found.is_beyond_repair:
            rank_zero_warn(
                "`training_step` or `probe_loss` writes to the state of the Trainer's optimizer, which is too large to be"
                " copied. VAMO evaluates the loss more often than plain training does, and cannot undo these writes: define a"
                " `probe_loss` that does not write to the optimizer's state."
            )
