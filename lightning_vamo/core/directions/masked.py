"""Directions that move only the smallest weights of each tensor."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_vamo.core.directions.base import ProbeDirections
from lightning_vamo.core.directions.family import Directions
from lightning_vamo.core.directions.random.streams import CHUNK, pieces
from lightning_vamo.core.directions.slopes import Slopes
from lightning_vamo.core.numerics import at_least_float32
from lightning_vamo.core.sharding import is_sharded
from lightning_vamo.core.small import Small, small, stacked, tensor_of
from lightning_vamo.errors import InvalidArgumentError, UnsupportedError, shown


class MaskedDirections(Directions):
    r"""Directions of any family, restricted to the smallest weights of each tensor; the other weights do not move.

    Large weights hold the knowledge of a pretrained model, and the loss is curved along large weights: if they do not move, a
    larger learning rate is possible. Directions are drawn in the space of the small weights: they have (mean) unit norm there,
    they are orthonormal if the family's directions are, and ``d`` is the number of small weights.

    A mask marks the small weights of a point. If directions are drawn for a snapshot, the mask is made at the snapshot.
    :class:`~lightning_vamo.MeZOCallback`, which draws directions for each step, makes a mask at the beginning of each epoch. A
    mask takes one bit per weight.

    Args:
        family: The family to restrict, which must not learn.
        keep: Share of each tensor's weights that can move, above 0 and at most 1; at least one weight. Weights that are exactly
            as small as the largest of these weights move too.

    Raises:
        InvalidArgumentError: If an argument is not allowed.

    References:
        Liu et al., "Sparse MeZO", arXiv:2402.15751.

    Example:
        >>> import torch
        >>> weights = torch.tensor([3.0, -0.1, 2.0, 0.2])
        >>> from lightning_vamo.core.directions import RademacherDirections
        >>> family = MaskedDirections(RademacherDirections(), keep=0.5)
        >>> family.draw([weights], 1, torch.Generator().manual_seed(0)).dense([weights]).abs()
        tensor([[0.0000, 0.7071, 0.0000, 0.7071]])
    """

    def __init__(self, family: Directions, keep: float = 0.25) -> None:
        if not isinstance(family, Directions) or family.learns:
            raise InvalidArgumentError(
                f"`family` must be a family of directions that does not learn, such as GaussianDirections(), got"
                f" {shown(family)}."
            )
        if isinstance(keep, bool) or not isinstance(keep, (int, float)) or not 0 < keep <= 1:
            raise InvalidArgumentError(f"`keep` must be above 0 and at most 1, got {keep!r}.")
        self.family = family
        self.keep = keep
        self._masks: list[Tensor] | None = None

    @property
    def orthonormal(self) -> bool:  # type: ignore[override]  # it is the family's
        """Whether the directions of one draw are orthonormal, as the family's are."""
        return self.family.orthonormal

    def seeded(self) -> "MaskedDirections":
        """See :meth:`Directions.seeded`."""
        return self._with(self.family.seeded(), self._masks)

    def at(self, parameters: Sequence[Tensor], state: list[Tensor] | None = None) -> "MaskedDirections":
        """See :meth:`Directions.at`; the family gets the mask of these weights."""
        if state is None:
            state = [_mask(parameter, self.keep) for parameter in parameters]
        return self._with(self.family, [mask.to(p.device) for mask, p in zip(state, parameters, strict=True)])

    def state(self) -> list[Tensor] | None:
        """See :meth:`Directions.state`."""
        return self._masks

    def _with(self, family: Directions, masks: list[Tensor] | None) -> "MaskedDirections":
        other = MaskedDirections(family, self.keep)
        other._masks = masks
        return other

    def check_count(self, count: int, dimension: int) -> None:
        """See :meth:`Directions.check_count`; the limit is that of the family for the number of small weights."""
        self.family.check_count(count, max(1, math.ceil(self.keep * dimension)))

    def _draw(self, parameters: Sequence[Tensor], count: int, generator: torch.Generator) -> ProbeDirections:
        masks = self._masks or [_mask(parameter, self.keep) for parameter in parameters]
        sizes = [int(sum(part.sum() for part in _unpacked(mask, p.numel()))) for mask, p in zip(masks, parameters, strict=True)]
        # Only the shapes, types and devices of these tensors are read.
        kept = [p.new_zeros(()).expand(size) for p, size in zip(parameters, sizes, strict=True)]
        return _Masked(self.family.draw(kept, count, generator), masks, parameters)


class _Masked(ProbeDirections):
    """Directions in the space of the small weights, used as directions of all weights."""

    def __init__(self, inner: ProbeDirections, masks: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
        self.count = inner.count
        self.dimension = inner.dimension
        self.masks = masks
        self._inner = inner
        self._numels = [parameter.numel() for parameter in parameters]
        self._dtypes = [at_least_float32(parameter.dtype) for parameter in parameters]

    def sizes(self) -> list[list[int]]:
        """See :meth:`ProbeDirections.sizes`."""
        return [[min(CHUNK, size - start) for start in range(0, size, CHUNK)] for size in self._numels]

    def parts(self, index: int) -> Iterator[Tensor | None]:
        """See :meth:`ProbeDirections.parts`."""
        stream, sizes = self._inner.parts(index), self._inner.sizes()
        for mask, numel, dtype, own in zip(self.masks, self._numels, self._dtypes, sizes, strict=True):
            drawn = (torch.zeros(n, dtype=dtype, device=mask.device) if p is None else p for n, p in _sized(own, stream))
            rest = torch.empty(0, dtype=dtype, device=mask.device)
            for flags in _unpacked(mask, numel):
                while len(rest) < (needed := int(flags.sum())):
                    rest = torch.cat([rest, next(drawn)])
                part = None
                if needed:
                    part = torch.zeros(len(flags), dtype=dtype, device=mask.device)
                    part[flags] = rest[:needed]
                rest = rest[needed:]
                yield part

    def move(
        self, targets: Sequence[Tensor], origins: Sequence[Tensor], index: int, distance: float, *, near: bool = False
    ) -> None:
        """See :meth:`ProbeDirections.move`."""
        stream = self.parts(index)
        for target, origin, sizes in zip(targets, origins, self.sizes(), strict=True):
            for to, source in zip(pieces(target, sizes), pieces(origin, sizes), strict=True):
                part = next(stream)
                if part is None:
                    to.copy_(source)
                else:
                    torch.add(source, part.to(source.dtype), alpha=distance, out=to)

    def project(self, vectors: Sequence[Tensor | None]) -> Tensor:
        """See :meth:`ProbeDirections.project`."""
        return self._inner.project(self._kept(vectors))

    def remove_(self, vectors: Sequence[Tensor | None], coefficients: Small, slopes: Slopes | None = None) -> Small:
        """See :meth:`ProbeDirections.remove_`."""
        kept = self._kept(vectors)
        square, product, step = tensor_of(stacked(*self._inner.remove_(kept, coefficients)))
        for vector, inner, mask in zip(vectors, kept, self.masks, strict=True):
            if vector is not None and inner is not None:
                flat, flags = vector.detach().reshape(-1), _whole(mask, vector.numel())
                rest = torch.linalg.vector_norm(flat[~flags], dtype=torch.float64)
                square = square + rest.to(square.device) ** 2
                flat[flags] = inner
                if flat.data_ptr() != vector.data_ptr():
                    vector.detach().copy_(flat.view_as(vector))
        return small(torch.stack((square, product, step)))

    def whiten(self, slopes: Tensor) -> Tensor:
        """See :meth:`ProbeDirections.whiten`."""
        return self._inner.whiten(slopes)

    def _kept(self, vectors: Sequence[Tensor | None]) -> list[Tensor | None]:
        pairs = zip(vectors, self.masks, strict=True)
        return [None if v is None else v.detach().reshape(-1)[_whole(mask, v.numel())] for v, mask in pairs]


def _mask(parameter: Tensor, keep: float) -> Tensor:
    """The mask of a tensor's smallest weights, with a bit for each weight."""
    if is_sharded(parameter):
        raise UnsupportedError(
            "MaskedDirections need whole tensors, to find their smallest weights, but the parameters are sharded: train with"
            " DDP, or with another family of directions."
        )
    sizes = parameter.detach().reshape(-1).abs()
    if not len(sizes):
        return sizes.to(torch.uint8)
    flags = sizes <= _smallest(sizes, math.ceil(keep * len(sizes)))
    padded = torch.zeros(len(flags) + -len(flags) % 8, dtype=torch.uint8, device=flags.device)
    padded[: len(flags)] = flags
    return (padded.view(-1, 8) << _bits(flags)).sum(dim=1, dtype=torch.uint8)


def _smallest(sizes: Tensor, count: int) -> Tensor:
    """The largest of the smallest numbers."""
    if sizes.device.type == "cpu" or not torch.are_deterministic_algorithms_enabled():
        return sizes.kthvalue(count).values
    # On a GPU older versions of torch refuse `kthvalue` here. This takes more memory.
    return sizes.topk(count, largest=False, sorted=False).values.max()


def _bits(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device)


def _unpacked(mask: Tensor, numel: int) -> Iterator[Tensor]:
    """The flags of a mask, a chunk at a time."""
    for start, packed in zip(range(0, numel, CHUNK), torch.split(mask, CHUNK // 8), strict=False):
        yield (packed.unsqueeze(1) >> _bits(packed) & 1).view(-1)[: numel - start].bool()


def _whole(mask: Tensor, numel: int) -> Tensor:
    return torch.cat([*_unpacked(mask, numel), mask[:0].bool()])


def _sized(sizes: Sequence[int], parts: Iterator[Tensor | None]) -> Iterator[tuple[int, Tensor | None]]:
    for size in sizes:
        yield size, next(parts)
