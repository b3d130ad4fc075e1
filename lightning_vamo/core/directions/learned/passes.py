"""The base class of learners by power iteration: passes over differences of gradients."""

from abc import abstractmethod
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

from lightning_vamo.core.directions.base import ProbeDirections
from lightning_vamo.core.directions.learner import Learner
from lightning_vamo.core.small import Small, added_up, finite_or_zero, one_of, placed, small, stacked, tensor_of, zeros

Basis = TypeVar("Basis")

Oversampling = int | Literal["auto"]
"""How many directions to follow in addition to those that are used; ``"auto"`` makes it four directions at least."""

# The attributes that a pass sums up, in small arrays: vectors, and single numbers.
_VECTORS = ("_moments", "_last_slopes")
_NUMBERS = ("_differences", "_squares", "_seen", "_follows")

# The slopes of so many gradients are kept before all of them are added up at once.
_MANY = 256


class PowerIteration(Learner, Generic[Basis]):
    r"""Block power iteration on the covariance of gradient noise, with a pass over the gradients between two snapshots.

    A sample of the noise is :math:`z_t = (g_t - g_{t-1}) / \sqrt 2`, whose mean is nearly zero even if the gradient drifts. A
    pass computes :math:`Y = \sum_t z_t z_t^\top U`, whose orthonormalised columns are the next :math:`U`. If a pass has fewer
    differences than directions, the directions cannot be told apart: the pass then goes on after the snapshot.

    The learner can follow more directions than are used: then it finds the leading directions in fewer passes, as in
    randomised singular value decomposition.

    Args:
        following: The directions to start from.
        count: ``q``, the number of directions that are used.
        oversampling: Number of further directions to follow; see :data:`Oversampling`.
        device: Device of the gradients.

    References:
        Halko, Martinsson & Tropp, "Finding structure with randomness", arXiv:0909.4061.
    """

    def __init__(self, following: ProbeDirections, count: int, oversampling: Oversampling, device: torch.device) -> None:
        self._count = count
        self._oversampling = oversampling
        self._every_share: Tensor | None = None
        self.current = None
        self.slopes = None
        self.shares = None
        self._following = following
        self._device = device
        self._turned = False
        self._begin_pass()

    def _begin_pass(self) -> None:
        self._differences, self._squares, self._seen = (zeros(device=self._device) for _ in range(3))
        # Sums of slopes, of their squares, and of half the squares of their differences, but for those of recent gradients.
        self._moments = zeros(3, self._following.count, device=self._device)
        self._recent: list[tuple[Small, Small]] = []
        self._last_slopes = zeros(self._following.count, device=self._device)
        self._follows: Small = zeros(device=self._device) > 0
        """Whether there is a last gradient, and whether it was finite, as a number."""

    @property
    def ready(self) -> bool:
        """See :class:`Learner`; the first pass must have as many differences as directions."""
        return self._turned or self._enough

    @property
    def _enough(self) -> bool:
        return float(self._differences) >= self._count

    def _change(self, slopes: Small, finite: Small) -> Small:
        """Count a gradient's slopes along the directions, over all processes.

        Args:
            slopes: Inner products with each direction, without the direction's part in the span of the directions before, shape
                ``(q,)``; zeros if the gradient is not finite.
            finite: Whether the gradient is finite.

        Returns:
            The changes of the slopes since the last gradient; zeros if there is no last gradient. They are not read here, so
            that nothing waits for a GPU.
        """
        known = finite & self._follows
        change = finite_or_zero(slopes - self._last_slopes, known)
        self._last_slopes, self._follows = slopes, finite
        self._differences = self._differences + known
        self._seen = self._seen + finite
        self._recent.append((slopes, change))
        if len(self._recent) == _MANY:
            self._add_up()
        return change

    def interrupt(self) -> None:
        """See :meth:`Learner.interrupt`."""
        self._follows = zeros(device=self._device) > 0

    def _add_up(self) -> None:
        """Add what is known of the recent gradients to the moments, one after another whenever that is done."""
        if self._recent:
            slopes, changes = (stacked(*part) for part in zip(*self._recent, strict=True))
            terms = stacked(slopes, slopes * slopes, changes * changes / 2).swapaxes(0, 1)
            self._moments = added_up(self._moments, terms)
            self._recent = []

    @torch.no_grad()
    def directions(self, count: int, generator: torch.Generator) -> ProbeDirections:
        """See :meth:`Learner.directions`; a pass with fewer differences of gradients than directions goes on."""
        if self._enough or count != self._count:
            turn = self._power_iterated() if self._enough else None
            basis, shares = (self._basis(), self._every_share) if turn is None else (turn, self._shares())
            followed = oversampled(count, self._oversampling, self._following.dimension)
            self._following = self._follow(basis, followed, generator)
            # Random directions are taken to remove nothing.
            self._every_share = None if shares is None else torch.cat((shares, shares[-1:].expand(followed)))[:followed]
            self._count = count
            self._begin_pass()
        self.shares = None if self._every_share is None else self._every_share[:count]
        return self.leading(count)

    def shares_so_far(self) -> Tensor | None:
        """See :meth:`Learner.shares_so_far`."""
        known = self._turned and self._enough and self.current is not None
        shares = self._shares_of_pass() if known else None
        return self.shares if shares is None else shares[: self.current.count]  # type: ignore[union-attr]

    def leading(self, count: int) -> ProbeDirections:
        """See :meth:`Learner.leading`."""
        self.current = self._following if count == self._following.count else self._first(count)
        return self.current

    def _shares(self) -> Tensor | None:
        """The shares of a pass's noise along the directions that the pass began with, which were not learned from that noise.

        The directions that the pass ends with hold a little more noise. The singular values of ``Y`` would overestimate their
        shares, since these directions are fitted to the noise of few samples.

        Returns:
            See :attr:`Learner.shares`.
        """
        # The first pass began with random directions, whose shares say nothing about the learned directions.
        known, self._turned = self._turned, True
        return self._shares_of_pass() if known else None

    def _shares_of_pass(self) -> Tensor | None:
        """The shares of the noise of the pass so far, in the span of the directions; None if there was no noise."""
        self._add_up()
        noise = self._following.shards.total(tensor_of(self._squares).cpu())
        if not float(noise) > 0:
            return None
        total, squares, differences = tensor_of(self._moments).cpu()
        # A drifting gradient makes the first number too large; an oscillating gradient makes the second number too large.
        along = torch.minimum(squares - total.square() / float(self._seen), differences)
        return (along / noise).cumsum(0).clamp(0, 1)

    @abstractmethod
    def _basis(self) -> Basis:
        """The directions that the learner follows."""

    @abstractmethod
    def _power_iterated(self) -> Basis | None:
        """The directions that the pass has found, as many as are linearly independent; None if there was no noise."""

    @abstractmethod
    def _follow(self, basis: Basis, count: int, generator: torch.Generator) -> ProbeDirections:
        """The first ``count`` directions, completed by random directions if there are fewer."""

    @abstractmethod
    def _first(self, count: int) -> ProbeDirections:
        """The first ``count`` of the directions that the learner follows."""

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Learner.state_dict`."""
        self._add_up()
        sums = {name: tensor_of(getattr(self, name)) for name in _VECTORS + _NUMBERS}
        counts = {"count": self._count, "given": None if self.current is None else self.current.count}
        return {"turned": self._turned, "shares": self._every_share, **counts, **sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`Learner.load_state_dict`.

        Args:
            state: What :meth:`state_dict` returned.
        """
        self._turned, self._count, self._every_share = state["turned"], state["count"], state["shares"]
        self.shares = None if self._every_share is None or state["given"] is None else self._every_share[: self._count]
        self.current = None if state["given"] is None else self.leading(state["given"])
        for name in _VECTORS:
            setattr(self, name, placed(small(state[name].clone()), self._device))
        for name in _NUMBERS:
            setattr(self, name, one_of(state[name], self._device))
        self._follows = self._follows > 0
        self._recent = []

    def _copies(self, tensors: list[Tensor]) -> list[Tensor]:
        return [tensor.to(self._device, copy=True) for tensor in tensors]


# A single direction that is learned alone holds half of what the first of four holds; from the third pass on all is the same.
_FEWEST = 4


def oversampled(count: int, oversampling: Oversampling, dimension: float) -> int:
    """The number of directions to follow: ``oversampling`` more than ``count``, but at most the number of dimensions."""
    more = max(0, _FEWEST - count) if oversampling == "auto" else oversampling
    return max(count, int(min(count + more, dimension)))
