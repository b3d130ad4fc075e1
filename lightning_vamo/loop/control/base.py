"""The base classes of control variates in training: when a snapshot is taken, and how its steps use the snapshot."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor

from lightning_vamo.core.control.coefficients import Coefficient, Regression
from lightning_vamo.core.control.mixing import coefficient_of
from lightning_vamo.core.directions.learner import Learner
from lightning_vamo.core.directions.slopes import Slopes
from lightning_vamo.core.probes.along import Along
from lightning_vamo.core.small import Small
from lightning_vamo.loop.control.learning import Learning
from lightning_vamo.loop.control.probe_count import ProbeChoice
from lightning_vamo.loop.control.settings import ProbeSettings
from lightning_vamo.loop.ledger.advice import Advice
from lightning_vamo.loop.ledger.seeds import Seeds
from lightning_vamo.loop.ledger.totals import Totals
from lightning_vamo.loop.parameters import trainable_parameters
from lightning_vamo.loop.plan.fingerprint import BatchWatch
from lightning_vamo.loop.plan.loadable import INSTEAD
from lightning_vamo.loop.plan.plan import Plan
from lightning_vamo.loop.sweep.oracle import Oracle
from lightning_vamo.report import MadeOf


@dataclass
class Here:
    """The present state of the run on one rank, with all that is needed to take a snapshot.

    Attributes:
        trainer: The trainer.
        module: Its module.
        oracle: Evaluates the module's loss.
        settings: The settings of probes; None for methods that do not probe.
        learning: The state that is learned from gradients.
        choice: Chooses the number of probes by measurement; None if the number is fixed before training.
        seeds: The seeds of the run.
        totals: The counts of the run.
        advice: The warnings of the run.
        watch: Finds batches that differ from the batches of the sweep.
        catch_up: Reports the steps since the last report to ``choice``.
        plan: The batches of the epoch; None if they are not known in advance.
    """

    trainer: Trainer
    module: LightningModule
    oracle: Oracle
    settings: ProbeSettings
    learning: Learning
    choice: ProbeChoice | None
    seeds: Seeds
    totals: Totals
    advice: Advice
    watch: BatchWatch
    catch_up: Callable[[], None]
    plan: Plan | None = None

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters that are corrected."""
        return trainable_parameters(self.trainer.optimizers)


class Snapshot(ABC):
    """A snapshot of the weights, with all that the steps need to correct their gradients until the next snapshot.

    Attributes:
        epoch: The epoch of the snapshot.
        logs: Figures to log.
        plan: The batches that the rows belong to; None if each step computes its own row.
        factors: Factors of the row that the last step used.
    """

    kind: ClassVar[str]
    """The kind of rows, by its name in a checkpoint."""

    epoch: int
    logs: dict[str, float]
    plan: Plan | None
    factors: Small

    withholds: ClassVar[bool] = False
    """Whether :meth:`withheld` can keep a rank's part of a row out of the correction while other ranks correct as usual."""

    @property
    def shared(self) -> Along | None:
        """The directions and radius, for gradient estimates along the same directions; None if there are none."""
        return None

    @property
    @abstractmethod
    def count(self) -> int:
        """``q``, the number of probes; 0 for a snapshot without probes."""

    @abstractmethod
    def correct(
        self,
        rows: Sequence[Any],
        accumulated: int,
        scale: Callable[[Tensor], Tensor] | None,
        progress: float,
        slopes: Slopes | None,
    ) -> Small | None:
        """Correct the gradients in ``.grad``: see :meth:`~lightning_vamo.core.control.correction.Correction.remove`."""

    def withheld(
        self, row: Any, accumulated: int, scale: Callable[[Tensor], Tensor] | None, progress: float
    ) -> AbstractContextManager[None]:
        """Keep this rank's part of a row out: see :meth:`~lightning_vamo.core.control.correction.Correction.withheld`."""
        return nullcontext()

    def known_slopes(self, learner: Learner | None) -> Slopes | None:
        """Slopes of the gradient that a learner has just seen, in the form of :meth:`correct`; None if unknown."""
        return None

    @abstractmethod
    def total(self, moments: Tensor) -> Tensor:
        """Add up the results of :meth:`correct` over all shards, as a tensor; every process must call this method."""

    @abstractmethod
    def state_dict(self, trainer: Trainer) -> dict[str, Any]:
        """The state of the snapshot for a checkpoint, as plain types and tensors."""

    def begin_epoch(self, generator: torch.Generator) -> list[int] | None:
        """Let the coming epoch train with this snapshot again.

        Args:
            generator: Source of a new order of the batches.

        Returns:
            The row that each step of the epoch takes, shape ``(K,)``; None if each step computes its own row.
        """
        return None if self.plan is None else self.plan.again(generator)

    def before_step(self, here: Here, batch: Any) -> int:
        """Prepare the row of the batch that is trained on next.

        Args:
            here: The present state of the run.
            batch: The batch, after the transfer and its hooks.

        Returns:
            The number of forward passes that the row took.
        """
        return 0

    def key(self, row: int | None) -> Any:
        """The key by which the correction finds a batch's row.

        Args:
            row: The batch's position in the plan; None if there is no plan.

        Returns:
            The position itself, unless each step computes its own row.
        """
        return row

    def rows(self, trainer: Trainer, keys: Sequence[Any]) -> Sequence[Any]:
        """The rows of an optimizer step, as :meth:`correct` takes them; called on every rank, once per step.

        Args:
            trainer: The trainer.
            keys: The keys of the batches whose gradients were accumulated on this rank.

        Returns:
            The rows, the same on every rank.
        """
        return keys

    def progress(self, share: float) -> float:
        """The share of the snapshot's steps before the present step, in ``[0, 1)``.

        Args:
            share: Share of the epoch's batches before the step.

        Returns:
            The same share, unless the snapshot counts its own steps.
        """
        return share

    def belongs_to(self, loader: CombinedLoader | None) -> bool:
        """Whether the snapshot belongs to this loader's data; a reloaded loader may hold other data."""
        return self.plan is not None and self.plan.belongs_to(loader)

    def fits(self, accumulated: int) -> bool:
        """Whether the rows are still usable if an optimizer step accumulates this many batches."""
        return True

    def fingerprint(self, row: int) -> int | None:
        """Fingerprint of the batch that a row was measured on; None if the row has no single batch."""
        return None

    @property
    def unused(self) -> float | None:
        """The number of unusable rows since the snapshot; None if the run counts unused rows itself."""
        return None


class Control(ABC):
    """Base class of the ``control`` settings: how each step's control variate is made, and when a snapshot is taken."""

    kinds: ClassVar[tuple[str, ...]]
    """The kinds of snapshots that the control takes, and can resume from."""

    records: ClassVar[Literal["always", "where possible", "never"]]
    """Whether training loaders have to record their batches, so that these are known before an epoch trains on them."""

    instead: ClassVar[str] = INSTEAD
    """The remedy if an epoch's batches cannot be known in advance, for messages."""

    made_of: ClassVar[MadeOf | None] = "probes"
    """What the control variate is made of; None if there is none."""

    watches: ClassVar[bool] = False
    """Whether a row holds only for the very batch that it was measured on."""

    every_n_train_steps: int | None = None
    """Optimizer steps from one snapshot to the next; None if snapshots are timed by epochs."""

    @abstractmethod
    def begins(self, epoch: int) -> bool:
        """Whether a snapshot is due at the beginning of an epoch."""

    @abstractmethod
    def ends(self, epoch: int) -> bool:
        """Whether the snapshot is dropped at the end of an epoch."""

    @abstractmethod
    def replaces(self, epoch: int) -> bool:
        """Whether the snapshot that is due in an epoch needs no state of the last snapshot."""

    def sweeps(self, steps: float, *, twice: bool = True) -> float:
        """How often a batch is probed per epoch, on average: in sweeps, and in its step if rows are recomputed.

        Args:
            steps: Optimizer steps per epoch.
            twice: Whether the data can be read twice, for a sweep.

        Returns:
            The number; 0 if nothing is ever probed.
        """
        return 0.0

    def warn_of_reload(self, advice: Advice) -> None:
        """Warn that carried rows are lost with the former training loader; by default, there are no carried rows."""
        return

    def warn_of_changing_data(self, advice: Advice) -> None:
        """Warn about data that gives other batches when the data is read again."""
        return

    @abstractmethod
    def take(self, here: Here, before: Snapshot | None) -> Snapshot | None:
        """Take a snapshot of the present weights.

        Args:
            here: The present state of the run: the epoch has drawn its first batch, and not yet trained on the batch.
            before: The last snapshot; None if there is none.

        Returns:
            The snapshot; None if the number of probes is 0 or no directions have been learned yet: the steps are then plain.
        """

    def coefficient_again(
        self, settings: ProbeSettings, state: dict[str, Any] | None, snapshot: dict[str, Any] | None
    ) -> Coefficient | None:
        """Restore the coefficient from a checkpoint.

        Args:
            settings: The settings of probes; None for methods that do not probe.
            state: The coefficient's ``state_dict``; None if there was no coefficient.
            snapshot: The state of the snapshot; None between snapshots.

        Returns:
            The coefficient; None if there is none to restore.
        """
        if state is not None and settings.alpha == "adaptive":
            return Regression.of(state)
        return None if snapshot is None else coefficient_of(settings.alpha, snapshot["probes"], None)

    @abstractmethod
    def restore(self, here: Here, state: dict[str, Any], plan: Plan | None) -> Snapshot:
        """Restore a snapshot from a checkpoint.

        Args:
            here: The present state of the run, whose learned state has been restored.
            state: The state that :meth:`Snapshot.state_dict` returned.
            plan: The batches that the rows belong to.

        Returns:
            The restored snapshot.
        """
