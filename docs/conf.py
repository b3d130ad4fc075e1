"""Sphinx configuration: MyST pages and a notebook, Google docstrings, the furo theme.

Neither the build nor the pages need a network: KaTeX comes with ``sphinxcontrib-katex``, its fonts are in ``_static/katex``.
Set ``DOCS_INTERSPHINX=1`` to link to the Python, PyTorch and Lightning documentation.
"""

import os
import sys
from pathlib import Path

from lightning_vamo import __version__

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "lightning-vamo"
author = "The lightning_vamo developers"
project_copyright = author
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.katex",
    "displayed_math",
    "public_names",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]

myst_enable_extensions = ["amsmath", "attrs_block", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# A notebook runs at each build, in the folder that it is in; what it raises is the build's error.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_output_stderr = "remove"  # Lightning's advice on loggers and workers

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"

# An overridden hook without a docstring of its own would print Lightning's, which does not resolve here.
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False

# The modules whose `__all__` is public. The build fails on a public name that no page documents.
public_modules = [
    "lightning_vamo",
    "lightning_vamo.core.control",
    "lightning_vamo.core.directions",
    "lightning_vamo.core.probes",
    "lightning_vamo.core.schedules",
]

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

copybutton_exclude = ".linenos, .gp, .go"  # a copied session has neither its prompts nor its output

html_theme = "furo"
pygments_dark_style = "monokai"  # furo's own underlines names like links
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
katex_css_path = "katex/katex.min.css"
katex_options = "throwOnError: false, strict: false"

# Pages of classes list all documented members, except here, where the rest is Lightning's hooks.
autosummary_context = {
    "chosen_members": {
        "lightning_vamo.VAMOMixin": "probe_loss",
        "lightning_vamo.callbacks.base.MethodCallback": "report, settings, control",
        "lightning_vamo.cli.VAMOCLI": "subcommands, add_arguments_to_parser, instantiate_classes, instantiate_trainer",
    }
}


def setup(app):
    """Leave out the fields of named tuples as members: the class's docstring lists them."""
    app.connect("autodoc-skip-member", lambda app, what, name, obj, *_: type(obj).__name__ == "_tuplegetter" or None)
