"""The figures of an epoch are logged as ``self.log`` logs numbers, for a fraction of the time."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_vamo import VAMOCallback
from lightning_vamo.loop import compat
from tests.support.modules import Perceptron, VAMOEverything, classification_data, loaders, trainer
from tests.support.ranks import run


class Rows(DummyLogger):
    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append({**metrics, "step": step})


class Beside(L.Callback):
    """Logs a number with ``self.log`` behind the method."""

    def on_train_epoch_end(self, fit, module):
        module.log("beside", 0.5, prog_bar=True, sync_dist=True)


class Figures(L.Callback):
    """Logs figures as a method does, other ones in each epoch."""

    def on_train_epoch_end(self, fit, module):
        figures = {"rank": float(fit.global_rank), f"epoch {fit.current_epoch}": 1.0, "unlogged": 2.0}
        compat.log_epoch(fit, figures, shown=["rank"], unlogged=["unlogged"])


def test_figures_are_wherever_a_number_is_that_self_log_gets():
    logger, callback = Rows(), VAMOCallback(probes=1, mu=0.01)
    fit = trainer(callbacks=[callback, Beside()], logger=logger, max_epochs=2, log_every_n_steps=1)
    fit.fit(VAMOEverything(), *loaders())
    rows = [row for row in logger.rows if "vamo/probes" in row]
    assert [(row["step"], row["epoch"]) for row in rows] == [(11, 0), (23, 1)]
    assert all({"beside", "mean_seen", "vamo/variance_removed", "vamo/backward_evaluations"} <= row.keys() for row in rows)
    assert not any("vamo/mu" in row for row in rows)  # which is logged at the snapshot's step
    assert {"vamo/probes", "beside"} <= fit.logged_metrics.keys()
    assert "vamo/mu" not in fit.logged_metrics
    assert {"vamo/probes", "vamo/mu", "beside"} <= fit.callback_metrics.keys()
    shown = fit.progress_bar_metrics
    assert {"vamo/variance_removed", "beside"} <= shown.keys()
    assert "vamo/probes" not in shown
    assert shown["vamo/variance_removed"] == pytest.approx(float(rows[1]["vamo/variance_removed"]))


def test_a_figure_is_logged_in_its_own_epoch_only():
    logger = Rows()
    fit = trainer(callbacks=[Figures()], logger=logger, max_epochs=3)
    fit.fit(Perceptron(), loaders()[0])
    rows = [{name for name in row if name not in ("step", "epoch")} for row in logger.rows]
    assert rows == [{"rank", "epoch 0"}, {"rank", "epoch 1"}, {"rank", "epoch 2"}]
    assert fit.callback_metrics["unlogged"] == 2


def test_the_mean_over_ranks_is_logged(tmp_path):
    for rank in run(Perceptron(), tmp_path / "run", classification_data(), devices=2, batch_size=8, callback=Figures()):
        assert rank["metrics"]["rank"] == 0.5
        assert rank["metrics"]["epoch 0"] == 1


def test_counts_are_exact_beyond_the_integers_of_float32():
    class Long(L.Callback):
        def on_train_start(self, fit, module):
            callback._run.ledger.totals.backward_evaluations = 2**24 + 1

    callback = VAMOCallback(probes=1, mu=0.01, seed=0)
    fit = trainer(callbacks=[callback, Long()], max_epochs=1, limit_train_batches=11)
    fit.fit(VAMOEverything(), *loaders())
    logged = int(fit.callback_metrics["vamo/backward_evaluations"])
    assert logged == callback.report.backward_evaluations > 2**24
    assert logged != int(torch.tensor(float(logged))), "an odd number, which float32 cannot hold"


def test_other_callbacks_can_go_by_a_figure():
    stopping = EarlyStopping("vamo/backward_evaluations", mode="min", patience=1)
    fit = trainer(callbacks=[VAMOCallback(probes=1, mu=0.01), stopping], max_epochs=9)
    fit.fit(VAMOEverything(), *loaders())
    assert fit.current_epoch == 2
