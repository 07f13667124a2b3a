"""The site: Markdown by MyST, API pages from the docstrings. `sphinx-build -W -b html docs build/docs`."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this tree's npgpt, with or without compiled kernels

from npgpt.version import __version__  # noqa: E402

project = "npgpt"
release = version = __version__
author = copyright = "the authors of npgpt"
language = "en"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "numpydoc",
]
exclude_patterns = ["_templates"]
templates_path = ["_templates"]
nitpicky = False

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
myst_links_external_new_tab = False

default_role = "code"  # `prompt` in a docstring is code
autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # shapes and kinds are in the docstrings; aliases of NumPy would fill the line
numpydoc_show_class_members = False  # the class template lists them
toc_object_entries_show_parents = "hide"

html_theme = "pydata_sphinx_theme"
html_title = "npgpt"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "header_links_before_dropdown": 6,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
    "show_prev_next": True,
    "pygments_light_style": "tango",
    "pygments_dark_style": "monokai",
}
