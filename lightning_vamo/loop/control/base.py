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
    """The present state of the run on one rank: all that is needed to take a snapshot.

    Attributes:
        trainer: The trainer.
        module: Its module.
        oracle: Evaluates the module's loss.
        settings: How to probe; None for methods that do not.
        learning: What learns from the gradients of training.
        choice: What chooses the number of probes by measurement; None if the number is fixed beforehand.
        seeds: The seeds of the run.
        totals: The counts of the run.
        advice: The warnings of the run.
        watch: Tells batches apart.
        catch_up: Tells ``choice`` of the steps since it was last told of some.
        plan: The batches of the epoch, where loaders can tell them; else None.
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
        epoch: The epoch that it was taken in.
        logs: Figures to log.
        plan: The batches that the rows belong to; None if rows come with their steps.
        factors: Factors of the row that the last step used.
    """

    kind: ClassVar[str]
    """What becomes of the rows from step to step: the kind's name in a checkpoint."""

    epoch: int
    logs: dict[str, float]
    plan: Plan | None
    factors: Small

    withholds: ClassVar[bool] = False
    """Whether :meth:`withheld` can keep a rank's part of a row out without the other ranks having to know."""

    @property
    def shared(self) -> Along | None:
        """The directions and radius, for gradients along the same directions; None without directions."""
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
        """Leave this rank's part of a row out: see :meth:`~lightning_vamo.core.control.correction.Correction.withheld`."""
        return nullcontext()

    def known_slopes(self, learner: Learner | None) -> Slopes | None:
        """Slopes of the gradient that a learner has just seen, in the form of :meth:`correct`; None if unknown."""
        return None

    @abstractmethod
    def total(self, moments: Tensor) -> Tensor:
        """Add up over all shards what :meth:`correct` returned, as a tensor; every process must call it."""

    @abstractmethod
    def state_dict(self, trainer: Trainer) -> dict[str, Any]:
        """The state of the snapshot for a checkpoint, as plain types and tensors."""

    def begin_epoch(self, generator: torch.Generator) -> list[int] | None:
        """Let the coming epoch train with this snapshot again.

        Args:
            generator: Source of a new order of the batches.

        Returns:
            The row that each step of the epoch takes, shape ``(K,)``; None if rows come with their steps.
        """
        return None if self.plan is None else self.plan.again(generator)

    def before_step(self, here: Here, batch: Any) -> int:
        """Prepare the row of the batch that is trained on next.

        Args:
            here: Where the run stands.
            batch: The batch, transferred and transformed.

        Returns:
            How many forward passes it took.
        """
        return 0

    def key(self, row: int | None) -> Any:
        """The key by which the correction finds a batch's row.

        Args:
            row: The batch's place in the plan; None if there is no plan.

        Returns:
            The place itself, unless rows come with their steps.
        """
        return row

    def rows(self, trainer: Trainer, keys: Sequence[Any]) -> Sequence[Any]:
        """The rows of an optimizer step, as :meth:`correct` takes them; called on every rank, once per step.

        Args:
            trainer: The trainer.
            keys: Those of the batches whose gradients were accumulated, on this rank.

        Returns:
            The rows, the same on every rank.
        """
        return keys

    def progress(self, share: float) -> float:
        """The share of the snapshot's steps before the present step, in ``[0, 1)``.

        Args:
            share: Share of the epoch's batches before the step.

        Returns:
            That share, unless the snapshot's use is counted otherwise.
        """
        return share

    def belongs_to(self, loader: CombinedLoader | None) -> bool:
        """Whether the snapshot belongs to this loader's data: a reloaded loader may hold other data."""
        return self.plan is not None and self.plan.belongs_to(loader)

    def fits(self, accumulated: int) -> bool:
        """Whether the rows are still usable if an optimizer step accumulates this many batches."""
        return True

    def fingerprint(self, row: int) -> int | None:
        """Fingerprint of the batch that a row was measured on; None if the row has no single batch."""
        return None

    @property
    def unused(self) -> float | None:
        """The number of unusable rows since the snapshot; None if the rows are counted step by step."""
        return None


class Control(ABC):
    """Base class of the ``control`` settings: how each step's control variate is made, and when a snapshot is taken."""

    kinds: ClassVar[tuple[str, ...]]
    """The kinds of snapshots that the control takes, and goes on from after a resume."""

    records: ClassVar[Literal["always", "where possible", "never"]]
    """Whether training loaders have to tell their batches before an epoch trains on them."""

    instead: ClassVar[str] = INSTEAD
    """What to do where batches cannot be told, for messages."""

    made_of: ClassVar[MadeOf | None] = "probes"
    """What the control variate is made of; None if there is none."""

    watches: ClassVar[bool] = False
    """Whether a row holds only for the very batch that it was measured on."""

    every_n_train_steps: int | None = None
    """Optimizer steps from one snapshot to the next; None if they are counted in epochs."""

    @abstractmethod
    def begins(self, epoch: int) -> bool:
        """Whether a snapshot is due at the beginning of an epoch."""

    @abstractmethod
    def ends(self, epoch: int) -> bool:
        """Whether the snapshot is dropped at the end of an epoch."""

    @abstractmethod
    def replaces(self, epoch: int) -> bool:
        """Whether the snapshot that is due in an epoch needs nothing of the last snapshot."""

    def sweeps(self, steps: float, *, twice: bool = True) -> float:
        """How often a batch is probed per epoch, on average: in sweeps, and in its step if rows are recomputed.

        Args:
            steps: Optimizer steps per epoch.
            twice: Whether the data can be read twice, for a sweep.

        Returns:
            The number; 0 where nothing is ever probed.
        """
        return 0.0

    def warn_of_reload(self, advice: Advice) -> None:
        """Warn if a newly made training loader makes the rows of the last loader useless."""
        return

    def warn_of_changing_data(self, advice: Advice) -> None:
        """Warn about data that gives other batches when the data is read again."""
        return

    @abstractmethod
    def take(self, here: Here, before: Snapshot | None) -> Snapshot | None:
        """Take a snapshot of the present weights.

        Args:
            here: Where the run stands: an epoch has drawn a batch, and not yet trained on it.
            before: The last snapshot; None if there is none.

        Returns:
            The snapshot; None if the steps to come are plain, since there are to be no probes or no directions yet.
        """

    def coefficient_again(
        self, settings: ProbeSettings, state: dict[str, Any] | None, snapshot: dict[str, Any] | None
    ) -> Coefficient | None:
        """Restore the coefficient from a checkpoint.

        Args:
            settings: How the method probes.
            state: What the coefficient's ``state_dict`` gave; None if there was none.
            snapshot: The state of the snapshot; None between snapshots.

        Returns:
            The coefficient; None where there is none to take up.
        """
        if state is not None and settings.alpha == "adaptive":
            return Regression.of(state)
        return None if snapshot is None else coefficient_of(settings.alpha, snapshot["probes"], None)

    @abstractmethod
    def restore(self, here: Here, state: dict[str, Any], plan: Plan | None) -> Snapshot:
        """Restore a snapshot from a checkpoint.

        Args:
            here: Where the run stands: what it learned has been taken up.
            state: What :meth:`Snapshot.state_dict` gave.
            plan: The batches that the rows belong to.

        Returns:
            The snapshot as it was.
        """
