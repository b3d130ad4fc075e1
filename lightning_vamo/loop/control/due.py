"""A snapshot that is due: how many probes, along which directions, and over which batches."""

import functools
import time
from collections.abc import Sequence

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_vamo.core.control.mixing import coefficient_of
from lightning_vamo.core.directions import ProbeDirections
from lightning_vamo.core.directions.learner import Learner
from lightning_vamo.loop import compat
from lightning_vamo.loop.control.carried import swept_rows, unswept_rows
from lightning_vamo.loop.control.probed import Taken, take_snapshot
from lightning_vamo.loop.control.warmup import warm_up
from lightning_vamo.loop.ledger.seeds import seeded
from lightning_vamo.loop.observer import probing
from lightning_vamo.loop.parameters import same_tensors, trainable_parameters
from lightning_vamo.loop.plan.plan import has_plan, plan_of
from lightning_vamo.loop.plan.reread import Swept, second_reading
from lightning_vamo.loop.run.run import Run
from lightning_vamo.loop.step.driver import GradientCallback


class DueSnapshot:
    """The next snapshot of a run, to be taken at the weights as they are.

    Args:
        run: The run, whose standing gets the snapshot.
        trainer: Its trainer, whose epoch has drawn a batch and not yet trained on it.
        module: Its module.
        driver: The callback that answers the module's ``training_step``.
    """

    def __init__(self, run: Run, trainer: Trainer, module: LightningModule, driver: GradientCallback) -> None:
        self._run = run
        self._settings = run.settings
        self._standing = run.standing
        self._totals = run.ledger.totals
        self._trainer = trainer
        self._module = module
        self._driver = driver
        self._seed = self._totals.seed_for(f"snapshot {self._totals.snapshots}")
        self._before = self._standing.taken

    def take(self, batch_idx: int) -> None:
        """Take it; the run stands without one where there are to be no probes, or no directions have been learned yet.

        Args:
            batch_idx: Lightning's index of the batch that has been drawn.
        """
        standing, settings, before = self._standing, self._settings, self._before
        standing.taken = standing.learned_at = None
        drawn = self._draw(batch_idx)
        if drawn is None:
            return
        standing.coefficient = coefficient_of(settings.alpha, drawn.count, standing.coefficient)
        if isinstance(standing.factors, Tensor) and len(standing.factors) != drawn.count:
            # Within an epoch: those of other directions cannot be added up with these.
            standing.steps, standing.factors = 0, 0.0
        if settings.sweep:
            taken = self._swept(drawn)
        else:
            taken = unswept_rows(self._trainer, drawn, self._seed, before, settings, standing.coefficient)
        standing.taken = taken
        if before is None or taken.plan is None or taken.plan is not before.plan:
            standing.order = [] if taken.plan is None else list(range(taken.plan.length))

    def _swept(self, drawn: ProbeDirections) -> Taken:
        taken = take_snapshot(
            self._trainer,
            self._module,
            self._driver,
            self._settings,
            drawn,
            self._seed,
            self._standing.coefficient,
            self._plan,
            recompute=self._recomputes,
        )
        self._totals.add_snapshot(taken.sweep)
        if taken.sweep is not None:
            self._run.advice.on_sweep(self._trainer, taken.sweep, taken.logs["vamo/mu"], self._settings.sweep_precision)
            if self._run.choice is not None:
                self._run.choice.swept(taken.sweep)
        return swept_rows(self._trainer, taken, self._settings.alpha) if self._settings.carry else taken

    # ---- directions

    def _draw(self, batch_idx: int) -> ProbeDirections | None:
        """The directions; None if there is to be no snapshot."""
        trainer, probes = self._trainer, self._settings.most(self._trainer.current_epoch)
        if probes == 0:
            return None
        compat.drop_gradients(trainer, self._module, batch_idx)
        if self._settings.directions.learns and not self._learned(probes):
            return None
        parameters, learner = trainable_parameters(trainer.optimizers), self._standing.learner
        if learner is not None:
            learner.directions(probes, seeded(self._seed))
        probes = self._chosen(probes, parameters)
        if probes == 0:
            return None
        if learner is not None:
            return learner.leading(probes)
        last = None if self._before is None or self._settings.sweep else self._before.correction
        if last is not None and last.directions.count == probes and same_tensors(last.parameters, parameters):
            return last.directions  # other random ones would hold next to nothing of the rows, and no more of the noise
        return self._settings.directions.draw(parameters, probes, seeded(self._seed))

    def _chosen(self, most: int, parameters: Sequence[Tensor]) -> int:
        """The number of probes: the most, unless it is chosen by measurement."""
        standing, choice = self._standing, self._run.choice
        if choice is None:
            return most
        self._run.ledger.tell(self._trainer, standing, choice)
        dimension = sum(parameter.numel() for parameter in parameters)
        decision = choice.decide(self._trainer, standing.learner, dimension, self._settings.difference, self._sweeps())
        if decision.afresh:
            standing.coefficient = None
        return decision.probes

    def _learned(self, probes: int) -> bool:
        """Whether directions have been learned; before a learner's first snapshot, batches that take no step may help."""
        standing, family = self._standing, self._settings.directions
        parameters = trainable_parameters(self._trainer.optimizers)
        # Other parameters, since some were frozen or thawed, span another space.
        if standing.learner is None or not same_tensors(parameters, standing.parameters):
            standing.parameters = parameters
            standing.learner = family.learner(parameters, probes, seeded(self._totals.seed_for("learner")))
            if family.warmup_batches:
                self._warm_up(standing.learner, probes)
        return standing.learner.ready

    def _warm_up(self, learner: Learner, probes: int) -> None:
        trainer, plan = self._trainer, self._plan
        if plan is None:  # there are no batches to look at before: as many steps are plain
            wait = max(self._settings.directions.warmup_batches, probes + 1)
            self._standing.learned_at = trainer.global_step + wait
            return
        generator = seeded(self._totals.seed_for("second pass of the warm-up"))
        turn = functools.partial(learner.directions, probes, generator)
        # Fewer than one more than the probes cannot tell so many directions apart.
        count = max(min(self._settings.directions.warmup_batches, plan.length), probes + 1)
        start = time.perf_counter()
        with self._run.watch.looking_away(), probing(trainer, self._module, "warm-up"):
            seen = warm_up(trainer, self._module, plan, learner, self._standing.parameters, count, turn)
        self._totals.add_warmup(seen, time.perf_counter() - start)
        if not learner.ready:
            self._run.advice.on_short_warmup(trainer, probes, seen)

    # ---- batches

    @property
    def _recomputes(self) -> bool:
        """Whether each step is to recompute its row."""
        control = self._settings.control
        return control == "recompute" or (control == "auto" and not has_plan(self._trainer))

    @functools.cached_property
    def _plan(self) -> Swept | None:
        """The epoch's plan of batches, or another reading of the data, if there can be one: drawn once, when it is needed."""
        trainer = self._trainer
        if not self._recomputes:
            return plan_of(trainer)
        # Rows are recomputed in any part of an epoch, of which the loaders may have been given a part.
        plan = self._standing.plan or (plan_of(trainer) if has_plan(trainer) else None)
        return plan or second_reading(trainer)

    def _sweeps(self) -> float:
        steps = self._trainer.num_training_batches / self._trainer.accumulate_grad_batches
        return self._settings.sweeps(self._recomputes, self._recomputes and self._plan is not None, steps)
