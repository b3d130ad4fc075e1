"""Sphinx configuration: MyST pages, Google docstrings, the furo theme.

The build needs no network. Set ``DOCS_INTERSPHINX=1`` to link to the Python, PyTorch and Lightning documentation.
"""

import os

from lightning_vamo import __version__

project = "lightning-vamo"
author = "The lightning_vamo developers"
project_copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
# An overridden hook without a docstring of its own would print Lightning's, which does not resolve here.
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False

# Fetching an inventory offline is a warning, and warnings are errors here.
intersphinx_mapping = (
    {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "lightning": ("https://lightning.ai/docs/pytorch/stable", None),
    }
    if os.environ.get("DOCS_INTERSPHINX") == "1"
    else {}
)

linkcheck_retries = 2
linkcheck_timeout = 20

html_theme = "furo"
html_title = f"{project} {release}"
