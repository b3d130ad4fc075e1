"""The present state of a run, for a control variate that takes a snapshot."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_vamo.loop.control.choice import Choice
from lightning_vamo.loop.control.learning import Learning
from lightning_vamo.loop.control.settings import ProbeSettings
from lightning_vamo.loop.ledger.advice import Advice
from lightning_vamo.loop.ledger.seeds import Seeds
from lightning_vamo.loop.ledger.totals import Totals
from lightning_vamo.loop.parameters import trainable_parameters
from lightning_vamo.loop.plan.fingerprint import BatchWatch
from lightning_vamo.loop.plan.plan import Plan, plan_of
from lightning_vamo.loop.sweep.oracle import Oracle


@dataclass
class Here:
    """The present state of the run on one rank: all that is needed to take a snapshot.

    Attributes:
        trainer: The trainer.
        module: Its module.
        make_oracle: Makes :attr:`oracle`; most steps need none.
        settings: How to probe; None for methods that do not.
        learning: What learns from the gradients of training.
        choice: Chooses by measurement; None if the number of probes is fixed beforehand.
        seeds: The seeds of the run.
        totals: The counts of the run.
        advice: The warnings of the run.
        watch: Tells batches apart.
        catch_up: Tells ``choice`` of the steps since it was last told of some.
        plan: The batches of the epoch, in the order in which it trains on them; None where they have not been asked for, or
            loaders cannot tell them.
    """

    trainer: Trainer
    module: LightningModule
    make_oracle: Callable[[], Oracle]
    settings: ProbeSettings
    learning: Learning
    choice: Choice | None
    seeds: Seeds
    totals: Totals
    advice: Advice
    watch: BatchWatch
    catch_up: Callable[[], None]
    plan: Plan | None = None

    @functools.cached_property
    def oracle(self) -> Oracle:
        """Evaluates the module's loss."""
        return self.make_oracle()

    @functools.cached_property
    def epoch_plan(self) -> Plan:
        """The batches of the epoch, in the order in which it trains on them, those before a resume among them.

        Raises:
            UnsupportedError: See :func:`~lightning_vamo.loop.plan.plan.plan_of`.
        """
        return self.plan or plan_of(self.trainer)

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters that are corrected."""
        return trainable_parameters(self.trainer.optimizers)

    @property
    def dimension(self) -> int:
        """``d``, the number of weights that are corrected."""
        return sum(parameter.numel() for parameter in self.parameters)

    @property
    def steps_per_epoch(self) -> float:
        """The number of optimizer steps of an epoch; infinite if the training data has no length."""
        return self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
