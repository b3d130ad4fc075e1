"""VAMO: train with the usual gradient, and subtract noise from the gradient that forward passes have measured."""

from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lightning_vamo.callbacks.base import MethodCallback
from lightning_vamo.callbacks.renamed import old_names
from lightning_vamo.core.directions import Directions, GradientSubspaceDirections
from lightning_vamo.core.schedules import EfficientProbes, ProbeSchedule, as_schedule
from lightning_vamo.errors import InvalidArgumentError
from lightning_vamo.loop.control.base import Control
from lightning_vamo.loop.control.choose import Named, as_control
from lightning_vamo.loop.control.chosen import Chosen
from lightning_vamo.loop.control.nothing import Nothing
from lightning_vamo.loop.control.probed import ProbedControl
from lightning_vamo.loop.control.settings import ProbeSettings
from lightning_vamo.loop.gradient.first_order import FirstOrder
from lightning_vamo.loop.run.run import Run

OLD_NAMES = {
    "carry": 'write control="carry", or control=Carry(...)',
    "sweep": 'write control="carry" for carried rows without a sweep, control=Carry(sweep_every_n_epochs=...) with sweeps',
    "every_n_epochs": "write control=Replay(every_n_epochs=...) or control=Recompute(every_n_epochs=...)",
    "every_n_train_steps": "write control=Recompute(every_n_train_steps=...)",
}


class VAMOCallback(MethodCallback):
    r"""Train a module that has the :class:`~lightning_vamo.VAMOMixin` with VAMO.

    VAMO takes a snapshot :math:`\tilde x` of the weights, and evaluates the losses of the batches at the snapshot and at ``q``
    points around it. Each step then corrects its gradient with the finite differences :math:`\delta` of its batch,

    .. math:: v_k = \nabla f_{B_k}(x_k) - \alpha\,\frac{d}{q} \sum_j (\delta_{B_k,j} - \bar\delta_j)\, u_j,

    and the optimizer that the module configures steps with :math:`v_k`. By default the directions :math:`u_j` are learned in
    training, along the largest gradient noise, and a regression scales each correction. The method of the paper is
    ``VAMOCallback(probes=1, directions=SphereDirections(), alpha="theory")``.

    Cost, beside plain training: ``1 + q`` forward passes per batch and sweep (``1 + 2q`` with central differences), and none
    in a step; with ``control="carry"`` no pass at all; with ``control="recompute"`` ``1 + q`` forward passes per step and the
    weights of the snapshot. Memory: the table of ``K`` times ``q`` numbers, and the directions. Communication: one reduction
    of the table per sweep.

    Logged under ``vamo/`` at the step of each snapshot: ``mu``; ``snapshot_loss``, the training loss at the snapshot, exact
    where the loss is a mean over samples; ``probe_snr``, the size of the probe differences relative to their own error;
    ``directions_dropped``, the number of directions along which a loss was not finite; ``sweep_seconds``. Logged at the end of
    each epoch: ``probes``; ``alpha``, the effective coefficient :math:`\alpha d/q`; ``variance_removed``, the share of the
    gradient's second moment that the corrections removed; ``rows_unused``, the number of batches that differed from the batches
    of the sweep, or of recomputed rows that were not finite; ``forward_evaluations`` and ``backward_evaluations``, the passes
    over a batch so far; ``row_seconds`` where rows are recomputed; and where ``probes`` are chosen by measurement ``decision``,
    ``expected_removed`` and ``expected_work``.

    Args:
        probes: ``q``, the number of probes, or a schedule of it, a :class:`~lightning_vamo.core.schedules.ProbeSchedule`. 0 is
            plain first-order training. ``"auto"``, the default, is :class:`~lightning_vamo.core.schedules.EfficientProbes`: the
            callback measures in training whether carried rows or sweeps pay, and leaves the steps plain if nothing does. That
            needs learned ``directions`` and ``alpha="adaptive"``.
        directions: The family of probe directions; by default learned from the gradients of training, by
            :class:`GradientSubspaceDirections(rank="auto") <lightning_vamo.core.directions.GradientSubspaceDirections>`. The
            paper's are :class:`~lightning_vamo.core.directions.SphereDirections`.
        alpha: The mixing coefficient :math:`\alpha`, or a name: ``"theory"`` is the paper's coefficient :math:`q/d`;
            ``"adaptive"``, the default, multiplies the paper's coefficient by factors that a regression of gradients on rows
            measures for each direction; ``"linear-decay"`` lets the coefficient fall to 0 over an epoch. See
            :mod:`lightning_vamo.core.adaptive`.
        control: Where the rows of the control variate come from, and when they are made anew. ``"replay"`` sweeps the coming
            epoch's batches, and trains on these very batches: :class:`~lightning_vamo.Replay` says how often. ``"carry"`` lets
            each step refresh the row that it has used: :class:`~lightning_vamo.Carry`. ``"recompute"`` evaluates each step's
            own batch at the snapshot, for data that does not come twice: :class:`~lightning_vamo.Recompute`. ``"auto"``
            replays if the batches of an epoch can be known before the epoch, and else recomputes; with ``probes="auto"`` it may
            carry rows, too.
        mu: Smoothing radius for directions of unit norm, or ``"auto"``: see :func:`~lightning_vamo.core.probes.radius.auto_mu`.
        difference: ``"forward"``, ``1 + q`` forward passes per batch and sweep, or ``"central"``, ``1 + 2q``.
        sweep_precision: ``"32-true"`` sweeps in float32 where the Trainer trains in mixed precision; by default the sweep runs
            in the Trainer's precision.
        seed: Seed of the directions; by default derived from the global seed. The global generator is never touched.
        verbose: Whether to log, after each epoch and at the end of training, what VAMO cost and how much noise it removed.

    Raises:
        InvalidArgumentError: If an argument has a value that is not allowed.

    References:
        Chen & Ma, "VAMO", arXiv:2505.13954, Algorithm 1.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(max_epochs=10, callbacks=[VAMOCallback(probes=4)], logger=False)
    """

    title = "VAMO"

    @old_names(OLD_NAMES)
    def __init__(
        self,
        probes: int | Literal["auto"] | ProbeSchedule = "auto",
        directions: Directions | None = None,
        alpha: float | Literal["theory", "adaptive", "linear-decay"] = "adaptive",
        control: Named | ProbedControl = "auto",
        mu: float | Literal["auto"] = "auto",
        difference: Literal["forward", "central"] = "forward",
        sweep_precision: Literal["32-true"] | None = None,
        seed: int | None = None,
        verbose: bool = True,
    ) -> None:
        family = GradientSubspaceDirections(rank="auto") if directions is None else directions
        settings = ProbeSettings(as_schedule(probes), family, mu, alpha, difference, sweep_precision)
        if probes == "auto" and not family.learns:
            raise InvalidArgumentError(
                f"`probes` must be a number or a schedule with directions={type(family).__name__}(...), got 'auto', which"
                " measures along learned directions whether probes pay: set a number, such as probes=1."
            )
        chosen: Control = as_control(control)
        if isinstance(settings.schedule, EfficientProbes):
            chosen = Chosen.of(chosen)
        plain = settings.never_probes
        super().__init__(FirstOrder(), Nothing() if plain else chosen, settings, seed, plain=plain, verbose=verbose)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See :meth:`MethodCallback.setup`; with ``probes=0`` only the counts begin anew."""
        super().setup(trainer, pl_module, stage)
        if self._plain and stage == "fit":
            self._run = Run(self._method, self.driver)

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        """Count the batch where the callback leaves the training to Lightning; elsewhere its step has been counted."""
        if self._plain:
            self._run.ledger.stepped_plainly(arguments[0])
