"""MeZO: a zeroth-order gradient, and nothing taken out of it."""

from collections.abc import Callable
from typing import ClassVar, Literal

from torch import Tensor

from lightning_vamo.callbacks.base import MethodCallback
from lightning_vamo.core.directions import Directions, GaussianDirections
from lightning_vamo.core.probes.difference import Difference
from lightning_vamo.loop.gradient.zeroth_order import Settings, ZerothOrder


class MeZOCallback(MethodCallback):
    r"""Trains a module that has the :class:`~lightning_vamo.VAMOMixin` without gradients, in the memory of a forward pass.

    Each step draws ``q`` random directions :math:`z_j`, evaluates the loss of its batch on both sides of the weights along each
    of them, and moves the weights by what the differences say:

    .. math:: g = \frac{1}{q} \sum_{j=1}^{q} \frac{f_B(x + \mu z_j) - f_B(x - \mu z_j)}{2\mu}\, z_j,
        \qquad z_j \sim \mathcal{N}(0, I_d), \qquad x \leftarrow x - \eta\,(g + \lambda x)

    There is no graph, no ``.grad``, and no activation is kept. The directions are never stored: each use draws them again from
    a seed. The weights move along them in place, and come back to the bit, in any floating-point type.

    Cost of a step: ``2q`` forward passes of each batch (``1 + q`` with ``difference="forward"``), no backward pass. An epoch
    costs nothing beside its steps. Memory: that of a forward pass without gradients, a copy of the batch, and about a hundredth
    of the weights' memory for their way back. Communication of a step under DDP: ``q`` numbers per rank, in one exchange.

    What ``training_step`` logs and counts is logged and counted once, from the first of the evaluations: at
    :math:`x + \mu z_1`, or at :math:`x` with forward differences. An objective needs no gradient: define a ``probe_loss`` on
    the module, and it is what is minimised, for example ``1 - accuracy``.

    Logged at the end of each epoch under ``mezo/``: ``probes``; ``derivative``, the root mean square of the directional
    derivatives; ``clipped``, the share of them that ``clip`` bounded; ``not_finite``, how many were left out; and
    ``forward_evaluations`` and ``backward_evaluations`` of a batch so far.

    Args:
        probes: ``q``, the number of directions that a step averages over.
        directions: The family of directions, of mean length :math:`\sqrt d`; by default
            :class:`~lightning_vamo.core.directions.GaussianDirections`, the paper's. A
            :class:`~lightning_vamo.core.directions.MaskedDirections` around it moves the smallest weights alone; its mask is
            made anew at the beginning of each epoch.
        mu: Smoothing radius :math:`\mu`, for directions of length :math:`\sqrt d`: each weight moves by about so much. Or
            ``"auto"``, which follows from the size of the weights and from the arithmetic, once per epoch: see
            :func:`~lightning_vamo.core.probes.radius.auto_mu`.
        difference: ``"central"``, or ``"forward"``: :math:`(f_B(x + \mu z_j) - f_B(x))/\mu`.
        update: ``"in-place"`` moves the weights themselves, with the learning rate and the weight decay of their group, as
            ``torch.optim.SGD`` without momentum does. ``"gradient"`` puts :math:`g` into ``.grad``, which takes the memory of
            the weights once, and lets the optimizer step. ``"auto"``, the default, does the first where the optimizer is plain
            SGD and the Trainer neither clips nor scales gradients, and else the second.
        clip: A bound for the directional derivatives, in units of the loss; None for no bound.
        parameters: Which parameters move: a pattern of names such as ``"*.bias"``, a list of patterns, or a function of a name
            and a parameter that returns True or False; None for all. Only those that the optimizer has and that need a gradient
            move.
        share: What the ranks of DDP do. ``"batches"``: all evaluate the same directions, each on its own batch, and average
            each derivative. ``"probes"``: each evaluates ``q`` directions of its own, so that a step averages over ``q`` times
            the number of ranks; each rank draws all of them for the step.
        seed: Seed of the directions; by default it follows from the global seed. The global generator is never touched.
        verbose: Whether the end of the training says what MeZO cost, in the way of Lightning's own messages.

    Raises:
        InvalidArgumentError: If an argument has a value that is not allowed.

    References:
        Malladi et al., "Fine-Tuning Language Models with Just Forward Passes", arXiv:2305.17333, Algorithm 1. ``clip``: Shang
        et al., "QZO", arXiv:2505.13430. ``share="probes"``: "DistZO2", arXiv:2507.03211.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(max_epochs=10, callbacks=[MeZOCallback()], logger=False)
    """

    prefix: ClassVar[str] = "mezo"
    title: ClassVar[str] = "MeZO"

    def __init__(
        self,
        probes: int = 1,
        directions: Directions | None = None,
        mu: float | Literal["auto"] = 1e-3,
        difference: Difference = "central",
        update: Literal["auto", "in-place", "gradient"] = "auto",
        clip: float | None = None,
        parameters: str | list[str] | Callable[[str, Tensor], bool] | None = None,
        share: Literal["batches", "probes"] = "batches",
        seed: int | None = None,
        verbose: bool = True,
    ) -> None:
        family = GaussianDirections() if directions is None else directions
        settings = Settings(probes, family, mu, difference, update, clip, parameters, share)
        super().__init__(ZerothOrder(settings), seed=seed, verbose=verbose)
