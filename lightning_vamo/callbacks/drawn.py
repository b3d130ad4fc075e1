"""The figures of an epoch: those that are logged at its snapshot, and those that a report's picture shows."""

from collections.abc import Mapping

from lightning.pytorch import Trainer

AT_SNAPSHOT = ("snapshot_loss", "mu", "probe_snr", "directions_dropped", "sweep_seconds")
"""The figures that are logged at the step of the snapshot that they belong to."""

OF_METHOD = ("variance_removed", "decision", "forward_evaluations", "backward_evaluations")


def log_at_snapshot(trainer: Trainer, logs: Mapping[str, float], prefix: str) -> None:
    """Log the figures of a snapshot, at its step.

    Args:
        trainer: The trainer, whose loggers get the figures.
        logs: The figures, by name.
        prefix: The part before the slash in the names of the method's logged figures.
    """
    figures = {f"{prefix}/{name}": float(logs[name]) for name in AT_SNAPSHOT if name in logs}
    for logger in trainer.loggers:
        logger.log_metrics({**figures, "epoch": trainer.current_epoch}, step=trainer.global_step)


def drawn(trainer: Trainer, figures: Mapping[str, float], prefix: str) -> dict[str, float]:
    """The figures of the epoch that ends, to be drawn.

    Args:
        trainer: The trainer. Every logged value whose name contains "loss" is drawn.
        figures: The method's figures, by name.
        prefix: The part before the slash in the names of the method's logged figures.

    Returns:
        The figures, by name; if a loss is logged both per step and per epoch, only the epoch's mean.
    """
    metrics = {name: value for name, value in trainer.callback_metrics.items() if "loss" in name}
    names = [name for name in metrics if not name.endswith("_step") and f"{name}_epoch" not in metrics]
    names = [name for name in names if not name.startswith(f"{prefix}/")]  # a loss of the epoch's start
    return {
        **{name: float(metrics[name]) for name in names},
        **{name: float(figures[name]) for name in OF_METHOD if name in figures},
    }
