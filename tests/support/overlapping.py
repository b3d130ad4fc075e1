"""Classes that overlap, so that gradients stay noisy in few dimensions."""

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_vamo import VAMOMixin
from tests.support.modules import Perceptron, trainer


class Classifier(VAMOMixin, Perceptron):
    """Of classes that overlap, so that gradients stay noisy, in few dimensions."""

    def __init__(self):
        super().__init__(20, 16, 4, nn.ReLU, lr=0.02)


def overlapping(samples=400):
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 4, (samples,), generator=generator)
    inputs = torch.eye(4, 20)[labels] + 0.5 * torch.randn(samples, 20, generator=generator)
    return TensorDataset(inputs, labels)


def fit(callback, cls=Classifier, epochs=4, callbacks=(), **options):
    L.seed_everything(1, verbose=False)
    module = cls()
    run = trainer(callbacks=[callback, *callbacks], max_epochs=epochs, **options)
    run.fit(module, DataLoader(overlapping(), 8, shuffle=True))
    return run, module, {name: float(value) for name, value in run.callback_metrics.items()}
