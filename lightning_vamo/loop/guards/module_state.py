"""What a forward pass can change: all that the module and the Trainer's optimizers and schedulers reach."""

from collections.abc import Sequence
from operator import is_

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_vamo.loop.guards.found import Found, LeftBehind
from lightning_vamo.loop.guards.walk import Walk
from lightning_vamo.loop.guards.watch import Learned


class ModuleState:
    """What a forward pass can change, apart from the values of the parameters being probed, as it is now.

    A walk finds what there is, see :mod:`~lightning_vamo.loop.guards.walk`: the attributes, parameters, buffers and
    submodules of the module and of every module in it or hidden from it, of plain objects and of the user's classes; the items
    of containers; the numbers of tensors and arrays, torchmetrics among them; flags and gradients of parameters; random
    generators; iterators that can be copied; and the state and settings of optimizers and schedulers.

    Args:
        module: The module to remember.
        probed: The parameters that whoever perturbs them restores.
        last: The state before, which has been put back, and is of no more use then. Its copies serve again where nothing has
            written to a parameter, and the walk is spared if nothing but numbers and the like has been exchanged since.
        trainer: The trainer, if its optimizers and schedulers, and what the user's code has set on it, are to be remembered. If
            not, iterators are left alone too: while something stands in for them, no more than forward passes must run.
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
        if last is not None and last._is_of(self._start) and last._found.refresh():
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
        """What this state and those before have learned of how the step writes to tensors."""
        return self._found.learned

    def put_back(self) -> None:
        """Put back what a forward pass changed; nearly free if nothing has changed.

        A write through ``.data`` is not always found here: see :class:`~lightning_vamo.loop.guards.watch.Watch`.
        """
        self._found.put_back()

    def left_behind(self) -> LeftBehind:
        """What is no longer as it was: what a transfer hook left for the step to find.

        Returns:
            What lays it out again, after :meth:`put_back`.
        """
        return LeftBehind(self._found)

    def restore(self) -> None:
        """Put back everything, also what a write through ``.data`` hid from the version counters."""
        self._found.restore()
        if self._found.is_beyond_repair:
            rank_zero_warn(
                "`training_step`, or `probe_loss`, writes to the state of the Trainer's optimizer, which is too large for a"
                " copy to be kept. VAMO evaluates the loss more often than plain training and cannot undo the write: define a"
                " `probe_loss` without the write."
            )
