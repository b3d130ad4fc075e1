"""The figures of an epoch that the picture of a report shows."""

from collections.abc import Mapping

from lightning.pytorch import Trainer

OF_METHOD = ("variance_removed", "forward_evaluations", "backward_evaluations")


def drawn(trainer: Trainer, figures: Mapping[str, float], prefix: str) -> dict[str, float]:
    """The figures of the epoch that ends, to be drawn.

    Args:
        trainer: The trainer. Of what its module has logged, all losses are drawn: names that contain "loss".
        figures: The method's figures, by name.
        prefix: What the names of the method's logged figures begin with.

    Returns:
        The figures, by name. Of a loss that is logged both per step and per epoch only the epoch's mean is among them.
    """
    metrics = {name: value for name, value in trainer.callback_metrics.items() if "loss" in name}
    names = [name for name in metrics if not name.endswith("_step") and f"{name}_epoch" not in metrics]
    names = [name for name in names if not name.startswith(f"{prefix}/")]  # a loss of the epoch's start
    return {
        **{name: float(metrics[name]) for name in names},
        **{name: float(figures[name]) for name in OF_METHOD if name in figures},
    }
