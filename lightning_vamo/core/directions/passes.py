"""What learners by power iteration have in common: passes over differences of gradients."""

from abc import abstractmethod
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from lightning_vamo.core.directions.base import ProbeDirections
from lightning_vamo.core.directions.learner import Learner

Basis = TypeVar("Basis")


class PowerIteration(Learner, Generic[Basis]):
    r"""Block power iteration on the covariance of gradient noise, a pass over the gradients between two snapshots.

    A sample of the noise is :math:`z_t = (g_t - g_{t-1}) / \sqrt 2`, whose mean is nearly zero however the gradient drifts. A
    pass gives :math:`Y = \sum_t z_t z_t^\top U`, whose orthonormalised columns are the next :math:`U`. If it has fewer
    differences than there are directions, they cannot be told apart: it then goes on through the snapshot.

    Args:
        following: The directions to start from.
        device: Where gradients are.
    """

    def __init__(self, following: ProbeDirections, device: torch.device) -> None:
        self.current = None
        self.shares = None
        self._following = following
        self._device = device
        self._turned = False
        self._begin_pass()

    def _begin_pass(self) -> None:
        self._differences = torch.zeros((), dtype=torch.int64, device=self._device)
        self._squares = torch.zeros((), dtype=torch.float64, device=self._device)
        self._last_slopes: Tensor | None = None

    @property
    def ready(self) -> bool:
        """See :class:`Learner`: as many differences as directions, in the first pass."""
        return self._turned or self._enough

    @property
    def _enough(self) -> bool:
        return int(self._differences) >= self._following.count

    def _change(self, slopes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take note of a gradient's slopes along the directions, over all processes.

        Returns:
            By how much they changed, or zeros; whether the change is known; whether the gradient is finite. None of them is
            read here, for a GPU not to be waited for.
        """
        last = torch.full_like(slopes, torch.nan) if self._last_slopes is None else self._last_slopes
        finite = slopes.isfinite().all()
        known = finite & last.isfinite().all()
        self._last_slopes = slopes
        self._differences += known
        return torch.where(known, slopes - last, 0.0), known, finite

    @torch.no_grad()
    def directions(self, count: int, generator: torch.Generator) -> ProbeDirections:
        """See :meth:`Learner.directions`; a pass with fewer differences of gradients than directions goes on."""
        if self._enough or count != self._following.count:
            turn = self._power_iterated() if self._enough else None
            basis, shares = (self._basis(), self.shares) if turn is None else (turn[0], self._shares(turn[1]))
            self._following = self._follow(basis, count, generator)
            # A random direction removes nothing.
            self.shares = None if shares is None else torch.cat((shares, shares[-1:].expand(count)))[:count]
            self._begin_pass()
        self.current = self._following
        return self._following

    def _shares(self, spectrum: Tensor) -> Tensor | None:
        """Shares of the noise in the leading directions, from the singular values of ``2 Y``."""
        # From random directions, those of the first pass, the spectrum is far too small.
        known, self._turned = self._turned, True
        total = self._following.shards.total(self._squares.cpu())
        return (spectrum / (2 * total)).cumsum(0).clamp(max=1) if known else None

    @abstractmethod
    def _basis(self) -> Basis:
        """The directions being followed."""

    @abstractmethod
    def _power_iterated(self) -> tuple[Basis, Tensor] | None:
        """The directions that the pass gives, as many as can be told apart, and its singular values; None without noise."""

    @abstractmethod
    def _follow(self, basis: Basis, count: int, generator: torch.Generator) -> ProbeDirections:
        """The first ``count`` of some directions, and random ones where there are fewer."""

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Learner.state_dict`."""
        return {
            "turned": self._turned,
            "given": self.current is not None,
            "shares": self.shares,
            "differences": self._differences,
            "squares": self._squares,
            "last_slopes": self._last_slopes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`Learner.load_state_dict`.

        Args:
            state: What :meth:`state_dict` returned.
        """
        self._turned = state["turned"]
        self.current = self._following if state["given"] else None
        self.shares = state["shares"]
        self._differences, self._squares = self._copies([state["differences"], state["squares"]])
        self._last_slopes = None if state["last_slopes"] is None else self._copies([state["last_slopes"]])[0]

    def _copies(self, tensors: list[Tensor]) -> list[Tensor]:
        return [tensor.to(self._device, copy=True) for tensor in tensors]
