"""ZO-SVRG: train with a gradient estimated from forward passes alone, and subtract noise that is measured at a snapshot."""

from typing import ClassVar, Literal

from lightning_vamo.callbacks.base import MethodCallback
from lightning_vamo.core.control.mixing import is_number
from lightning_vamo.core.directions import Directions, GaussianDirections
from lightning_vamo.core.probes.difference import Difference
from lightning_vamo.core.schedules import ConstantProbes
from lightning_vamo.errors import InvalidArgumentError, shown
from lightning_vamo.loop.control.nothing import Nothing
from lightning_vamo.loop.control.recompute import Recompute
from lightning_vamo.loop.control.replayed import Replay
from lightning_vamo.loop.control.settings import ProbeSettings
from lightning_vamo.loop.gradient.zeroth_order import Settings, ZerothOrder
from lightning_vamo.loop.ledger.ways import Ways


class ZOSVRGCallback(MethodCallback):
    r"""Train a module that has the :class:`~lightning_vamo.VAMOMixin` without a backward pass, with SVRG's control variate.

    ZO-SVRG takes snapshots :math:`\tilde x` of the weights, and draws ``q`` directions :math:`z_j` with each snapshot. Until
    the next snapshot, each step estimates its gradient along these directions, and subtracts the noise of the same batch at the
    snapshot:

    .. math:: v = \hat\nabla f_B(x) - \alpha\,\bigl(\hat\nabla f_B(\tilde x) - \hat\nabla f(\tilde x)\bigr), \qquad
        \hat\nabla f(x) = \frac{1}{q} \sum_{j=1}^{q} \frac{f(x + \mu z_j) - f(x - \mu z_j)}{2\mu}\, z_j

    All three terms have the same directions: with different directions the control variate would add noise. So the weights move
    within the span of ``q`` directions from one snapshot to the next: take many snapshots, or many probes. With as many
    orthonormal directions as weights the method is SVRG.

    Cost of a step, per batch: ``2q`` forward passes (``1 + q`` with ``difference="forward"``), and with
    ``control=Recompute(...)`` another ``1 + 2q`` (``1 + q``) at the snapshot. A snapshot costs ``1 + 2q`` (``1 + q``) forward
    passes of each batch of an epoch; for data that cannot be read twice, a running mean is used instead. There is no backward
    pass. Memory beside a forward pass: ``.grad``, and with ``Recompute`` the snapshot. The weights to return to from the
    snapshot are kept too, but are gone before ``.grad`` is made. Communication of a step under DDP: ``q`` numbers per rank,
    with ``Recompute`` another ``q``; with ``Replay`` one number per batch, so that all ranks leave out a row whose batch has
    changed on one rank. Communication of a snapshot: one reduction of the table.

    Logged under ``zosvrg/``: at the end of each epoch the figures of :class:`~lightning_vamo.MeZOCallback`, and those of
    :class:`~lightning_vamo.VAMOCallback` that concern the rows; at the step of each snapshot those that concern the snapshot.

    Args:
        probes: ``q``, the number of directions.
        directions: The family of directions, which must not learn; by default
            :class:`~lightning_vamo.core.directions.GaussianDirections`, drawn from a seed at each use.
        mu: Smoothing radius :math:`\mu` for directions of length :math:`\sqrt d`, so each weight moves by about :math:`\mu`; or
            ``"auto"``: see :func:`~lightning_vamo.core.probes.radius.auto_mu`.
        difference: ``"central"`` or ``"forward"``.
        alpha: The mixing coefficient :math:`\alpha`. 0 takes no snapshot: the method is then
            :class:`~lightning_vamo.MeZOCallback` with ``update="gradient"``.
        control: When snapshots are taken, and where the rows of the steps come from: :class:`~lightning_vamo.Recompute`
            evaluates each step's batch at the snapshot, and :class:`~lightning_vamo.Replay` sweeps the coming epoch's batches
            and trains on these very batches; by default ``Recompute(every_n_epochs=1)``.
        seed: Seed of the directions; by default derived from the global seed. The global generator is never touched.
        verbose: Whether to log, after each epoch and at the end of training, what ZO-SVRG cost and how much noise it removed.

    Raises:
        InvalidArgumentError: If an argument has a value that is not allowed.

    References:
        Liu et al., "Zeroth-Order Stochastic Variance Reduction for Nonconvex Optimization", arXiv:1805.10367. For language
        models: Gautam et al., "Variance-reduced Zeroth-Order Methods for Fine-Tuning Language Models", arXiv:2404.08080.

    Example:
        >>> import lightning as L
        >>> from lightning_vamo import Recompute
        >>> callback = ZOSVRGCallback(probes=8, control=Recompute(every_n_train_steps=20))
        >>> trainer = L.Trainer(max_epochs=10, callbacks=[callback], logger=False)
    """

    prefix: ClassVar[str] = "zosvrg"
    title: ClassVar[str] = "ZO-SVRG"
    ways: ClassVar[Ways] = Ways("control=Recompute(...)", "alpha=0", carry=None, anew=None, sweep_precision=False)

    def __init__(
        self,
        probes: int = 1,
        directions: Directions | None = None,
        mu: float | Literal["auto"] = 1e-3,
        difference: Difference = "central",
        alpha: float = 1.0,
        control: Recompute | Replay | None = None,
        seed: int | None = None,
        verbose: bool = True,
    ) -> None:
        family = GaussianDirections("seeded") if directions is None else directions
        gradient = ZerothOrder(Settings(probes, family, mu, difference, update="gradient"))
        if not is_number(alpha):
            raise InvalidArgumentError(f"`alpha` must be a finite number >= 0, got {shown(alpha)}.")
        settings = ProbeSettings(ConstantProbes(probes), family, mu, alpha, difference, None, per_weight=True)
        chosen = Recompute(every_n_epochs=1) if control is None else control
        if not isinstance(chosen, (Recompute, Replay)):
            raise InvalidArgumentError(f"`control` must be Recompute(...) or Replay(...), got {shown(control)}.")
        super().__init__(gradient, chosen if alpha else Nothing(), settings, seed, verbose=verbose)
