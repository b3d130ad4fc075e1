"""Convert a user's ``control`` argument."""

from typing import Literal, get_args

from lightning_vamo.errors import InvalidArgumentError, shown
from lightning_vamo.loop.control.automatic import Auto
from lightning_vamo.loop.control.base import Control
from lightning_vamo.loop.control.carried import Carry
from lightning_vamo.loop.control.probed import ProbedControl
from lightning_vamo.loop.control.recompute import Recompute
from lightning_vamo.loop.control.replayed import Replay

Named = Literal["auto", "replay", "carry", "recompute"]

_NAMED: dict[str, type[Control]] = {"auto": Auto, "replay": Replay, "carry": Carry, "recompute": Recompute}


def as_control(control: object) -> Control:
    """Convert a user's ``control`` argument into a control variate.

    Args:
        control: A name, or a control variate.

    Returns:
        The control variate.

    Raises:
        InvalidArgumentError: If ``control`` is something else.
    """
    if isinstance(control, str) and control in _NAMED:
        return _NAMED[control]()
    if isinstance(control, ProbedControl):
        return control
    raise InvalidArgumentError(
        f"`control` must be one of {', '.join(map(repr, get_args(Named)))}, or Replay(...), Carry(...) or Recompute(...),"
        f" got {shown(control)}."
    )
