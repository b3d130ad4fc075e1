"""Fine-tunes a Hugging Face transformer to classify sentences: plain Lightning, nothing here knows of VAMO.

pip install '.[finetune]'
lightning-vamo fit --config examples/sst2.yaml --model.model FOLDER_OR_NAME --data.dataset FOLDER_OR_NAME
lightning-vamo fit --config examples/sst2.yaml --model.model ... --data.dataset ... --model.lora_rank 8 --model.lr 1e-3
lightning-vamo fit --config examples/sst2_mezo.yaml --model.model ... --data.dataset ...  # without a gradient
"""

from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
import torchmetrics
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding


class TransformerClassifier(L.LightningModule):
    """A pretrained transformer with a new head, fine-tuned in full, through LoRA, or in the head alone.

    Args:
        model: Name of the model, or its folder.
        classes: Number of labels.
        lora_rank: Rank of LoRA's matrices, one pair for each linear layer; only they and the head are trained. None trains
            every weight.
        optimizer: ``"sgd"``, ``"momentum"`` (SGD with a momentum of 0.9) or ``"adamw"``.
        lr: Learning rate.
        dropout: Probability of each dropout. 0 by default: a step draws other masks than the probes of its batch saw, so what
            dropout adds to the noise cannot be taken out. None keeps the model's own.
        pooling: What the head sees. ``"model"``: what the model's own class for sentences takes, such as BERT's pooler.
            ``"mean"``: the mean of the last layer's tokens, which a linear map takes to the logits.
        head_only: Whether the pretrained weights stay as they are. Not together with ``lora_rank``.
    """

    def __init__(
        self,
        model: str,
        classes: int = 2,
        lora_rank: int | None = None,
        optimizer: Literal["sgd", "momentum", "adamw"] = "adamw",
        lr: float = 5e-5,
        dropout: float | None = 0.0,
        pooling: Literal["model", "mean"] = "model",
        head_only: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        net, self.head = pretrained(model, classes, pooling)
        if head_only:
            net.base_model.requires_grad_(False)
        self.net = (net if lora_rank is None else with_lora(net, lora_rank)).train()
        self.accuracy = torchmetrics.classification.MulticlassAccuracy(classes, average="micro")
        if dropout is not None:
            for part in self.net.modules():
                if isinstance(part, nn.Dropout):
                    part.p = dropout

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Logits, shape ``(batch, classes)``."""
        output = self.net(**{name: values for name, values in batch.items() if name != "labels"})
        if self.head is None:
            return output.logits
        mask = batch["attention_mask"].unsqueeze(-1)
        return self.head((output.last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The cross-entropy of a batch."""
        loss = nn.functional.cross_entropy(self(batch), batch["labels"])
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Accuracy and cross-entropy of a batch."""
        logits, labels = self(batch), batch["labels"]
        self.accuracy(logits, labels)
        self.log("val_loss", nn.functional.cross_entropy(logits, labels), batch_size=len(labels))
        self.log("val_acc", self.accuracy, prog_bar=True, batch_size=len(labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer asked for, of the weights that are trained."""
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        if self.hparams.optimizer == "adamw":
            return torch.optim.AdamW(weights, lr=self.hparams.lr, fused=True)  # one pass over the weights
        return torch.optim.SGD(weights, lr=self.hparams.lr, momentum=0.9 if self.hparams.optimizer == "momentum" else 0.0)


def pretrained(model: str, classes: int, pooling: str) -> tuple[nn.Module, nn.Module | None]:
    """A pretrained network, and the head on the mean of its tokens; None where the network has a head itself."""
    if pooling == "model":
        net = AutoModelForSequenceClassification.from_pretrained(model, num_labels=classes)
        if net.config.pad_token_id is None:  # GPT-2's: the head reads the last token that is no padding
            net.config.pad_token_id = net.config.eos_token_id
        return net, None
    net = AutoModel.from_pretrained(model)
    if hasattr(net, "pooler"):
        net.pooler = None  # of the first token, which nothing sees
    return net, nn.Linear(net.config.hidden_size, classes)


def with_lora(net: nn.Module, rank: int) -> nn.Module:
    """Freeze a network's weights but the head's, and add a pair of LoRA's matrices to each of its linear layers."""
    from peft import LoraConfig, TaskType, get_peft_model

    task = TaskType.FEATURE_EXTRACTION if net.base_model is net else TaskType.SEQ_CLS  # which leaves the network's head alone
    config = LoraConfig(task_type=task, r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    return get_peft_model(net, config)


class Sentences(L.LightningDataModule):
    """Sentences with labels, tokenised once, and padded to the longest of their batch.

    Args:
        dataset: A folder with ``train.tsv`` and ``dev.tsv``, lines of ``label<TAB>sentence``; or one such file, of which every
            tenth line validates; or a folder that ``datasets`` has saved or can read; or a name for
            ``datasets.load_dataset``, such as ``stanfordnlp/sst2``.
        text: Column of the sentences, where ``datasets`` reads them.
        label: Column of the labels, whole numbers from 0 on.
        train_split: Split to train on.
        val_split: Split to validate on.
        tokenizer: Name or folder of the tokenizer; by default that of the model that is trained.
        batch_size: Sentences per batch.
        max_length: Tokens that longer sentences are cut to.
        train_size: How many sentences to train on, the first ones. None: all.
        num_workers: Worker processes of each loader.
    """

    def __init__(
        self,
        dataset: str,
        text: str = "sentence",
        label: str = "label",
        train_split: str = "train",
        val_split: str = "validation",
        tokenizer: str | None = None,
        batch_size: int = 16,
        max_length: int = 64,
        train_size: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        """Read the sentences, and tokenise them."""
        options = self.hparams
        self.tokenizer = AutoTokenizer.from_pretrained(options.tokenizer or self.trainer.lightning_module.hparams.model)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        path = Path(options.dataset)
        if path.suffix == ".tsv":
            rows = read_tsv(path)
            splits = [row for index, row in enumerate(rows) if index % 10], rows[::10]
        elif (path / "train.tsv").exists():
            splits = read_tsv(path / "train.tsv"), read_tsv(path / "dev.tsv")
        else:
            splits = self._splits(path)
        self.train, self.val = self.tokenised(splits[0][: options.train_size]), self.tokenised(splits[1])

    def _splits(self, path: Path) -> list[list[tuple[int, str]]]:
        import datasets

        options = self.hparams
        saved = (path / "dataset_dict.json").exists()
        data = datasets.load_from_disk(str(path)) if saved else datasets.load_dataset(options.dataset)
        splits = [data[name] for name in (options.train_split, options.val_split)]
        return [list(zip(split[options.label], split[options.text], strict=True)) for split in splits]

    def tokenised(self, rows: list[tuple[int, str]]) -> list[dict[str, Any]]:
        """One dictionary for each sentence, with its label."""
        tokens = self.tokenizer([sentence for _, sentence in rows], truncation=True, max_length=self.hparams.max_length)
        return [
            {"input_ids": ids, "attention_mask": mask, "labels": label}
            for ids, mask, (label, _) in zip(tokens["input_ids"], tokens["attention_mask"], rows, strict=True)
        ]

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Pad sentences to a batch."""
        return dict(DataCollatorWithPadding(self.tokenizer)(rows))

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of the training sentences."""
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Batches of the validation sentences."""
        return self._loader(self.val)

    def _loader(self, data: list[dict[str, Any]], shuffle: bool = False) -> DataLoader:
        options = self.hparams
        return DataLoader(data, options.batch_size, shuffle, collate_fn=self.collate, num_workers=options.num_workers)


def read_tsv(path: Path) -> list[tuple[int, str]]:
    """Labels and sentences from lines of ``label<TAB>sentence``."""
    lines = (line.split("\t", 1) for line in path.read_text(encoding="utf-8").splitlines())
    return [(int(label), sentence) for label, sentence in lines]
