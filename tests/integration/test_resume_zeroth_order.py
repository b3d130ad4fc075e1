"""Methods without gradients go on from a checkpoint bit for bit, though they take no snapshot that would need one."""

import pytest
import torch

from lightning_vamo import MeZOCallback
from lightning_vamo.core.directions import GaussianDirections, MaskedDirections
from tests.support.resuming import WARNINGS, VAMOModule, assert_survives, run

pytestmark = WARNINGS


class Unaided(VAMOModule):
    """Plain SGD, whose step is taken in place."""

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.02)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)}}


class Heavy(VAMOModule):
    """SGD with momentum, which steps with the estimate."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


CONFIGURATIONS = {
    "in place": {"module": Unaided, "make": lambda: MeZOCallback(2, update="in-place", seed=4)},
    "a seed of its own": {"module": Unaided, "make": lambda: MeZOCallback(update="in-place"), "loader": {"num_workers": 1}},
    "momentum": {"module": Heavy, "make": lambda: MeZOCallback(seed=4)},
    "while derivatives add up": {
        "module": Unaided,
        "make": lambda: MeZOCallback(
            directions=MaskedDirections(GaussianDirections()), mu="auto", update="in-place", clip=0.5, seed=4
        ),
        "accumulate_grad_batches": 2,
        "val_check_interval": 3,
        "saver": {"every_n_epochs": 1, "save_on_train_epoch_end": False},
    },
}
KILLS = {
    "in place": [(1, 5, "end"), (2, 0, "start")],
    "a seed of its own": [(1, 4, "end")],
    "momentum": [(2, 6, "step")],
    "while derivatives add up": [(1, 4, "end"), (2, 6, "end")],
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_run_that_is_killed_goes_on_bit_for_bit(name, tmp_path):
    configuration = {**CONFIGURATIONS[name], "max_epochs": 3}
    uninterrupted = run(tmp_path / "whole", configuration)
    assert_survives(tmp_path / "killed", configuration, KILLS[name], uninterrupted)
