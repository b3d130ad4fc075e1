"""Warnings about sweeps and warm-ups with problems: each warning is given once per fit."""

from collections.abc import Callable
from typing import Literal

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_vamo.errors import UnsupportedError
from lightning_vamo.loop.ledger.ways import VAMO_WAYS, Ways

LOWEST_SNR = 2.0
"""Below this ratio, more than a quarter (``1 / snr ** 2``) of the table's variance is error, which the corrections add."""


def _against_rounding(*, central: bool, mixed: bool, tf32: bool) -> str:
    """The remedies for rounded losses, for a message."""
    if mixed:
        return "set `sweep_precision='32-true'`, which leaves the training in mixed precision, or a larger `mu`"
    ways = ["set a larger `mu`", *([] if central else ["`difference='central'`"]), "or Trainer(precision='64-true')"]
    return ", ".join(ways) + (", or torch.set_float32_matmul_precision('highest')" if tf32 else "")


class Advice:
    """Gives each warning of a fit once.

    Args:
        prefix: The part before the slash in the names of logged figures.
        ways: The callback's arguments that warnings recommend.
    """

    def __init__(self, prefix: str = "vamo", ways: Ways = VAMO_WAYS) -> None:
        self._prefix = prefix
        self._ways = ways
        self._given: set[str] = set()

    def _once(self, topic: str, message: str, tell: Callable[[str], None] = rank_zero_warn) -> None:
        if topic not in self._given:
            self._given.add(topic)
            tell(message)

    def on_dropped(self, dropped: int, count: int, mu: float) -> None:
        """Warn of directions along which a loss was not finite.

        Args:
            dropped: Number of such directions.
            count: Number of directions that were probed.
            mu: The smoothing radius.
        """
        if dropped:
            self._once(
                "dropped",
                f"The loss is not finite at points perturbed along {dropped} of {count} probe directions, which are dropped"
                f" until the next snapshot: set a smaller `mu` than the present {mu:.3g}.",
            )

    def on_not_finite(self, count: int, batches: int) -> None:
        """Warn of batches that have no row, since their loss is not finite.

        Args:
            count: Number of such batches.
            batches: Number of batches that were swept.
        """
        if count:
            self._once(
                "not finite",
                f"The loss of {count} of {batches} training batches is not finite at the snapshot, so the steps of these"
                " batches are not corrected: check the data, or leave such batches out.",
            )

    def on_snr(
        self,
        snr: float | None,
        trend: Literal["rounding", "curvature"] | None,
        mu: float,
        *,
        central: bool,
        mixed: bool,
        tf32: bool,
    ) -> None:
        """Warn of probe differences that are hardly larger than their own error.

        Args:
            snr: Size of the probe differences relative to their error; None if it is not known.
            trend: The larger error; None if neither error stands out.
            mu: The smoothing radius.
            central: Whether the differences are central differences.
            mixed: Whether the losses were evaluated under autocast.
            tf32: Whether matrix products were rounded to TF32.
        """
        if snr is None or snr >= LOWEST_SNR:
            return
        if snr == 0:
            self._once(
                "constant",
                f"No loss changed along any probe direction with the radius `mu` = {mu:.3g}: check that the loss that"
                " `training_step` or `probe_loss` returns depends on the trainable weights. If it does, its changes are smaller"
                " than the rounding error: set a larger `mu`.",
            )
            return
        if trend == "curvature":
            cause, remedy = "curved", "set a smaller `mu`" + ("" if central else ", or `difference='central'`")
        else:
            mixed = mixed and self._ways.sweep_precision
            cause, remedy = "rounded", _against_rounding(central=central, mixed=mixed, tf32=tf32)
        self._once(
            "noisy",
            f"The probe differences hardly stand out of their own error: {self._prefix}/probe_snr is {snr:.2g}, since the"
            f" losses are too {cause} for the radius `mu` = {mu:.3g}. The corrections are scaled down. To improve the probe"
            f" differences, {remedy}.",
        )

    def on_changing_loss(self, error: Exception, *, first: bool) -> None:
        """Refuse a loss that changes when it is evaluated again at the same parameters, or warn of it.

        Args:
            error: The error that says what was found.
            first: Whether this is the run's first snapshot, so that no step has been corrected yet.

        Raises:
            UnsupportedError: If this is the first snapshot.
        """
        carry = self._ways.carry and f", set {self._ways.carry}, which evaluates no loss in addition to those of the steps"
        ways = (
            "Define `probe_loss(batch, batch_idx)` on the module as a function of the weights and the batch alone"
            f"{carry or ''}, or train with {self._ways.plain}."
        )
        if first:
            raise UnsupportedError(f"{error} {ways}") from error
        self._once("changing loss", f"{error} The steps are not corrected until the next snapshot. {ways}")

    def on_unknown_batches(self, sentence: str) -> None:
        """Tell the user, without a warning, that batches are not known before an epoch trains on them.

        Args:
            sentence: The reason and the consequence.
        """
        self._once("unknown batches", sentence, rank_zero_info)

    def on_reloaded_rows(self) -> None:
        """Warn that carried rows are lost, since the training loader was made anew."""
        self._once(
            "reloaded",
            "The training DataLoader was made anew, so the rows that were carried from epoch to epoch are lost, and an epoch of"
            " plain training fills a new table: set Trainer(reload_dataloaders_every_n_epochs=...) to 0 or to a large number,"
            f" or set {self._ways.anew}.",
        )

    def on_short_warmup(self, trainer: Trainer, probes: int, seen: int) -> None:
        """Warn of an epoch that trains without probes, since there were too few gradients to learn directions from.

        Args:
            trainer: The trainer.
            probes: Number of directions that were to be learned.
            seen: Number of batches that the warm-up has differentiated.
        """
        self._once(
            "short warm-up",
            f"Epoch {trainer.current_epoch} trains without probes: to learn {probes} directions takes at least {probes + 1}"
            f" finite gradients, but the warm-up, which saw {seen} gradients, had fewer. Later epochs will use probes, when"
            " training steps have given enough gradients. Check that `training_step` returns finite losses; under 16-mixed"
            " precision, gradients overflow until the GradScaler has found its scale.",
        )

    def on_other_batch(self, left_out: bool) -> None:
        """Warn of a dataset that does not give the same batch twice.

        Args:
            left_out: Whether the batch's row is left out; ranks with shards cannot leave out a row without communication.
        """
        ways = self._ways
        what = (
            f"so {ways.its_row} not used; the number of such batches is logged as {self._prefix}/rows_unused"
            if left_out
            else f"but {ways.its_row} used, which adds noise but no bias: {ways.ranks} cannot leave out the row of one rank"
        )
        self._once(
            "other batch",
            f"A training batch differs from the batch that the sweep saw in its place, {what}. The dataset gives other samples"
            f" for the same indices, because of random augmentation or of changing data: set {ways.recompute}, make the"
            f" augmentation depend on the index only, or train with {ways.plain}.",
        )

    def on_lost_rows(self, count: int, batches: int) -> None:
        """Warn of batches that have no row, since their gradient is not finite.

        Args:
            count: Number of such batches.
            batches: Number of batches that were swept.
        """
        if count:
            self._once(
                "lost rows",
                f"The gradients of {count} of {batches} training batches are missing or not finite at the snapshot, so the"
                " steps of these batches are not corrected: check the data. Under 16-mixed precision, gradients overflow until"
                " the GradScaler has found its scale.",
            )

    def on_changing_data(self, outcome: str | None = None) -> None:
        """Warn that most rows of a sweep could not be used, since the data gives other batches when it is read again.

        Args:
            outcome: A sentence on the consequence; by default, that no gradient is corrected any more.
        """
        plain = f"No more sweeps are made, and no gradient is corrected: set {self._ways.recompute}, or {self._ways.plain}."
        self._once(
            "changing data",
            "Most rows of the sweep could not be used: the dataset gives other samples for the same indices, as with random"
            f" augmentation. {outcome or plain}",
        )
