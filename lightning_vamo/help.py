"""The text of ``lightning-vamo fit --help``: the method's arguments first, then an example and the short names of classes."""

import inspect
import re
from typing import Any

from jsonargparse import DefaultHelpFormatter
from lightning.pytorch.cli import LightningArgumentParser

from lightning_vamo.callbacks.base import MethodCallback
from lightning_vamo.core import directions, schedules

EXAMPLE = """\
example, config.yaml:
  model:
    class_path: my_project.LitClassifier
  data:
    class_path: my_project.MyData
  vamo:
    probes: 4
  trainer:
    max_epochs: 10

run it:
  lightning-vamo fit --config config.yaml --vamo.probes 8

short names:
"""
USAGE = (
    "lightning-vamo [-h] COMMAND [--config FILE] [--vamo.ARGUMENT VALUE ...] [--method CLASS]\n"
    "           [--model CLASS] [--data CLASS] [--trainer.ARGUMENT VALUE ...]"
)
ROLE = re.compile(r":(?:\w+:)?\w+:`~?([^`<]*?)`")
FIRST = ("method", "vamo")


class Formatter(DefaultHelpFormatter):
    """Formats help as jsonargparse does, but keeps the line breaks of texts."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def short_names() -> dict[str, list[str]]:
    """The classes that a configuration may name without their modules.

    Returns:
        The names of the classes for each key of a configuration.
    """
    return {
        "vamo.probes": _classes(schedules, lambda cls: hasattr(cls, "probes_at")),
        "vamo.directions": _classes(directions, lambda cls: issubclass(cls, directions.Directions)),
        "vamo.control": ["Carry", "Recompute", "Replay"],
        "method": sorted(cls.__name__ for cls in _below(MethodCallback) if cls.__module__.startswith("lightning_vamo.")),
    }


def _classes(module: Any, wanted: Any) -> list[str]:
    found = [name for name in module.__all__ if inspect.isclass(getattr(module, name))]
    return [name for name in found if wanted(getattr(module, name)) and not _is_base(getattr(module, name))]


def _below(cls: Any) -> list[Any]:
    """The subclasses of a class that can be instantiated."""
    below = [each for sub in cls.__subclasses__() for each in (sub, *_below(sub))]
    return [each for each in below if not inspect.isabstract(each)]


def _is_base(cls: Any) -> bool:
    return inspect.isabstract(cls) or bool(getattr(cls, "_is_protocol", False))


def plain(text: str) -> str:
    r"""Remove reST markup from a docstring's text: roles become names, and code loses its double backquotes.

    Args:
        text: The text.

    Returns:
        The text in plain words.

    Example:
        >>> plain(r"See :class:`~lightning_vamo.VAMOMixin`; ``q`` times :math:`\alpha`.")
        'See VAMOMixin; q times alpha.'
    """
    text = ROLE.sub(lambda match: match[1].rpartition(".")[2].replace("\\", ""), text)
    return text.replace("``", "").replace("`", "'")


def method_first(parser: LightningArgumentParser) -> None:
    """Make a subcommand's help begin with the arguments of the method, and end with an example and the short names.

    Args:
        parser: The parser of the subcommand, with the arguments of the method.
    """
    parser.usage = USAGE
    parser.epilog = EXAMPLE + "".join(f"  {key:15} {', '.join(names)}\n" for key, names in short_names().items())
    for action in parser._actions:
        if action.dest.split(".")[0] in FIRST and action.help:
            action.help = plain(action.help)
    groups = parser._action_groups
    ours = [group for group in groups if _of_method(group)]
    for group in ours:
        group.title = plain(group.title or "")
    parser._action_groups = [*ours, *(group for group in groups if group not in ours)]


def _of_method(group: Any) -> bool:
    names = {action.dest.split(".")[0] for action in group._group_actions}
    return bool(names) and names <= set(FIRST)
