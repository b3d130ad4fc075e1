"""What a user should know of a sweep that went less than well: each warning once per fit."""

from typing import Literal

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_vamo.errors import UnsupportedError
from lightning_vamo.loop.ledger.ways import VAMO_WAYS, Ways

LOWEST_SNR = 2.0
"""Below it more than a quarter, ``1 / snr ** 2``, of what the table varies by is error, which the corrections would add."""


def _against_rounding(*, central: bool, mixed: bool, tf32: bool) -> str:
    """What helps where losses are rounded."""
    if mixed:
        return "set `sweep_precision='32-true'`, which leaves the training in mixed precision, or a larger `mu`"
    ways = ["set a larger `mu`", *([] if central else ["`difference='central'`"]), "or Trainer(precision='64-true')"]
    return ", ".join(ways) + (", or torch.set_float32_matmul_precision('highest')" if tf32 else "")


class Advice:
    """Gives each warning once.

    Args:
        prefix: What the names of logged figures begin with, before a slash.
        ways: How the arguments of the callback say what a warning recommends.
    """

    def __init__(self, prefix: str = "vamo", ways: Ways = VAMO_WAYS) -> None:
        self._prefix = prefix
        self._ways = ways
        self._given: set[str] = set()

    def _once(self, topic: str, message: str) -> None:
        if topic not in self._given:
            self._given.add(topic)
            rank_zero_warn(message)

    def on_dropped(self, dropped: int, count: int, mu: float) -> None:
        """Warn of directions along which a loss was not finite.

        Args:
            dropped: How many there are.
            count: How many directions were probed.
            mu: The smoothing radius.
        """
        if dropped:
            self._once(
                "dropped",
                f"The loss is not finite at points perturbed along {dropped} of {count} probe directions, which are dropped"
                f" until the next snapshot: set a smaller `mu` than {mu:.3g}.",
            )

    def on_not_finite(self, count: int, batches: int) -> None:
        """Warn of batches whose loss is not finite, which have no row.

        Args:
            count: How many there are.
            batches: How many were swept.
        """
        if count:
            self._once(
                "not finite",
                f"The loss of {count} of {batches} training batches is not finite at the snapshot: their steps are not"
                " corrected. Check the data, or leave such batches out.",
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
        """Warn of probe differences that are hardly more than their own error.

        Args:
            snr: How far they stand out of it; None if that cannot be told.
            trend: Which error is the larger one; None if neither stands out.
            mu: The smoothing radius.
            central: Whether the differences are central ones.
            mixed: Whether the losses were evaluated under autocast.
            tf32: Whether matrix products were rounded to TF32.
        """
        if snr is None or snr >= LOWEST_SNR:
            return
        if snr == 0:
            self._once(
                "constant",
                f"No loss changed along any probe direction, with `mu` at {mu:.3g}: check that what `training_step`"
                " or `probe_loss` returns depends on the trainable weights. If it does, its changes are rounded away:"
                " set a larger `mu`.",
            )
            return
        if trend == "curvature":
            cause, remedy = "curved", "set a smaller `mu`" + ("" if central else ", or `difference='central'`")
        else:
            mixed = mixed and self._ways.sweep_precision
            cause, remedy = "rounded", _against_rounding(central=central, mixed=mixed, tf32=tf32)
        self._once(
            "noisy",
            f"The probe differences hardly stand out of their own error: {self._prefix}/probe_snr = {snr:.2g} with `mu` at"
            f" {mu:.3g}, where the losses are too {cause} for that radius. Corrections along such rows are scaled down. To"
            f" improve the rows, {remedy}.",
        )

    def on_changing_loss(self, error: Exception, *, first: bool) -> None:
        """Refuse, or warn of, a loss that is not a function of the parameters.

        Args:
            error: What was found.
            first: Whether it is the run's first snapshot, so that no step depends on an earlier one.

        Raises:
            UnsupportedError: If it is.
        """
        carry = self._ways.carry and f", set {self._ways.carry}, which evaluates no loss beside the step's"
        ways = (
            "Define `probe_loss(batch, batch_idx)` on the module as a function of the weights and the batch alone"
            f"{carry or ''}, or train with {self._ways.plain}."
        )
        if first:
            raise UnsupportedError(f"{error} {ways}") from error
        self._once("changing loss", f"{error} The steps are not corrected until the next snapshot. {ways}")

    def on_unknown_batches(self, sentence: str) -> None:
        """Say which rows are used where batches are not known before an epoch trains on them; this is no warning.

        Args:
            sentence: The reason, and what is done.
        """
        if "unknown batches" not in self._given:
            self._given.add("unknown batches")
            rank_zero_info(sentence)

    def on_reloaded_rows(self) -> None:
        """Warn of carried rows that are lost with the loader whose batches they belong to."""
        self._once(
            "reloaded",
            "The training DataLoader was made anew, so the rows that were carried from epoch to epoch are lost, and an epoch of"
            " plain training fills a new table: set Trainer(reload_dataloaders_every_n_epochs=0), or a large number, or"
            f" {self._ways.anew}.",
        )

    def on_short_warmup(self, trainer: Trainer, probes: int, seen: int) -> None:
        """Warn of an epoch that trains without probes, since there were too few gradients to learn directions from.

        Args:
            trainer: The trainer.
            probes: How many directions were to be learned.
            seen: How many batches the warm-up has differentiated.
        """
        self._once(
            "short warm-up",
            f"Epoch {trainer.current_epoch} trains without probes: {probes} directions are learned from {probes + 1} finite"
            f" gradients or more, and the warm-up, which saw {seen}, had fewer. Later epochs probe, once their steps have given"
            " enough. Check that `training_step` returns finite losses; under 16-mixed, gradients overflow until the GradScaler"
            " has found its scale.",
        )

    def on_other_batch(self, left_out: bool) -> None:
        """Warn of a dataset that does not give the same batch twice.

        Args:
            left_out: Whether its row is left out. Over shards that would take a message to the other ranks in each step.
        """
        ways = self._ways
        what = (
            f"so {ways.its_row} not used; the number of such batches is logged as {self._prefix}/rows_unused"
            if left_out
            else f"but {ways.its_row} used, which adds noise, and no bias: {ways.ranks} cannot leave out one's part"
        )
        self._once(
            "other batch",
            f"A training batch differs from the one that the sweep saw in its place, {what}. The dataset gives other samples"
            f" for the same indices: random augmentation, or data that changes. Set {ways.recompute}, let an augmentation"
            f" depend on the index only, or train with {ways.plain}.",
        )

    def on_lost_rows(self, count: int, batches: int) -> None:
        """Warn of batches whose gradient is not finite, which have no row.

        Args:
            count: How many there are.
            batches: How many were swept.
        """
        if count:
            self._once(
                "lost rows",
                f"The gradients of {count} of {batches} training batches are not finite at the snapshot, or not there: their"
                " steps are not corrected. Check the data; under 16-mixed, gradients overflow until the GradScaler has found"
                " its scale.",
            )

    def on_changing_data(self, outcome: str | None = None) -> None:
        """Warn that most rows of a sweep could not be used, for the data gives other batches when it is read again.

        Args:
            outcome: What follows from that; by default, that nothing is corrected any more.
        """
        plain = f"No more sweeps are made, and the steps are plain: set {self._ways.recompute}, or {self._ways.plain}."
        self._once(
            "changing data",
            "Most rows of the sweep were of no use: the dataset gives other samples for the same indices, as with random"
            f" augmentation. {outcome or plain}",
        )
