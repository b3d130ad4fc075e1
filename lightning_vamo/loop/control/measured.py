"""The sweep of a snapshot: choose the radius, sweep, count the cost, and warn of problems."""

from lightning_vamo.core.probes.radius import auto_mu, followed
from lightning_vamo.loop.control.drawn import Drawn
from lightning_vamo.loop.control.here import Here
from lightning_vamo.loop.observer import observers, probing
from lightning_vamo.loop.plan.reread import Swept
from lightning_vamo.loop.sweep.precision import is_mixed, uses_tf32
from lightning_vamo.loop.sweep.repeat import ChangingLossError
from lightning_vamo.loop.sweep.sweep import Sweep, sweep


def radius(here: Here, dimension: int) -> tuple[float, bool]:
    """The smoothing radius of a snapshot.

    Args:
        here: The present state of the run.
        dimension: ``d``, the dimension of the space of the directions.

    Returns:
        The radius, and whether it is a guess, from which a search should find a better radius.
    """
    settings = here.settings
    if settings.mu != "auto":
        return settings.mu * (dimension**0.5 if settings.per_weight else 1.0), False
    if here.learning.mu is not None:
        return here.learning.mu, False
    # Losses change more along learned directions than along random directions.
    steep = settings.directions.learns
    guess = auto_mu(here.parameters, settings.difference, here.oracle.arithmetic, steep=steep, robust=True)
    return guess, True


def measure(here: Here, drawn: Drawn, plan: Swept) -> tuple[Sweep, dict[str, float]] | None:
    """Sweep the batches of a plan at the snapshot, count the cost, and warn of problems.

    Args:
        here: The present state of the run.
        drawn: The directions.
        plan: The batches.

    Returns:
        The sweep, and figures to log. None if a loss changed when it was evaluated again, and steps have been corrected before.

    Raises:
        UnsupportedError: If a loss changed when it was evaluated again, at the run's first snapshot.
    """
    trainer, module, settings = here.trainer, here.module, here.settings
    mu, search = radius(here, drawn.directions.dimension)
    try:
        with probing(trainer, module, "sweep"), here.watch.looking_away():
            swept = sweep(here.oracle, plan, drawn.parameters, drawn.directions, mu, settings.difference, search=search)
    except ChangingLossError as error:
        here.advice.on_changing_loss(error, first=here.totals.snapshots == 0)
        return None
    if settings.mu == "auto":
        here.learning.mu = followed(swept.mu, swept.snr, swept.trend)
    for observer in observers(trainer):
        observer.on_sweep(trainer, module, swept)
    here.totals.add_sweep(swept.evaluations, swept.seconds)
    _advise(here, drawn, swept)
    if here.choice is not None:
        here.choice.swept(swept.seconds / swept.evaluations)
    logs = {
        "mu": swept.mu,
        "snapshot_loss": swept.snapshot_loss,
        "sweep_seconds": swept.seconds,
        "directions_dropped": swept.directions_dropped,
        **({} if swept.snr is None else {"probe_snr": swept.snr}),
    }
    return swept, logs


def _advise(here: Here, drawn: Drawn, swept: Sweep) -> None:
    """Warn of problems of a sweep."""
    settings, tf32 = here.settings, uses_tf32(here.trainer)
    mixed = is_mixed(here.trainer, settings.sweep_precision)
    here.advice.on_dropped(swept.directions_dropped, drawn.directions.count, swept.mu)
    here.advice.on_not_finite(swept.not_finite, len(swept.deltas))
    # Otherwise the next snapshot has a better radius, unless no loss has changed at any radius that was tried.
    if settings.mu != "auto" or here.learning.mu == swept.mu or swept.snr == 0:
        central = settings.difference == "central"
        here.advice.on_snr(swept.snr, swept.trend, swept.mu, central=central, mixed=mixed, tf32=tf32)
