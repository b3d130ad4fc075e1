"""The adaptive coefficient in training: it trusts probes that help, and turns those off that do not."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_vamo import VAMOCallback, VAMOMixin
from lightning_vamo.core.directions import OrthonormalDirections
from tests.support.modules import trainer


class Linear(L.LightningModule):
    """Least squares with six weights, which as many probes span."""

    def __init__(self, lr=0.02):
        super().__init__()
        self.lr = lr
        self.net = nn.Linear(6, 1, bias=False)
        nn.init.zeros_(self.net.weight)

    def training_step(self, batch, batch_idx):
        return (self.net(batch[0]).squeeze(1) - batch[1]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class VAMOLinear(VAMOMixin, Linear):
    pass


class Misled(VAMOLinear):
    """Probes a loss that has nothing to do with the batch."""

    def probe_loss(self, batch, batch_idx):
        generator = torch.Generator().manual_seed(batch_idx)
        slopes = 3 * torch.randn(6, generator=generator, dtype=torch.float64)
        return self.net.weight[0].double() @ slopes


def fit(cls, callback=None, epochs=12, batch_size=4, **options):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(160, 6, generator=generator)
    targets = inputs @ torch.ones(6) + torch.randn(160, generator=generator)
    L.seed_everything(1, verbose=False)
    module = cls()
    fit = trainer(callbacks=[callback] if callback else [], max_epochs=epochs, **options)
    fit.fit(module, DataLoader(TensorDataset(inputs, targets), batch_size, shuffle=True))
    optimum = torch.linalg.lstsq(inputs, targets).solution
    return (module.net.weight.detach()[0] - optimum).norm().item(), module.net.weight.detach().clone(), fit.callback_metrics


def plain(epochs):
    return fit(Linear, epochs=epochs)


def probing(alpha):
    return VAMOCallback(probes=6, directions=OrthonormalDirections(), alpha=alpha, mu=1e-2, difference="central", seed=1)


def test_probes_that_are_right_are_trusted():
    distance, _, _ = plain(8)
    theory, _, _ = fit(VAMOLinear, probing("theory"), epochs=8)
    adaptive, _, metrics = fit(VAMOLinear, probing("adaptive"), epochs=8)
    assert metrics["vamo/alpha"] > 0.9
    assert theory < distance / 4
    assert adaptive < distance / 4
    assert metrics["vamo/variance_removed"] > 0.5


@pytest.mark.filterwarnings("ignore:The probe differences hardly stand out")
def test_probes_that_mislead_are_turned_off():
    distance, reference, _ = plain(4)
    theory, misled, _ = fit(Misled, probing("theory"), epochs=4)
    adaptive, weights, metrics = fit(Misled, probing("adaptive"), epochs=4)
    assert metrics["vamo/alpha"] < 0.1
    assert (weights - reference).norm() < 0.25 * (misled - reference).norm()
    assert adaptive < 1.5 * distance
    assert theory > 2 * distance


def test_a_linear_decay_is_logged_as_its_mean():
    _, _, metrics = fit(VAMOLinear, probing("linear-decay"), epochs=1)
    assert metrics["vamo/alpha"] == pytest.approx(sum(1 - k / 40 for k in range(40)) / 40)


def test_the_batches_of_a_step_share_its_factors():
    _, _, metrics = fit(VAMOLinear, probing("linear-decay"), epochs=1, accumulate_grad_batches=2)
    assert metrics["vamo/alpha"] == pytest.approx(sum(1 - 2 * step / 40 for step in range(20)) / 20)


def test_accumulated_steps_regress_on_the_mean_of_their_rows():
    _, _, metrics = fit(VAMOLinear, probing("adaptive"), accumulate_grad_batches=2)
    assert metrics["vamo/alpha"] > 0.9
    assert metrics["vamo/variance_removed"] > 0.5
