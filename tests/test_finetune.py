"""The fine-tuning example trains a transformer with VAMO, in full and through LoRA, on sentences from each kind of source."""

from pathlib import Path

import lightning as L
import pytest
import torch
import yaml

from lightning_vamo import MeZOCallback, VAMOCallback, with_vamo
from lightning_vamo.cli import VAMOCLI
from lightning_vamo.core.directions import GradientSubspaceDirections

transformers = pytest.importorskip("transformers", reason="the example needs transformers")
from examples.finetune import Sentences, TransformerClassifier  # noqa: E402

ROOT = Path(__file__).parents[1]
SENTENCES = ["a fine film", "a bad film", "a film", "fine", "a bad bad film", "bad", "a fine fine film", "a bad"] * 2
ROWS = [(int("fine" in sentence), sentence) for sentence in SENTENCES]
QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the three packages' own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folder of a tiny BERT with random weights, and of its tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "bad", "film", "fine"]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=16, **sizes)
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """Folder of a tiny GPT-2 with random weights, and of a tokenizer that has no token to pad with, as GPT-2's has none."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("gpt2")
    words = ["<|endoftext|>", "a", "bad", "film", "fine"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), words[0])
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(vocab_size=len(words), n_positions=16, n_embd=16, n_layer=2, n_head=2, **ends)
    torch.manual_seed(0)
    transformers.GPT2Model(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def tsv(tmp_path):
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text("".join(f"{label}\t{sentence}\n" for label, sentence in ROWS))
    return tmp_path


def fit(model, dataset, **options):
    L.seed_everything(1, verbose=False)
    module = TransformerClassifier(model, optimizer="sgd", lr=0.1, **options)
    directions = GradientSubspaceDirections(warmup_batches=2)
    callback = VAMOCallback(probes=1, directions=directions, alpha="adaptive")
    trainer = L.Trainer(max_epochs=1, callbacks=[callback], enable_model_summary=False, **QUIET)
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    trainer.fit(with_vamo(module), Sentences(str(dataset), batch_size=4))
    moved = {name for name, weight in module.named_parameters() if not torch.equal(weight, before[name])}
    return module, callback, trainer, moved


def test_full_fine_tuning(model, tsv):
    module, callback, trainer, moved = fit(model, tsv)
    assert callback.report.steps == 4
    assert callback.report.backward_evaluations == 2 + 4  # warm-up and steps
    assert 0 <= trainer.callback_metrics["val_acc"] <= 1
    assert moved == {name for name, _ in module.named_parameters()}


def test_a_model_without_a_token_to_pad_with(gpt2, tsv):
    module, callback, _, moved = fit(gpt2, tsv)
    assert callback.report.steps == 4
    assert moved == {name for name, _ in module.named_parameters()}
    with torch.no_grad():  # what is padded does not matter
        short = module({"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)})
        padded = {"input_ids": torch.tensor([[1, 2, 0], [1, 2, 3]]), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
        assert torch.allclose(module(padded)[0], short[0], atol=1e-6)


def test_lora_trains_and_probes_its_own_matrices_and_the_head_alone(model, tsv):
    pytest.importorskip("peft", reason="LoRA needs peft")
    probed = []

    class Recording(GradientSubspaceDirections):
        def learner(self, parameters, count, generator):
            probed.extend(parameters)
            return super().learner(parameters, count, generator)

    module = TransformerClassifier(model, lora_rank=2, optimizer="sgd", lr=0.1)
    callback = VAMOCallback(probes=1, directions=Recording(warmup_batches=2), alpha="adaptive")
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    trainer = L.Trainer(max_epochs=2, callbacks=[callback], enable_model_summary=False, **QUIET)
    trainer.fit(with_vamo(module), Sentences(str(tsv), batch_size=4))
    trained = {name for name, weight in module.named_parameters() if any(weight is other for other in probed)}
    assert callback.report.steps == 8
    assert trained == {name for name, weight in module.named_parameters() if weight.requires_grad}
    assert all("lora_" in name or "classifier" in name for name in trained)
    assert sum("lora_" in name for name in trained) == 2 * (2 * 6 + 1)  # for each linear map: two layers of six, and one above
    moved = {name for name, weight in module.named_parameters() if not torch.equal(weight, before[name])}
    assert moved <= trained
    assert sum("lora_B" in name for name in moved) > 6  # which start at 0, and hold back the gradients of the others


@pytest.mark.parametrize("lora_rank", [None, 2])
def test_a_head_on_the_mean_of_the_tokens(model, tsv, lora_rank):
    if lora_rank:
        pytest.importorskip("peft", reason="LoRA needs peft")
    module = TransformerClassifier(model, pooling="mean", lora_rank=lora_rank)
    data = Sentences(str(tsv), tokenizer=model, batch_size=16)
    data.setup("fit")
    [batch] = data.val_dataloader()
    assert not batch["attention_mask"].all()  # some are padded
    words = {name: values for name, values in batch.items() if name != "labels"}
    with torch.no_grad():
        tokens, mask = module.net(**words).last_hidden_state, batch["attention_mask"].bool()
        means = torch.stack([one[kept].mean(dim=0) for one, kept in zip(tokens, mask, strict=True)])
        assert torch.allclose(module(batch), means @ module.head.weight.T + module.head.bias, atol=1e-5)
    trained = {name for name, weight in module.named_parameters() if weight.requires_grad}
    assert not any("pooler" in name for name, _ in module.named_parameters())
    assert {"head.weight", "head.bias"} < trained
    assert all("lora_" in name or name.startswith("head.") for name in trained) == bool(lora_rank)


def test_mezo_moves_the_chosen_weights_alone(model, tsv):
    for options, chosen in (({}, "head.*"), ({"head_only": True}, None)):
        module = TransformerClassifier(model, optimizer="sgd", lr=0.01, pooling="mean", **options)
        before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
        callback = MeZOCallback(parameters=chosen)
        trainer = L.Trainer(max_epochs=1, callbacks=[callback], enable_model_summary=False, **QUIET)
        trainer.fit(with_vamo(module), Sentences(str(tsv), batch_size=4))
        moved = {name for name, weight in module.named_parameters() if not torch.equal(weight, before[name])}
        assert moved == {"head.weight", "head.bias"}
        assert callback.report.forward_evaluations == 2 * 4
        assert callback.report.backward_evaluations == 0


def test_the_optimizers(model):
    for name, kind, momentum in [("sgd", "SGD", 0.0), ("momentum", "SGD", 0.9), ("adamw", "AdamW", None)]:
        optimizer = TransformerClassifier(model, optimizer=name, lr=0.25).configure_optimizers()
        assert type(optimizer).__name__ == kind
        assert optimizer.defaults["lr"] == 0.25
        assert optimizer.defaults.get("momentum") == momentum


def rows_of(dataset, model, **options):
    data = Sentences(str(dataset), tokenizer=model, **options)
    data.setup("fit")
    return [
        [(row["labels"], data.tokenizer.decode(row["input_ids"], skip_special_tokens=True)) for row in split]
        for split in (data.train, data.val)
    ]


def test_a_folder_and_a_file_of_lines(model, tsv):
    assert rows_of(tsv, model) == [ROWS, ROWS]
    assert rows_of(tsv, model, train_size=3) == [ROWS[:3], ROWS]
    assert rows_of(tsv / "train.tsv", model) == [ROWS[1:10] + ROWS[11:], [ROWS[0], ROWS[10]]]


def test_sentences_are_cut_and_padded_to_the_longest_of_the_batch(model, tsv):
    data = Sentences(str(tsv), tokenizer=model, batch_size=16, max_length=5)
    data.setup("fit")
    [batch] = data.val_dataloader()
    assert batch["input_ids"].shape == (16, 5)
    assert batch["attention_mask"].sum(1).tolist() == [min(5, 2 + len(sentence.split())) for _, sentence in ROWS]
    assert batch["labels"].tolist() == [label for label, _ in ROWS]


def test_what_datasets_reads(model, tmp_path):
    datasets = pytest.importorskip("datasets", reason="reads through datasets")
    rows = datasets.Dataset.from_dict({"text": [s for _, s in ROWS], "stars": [label for label, _ in ROWS]})
    columns = {"text": "text", "label": "stars", "val_split": "test"}
    datasets.DatasetDict({"train": rows, "test": rows.select(range(4))}).save_to_disk(tmp_path / "saved")
    assert rows_of(tmp_path / "saved", model, **columns) == [ROWS, ROWS[:4]]
    for name in ("train", "test"):
        rows.to_csv(tmp_path / "csv" / f"{name}.csv")
    assert rows_of(tmp_path / "csv", model, **columns) == [ROWS, ROWS]


@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended to run")
@pytest.mark.filterwarnings("ignore:Precision bf16-mixed is not supported by the model summary")
@pytest.mark.parametrize("name", ["sst2", "sst2_mezo", "sst2_gpt2", "sst2_roberta_large"])
def test_the_configurations(name, model, gpt2, tsv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text())
    config["trainer"].update(logger=False, enable_checkpointing=False, enable_progress_bar=False, max_epochs=1)
    (tmp_path / "sst2.yaml").write_text(yaml.safe_dump(config))
    small = gpt2 if name == "sst2_gpt2" else model
    arguments = ["--trainer.accelerator", "cpu", "--model.model", small, "--data.dataset", str(tsv), "--data.batch_size", "4"]
    cli = VAMOCLI(args=["fit", "--config", str(tmp_path / "sst2.yaml"), *arguments])
    assert cli.trainer.global_step == 4
    assert "val_acc" in capsys.readouterr().out
