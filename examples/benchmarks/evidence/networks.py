"""The networks that the experiments train: plain Lightning modules, which know nothing of any method."""

from itertools import pairwise
from typing import Literal

import lightning as L
import torch
from torch import Tensor, nn

Optimizer = Literal["sgd", "momentum", "adam", "adamw"]


class Network(L.LightningModule):
    """A perceptron; with two sizes, a linear model.

    Args:
        sizes: Numbers of inputs, of hidden units, and of outputs.
        loss: ``"cross_entropy"``; ``"squared"``, of one output; or ``"sigmoid_squared"``, of the sigmoid of one output.
        optimizer: ``"sgd"``, ``"momentum"`` (SGD with a momentum of 0.9), ``"adam"`` or ``"adamw"``.
        lr: Learning rate.
        schedule: ``"constant"``, or ``"cosine"``: the rate falls to zero over the run.
        l2: Half of it times the squared norm of all weights is added to the loss.
        bias: Whether layers have one.
        zeros: Whether all weights begin at zero.
    """

    def __init__(
        self,
        sizes: list[int],
        loss: Literal["cross_entropy", "squared", "sigmoid_squared"] = "cross_entropy",
        optimizer: Optimizer = "sgd",
        lr: float = 0.1,
        schedule: Literal["constant", "cosine"] = "constant",
        l2: float = 0.0,
        bias: bool = True,
        zeros: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        linear = [nn.Linear(inputs, outputs, bias) for inputs, outputs in pairwise(sizes)]
        layers = [layer for each in linear for layer in (each, nn.ReLU())][:-1]
        self.net = nn.Sequential(*layers)
        if zeros:
            for parameter in self.parameters():
                nn.init.zeros_(parameter)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits, shape ``(batch, classes)``, or predictions, shape ``(batch,)``."""
        outputs = self.net(inputs)
        if self.hparams.loss == "cross_entropy":
            return outputs
        outputs = outputs.squeeze(-1)
        return outputs.sigmoid() if self.hparams.loss == "sigmoid_squared" else outputs

    def penalty(self) -> Tensor | float:
        """What is added to the loss of the data."""
        if not self.hparams.l2:
            return 0.0
        return self.hparams.l2 / 2 * sum(parameter.square().sum() for parameter in self.parameters())

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        return data_loss(self(batch[0]), batch[1]) + self.penalty()

    def configure_optimizers(self) -> dict[str, object]:
        """The optimizer, and its schedule."""
        options = self.hparams
        if options.optimizer in ("adam", "adamw"):
            kind = torch.optim.Adam if options.optimizer == "adam" else torch.optim.AdamW
            optimizer: torch.optim.Optimizer = kind(self.parameters(), lr=options.lr)
        else:
            momentum = 0.9 if options.optimizer == "momentum" else 0.0
            optimizer = torch.optim.SGD(self.parameters(), lr=options.lr, momentum=momentum)
        if options.schedule == "constant":
            return {"optimizer": optimizer}
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def data_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy where targets are classes, and the mean squared error where they are numbers."""
    if targets.is_floating_point():
        return nn.functional.mse_loss(outputs.to(targets.dtype), targets)
    return nn.functional.cross_entropy(outputs, targets)
