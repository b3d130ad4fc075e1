"""A LightningCLI of one's own that trains with VAMO.

python examples/own_cli.py fit --config examples/own_cli.yaml
"""

from digits import Digits, DigitsClassifier
from lightning.pytorch.cli import LightningCLI

from lightning_vamo import VAMOCallback, VAMOMixin


class VAMODigitsClassifier(VAMOMixin, DigitsClassifier):
    """The classifier, which knows nothing of VAMO, with the mixin in front."""


class DigitsCLI(LightningCLI):
    """A project's own command: its subclass of LightningCLI stays, and the callback gets a section of the configuration."""

    def add_arguments_to_parser(self, parser) -> None:
        """Add the section ``vamo``, whose keys are the callback's arguments."""
        parser.add_lightning_class_args(VAMOCallback, "vamo")


if __name__ == "__main__":
    DigitsCLI(VAMODigitsClassifier, Digits, seed_everything_default=0)
