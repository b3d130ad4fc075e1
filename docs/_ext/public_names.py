"""A Sphinx extension that warns of each public name that no page documents.

``public_modules`` lists modules. Each name in the ``__all__`` of such a module is public. A name counts as documented if a page
describes the object, under this name or under that of the module that defines the object.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection, Iterator
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


def undocumented(modules: Collection[str], documented: Collection[str]) -> Iterator[str]:
    """The public names without a description.

    Args:
        modules: Names of modules with an ``__all__``.
        documented: Full names of the objects that pages describe.

    Yields:
        Full names, in the modules' order.
    """
    for module_name in modules:
        module = importlib.import_module(module_name)
        for name in module.__all__:
            if not ({f"{module_name}.{name}", *_definition(getattr(module, name))} & set(documented) or name.startswith("__")):
                yield f"{module_name}.{name}"


def _definition(thing: Any) -> list[str]:
    """The full name under which a class or function was defined; none for other objects, such as type aliases."""
    if inspect.isclass(thing) or inspect.isfunction(thing):
        return [f"{thing.__module__}.{thing.__qualname__}"]
    return []


def _check(app: Sphinx, env: Any) -> None:
    for name in undocumented(app.config.public_modules, env.get_domain("py").objects):
        logger.warning("%s is public, but no page documents it: add it to docs/reference", name, type="public_names")


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the check to the build.

    Args:
        app: The build.

    Returns:
        What Sphinx wants to know of an extension.
    """
    app.add_config_value("public_modules", [], "env")
    app.connect("env-check-consistency", _check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
