"""Directions learned from the gradients that training computes anyway."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_vamo.core.directions.base import ProbeDirections
from lightning_vamo.core.directions.family import Directions
from lightning_vamo.core.directions.learned.dense import DenseDirections, Flat
from lightning_vamo.core.directions.learned.dense_learner import DenseLearner, random_rows
from lightning_vamo.core.directions.learned.factored import FactoredDirections
from lightning_vamo.core.directions.learned.factored_learner import FactoredLearner
from lightning_vamo.core.directions.learned.factors import random
from lightning_vamo.core.directions.learned.grams import normalised
from lightning_vamo.core.directions.learned.layout import Layout
from lightning_vamo.core.directions.learned.passes import Oversampling, oversampled
from lightning_vamo.core.directions.learner import Learner
from lightning_vamo.errors import InvalidArgumentError


class GradientSubspaceDirections(Directions):
    r"""The leading directions of mini-batch gradient noise, learned from the gradients of the training steps.

    :math:`u_1 \ldots u_q` approximate the eigenvectors of the gradients' covariance with the largest eigenvalues. Between two
    snapshots, one pass of block power iteration improves the directions :math:`U`: with
    :math:`z_t = (g_t - g_{t-1}) / \sqrt 2`,

    .. math:: Y = \sum_t z_t z_t^\top U, \qquad U \leftarrow \operatorname{orth}(Y)

    Random directions remove the share :math:`q/d` of the noise. Directions that span the leading subspace of the noise remove
    the largest share that ``q`` directions can remove.

    Args:
        rank: Number of outer products that make up a matrix of a direction; this saves memory. None keeps whole directions,
            in at most ``(2q + 2) * d`` numbers, where ``q`` includes oversampling; whole directions hold more of the noise.
            ``"auto"`` keeps whole directions for models of 64 to 16,384 trainable parameters, and else one outer product.
            Factored directions are not quite orthogonal; coordinates in an orthonormal basis make up for this.
        warmup_batches: Number of gradients to learn from before the first snapshot, without taking a step: at most as many as
            the epoch has batches, and at least ``q + 1``, since fewer gradients give no directions. On the MNIST perceptron,
            with ``q = 8``, ``rank=1`` and one pass, the learned directions hold 0.27 of the noise after 32 batches, 0.31 after
            64, and 0.33 after 128. With 0 the first epoch trains plainly, and the directions are learned from its steps.
            ``"auto"`` is 0 if the first epoch has 64 steps or more and is not the last epoch, and else 64. Where measurement
            decides whether anything pays, ``"auto"`` makes no extra pass in any case.
        oversampling: Number of directions to follow in addition to the probed directions, as far as there are dimensions. The
            leading directions are then found in fewer passes; each step computes as many more inner products. ``"auto"``
            follows at least four directions, and no more than are probed where four or more are.

    Raises:
        InvalidArgumentError: If a number is not whole, if ``rank`` is less than 1, or another argument less than 0.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> parameters = [torch.zeros(4, 6), torch.zeros(4)]
        >>> learner = GradientSubspaceDirections().learner(parameters, 1, generator)
        >>> for sign in (1.0, -1.0, 1.0):
        ...     learner.observe([torch.full((4, 6), sign), None])
        >>> learner.directions(1, generator).dense(parameters).abs()[0, :3]
        tensor([0.2041, 0.2041, 0.2041])
    """

    learns = True

    def __init__(
        self,
        rank: int | Literal["auto"] | None = 1,
        warmup_batches: int | Literal["auto"] = "auto",
        oversampling: Oversampling = "auto",
    ) -> None:
        if rank is not None and not _is_whole(rank, 1):
            raise InvalidArgumentError(f'`rank` must be None, "auto" or a whole number >= 1, got {rank!r}.')
        for name, value in (("warmup_batches", warmup_batches), ("oversampling", oversampling)):
            if not _is_whole(value, 0):
                raise InvalidArgumentError(f'`{name}` must be "auto" or a whole number >= 0, got {value!r}.')
        self.rank = rank
        self.warmup_batches = warmup_batches
        self.oversampling = oversampling

    def learner(self, parameters: Sequence[Tensor], count: int, generator: torch.Generator) -> Learner:
        """See :meth:`Directions.learner`."""
        dimension = sum(parameter.numel() for parameter in parameters)
        start = self.draw(parameters, oversampled(count, self.oversampling, dimension), generator)
        if isinstance(start, DenseDirections):
            return DenseLearner([parameter.detach() for parameter in parameters], start, count, self.oversampling)
        return FactoredLearner(start, count, self.oversampling)  # type: ignore[arg-type]

    def check_count(self, count: int, dimension: int) -> None:
        """See :meth:`Directions.check_count`."""
        super().check_count(count, dimension)
        if isinstance(self.rank, int) and self.rank > dimension:
            raise InvalidArgumentError(
                f"`rank` must be at most {dimension}, the number of weights, got {self.rank}: choose a smaller number, or None"
                " for whole directions."
            )
        if self._is_dense(dimension) and count > dimension:
            raise InvalidArgumentError(
                f"GradientSubspaceDirections cannot learn {count} orthonormal directions in a space of {dimension} trainable"
                f" parameters: use at most {dimension} probes."
            )

    def _is_dense(self, dimension: int) -> bool:
        return self.rank is None or (self.rank == "auto" and dimension in _SMALL)

    def _draw(self, parameters: Sequence[Tensor], count: int, generator: torch.Generator) -> ProbeDirections:
        dimension = sum(parameter.numel() for parameter in parameters)
        if self._is_dense(dimension):
            return DenseDirections(random_rows(parameters, count, generator), Flat(parameters))
        rank = self.rank if isinstance(self.rank, int) else 1
        return FactoredDirections(normalised(random(Layout(parameters, rank), count, generator)))


def _is_whole(value: object, least: int) -> bool:
    return value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= least)


# Up to 16,384 parameters a step with whole directions takes no longer than a step with factored directions. In a space of few
# dimensions there is nothing to choose, and more factored directions than dimensions can be asked for.
_SMALL = range(64, 2**14 + 1)
