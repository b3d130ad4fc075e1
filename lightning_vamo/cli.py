"""The console command ``lightning-vamo``: a LightningCLI that trains any LightningModule with VAMO."""

import os
import sys
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from lightning_vamo.callback import VAMOCallback
from lightning_vamo.errors import UnsupportedError, VAMOError
from lightning_vamo.loop.driver import GradientCallback
from lightning_vamo.mixin import with_vamo


class VAMOCLI(LightningCLI):
    """A LightningCLI whose model trains with VAMO, whatever LightningModule class the configuration names.

    The model gets the mixin. The Trainer gets a callback made from the section ``vamo``, whose keys are the arguments of
    :class:`~lightning_vamo.VAMOCallback`; a VAMOCallback among ``trainer.callbacks`` takes its place. Everything else, the
    subcommands ``fit``, ``validate``, ``test`` and ``predict`` among it, is LightningCLI's.
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the section ``vamo``.

        Args:
            parser: The parser of a subcommand.
        """
        parser.add_class_arguments(VAMOCallback, "vamo")

    def instantiate_classes(self) -> None:
        """Instantiate as usual, then put the mixin in front of the model."""
        super().instantiate_classes()
        self.model = with_vamo(self.model)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Instantiate the Trainer, with one VAMOCallback.

        Args:
            kwargs: Arguments of the Trainer that take the place of the configuration's.

        Returns:
            The Trainer.

        Raises:
            UnsupportedError: If both the section ``vamo`` and ``trainer.callbacks`` configure one.
        """
        config, init = (c[self.subcommand] if self.subcommand else c for c in (self.config, self.config_init))
        callbacks = _as_list(kwargs.pop("callbacks", init.trainer.callbacks))
        present = [*callbacks, *_as_list(self.trainer_defaults.get("callbacks"))]
        if not any(isinstance(callback, GradientCallback) for callback in present):
            callbacks.append(init.vamo)
        elif config.vamo != _default_section():
            raise UnsupportedError(
                "The configuration has both a section `vamo` and a VAMOCallback in `trainer.callbacks`: keep one of them."
            )
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    @rank_zero_only
    def after_fit(self) -> None:
        """Print the last metrics, what the probes cost and removed, and where the logs are."""
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        width = max(map(len, metrics), default=0)
        lines = [f"  {name:<{width}} {value:.4g}" for name, value in metrics.items() if not name.startswith("vamo/")]
        reports = [str(c.report) for c in self.trainer.callbacks if isinstance(c, VAMOCallback)]  # type: ignore[attr-defined]
        logs = [os.path.relpath(logger.root_dir) for logger in self.trainer.loggers if isinstance(logger, TensorBoardLogger)]
        hints = [f"See the curves: tensorboard --logdir {directory}" for directory in logs]
        print("\n".join(["", "Last metrics:", *lines, *reports, *hints]))


def _as_list(callbacks: Any) -> list[Any]:
    return list(callbacks) if isinstance(callbacks, (list, tuple)) else [] if callbacks is None else [callbacks]


def _default_section() -> Any:
    parser = LightningArgumentParser()
    parser.add_class_arguments(VAMOCallback, "vamo")
    return parser.get_defaults().vamo


def main(args: ArgsType = None) -> None:
    """Run the command.

    Args:
        args: Command-line arguments; by default those of the process.
    """
    # As `python -m` does, so that a configuration can name a class in a file of the current folder.
    sys.path.insert(0, os.getcwd())
    try:
        VAMOCLI(args=args)
    except VAMOError as error:
        # One sentence that says what to do; where in the package it was noticed helps nobody at a prompt.
        sys.exit(f"lightning-vamo: {error}")
