"""ZO-SVRG: a zeroth-order gradient, and a zeroth-order control variate."""

from typing import ClassVar, Literal

from lightning_vamo.callbacks.base import MethodCallback
from lightning_vamo.core.directions import Directions, GaussianDirections
from lightning_vamo.core.probes.difference import Difference
from lightning_vamo.core.schedules import ConstantProbes
from lightning_vamo.errors import InvalidArgumentError
from lightning_vamo.loop.control.nothing import Nothing
from lightning_vamo.loop.control.recompute import Recompute
from lightning_vamo.loop.control.replayed import Replay
from lightning_vamo.loop.control.settings import ProbeSettings
from lightning_vamo.loop.gradient.zeroth_order import Settings, ZerothOrder
from lightning_vamo.loop.ledger.ways import Ways


class ZOSVRGCallback(MethodCallback):
    r"""Trains a module that has the :class:`~lightning_vamo.VAMOMixin` without gradients, with SVRG's control variate.

    A snapshot :math:`\tilde x` of the weights is taken now and then, and ``q`` directions :math:`z_j` are drawn with it. Until
    the next snapshot each step estimates its gradient along these directions, and takes the noise out that the same batch has
    along them at the snapshot:

    .. math:: v = \hat\nabla f_B(x) - \alpha\,\bigl(\hat\nabla f_B(\tilde x) - \hat\nabla f(\tilde x)\bigr), \qquad
        \hat\nabla f(x) = \frac{1}{q} \sum_{j=1}^{q} \frac{f(x + \mu z_j) - f(x - \mu z_j)}{2\mu}\, z_j

    All three terms have the same directions. With other ones in each the control variate would add noise, and remove none.
    So the weights move within the span of ``q`` directions from one snapshot to the next: take many snapshots, or many probes.
    With as many orthonormal directions as weights the method is SVRG.

    Cost of a step, per batch: ``2q`` forward passes, and ``1 + 2q`` more at the snapshot with ``control=Recompute(...)``; with
    ``difference="forward"`` ``1 + q``, and ``1 + q`` more. With ``control=Replay(...)`` a step has no more than its own. A
    snapshot costs ``1 + 2q`` forward passes (``1 + q``) of each batch of an epoch; for data that cannot be read twice, a
    running mean takes their place. There is no backward pass. Memory beside a forward pass: ``.grad``, and with ``Recompute``
    the snapshot's weights and those to return to. Communication of a step under DDP: ``q`` numbers per rank, and ``q`` more
    with ``Recompute``; with ``Replay`` one more per batch, which tells the ranks to leave out a row whose batch has changed on
    one of them; of a snapshot: one reduction of the table.

    Logged at the end of each epoch under ``zosvrg/``: what :class:`~lightning_vamo.MeZOCallback` logs, and of the snapshot and
    its rows what :class:`~lightning_vamo.VAMOCallback` logs.

    Args:
        probes: ``q``, the number of directions.
        directions: The family of directions, which must not learn; by default
            :class:`~lightning_vamo.core.directions.GaussianDirections`, drawn from a seed at each use.
        mu: Smoothing radius :math:`\mu`, for directions of length :math:`\sqrt d`: each weight moves by about so much. Or
            ``"auto"``: see :func:`~lightning_vamo.core.probes.radius.auto_mu`.
        difference: ``"central"`` or ``"forward"``.
        alpha: The mixing coefficient :math:`\alpha`. 0 takes no snapshot: the method is then
            :class:`~lightning_vamo.MeZOCallback` with ``update="gradient"``.
        control: When snapshots are taken, and where the rows of the steps come from: :class:`~lightning_vamo.Recompute`
            evaluates each step's batch at the snapshot, and :class:`~lightning_vamo.Replay` sweeps the coming epoch's batches
            and trains on these; by default ``Recompute(every_n_epochs=1)``.
        seed: Seed of the directions; by default it follows from the global seed. The global generator is never touched.
        verbose: Whether each epoch, and the end of the training, says what ZO-SVRG cost and removed, in the way of Lightning's
            own messages.

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
        if isinstance(alpha, str):
            raise InvalidArgumentError(f"`alpha` must be a finite number >= 0, got {alpha!r}.")
        settings = ProbeSettings(ConstantProbes(probes), family, mu, alpha, difference, None, per_weight=True)
        chosen = Recompute(every_n_epochs=1) if control is None else control
        if not isinstance(chosen, (Recompute, Replay)):
            raise InvalidArgumentError(f"`control` must be Recompute(...) or Replay(...), got {control!r}.")
        super().__init__(gradient, chosen if alpha else Nothing(), settings, seed, verbose=verbose)
