"""What a command is given, on the command line and in configuration files, and where it is saved."""

import re
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lightning_vamo.errors import InvalidArgumentError


def section_names(args: Any, configs: Sequence[Mapping[Any, Any]], subcommands: Collection[str]) -> set[str]:
    """The keys of the section ``vamo``, on the command line, in configuration files, and in arguments from Python."""
    options = args if isinstance(args, list) else []
    found = {match[1] for match in map(re.compile(r"--vamo\.(\w+)").match, options) if match}
    for config in configs:
        parts = [config, *(_keys_of(config.get(name)) for name in subcommands)]
        found |= {str(name) for part in parts for name in _keys_of(part.get("vamo"))}
    return found


def check_section(section: Any) -> None:
    """Refuse a value in place of the section ``vamo``."""
    if not isinstance(section, Namespace):
        raise InvalidArgumentError(
            "`vamo` must be a section of VAMOCallback's arguments, such as {probes: 4}, or the path of a file with them, got"
            f" {section!r}: write the arguments, or leave `vamo` out for the defaults."
        )


def names_a_method(args: Any) -> bool:
    """Whether a command line names a method by ``--method``, and says nothing of the section ``vamo``."""
    options = args if isinstance(args, list) else []
    named = [any(word.startswith(option) for word in options) for option in ("--method", "--vamo")]
    return named == [True, False]


def check_subcommands(
    parser: LightningArgumentParser, configs: Sequence[Mapping[Any, Any]], subcommands: Collection[str]
) -> None:
    """Refuse a value in place of a subcommand's sections, on which the parser fails without a message."""
    for config in configs:
        for name in subcommands:
            if name in config and not isinstance(config[name], (Mapping, Namespace)):
                message = (
                    f"`{name}` must hold the sections of the subcommand, such as `model` and `trainer`, got {config[name]!r}:"
                    f" write them below `{name}`."
                )
                if config[name] is None:  # nothing is given, which is the parser's to report
                    parser.error(message)
                raise InvalidArgumentError(message)


def check_checkpoint(name: str, path: Any) -> None:
    """Refuse a path at which there is no checkpoint, before anything is built.

    Args:
        name: Name of the argument, for the message.
        path: The argument: a path, a name such as ``"last"`` that Lightning looks up, or None.

    Raises:
        InvalidArgumentError: If there is no file, or a file that torch has not written.
    """
    named = isinstance(path, str) and (path in ("", "best", "last", "hpc", "registry") or path.startswith("registry:"))
    if not isinstance(path, (str, Path)) or named or "://" in str(path):
        return
    found = Path(path).expanduser()
    what = None if found.exists() else "where there is no file"
    if found.is_dir() and not any((found / name).exists() for name in ("meta.pt", ".metadata")):
        what = "which is a folder, and none that shards have been saved in"
    elif found.is_file() and not _is_written_by_torch(found):
        what = "which is damaged, or a file of another kind"
    if what:
        raise InvalidArgumentError(f"`{name}` must be a checkpoint, got {str(path)!r}, {what}: name the path of a checkpoint.")


def _is_written_by_torch(path: Path) -> bool:
    """Whether a file is a checkpoint of torch, as far as its outside tells: an archive with a pickle, or a pickle."""
    if zipfile.is_zipfile(path):
        with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
        return False
    with path.open("rb") as file:
        return file.read(1) == b"\x80"


def configurations(args: Any, subcommands: Collection[str]) -> tuple[Sequence[Mapping[Any, Any]], Sequence[Mapping[Any, Any]]]:
    """The configuration files on a command line, or the arguments from Python.

    Args:
        args: The words of the command line, or the arguments from Python.
        subcommands: The names of the subcommands.

    Returns:
        The configurations that hold the sections of subcommands, and those that hold the sections of one subcommand: behind its
        name on the command line, or without a key ``subcommand`` from Python.
    """
    if not isinstance(args, list):
        config = _keys_of(args)
        return ([config], []) if "subcommand" in config else ([], [config])
    name = next((place for place, word in enumerate(args) if word in subcommands), len(args))
    return [*_read(args[:name])], [*_read(args[name:])]


def _read(words: Sequence[str]) -> Iterator[Mapping[Any, Any]]:
    """The configuration files that are named on a command line."""
    values = [value for option, value in pairwise(words) if option in ("--config", "-c")]
    for path in [*values, *(word.partition("=")[2] for word in words if word.startswith("--config="))]:
        try:
            yield _keys_of(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
        except UnicodeDecodeError as error:  # which ends the parser without a message
            raise InvalidArgumentError(
                f"`--config` must be text in UTF-8, got {path!r}, which gives {error}: convert the file."
            ) from None
        except (OSError, ValueError, yaml.YAMLError):
            continue  # the parser will report these errors


def _keys_of(value: Any) -> Mapping[Any, Any]:
    """A section of a configuration; empty if the value is no section, which the parser will report."""
    if isinstance(value, Namespace):
        return value.as_dict()
    return value if isinstance(value, Mapping) else {}


class SavesConfiguration(SaveConfigCallback):
    """Saves a run's configuration into the run's folder, as LightningCLI does, but never in vain.

    Without a logger all runs share one folder. Lightning then refuses to train if a file of the name ``config.yaml`` is there,
    be it the user's own.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save the configuration, or tell why not."""
        if not (self.already_saved or self.overwrite or trainer.loggers):
            path = Path(trainer.log_dir or ".", self.config_filename)
            if trainer.strategy.broadcast(path.is_file()):
                rank_zero_info(
                    f"The configuration of this run is not saved, since {path} exists and, without a logger, runs have no"
                    " folders of their own."
                )
                self.already_saved = True
        super().setup(trainer, pl_module, stage)
