"""A signal whose handler saves a checkpoint, as a cluster's requeueing does, may come at any time."""

import os
import signal
from contextlib import contextmanager

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_vamo import MeZOCallback, S2PCallback, SVRGCallback, VAMOCallback, VAMOMixin, ZOSVRGCallback
from tests.support.modules import classification_data, trainer

METHODS = {
    "sweeps": lambda: VAMOCallback(probes=2, control="replay", seed=1),
    "recomputed rows": lambda: VAMOCallback(probes=2, control="recompute", seed=1),
    "SVRG": lambda: SVRGCallback(seed=1),
    "MeZO": lambda: MeZOCallback(seed=1),
    "S2P": lambda: S2PCallback(seed=1),
    "ZO-SVRG": lambda: ZOSVRGCallback(seed=1),
}


class Module(VAMOMixin, L.LightningModule):
    """Gets a signal in one of its evaluations, counted from 0."""

    def __init__(self, at=None):
        super().__init__()
        self.net = nn.Linear(6, 3)
        self.at = at

    def training_step(self, batch, batch_idx):
        COUNT.append(batch_idx)
        if len(COUNT) - 1 == self.at:
            os.kill(os.getpid(), signal.SIGUSR1)
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@contextmanager
def handled(number, handler):
    """A context in which a signal has a handler."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


COUNT = []
"""The evaluations of the last run: a sweep would put back what an object of the run remembers."""


def train(make, folder, at=None, ckpt=None):
    COUNT.clear()
    L.seed_everything(1, verbose=False)
    module, fit = Module(at), trainer(folder, callbacks=[make()], max_epochs=3)
    with handled(signal.SIGUSR1, lambda *_: fit.save_checkpoint(folder / "signal.ckpt")):
        loader = DataLoader(classification_data(40), 8, shuffle=True)
        fit.fit(module, loader, ckpt_path=ckpt, weights_only=True if ckpt else None)
    return module.state_dict(), len(COUNT)


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_that_a_signal_s_handler_saves_resumes_bit_for_bit(method, tmp_path):
    whole, count = train(METHODS[method], tmp_path)
    for at in range(count // 3, 2 * count // 3 + 1, 3):
        through, _ = train(METHODS[method], tmp_path, at)
        resumed, left = train(METHODS[method], tmp_path, ckpt=tmp_path / "signal.ckpt")
        (tmp_path / "signal.ckpt").unlink()
        assert left < count
        assert all(torch.equal(through[name], value) and torch.equal(resumed[name], value) for name, value in whole.items()), at


class Ends(L.Callback):
    """Counts the batches that have ended, in the callbacks' hook and in the module's."""

    count = 0

    def on_train_batch_end(self, *_):
        self.count += 1

    def state_dict(self):
        return {"count": self.count}


@pytest.mark.parametrize("first", [True, False])
def test_what_a_handler_saves_holds_what_all_hooks_of_the_batch_have_done(first, tmp_path):
    class Signalled(Module):
        ended = 0

        def on_train_batch_end(self, *_):
            self.ended += 1

        def on_save_checkpoint(self, checkpoint):
            checkpoint["ended"] = self.ended

    COUNT.clear()
    method, ends = MeZOCallback(seed=1), Ends()
    callbacks = [method, ends] if first else [ends, method]
    fit = trainer(tmp_path, callbacks=callbacks, max_epochs=1)
    with handled(signal.SIGUSR1, lambda *_: fit.save_checkpoint(tmp_path / "signal.ckpt")):
        fit.fit(Signalled(at=4), DataLoader(classification_data(40), 8))  # in the third batch
    saved = torch.load(tmp_path / "signal.ckpt", weights_only=True)
    assert (saved["global_step"], saved["ended"], saved["callbacks"]["Ends"]["count"]) == (3, 3, 3)


class Looks(L.Callback):
    """Keeps the handler at the end of the training, before Lightning puts back the handlers of before."""

    def teardown(self, fit, module, stage):
        self.handler = signal.getsignal(signal.SIGUSR2)


def test_handlers_are_those_of_before_when_the_training_has_ended(tmp_path):
    def handler(*_):
        pass

    with handled(signal.SIGUSR2, handler):
        fit = trainer(tmp_path, callbacks=[MeZOCallback(), looks := Looks()], max_epochs=1)
        fit.fit(Module(), DataLoader(classification_data(40), 8))
    assert looks.handler is handler


def test_what_a_handler_raises_in_a_batch_that_fails_ends_the_training_as_any_exception(tmp_path):
    class Fails(Module):
        def training_step(self, batch, batch_idx):
            os.kill(os.getpid(), signal.SIGUSR2)
            raise KeyError

    class Told(L.Callback):
        def on_exception(self, fit, module, exception):
            self.exception = exception

    def handler(*_):
        raise SystemExit(3)

    terminates = signal.getsignal(signal.SIGTERM)
    fit = trainer(tmp_path, callbacks=[MeZOCallback(), told := Told()])
    with handled(signal.SIGUSR2, handler), pytest.raises(SystemExit):
        fit.fit(Fails(), DataLoader(classification_data(40), 8))
    assert isinstance(told.exception, SystemExit)
    assert signal.getsignal(signal.SIGTERM) is terminates


def test_a_handler_runs_though_an_exception_ends_the_batch_that_it_waits_for(tmp_path):
    ran = []

    class Fails(Module):
        def training_step(self, batch, batch_idx):
            os.kill(os.getpid(), signal.SIGUSR2)
            assert not ran
            raise KeyError

    with handled(signal.SIGUSR2, lambda *_: ran.append(1)), pytest.raises(KeyError):
        trainer(tmp_path, callbacks=[MeZOCallback()]).fit(Fails(), DataLoader(classification_data(40), 8))
    assert ran == [1]


def test_a_handler_does_not_wait_for_a_batch_that_is_skipped(tmp_path):
    ran = []

    class Skips(Module):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 2 else None

        def on_train_epoch_end(self):
            os.kill(os.getpid(), signal.SIGUSR2)
            assert ran

    with handled(signal.SIGUSR2, lambda *_: ran.append(1)):
        trainer(tmp_path, callbacks=[MeZOCallback()], max_epochs=1).fit(Skips(), DataLoader(classification_data(40), 8))
    assert ran == [1]
