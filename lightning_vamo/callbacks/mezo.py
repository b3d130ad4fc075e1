"""MeZO: train with a gradient that is estimated from forward passes alone, without a control variate."""

from collections.abc import Callable
from typing import ClassVar, Literal

from torch import Tensor

from lightning_vamo.callbacks.base import MethodCallback
from lightning_vamo.core.directions import Directions, GaussianDirections
from lightning_vamo.core.probes.difference import Difference
from lightning_vamo.loop.gradient.zeroth_order import Settings, ZerothOrder


class MeZOCallback(MethodCallback):
    r"""Train a module that has the :class:`~lightning_vamo.VAMOMixin` with MeZO: without a backward pass, in little memory.

    Each step draws ``q`` random directions :math:`z_j`, evaluates the loss of its batch on both sides of the weights along each
    direction, and estimates the gradient from the differences:

    .. math:: g = \frac{1}{q} \sum_{j=1}^{q} \frac{f_B(x + \mu z_j) - f_B(x - \mu z_j)}{2\mu}\, z_j,
        \qquad z_j \sim \mathcal{N}(0, I_d), \qquad x \leftarrow x - \eta\,(g + \lambda x)

    There is no graph and no ``.grad``, and no activation is kept. The directions are never stored: each use draws them again
    from a seed. The weights move along the directions in place, and come back bit for bit, in any floating-point type.

    Cost of a step: ``2q`` forward passes of each batch (``1 + q`` with ``difference="forward"``), and no backward pass. An
    epoch costs nothing in addition to its steps. Memory: that of a forward pass without gradients, a copy of the batch, and
    about a hundredth of the weights' memory for their way back; twice the memory of what moves, where that is no more than
    eight million numbers. Communication of a step under DDP: ``q`` numbers per rank, in one exchange.

    The logs and counters of ``training_step`` count once per batch, from the first evaluation: at :math:`x + \mu z_1`, or at
    :math:`x` with forward differences. If the module defines ``probe_loss``, its value is minimised; it needs no gradient, and
    can be ``1 - accuracy``, or a plain number such as an error rate of decoded text.

    Logged at the end of each epoch under ``mezo/``: ``probes``; ``derivative``, the root mean square of the directional
    derivatives; ``clipped``, the share of the derivatives that ``clip`` bounded; ``not_finite``, the number of derivatives
    that were left out; ``forward_evaluations`` and ``backward_evaluations``, the passes over a batch so far.

    Args:
        probes: ``q``, the number of directions that a step averages over.
        directions: The family of directions, scaled to mean length :math:`\sqrt d`; by default
            :class:`~lightning_vamo.core.directions.GaussianDirections`, as in the paper.
            :class:`~lightning_vamo.core.directions.MaskedDirections` move the smallest weights alone; their mask is made anew
            at the beginning of each epoch.
        mu: Smoothing radius :math:`\mu` for directions of length :math:`\sqrt d`, so each weight moves by about :math:`\mu`.
            ``"auto"`` computes the radius from the size of the weights and from the arithmetic, once per epoch: see
            :func:`~lightning_vamo.core.probes.radius.auto_mu`.
        difference: ``"central"``, or ``"forward"``: :math:`(f_B(x + \mu z_j) - f_B(x))/\mu`.
        update: ``"in-place"`` moves the weights themselves, with the learning rate and the weight decay of their group, as
            ``torch.optim.SGD`` without momentum does. ``"gradient"`` puts :math:`g` into ``.grad``, which takes as much memory
            as the weights, and lets the optimizer step. ``"auto"``, the default, chooses ``"in-place"`` if the optimizer is
            plain SGD, the Trainer neither clips nor scales gradients, and no hook may read or change a gradient before the
            step: the module's ``configure_gradient_clipping``, ``optimizer_step`` or ``on_before_optimizer_step``, or that hook
            of a callback. Otherwise it chooses ``"gradient"``. With ``"in-place"`` such hooks see no gradient, and the weights
            have moved before.
        clip: A bound for the directional derivatives, in units of the loss; None for no bound.
        parameters: Which parameters move: a pattern of names such as ``"*.bias"``, a list of patterns, or a function of a name
            and a parameter that returns True or False; None for all. Only parameters that the optimizer has and that need a
            gradient can move.
        share: What the ranks of DDP share. ``"batches"``: all ranks evaluate the same directions, each rank on its own batch,
            and average each derivative. ``"probes"``: each rank evaluates ``q`` directions of its own, and a step averages over
            the directions of all ranks; each rank draws all these directions for the step.
        seed: Seed of the directions; by default derived from the global seed. The global generator is never touched.
        verbose: Whether to log, at the end of training, what MeZO cost.

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
