"""MeZO with the weights in host memory: how much of a device's memory each way takes, and how long a step.

python examples/benchmarks/mezo_offload.py --device cuda --width 4096 --layers 32      # about 6.6 billion weights
python examples/benchmarks/mezo_offload.py                                             # a small model, on a CPU

Each way trains in a process of its own. "whole": the weights are on the device. "offloaded": FSDP2, in one process, keeps them
in host memory, and each layer visits the device for its forward pass. On a CPU both are in the same memory: there the run shows
that both ways end with the same weights, and how long the visits take.
"""

import argparse
import time
from statistics import median
from typing import Any

import lightning as L
import torch
from cost_training import silence
from lightning.pytorch.strategies import ModelParallelStrategy
from peak import alone, held, peak, reset_peak
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.utils.data import DataLoader, TensorDataset

from lightning_vamo import MeZOCallback, VAMOMixin

WORDS = 1000


class Net(nn.Module):
    """A transformer encoder that classifies sentences.

    Args:
        width: Width.
        layers: How many layers.
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        options = {"dim_feedforward": 4 * width, "dropout": 0.0, "activation": "gelu", "batch_first": True}
        self.words = nn.Embedding(WORDS, width)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(width, max(1, width // 64), **options) for _ in range(layers))
        self.head = nn.Linear(width, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits, shape ``(batch, 2)``."""
        hidden = self.words(tokens)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(hidden.mean(dim=1))


class Model(VAMOMixin, L.LightningModule):
    """Trains the encoder.

    Args:
        net: The encoder.
        offloaded: Whether the weights wait in host memory.
    """

    def __init__(self, net: Net, offloaded: bool) -> None:
        super().__init__()
        self.net, self.offloaded = net, offloaded

    def configure_model(self) -> None:
        """Shard each layer, and then the network, whose forward pass gathers what is left."""
        if self.offloaded:
            policy = CPUOffloadPolicy(pin_memory=torch.cuda.is_available())
            for part in (*self.net.layers, self.net):
                fully_shard(part, mesh=self.device_mesh["data_parallel"], offload_policy=policy)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The cross-entropy of a batch."""
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=1e-4)


class Clock(L.Callback):
    """The time between the ends of steps."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *arguments: Any) -> None:
        """Read the clock."""
        self.ends.append(time.perf_counter())


def measured(options: argparse.Namespace, offloaded: bool) -> dict[str, Any]:
    """Train a few steps: bytes on the device, seconds per step, and the sum of the weights' sizes at the end."""
    silence()
    L.seed_everything(0, verbose=False)
    device, clock = torch.device(options.device), Clock()
    generator = torch.Generator().manual_seed(0)
    count = options.steps * options.batch_size
    tokens = torch.randint(WORDS, (count, options.tokens), generator=generator)
    loader = DataLoader(TensorDataset(tokens, tokens[:, 0] % 2), options.batch_size)
    module = Model(Net(options.width, options.layers), offloaded)
    before = held(device)
    reset_peak(device)
    strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1) if offloaded else "auto"
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"use_distributed_sampler": False}  # so that both ways see the batches in the same order
    callbacks = [MeZOCallback(seed=0), clock]
    trainer = L.Trainer(accelerator=options.device, devices=1, strategy=strategy, max_epochs=1, callbacks=callbacks, **quiet)
    trainer.fit(module, loader)
    whole = (weight.full_tensor() if offloaded else weight for weight in module.parameters())
    seconds = median(end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False))
    norm = sum(float(weight.detach().double().square().sum()) for weight in whole) ** 0.5
    numbers = sum(weight.numel() for weight in module.parameters())
    return {"bytes": peak(device) - before, "seconds": seconds, "norm": norm, "numbers": numbers}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    for name, value in (("width", 64), ("layers", 2), ("batch-size", 4), ("tokens", 32), ("steps", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    print("| weights | numbers | peak memory of the device | seconds per step | norm of the weights at the end |")
    print("|---|---|---|---|---|")
    for name, offloaded in (("whole", False), ("offloaded", True)):
        row = alone(measured, options, offloaded)
        cells = [name, f"{row['numbers']:,}", f"{row['bytes'] / 1e6:,.0f} MB", f"{row['seconds']:.3f}", f"{row['norm']:.9f}"]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
