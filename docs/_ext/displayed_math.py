r"""A Sphinx extension that lets displayed formulas hold ``<``, ``>`` and ``&``.

sphinxcontrib-katex 0.9.11 escapes inline formulas, but writes displayed ones into the page as they are, where
``s<t`` begins a tag.
The formula gets ``\lt`` and ``\gt``, which mean the same; ``&`` followed by a space is no entity, so alignment stays as it is.
"""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx


def _replace(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    if app.builder.format == "html":
        for node in doctree.findall(nodes.math_block):
            safe = node.astext().replace("<", r"\lt ").replace(">", r"\gt ").replace("&", "& ")
            node.children = [nodes.Text(safe)]


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect to the build.

    Args:
        app: The build.

    Returns:
        What Sphinx wants to know of an extension.
    """
    app.connect("doctree-resolved", _replace)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
