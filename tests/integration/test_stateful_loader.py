"""A StatefulDataLoader of torchdata, which resumes by itself: rows are recomputed, and a resumed run goes on bit for bit."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torchdata.stateful_dataloader import StatefulDataLoader

from lightning_vamo import MeZOCallback, SVRGCallback, UnsupportedError, VAMOCallback
from lightning_vamo.core.directions import SphereDirections
from tests.support.modules import Indexed, VAMOEverything, VAMORecorder, classification_data, trainer

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata 0.11 with torch 2.13
METHODS = {
    "auto": lambda: VAMOCallback(probes=2, mu=1e-2, directions=SphereDirections()),
    "learned": lambda: VAMOCallback(probes=2, mu=1e-2, control="recompute"),
    "svrg": SVRGCallback,
    "mezo": MeZOCallback,
}


class Stop(Callback):
    """Saves a checkpoint in mid-epoch and ends the run."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 8:
            trainer.save_checkpoint(self.path)
            trainer.should_stop, trainer.fit_loop.epoch_loop.max_steps = True, 8


def fit(callback, *others, **options):
    torch.manual_seed(0)
    module = VAMOEverything()
    loader = StatefulDataLoader(classification_data(48), batch_size=8, shuffle=True)
    trainer(callbacks=[callback, *others], max_epochs=2).fit(module, loader, **options)
    return module


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_it_goes_on_bit_for_bit(method, tmp_path):
    whole, first = fit(method()), fit(method(), Stop(tmp_path / "stopped.ckpt"))
    rest = fit(method(), ckpt_path=tmp_path / "stopped.ckpt")
    assert all(map(torch.equal, whole.parameters(), rest.parameters()))
    assert not all(map(torch.equal, whole.parameters(), first.parameters()))


def test_auto_says_that_it_recomputes_rows(caplog):
    caplog.set_level("INFO")
    fit(METHODS["auto"]())
    [said] = [message for message in caplog.messages if "StatefulDataLoader" in message]
    assert said.endswith("so `control='auto'` recomputes rows, which takes 1 + q forward passes per step.")


def test_replay_refuses_it_with_the_ways_out():
    with pytest.raises(
        UnsupportedError, match=r"resumes in mid-epoch by itself.* set control='recompute', or train with probes=0"
    ):
        fit(VAMOCallback(control="replay"))


def test_a_loader_with_a_state_of_its_own_is_not_read_a_second_time():
    class Own(StatefulDataLoader):
        def __iter__(self):
            return super().__iter__()

    with pytest.raises(UnsupportedError, match="cannot be read a second time"):
        trainer(callbacks=[SVRGCallback()]).fit(VAMORecorder(), Own(Indexed(24), batch_size=4))
