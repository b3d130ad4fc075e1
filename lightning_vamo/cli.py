"""The console command ``lightning-vamo``: a LightningCLI that trains any LightningModule with any of the package's methods."""

import copyreg
import os
import sys
from dataclasses import dataclass
from typing import Any

from jsonargparse import class_from_function  # type: ignore[attr-defined]
from lightning.pytorch import Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from lightning_vamo.callbacks.base import MethodCallback
from lightning_vamo.callbacks.vamo import OLD_NAMES, VAMOCallback
from lightning_vamo.configurations import (
    SavesConfiguration,
    check_checkpoint,
    check_section,
    check_subcommands,
    configurations,
    names_a_method,
    section_names,
)
from lightning_vamo.errors import InvalidArgumentError, UnsupportedError, VAMOError
from lightning_vamo.finder.command import find
from lightning_vamo.help import Formatter, method_first
from lightning_vamo.loop.step.driver import DrivingCallback
from lightning_vamo.mixin import with_vamo
from lightning_vamo.report.command import REPORT_HELP, report_command


class VAMOCLI(LightningCLI):
    """A LightningCLI that trains a LightningModule with a method; a configuration names both.

    The model gets the mixin, and the Trainer gets the callback of one method. There are three ways to name the method: the
    section ``vamo``, whose keys are the arguments of :class:`~lightning_vamo.VAMOCallback`, the default; the key ``method``,
    with the callback's ``class_path`` and ``init_args``; or a method's callback among ``trainer.callbacks``. The subcommand
    ``find``, which takes the configuration of ``fit``, tells whether probes would pay. Everything else is LightningCLI's,
    including the subcommands ``fit``, ``validate``, ``test`` and ``predict``.
    """

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The subcommands, each with the arguments that the command line does not set."""
        return {**LightningCLI.subcommands(), "find": {"model", "datamodule"}}

    def setup_parser(self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]) -> None:
        """Set up as usual. LightningCLI reads a subcommand's arguments from the Trainer method of the same name.

        Args:
            add_subcommands: Whether there are subcommands.
            main_kwargs: Arguments of the parser.
            subparser_kwargs: Arguments of the subcommands' parsers.
        """
        self._subcommand_names = tuple(self.subcommands()) if add_subcommands else ()
        trainer_class: Any = self.trainer_class
        cls = trainer_class if isinstance(trainer_class, type) else class_from_function(trainer_class)
        self.trainer_class = _with_find(cls)
        try:
            super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        finally:
            self.trainer_class = trainer_class

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a parser whose help keeps the lines of an example.

        Args:
            kwargs: Arguments of the parser.

        Returns:
            The parser.
        """
        return super().init_parser(**{"formatter_class": Formatter, **kwargs})

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse as usual, but refuse arguments of earlier versions and what the parser lets pass, and say what to write.

        Args:
            parser: The parser.
            args: The arguments; by default the command-line arguments of the process.

        Raises:
            InvalidArgumentError: If the section ``vamo`` has an argument of an earlier version, if a section has no keys, or
                if there is no checkpoint where the arguments name one.
        """
        names = self._subcommand_names
        given = sys.argv[1:] if args is None else args
        ahead, behind = configurations(given, names)
        for name in section_names(given, [*ahead, *behind], names) & OLD_NAMES.keys():
            raise InvalidArgumentError(f"The section `vamo` has no key `{name}` any more: {OLD_NAMES[name]}.")
        check_subcommands(parser, ahead, names)
        super().parse_arguments(parser, args)
        config = self.config.get(str(self.config.get("subcommand")), self.config)
        for name in ("ckpt_path", "at"):
            check_checkpoint(name, config.get(name))
        if config.get("at"):
            config.ckpt_path = config.at  # whose hyperparameters LightningCLI then reads, as for `fit`
        if names_a_method(given) and config.get("vamo") not in (None, default := _default_section()):
            rank_zero_info("The configuration's section `vamo` is set aside, since the command line names a method.")
            config.vamo = default
        check_section(config.get("vamo"))

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the key ``method`` and the section ``vamo``.

        Args:
            parser: The parser of a subcommand.
        """
        parser.add_argument_group("The method").add_argument(
            "--method",
            type=MethodCallback | None,
            default=None,
            help="The callback of the method to train with: its class and arguments. By default VAMOCallback, with the"
            " arguments of the section vamo.",
        )
        parser.add_class_arguments(VAMOCallback, "vamo")
        method_first(parser)

    def instantiate_classes(self) -> None:
        """Instantiate as usual, then put the mixin in front of the model.

        Raises:
            ValueError: If a value of the configuration is not allowed. Where a class of this package refused the value, the
                error is that of the class, a VAMOError.
        """
        instantiator = _Instantiator()
        self.parser.add_instantiator(instantiator, object)
        try:
            super().instantiate_classes()
        except ValueError as error:
            # Where an argument may be of several types, the parser wraps the text of what a class raised.
            if instantiator.refused is None or str(instantiator.refused) not in str(error):
                raise
            raise instantiator.refused from None
        self.model = with_vamo(self.model)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Instantiate the Trainer, with the callback of one method.

        Args:
            kwargs: Arguments of the Trainer, which override those of the configuration.

        Returns:
            The Trainer.

        Raises:
            UnsupportedError: If more than one of ``method``, ``vamo`` and ``trainer.callbacks`` configures a method.
        """
        config, init = (c[self.subcommand] if self.subcommand else c for c in (self.config, self.config_init))
        callbacks = _as_list(kwargs.pop("callbacks", init.trainer.callbacks))
        present = [*callbacks, *_as_list(self.trainer_defaults.get("callbacks"))]
        named = [f"a {type(c).__name__} in `trainer.callbacks`" for c in present if isinstance(c, DrivingCallback)][:1]
        named += [] if config.method is None else ["a key `method`"]
        named += [] if config.vamo == _default_section() else ["a section `vamo`"]
        if len(named) > 1:
            raise UnsupportedError(
                f"The configuration names more than one method, by {' and '.join(named)}: keep one, since a training has one"
                " method."
            )
        if not any(isinstance(callback, DrivingCallback) for callback in present):
            callbacks.append(init.method or init.vamo)
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand == "find":  # not a method of the Trainer that was instantiated
            find(self.trainer, **self._prepare_subcommand_kwargs(subcommand))
        else:
            super()._run_subcommand(subcommand)

    @rank_zero_only
    def after_fit(self) -> None:
        """Print the last metrics and the folder of the logs; the method's callback has already printed its report."""
        methods = [c for c in self.trainer.callbacks if isinstance(c, MethodCallback)]  # type: ignore[attr-defined]
        own = tuple(f"{method.prefix}/" for method in methods)
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        width = max(map(len, metrics), default=0)
        lines = [f"  {name:<{width}} {value:.4g}" for name, value in metrics.items() if not name.startswith(own)]
        logs = [os.path.relpath(logger.root_dir) for logger in self.trainer.loggers if isinstance(logger, TensorBoardLogger)]
        hints = [f"See the curves: tensorboard --logdir {directory}" for directory in logs]
        print("\n".join(["", "Last metrics:", *lines, *hints]))


@dataclass
class _Instantiator:
    """Instantiates the classes of a configuration, and keeps the last error by which this package refused a value."""

    refused: VAMOError | None = None

    def __call__(self, cls: type, *args: Any, **kwargs: Any) -> Any:
        try:
            return cls(*args, **kwargs)
        except VAMOError as error:
            self.refused = error
            raise


class _WithFind(type):
    """The type of Trainer classes with a method for the subcommand ``find``."""


def _with_find(cls: type) -> _WithFind:
    return _WithFind(cls.__name__, (cls,), {"find": find})


# The parser keeps such a class, and strategies that spawn processes send them the parser.
copyreg.pickle(_WithFind, lambda cls: (_with_find, cls.__bases__))


def _as_list(callbacks: Any) -> list[Any]:
    return list(callbacks) if isinstance(callbacks, (list, tuple)) else [] if callbacks is None else [callbacks]


def _default_section() -> Any:
    parser = LightningArgumentParser()
    parser.add_class_arguments(VAMOCallback, "vamo")
    return parser.get_defaults().vamo


def main(args: ArgsType = None) -> None:
    """Run the command.

    Args:
        args: Command-line arguments; by default the arguments of the process.
    """
    # As `python -m` does, so that a configuration can name a class in a file of the current folder.
    sys.path.insert(0, os.getcwd())
    words = sys.argv[1:] if args is None else args
    try:
        if isinstance(words, list) and words[:1] == ["report"]:
            report_command(words[1:])
        else:
            VAMOCLI(args=args, save_config_callback=SavesConfiguration, parser_kwargs={"epilog": REPORT_HELP})
    except VAMOError as error:
        # The message says what to do; a traceback into the package would not help at a prompt.
        sys.exit(f"lightning-vamo: {error}")
