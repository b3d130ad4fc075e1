"""Lightning's private parts around the logged values of an epoch."""

import builtins
from collections.abc import Container, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from torch import Tensor
from torchmetrics import Metric

_LOG_ARGUMENTS = (
    *("fx", "name", "prog_bar", "logger", "on_step", "on_epoch"),
    *("enable_graph", "add_dataloader_idx", "dataloader_idx", "metric_attribute"),
)


class _Figure:
    """A figure of an epoch among Lightning's results: a logged value without the metric that gathers a value in each step.

    Args:
        meta: How the figure is logged.
        value: The figure.
    """

    is_tensor = True

    def __init__(self, meta: _Metadata, value: Tensor) -> None:
        self.meta = meta
        self.has_reset = False
        self._computed = value

    def reset(self) -> None:
        """Leave the figure out of the logs of later epochs."""
        self.has_reset = True


def log_epoch(trainer: Trainer, figures: Mapping[str, float], shown: Container[str], unlogged: Container[str]) -> None:
    """Log figures of an epoch that ends, as ``self.log(..., sync_dist=True)`` does, with one reduction for all of them.

    ``self.log`` takes a quarter of a millisecond for each figure, to prepare for values that come in each step.

    Args:
        trainer: The trainer, in ``on_train_epoch_end`` of a callback.
        figures: The figures by the names to log, with the same names on every rank; the means over the ranks are logged.
        shown: Names that the progress bar shows.
        unlogged: Names that loggers do not get, but callbacks do.
    """
    results: dict[str, Any] = trainer.fit_loop.epoch_loop._results
    values = torch.tensor(list(figures.values()), dtype=torch.float64, device=trainer.strategy.root_device)
    for name, value in zip(figures, trainer.strategy.reduce(values, reduce_op="mean"), strict=True):
        # In place of a hook's name, as `self.log` in the hook would leave out what has been logged before.
        meta = _Metadata("lightning_vamo", name, prog_bar=name in shown, logger=name not in unlogged, on_step=False)
        results[f"lightning_vamo.{name}"] = _Figure(meta, value)


def log_state(trainer: Trainer, within: bool) -> dict[str, Any]:
    """The values that ``self.log`` has gathered, as plain types and tensors; Lightning's checkpoints do not hold them.

    Args:
        trainer: The trainer.
        within: Whether an epoch has begun but not ended.

    Returns:
        The epoch's logs so far, and the metrics that callbacks and schedulers can monitor.
    """
    entries = {}
    for key, result in trainer.fit_loop.epoch_loop._results.items() if within else ():
        meta = result.meta
        if isinstance(result, _Figure) or result.has_reset or meta.sync.group is not None:
            continue
        names = ("value", "cumulated_batch_size", "_forward_cache", "_update_count")
        entries[key] = {
            "arguments": {name: getattr(meta, name) for name in _LOG_ARGUMENTS},
            "reduce_fx": meta.reduce_fx.__name__,
            "builtin": meta.reduce_fx.__module__ == "builtins",
            "sync_dist": meta.sync.should,
            "rank_zero_only": meta.sync.rank_zero_only,
            "is_tensor": result.is_tensor,
            "values": {name: getattr(result, name) for name in names if isinstance(getattr(result, name, None), (Tensor, int))},
        }
    return {"entries": entries, "callback_metrics": dict(trainer.callback_metrics)}


def set_log_state(trainer: Trainer, module: LightningModule, state: dict[str, Any], position: int | None) -> None:
    """Set the logged values that :func:`log_state` returned.

    Args:
        trainer: The trainer.
        module: Its module.
        state: The logs.
        position: How many batches the epoch has trained on; None between two epochs.
    """
    results = trainer.fit_loop.epoch_loop._results
    for key, entry in state["entries"].items():
        reduce_fx = getattr(builtins if entry["builtin"] else torch, entry["reduce_fx"])
        meta = _Metadata(**entry["arguments"], reduce_fx=reduce_fx)
        meta.sync = _Sync(fn=trainer.strategy.reduce, _should=entry["sync_dist"], rank_zero_only=entry["rank_zero_only"])
        results[key] = result = _ResultMetric(meta, entry["is_tensor"])
        for name, value in entry["values"].items():
            setattr(result, name, value)
        if not entry["is_tensor"]:
            result.value = module.get_submodule(entry["arguments"]["metric_attribute"])
        result.to(module.device)
    trainer._logger_connector._callback_metrics.update(state["callback_metrics"])
    if position:
        trainer._logger_connector._first_loop_iter = position == 1


def metric_states(module: LightningModule) -> dict[str, Any]:
    """The states of the module's torchmetrics; by default checkpoints do not hold them."""
    return {
        name: {"updates": metric._update_count, "state": metric.metric_state}
        for name, metric in module.named_modules()
        if isinstance(metric, Metric) and metric._update_count
    }


def set_metric_states(module: LightningModule, states: dict[str, Any]) -> None:
    """Set the states that :func:`metric_states` returned."""
    for name, saved in states.items():
        metric: Any = module.get_submodule(name)
        for attribute, value in saved["state"].items():
            setattr(metric, attribute, value)
        metric._update_count = saved["updates"]
        metric.to(module.device)
