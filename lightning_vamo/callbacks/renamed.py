"""Refuse arguments of earlier versions, and say what to write instead."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from lightning_vamo.errors import InvalidArgumentError

_Init = TypeVar("_Init", bound=Callable[..., None])


def old_names(instead: Mapping[str, str]) -> Callable[[_Init], _Init]:
    """Make a constructor refuse arguments that earlier versions had under other names.

    Args:
        instead: What to write instead of each old name.

    Returns:
        A decorator; the decorated constructor raises an InvalidArgumentError that says what to write instead.
    """

    def decorated(init: _Init) -> _Init:
        @functools.wraps(init)
        def checked(self: object, *arguments: Any, **named: Any) -> None:
            for name in named.keys() & instead.keys():
                raise InvalidArgumentError(f"{type(self).__name__} has no argument `{name}` any more: {instead[name]}.")
            init(self, *arguments, **named)

        return cast("_Init", checked)

    return decorated
