"""The console command trains any LightningModule that a configuration names, and so does a LightningCLI of one's own."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_vamo import Carry, InvalidArgumentError, Recompute, UnsupportedError, VAMOCallback, VAMOError, VAMOMixin
from lightning_vamo.callbacks.base import MethodCallback
from lightning_vamo.cli import VAMOCLI, main
from lightning_vamo.core.directions import GradientSubspaceDirections, RademacherDirections
from lightning_vamo.core.schedules import LinearProbes
from tests.support import scripts
from tests.support.commands import one_subcommand
from tests.support.modules import Everything

ROOT = Path(__file__).parents[2]
MODEL = {"class_path": "tests.support.modules.Everything", "init_args": {"lr": 0.02}}
TRAINER = {
    "accelerator": "cpu",
    "max_epochs": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "limit_train_batches": 4,
}
pytestmark = [
    pytest.mark.filterwarnings(
        "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"
    ),  # Lightning 2.6 with jsonargparse 4.53
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended to run"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]

# A sweep of 4 batches evaluates, beside those of its table, a batch a second time, and each at twice and at half the radius.


def command(tmp_path, subcommand="fit", trainer=None, cli=VAMOCLI, arguments=(), **sections):
    config = {"seed_everything": 1, "model": MODEL, "data": {"class_path": "tests.support.modules.Data"}, **sections}
    config["trainer"] = {**TRAINER, "default_root_dir": str(tmp_path), "log_every_n_steps": 1, **(trainer or {})}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    with one_subcommand(cli, subcommand):
        return cli(args=[subcommand, "--config", str(path), *arguments])


def callback_of(cli):
    [callback] = [c for c in cli.trainer.callbacks if isinstance(c, VAMOCallback)]
    return callback


def test_a_configuration_without_a_word_of_vamo(tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    cli = command(tmp_path)  # four batches, which are too few to gain anything
    assert isinstance(cli.model, VAMOMixin)
    assert isinstance(cli.model, Everything)
    report = callback_of(cli).report
    assert (report.snapshots, report.steps) == (0, 0)
    assert report.forward_evaluations == report.backward_evaluations == 4
    output = capsys.readouterr().out
    assert "Last metrics:" in output
    assert "val_loss" in output
    assert str(report) in caplog.text
    assert f"tensorboard --logdir {os.path.relpath(tmp_path / 'lightning_logs')}" in output


def test_the_section_and_the_command_line_set_the_callbacks_arguments(tmp_path):
    section = {
        "probes": {
            "class_path": "lightning_vamo.core.schedules.LinearProbes",
            "init_args": {"start": 2, "end": 4, "epochs": 2},
        },
        "directions": {"class_path": "lightning_vamo.core.directions.RademacherDirections", "init_args": {"storage": "seeded"}},
        "mu": 0.01,
    }
    callback = callback_of(command(tmp_path, vamo=section, arguments=["--vamo.alpha", "0.001", "--vamo.difference=central"]))
    assert isinstance(callback.settings.schedule, LinearProbes)
    assert isinstance(callback.settings.directions, RademacherDirections)
    assert callback.settings.directions.storage == "seeded"
    assert (callback.settings.mu, callback.settings.alpha, callback.settings.difference) == (0.01, 0.001, "central")
    assert callback.report.forward_evaluations == 4 * (1 + 2 * 2) + (1 + 2 * (4 + 4)) + 4


def test_a_schedule_of_ones_own(tmp_path):
    callback = callback_of(command(tmp_path, vamo={"probes": {"class_path": "tests.integration.test_cli.Own"}, "mu": 0.01}))
    assert callback.report.forward_evaluations == 4 * (1 + 3) + (1 + 4 + 4) + 4 + 4


class Own:
    def probes_at(self, epoch: int) -> int:
        return 3


ONE = ("--vamo.probes=1",)


@pytest.mark.parametrize(
    ("arguments", "name", "expected"),
    [
        (["--vamo.probes=EfficientProbes", "--vamo.probes.maximum=3"], "schedule", {"maximum": 3}),
        (["--vamo.probes=LinearProbes", *(f"--vamo.probes.{name}=2" for name in ("start", "end", "epochs"))], "schedule", {}),
        (["--vamo.directions=GradientSubspaceDirections", "--vamo.directions.rank=2"], "directions", {"rank": 2}),
        ([*ONE, "--vamo.control=carry"], "control", Carry()),
        (
            [*ONE, "--vamo.control=Carry", "--vamo.control.sweep_every_n_epochs=5", "--vamo.control.decay=0.25"],
            "control",
            Carry(sweep_every_n_epochs=5, decay=0.25),
        ),
        (
            [*ONE, "--vamo.control=Recompute", "--vamo.control.every_n_train_steps=2"],
            "control",
            Recompute(every_n_train_steps=2),
        ),
    ],
    ids=str,
)
def test_short_names_on_the_command_line(arguments, name, expected, tmp_path):
    callback = callback_of(command(tmp_path, arguments=arguments))
    given = callback.control if name == "control" else getattr(callback.settings, name)
    if name == "control":
        assert given == expected
    else:
        assert type(given).__name__ == arguments[0].partition("=")[2]
        assert expected.items() <= vars(given).items()


def test_help_lists_what_there_is_and_no_internals(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = re.sub(r"\s", "", capsys.readouterr().out)
    for name in ("schedules.EfficientProbes", "schedules.LinearProbes", "lightning_vamo.Carry", "directions.SphereDirections"):
        assert name in text
    # `method` is of the type MethodCallback, which has a name there; as a choice it would stand with its module.
    for name in ("DrivingCallback", "base.MethodCallback", "AtTheFirstBatch", "Measurement"):
        assert name not in text


def test_old_names_are_answered_with_what_to_write(tmp_path):
    for arguments in ({"vamo": {"carry": True}}, {"arguments": ["--vamo.every_n_epochs=2"]}):
        with pytest.raises(InvalidArgumentError, match=r"`vamo` has no key `(carry|every_n_epochs)` any more: write control="):
            command(tmp_path, **arguments)
    with pytest.raises(SystemExit, match=r"^lightning-vamo: The section `vamo` has no key `carry` any more"):
        main(["fit", "--config", str(write(tmp_path, {"vamo": {"carry": True}}))])


def refused(capsys, arguments):
    """The message of a command that does not begin to train: the command's own, or the parser's."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return str(stopped.value.code) if stopped.value.code != 2 else capsys.readouterr().err


@pytest.mark.parametrize(
    "value", [4, 0.5, True, None, [1], [{"probes": 4}], "auto", "VAMOCallback", "missing.yaml", "[1]", "4"]
)
def test_a_value_in_place_of_the_section_is_refused_by_name(value, tmp_path, capsys):
    config = {"model": MODEL, "vamo": value}
    messages = [refused(capsys, ["fit", "--config", str(write(tmp_path, config))])]
    messages.append(refused(capsys, {"subcommand": "fit", "fit": config}))
    messages.append(refused(capsys, ["--config", str(write(tmp_path, {"fit": config})), "fit"]))
    own = f"lightning-vamo: `vamo` must be a section of VAMOCallback's arguments, .* got {re.escape(repr(value))}: write "
    parsers = f'Parser key "vamo":\\s+Unable to load config .{re.escape(str(value))}.'
    for message in messages:
        assert re.search(parsers if isinstance(value, str) else own, message)


@pytest.mark.parametrize("value", ["4", "auto", "null", "[1]"])
def test_a_value_on_the_command_line_in_place_of_the_section_is_refused_by_name(value, tmp_path, capsys):
    config = str(write(tmp_path, {"model": MODEL}))
    assert f"Unable to load config '{value}'" in refused(capsys, ["fit", "--config", config, f"--vamo={value}"])
    if value != "null":
        assert 'Parser key "method"' in refused(capsys, ["fit", "--config", config, f"--method={value}"])


@pytest.mark.parametrize("value", [4, True, [1], "auto", {}, {"probes": 3}, {"class_path": "MeZOCallback", "init_args": 3}])
def test_a_value_in_place_of_the_method_is_refused_by_name(value, tmp_path, capsys):
    message = refused(capsys, ["fit", "--config", str(write(tmp_path, {"model": MODEL, "method": value}))])
    assert 'Parser key "method"' in message
    assert f"Given value: {value}" in message


@pytest.mark.parametrize("value", [3, "auto", [1], True])
def test_a_value_in_place_of_a_subcommands_sections_is_refused_by_name(value, tmp_path, capsys):
    for arguments in (["--config", str(write(tmp_path, {"fit": value})), "fit"], {"subcommand": "fit", "fit": value}):
        message = refused(capsys, arguments)
        assert message.startswith("lightning-vamo: `fit` must hold the sections of the subcommand,")
        assert f"got {value!r}: write them below `fit`." in message


@pytest.mark.parametrize("text", ["fit:", "3", "[1]", "", "when: 2020-13-45"])
def test_the_parser_reports_a_configuration_without_sections(text, tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert "error:" in refused(capsys, ["--config", str(path), "fit"])


@pytest.mark.parametrize("config", [{"fit": None}, {"fit": None, "validate": {}}])
def test_an_empty_section_of_a_subcommand_is_reported(config, tmp_path, capsys):
    words = ["--config", str(write(tmp_path, config)), "fit", f"--model={MODEL['class_path']}"]
    for arguments in (words, {"subcommand": "fit", **config}):
        assert "error: `fit` must hold the sections of the subcommand," in refused(capsys, arguments)


def test_a_command_line_without_subcommands_may_have_options_of_their_names(tmp_path):
    class Own(VAMOCLI):
        def add_arguments_to_parser(self, parser):
            super().add_arguments_to_parser(parser)
            parser.add_argument("--test", type=bool, default=False)

    for arguments in (["--config", str(write(tmp_path, {"test": True}))], {"test": True}):
        assert Own(BoringModel, run=False, args=arguments, save_config_callback=None).config["test"] is True


def test_the_section_may_be_the_path_of_a_file(tmp_path):
    (tmp_path / "vamo.yaml").write_text("{probes: 3, mu: 0.01}")
    assert callback_of(command(tmp_path, vamo=str(tmp_path / "vamo.yaml"))).settings.schedule.n == 3


def write(folder, configuration):
    path = folder / "old.yaml"
    path.write_text(yaml.safe_dump(configuration))
    return path


def test_a_callback_in_the_configuration(tmp_path):
    callbacks = [{"class_path": "lightning_vamo.VAMOCallback", "init_args": {"probes": 2, "mu": 0.01}}]
    assert (
        callback_of(command(tmp_path, trainer={"callbacks": callbacks})).report.forward_evaluations
        == 4 * 3 + (1 + 4 + 4) + 4 + 4
    )
    with pytest.raises(UnsupportedError, match=r"by a VAMOCallback in `trainer.callbacks` and a section `vamo`.*keep one"):
        command(tmp_path, trainer={"callbacks": callbacks}, vamo={"probes": 3})


METHOD = {"class_path": "VAMOCallback", "init_args": {"probes": 2, "directions": {"class_path": "SphereDirections"}}}


def test_the_method_is_named_by_a_class(tmp_path, caplog):
    caplog.set_level("INFO")
    cli = command(tmp_path, method=METHOD, arguments=["--method.alpha=theory"])
    callback = callback_of(cli)
    assert callback.settings.schedule.n == 2
    assert callback.settings.alpha == "theory"
    assert str(callback.report) in caplog.text
    [saved] = (tmp_path / "lightning_logs").rglob("config.yaml")
    with one_subcommand(VAMOCLI, "fit"):
        again = VAMOCLI(args=["fit", "--config", str(saved)])
    assert vars(callback_of(again).settings.schedule) == vars(callback.settings.schedule)
    assert torch.equal(again.model.net[0].weight, cli.model.net[0].weight)


def test_processes_may_be_spawned(tmp_path, capsys):
    command(tmp_path, trainer={"strategy": "ddp_spawn", "devices": 2})
    assert "val_loss" in capsys.readouterr().out


def test_one_method_is_enough(tmp_path):
    with pytest.raises(UnsupportedError, match=r"by a key `method` and a section `vamo`.*keep one"):
        command(tmp_path, method=METHOD, vamo={"probes": 3})
    callbacks = [{"class_path": "lightning_vamo.VAMOCallback"}]
    with pytest.raises(UnsupportedError, match=r"by a VAMOCallback in `trainer.callbacks` and a key `method`.*keep one"):
        command(tmp_path, method=METHOD, trainer={"callbacks": callbacks})


def test_a_method_on_the_command_line_takes_the_place_of_a_files_section(tmp_path, caplog):
    caplog.set_level("INFO")
    cli = command(tmp_path, vamo={"probes": 3}, arguments=["--method=SVRGCallback", "--method.alpha=0.5"])
    assert "section `vamo` is set aside, since the command line names a method" in caplog.text
    assert [type(c).__name__ for c in cli.trainer.callbacks if isinstance(c, MethodCallback)] == ["SVRGCallback"]
    with pytest.raises(UnsupportedError, match="by a key `method` and a section `vamo`"):
        command(tmp_path, arguments=["--method=SVRGCallback", "--vamo.probes=3"])


def test_a_configuration_of_the_users_is_never_in_the_way(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)
    config = {"model": MODEL, "data": {"class_path": "tests.support.modules.Data"}}
    config["trainer"] = {**TRAINER, "logger": False, "max_epochs": 1}
    Path("config.yaml").write_text(yaml.safe_dump(config))
    before = Path("config.yaml").read_text()
    with one_subcommand(VAMOCLI, "fit"):
        main(["fit", "--config", "config.yaml"])
    assert Path("config.yaml").read_text() == before
    assert "The configuration of this run is not saved, since config.yaml exists" in caplog.text.replace(f"{tmp_path}/", "")
    with one_subcommand(VAMOCLI, "fit"):
        main(["fit", "--config", "config.yaml", "--trainer.default_root_dir", "elsewhere"])
    assert Path("elsewhere/config.yaml").is_file()


def test_find_takes_the_hyperparameters_of_the_checkpoint(tmp_path, monkeypatch):
    command(tmp_path, arguments=["--model.lr=0.5"])
    [checkpoint] = tmp_path.rglob("*.ckpt")
    seen = []
    monkeypatch.setattr(
        "lightning_vamo.finder.command.find_probes", lambda trainer, model, *_, **given: seen.append((model, given))
    )
    monkeypatch.setattr("lightning_vamo.finder.command._write", lambda *_: None)
    command(tmp_path, "find", arguments=[f"--at={checkpoint}"])
    [(model, given)] = seen
    assert model.hparams.lr == 0.5
    assert given["ckpt_path"] == str(checkpoint)


class Found:
    def to_json(self, path):
        path.touch()

    def plot(self):
        raise UnsupportedError("no picture")


@pytest.mark.parametrize(
    ("arguments", "note"),
    [
        (
            "--vamo.directions=SphereDirections --vamo.probes=1",
            "learned directions, but the configuration has SphereDirections",
        ),
        ("--method=SVRGCallback", "a VAMOCallback, but the configuration trains with SVRGCallback"),
        ("--vamo.probes=1", None),
    ],
)
def test_find_says_what_its_figures_are_not_for(arguments, note, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lightning_vamo.finder.command.find_probes", lambda *_, **__: Found())
    command(tmp_path, "find", arguments=arguments.split())
    output = capsys.readouterr().out
    assert ("These figures are for" in output) == (note is not None)
    assert note is None or f"These figures are for {note}" in output


def test_wrong_arguments_are_refused_by_name(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"`mu` must be a positive, finite number or 'auto', got -1.0"):
        command(tmp_path, vamo={"mu": -1.0})
    with pytest.raises(SystemExit, match=r"^lightning-vamo: `mu` must be"):
        main(["fit", "--config", str(tmp_path / "config.yaml")])
    with pytest.raises(SystemExit):
        command(tmp_path, vamo={"probez": 3})
    assert "probez" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--vamo.control Carry --vamo.control.decay 1", "`decay` must be a number, at least 0 and less than 1, got 1.0"),
        ("--vamo.control Carry --vamo.control.sweep_every_n_epochs 1", "`sweep_every_n_epochs` must be 2 or more"),
        ("--vamo.control Recompute --vamo.control.every_n_epochs 0", "`every_n_epochs` must be"),
        ("--vamo.directions GradientSubspaceDirections --vamo.directions.rank -1", "`rank` must be None"),
        (
            "--vamo.probes LinearProbes --vamo.probes.start -1 --vamo.probes.end 3 --vamo.probes.epochs 3",
            "`start` must be a whole number >= 0, got -1",
        ),
        ("--method MeZOCallback --method.mu -1", "`mu` must be a positive, finite number or 'auto', got -1.0"),
        ("--method SVRGCallback --method.every_n_epochs 0", "`every_n_epochs` must be"),
        (
            "--trainer.callbacks VAMOCallback --trainer.callbacks.probes -1",
            "`probes` must be a whole number >= 0, 'auto' or",
        ),
    ],
)
def test_what_only_a_classs_constructor_refuses_is_said_alone(arguments, message, tmp_path):
    with pytest.raises(VAMOError, match=re.escape(message)):
        command(tmp_path, arguments=arguments.split())
    with pytest.raises(SystemExit, match="^lightning-vamo: " + re.escape(message)):
        main(["fit", "--config", str(tmp_path / "config.yaml"), *arguments.split()])


@pytest.mark.parametrize(("subcommand", "option"), [("fit", "ckpt_path"), ("test", "ckpt_path"), ("find", "at")])
def test_a_path_without_a_checkpoint_is_refused_before_anything_is_built(subcommand, option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("notes.ckpt").write_text("no checkpoint")
    Path("folder").mkdir()
    with zipfile.ZipFile("archive.zip", "w") as archive:
        archive.writestr("notes", "no checkpoint")
    kinds = {"missing.ckpt": "where there is no file", "a:b": "where there is no file", "folder": "which is a folder, and none"}
    kinds |= dict.fromkeys(("notes.ckpt", "archive.zip"), "which is damaged, or a file of another kind")
    for path, what in kinds.items():
        message = f"`{option}` must be a checkpoint, got {path!r}, {what}"
        with pytest.raises(InvalidArgumentError, match=re.escape(message)):
            command(tmp_path, subcommand=subcommand, arguments=[f"--{option}={path}"])


def test_find_refuses_a_place_that_cannot_be_written_before_it_measures(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_vamo.finder.command.find_probes", None)
    with pytest.raises(InvalidArgumentError, match=r"`output` must be a folder that can be written to, got .*config.yaml"):
        command(tmp_path, subcommand="find", arguments=[f"--output={tmp_path / 'config.yaml'}"])

    def fails(*_, **__):
        raise PermissionError("Permission denied")

    monkeypatch.setattr("lightning_vamo.finder.command.TemporaryFile", fails)
    with pytest.raises(InvalidArgumentError, match=r"`output` must be a folder .* Permission denied: name another folder"):
        command(tmp_path, subcommand="find", arguments=[f"--output={tmp_path}"])


def test_the_error_of_a_class_of_ones_own_stays_the_parsers(tmp_path):
    trainer = {"callbacks": [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_top_k": -5}}]}
    with pytest.raises(ValueError, match="save_top_k=-5") as refused:
        command(tmp_path, trainer=trainer)
    assert not isinstance(refused.value, VAMOError)


def test_checkpoints_load_into_the_plain_class_and_plain_ones_into_the_command(tmp_path):
    cli = command(tmp_path)
    [checkpoint] = tmp_path.rglob("*.ckpt")
    plain = Everything.load_from_checkpoint(checkpoint)
    assert type(plain) is Everything
    assert plain.hparams.lr == 0.02
    assert torch.equal(plain.net[0].weight, cli.model.net[0].weight)

    other = tmp_path / "plain"
    other.mkdir()
    command(other, cli=PlainCLI)
    [checkpoint] = other.rglob("*.ckpt")
    again = command(other, trainer={"max_epochs": 2}, vamo={"probes": 1}, arguments=["--ckpt_path", str(checkpoint)])
    assert again.trainer.global_step == 8
    assert callback_of(again).report.snapshots == 1


class PlainCLI(LightningCLI):
    def __init__(self, args):
        super().__init__(args=args)


@pytest.mark.parametrize("subcommand", ["validate", "test", "predict"])
def test_other_subcommands(subcommand, tmp_path):
    model = {"class_path": "tests.integration.test_cli.Evaluated", "init_args": {"lr": 0.02}}
    command(tmp_path, model=model)
    [checkpoint] = tmp_path.rglob("*.ckpt")
    cli = command(tmp_path, subcommand, model=model, arguments=["--ckpt_path", str(checkpoint)])
    expected = torch.load(checkpoint, weights_only=True)["state_dict"]["net.0.weight"]
    assert torch.equal(cli.model.net[0].weight, expected)


class Evaluated(Everything):
    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch, batch_idx):
        return self.net(batch[0])


EXAMPLES = {
    "a configuration": ["-m", "lightning_vamo", "fit", "--config", "examples/digits.yaml"],
    "a command of one's own": ["examples/own_cli.py", "fit", "--config", "examples/own_cli.yaml"],
}


@pytest.mark.parametrize("arguments", EXAMPLES.values(), ids=EXAMPLES)
def test_examples_run(arguments, tmp_path):
    short = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=10", "--trainer.limit_val_batches=2"]
    arguments = [*arguments, *short, f"--trainer.default_root_dir={tmp_path}"]
    arguments = [str(ROOT / a) if a.startswith("examples/") and a.endswith(".py") else a for a in arguments]
    if "-m" in arguments:
        options = {"capture_output": True, "text": True, "timeout": 1800, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
        done = subprocess.run([sys.executable, *arguments], cwd=ROOT, **options)
        assert "VAMO: " in done.stderr
    else:
        done = scripts.run(*arguments, cwd=ROOT, scratch=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("events.out.tfevents.*"))


def test_the_example_in_python_runs_for_an_epoch(tmp_path):
    code = (ROOT / "examples" / "python_api.py").read_text()
    assert code.count("max_epochs=10") == 1
    (tmp_path / "python_api.py").write_text(code.replace("max_epochs=10", "max_epochs=1"))
    shutil.copy(ROOT / "examples" / "digits.py", tmp_path)
    done = scripts.run(str(tmp_path / "python_api.py"), cwd=tmp_path, scratch=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "VAMO: " in done.stdout
    assert list(tmp_path.rglob("events.out.tfevents.*"))


def test_the_demo_trains_plainly_and_with_vamo(tmp_path):
    done = scripts.run(str(ROOT / "examples" / "demo.py"), "--trainer.max_epochs=10", cwd=ROOT, scratch=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.startswith(("plain ", "VAMO "))}
    assert rows["plain"][3:6] == rows["VAMO"][3:6] == ["560", "and", "560"]
    assert float(rows["VAMO"][2]) < 0.2 * float(rows["plain"][2])


def test_the_defaults(tmp_path):
    for callback in (VAMOCallback(), callback_of(command(tmp_path))):
        assert isinstance(callback.settings.directions, GradientSubspaceDirections)
        assert callback.settings.directions.rank == "auto"
        assert callback.settings.alpha == "adaptive"
