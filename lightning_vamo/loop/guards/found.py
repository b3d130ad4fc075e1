"""All state that a walk found, as a copy of one moment that can be put back."""

from collections.abc import Mapping
from operator import is_
from typing import Any

from torch import Tensor

from lightning_vamo.core.sharding import is_sharded
from lightning_vamo.loop.guards.contents import Container, Contents
from lightning_vamo.loop.guards.leaves import Leaf
from lightning_vamo.loop.guards.tensors import FEW, SMALL, FrozenCopy, Place, TensorCopy, WholeCopy, can_be_copied, is_plain
from lightning_vamo.loop.guards.walk import Walk
from lightning_vamo.loop.guards.watch import Flags, Learned, Watch


class Found:
    """Remembers all state that a walk found, as it is now.

    Args:
        walk: The walk.
        last: The state of the previous walk, whose copies of large tensors are used again.
    """

    def __init__(self, walk: Walk, last: "Found | None" = None) -> None:
        self.walk = walk
        self.learned: Learned = Learned() if last is None else last.learned
        self.leaves: list[Leaf] = [*walk.leaves, *(replay for _, replay in walk.iterators)]
        places = [Place(p) for p in walk.probed if can_be_copied(p) and is_plain(p) and not is_sharded(p)]
        copies = _copies(walk, {} if last is None else last.watch.frozen)
        self.watch: Watch = Watch(copies, walk.unseen, places, self.learned)
        self._stand_ins = _StandIns(walk)  # only now that there is memory for the copies
        self.contents = Contents(walk.containers, walk.empty)
        self._look_at_the_rest()

    def _look_at_the_rest(self) -> None:
        self.states = [leaf.capture() for leaf in self.leaves]
        self._flags = Flags(self.walk.flagged)
        self._classes = [*map(type, self.walk.owners)]
        self._too_large = [(tensor, tensor._version) for tensor in self.walk.too_large]

    def put_back(self) -> None:
        """Put back the state that has changed."""
        self.contents.put_back()
        self.watch.put_back()
        self._put_back_the_rest()

    def restore(self) -> None:
        """Put back everything, and put the iterators in the place of their stand-ins."""
        self.contents.put_back(exactly=True)
        self._stand_ins.remove()
        self.watch.restore()
        self._put_back_the_rest()

    def _put_back_the_rest(self) -> None:
        if not self._are_of_their_classes():
            for owner, cls in zip(self.walk.owners, self._classes, strict=True):
                if type(owner) is not cls:
                    object.__setattr__(owner, "__class__", cls)
        self._flags.put_back()
        for leaf, state in zip(self.leaves, self.states, strict=True):
            leaf.put(state)

    def is_as_it_was(self) -> bool:
        """Whether nothing has changed; False also if numbers would have to be compared to find that out."""
        if self.leaves or self.walk.iterators or self._too_large or not self.watch.is_as_it_was():
            return False
        return self._are_of_their_classes() and self.contents.unchanged(exactly=True) and self._flags.are_as_they_were()

    def refresh(self) -> bool:
        """Take the present state as the state to put back.

        Returns:
            False if another walk is needed.
        """
        as_it_was = not self.walk.iterators and self._are_of_their_classes()
        come = self.contents.refresh() if as_it_was else None
        if come is None or not self.watch.refresh():
            return False
        if come:
            new = Walk(self.walk.probed, self.walk.seen).into(come)
            self.watch.add(_copies(new, {}))
            self.walk.seen |= new.seen
        self._look_at_the_rest()
        return True

    def _are_of_their_classes(self) -> bool:
        return all(map(is_, map(type, self.walk.owners), self._classes))

    @property
    def is_beyond_repair(self) -> bool:
        """Whether a tensor that was too large to be copied was written to."""
        return any(tensor._version != version for tensor, version in self._too_large)


def _copies(walk: Walk, frozen: Mapping[int, TensorCopy]) -> list[TensorCopy]:
    copies: list[TensorCopy] = []
    for tensor in filter(can_be_copied, walk.tensors):
        if not is_plain(tensor):
            copies.append(WholeCopy(tensor))
        elif tensor.nbytes > SMALL and tensor.device.type == "cpu":  # to compare numbers on a GPU is to wait for it
            copies.append(_frozen(tensor, frozen))
        else:
            copies.append(TensorCopy(tensor))
    parameters = [*filter(can_be_copied, walk.parameters)]
    few = sum(parameter.nbytes for parameter in parameters) <= FEW
    copies += (
        TensorCopy(parameter)
        if few and parameter.device.type != "cpu" and is_plain(parameter)
        else _frozen(parameter, frozen, "cpu")
        for parameter in parameters
    )
    copies += (_frozen(numbers, frozen, owner=array) for array, numbers in walk.large)
    return copies


def _frozen(tensor: Tensor, frozen: Mapping[int, TensorCopy], device: str | None = None, owner: Any = None) -> TensorCopy:
    """A tensor's copy: the copy in ``frozen`` if there is one, brought up to date, or else a new copy."""
    owner = tensor if owner is None else owner
    copy = frozen.get(id(owner))
    return FrozenCopy(tensor, device, owner) if copy is None or copy.owner is not owner else copy.refreshed()


class _StandIns:
    """The stand-ins of iterators, and the containers that hold a stand-in."""

    def __init__(self, walk: Walk) -> None:
        self._found: list[tuple[Container, Any]] = []
        if not walk.iterators:
            return
        stand_ins = {id(iterator): replay for iterator, replay in walk.iterators}
        for container in walk.containers:
            owner, form = container
            before = form.capture(owner)
            if any(id(item) in stand_ins for item in form.items(before)):
                self._found.append((container, before))
                form.put(owner, _exchanged(before, stand_ins))

    def remove(self) -> None:
        """Put the iterators themselves back."""
        for (owner, form), before in self._found:
            form.put(owner, before)


def _exchanged(contents: Any, stand_ins: dict[int, Any]) -> Any:
    if isinstance(contents, dict):
        return {key: stand_ins.get(id(item), item) for key, item in contents.items()}
    return type(contents)(stand_ins.get(id(item), item) for item in contents)


class LeftBehind:
    """Changes by a transfer hook, which ``training_step`` may need: made before each evaluation of a batch, then undone.

    Args:
        found: The state as it was before the hook; None if the hook has changed nothing.
    """

    def __init__(self, found: Found | None) -> None:
        self._contents: list[tuple[Container, Any]] = []
        self._tensors: list[tuple[TensorCopy, Any]] = []
        self._leaves: list[tuple[Leaf, Any]] = []
        self._inner: Found | None = None
        if found is not None:
            self._look(found)

    def _look(self, found: Found) -> None:
        self._contents = found.contents.changed()
        self._tensors = [(copy, copy.capture()) for copy in found.watch.changed()]
        pairs = zip(found.leaves, found.states, strict=True)
        self._leaves = [(leaf, leaf.capture()) for leaf, state in pairs if leaf.differs(state)]
        if self._contents:  # the step may change new objects too
            new = Walk(found.walk.probed, found.walk.seen)
            self._inner = Found(new.into(item for (_, form), held in self._contents for item in form.items(held)))

    def lay(self) -> None:
        """Make the hook's changes again."""
        for (owner, form), held in self._contents:
            form.put(owner, held)
        for copy, state in self._tensors:
            copy.put(state)
        for leaf, state in self._leaves:
            leaf.put(state)

    def take_away(self) -> None:
        """Put back what the step has changed in the hook's objects, before the module's state is put back."""
        if self._inner is not None:
            self._inner.put_back()
        for copy, _ in self._tensors:
            copy.restore()
