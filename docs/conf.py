"""Settings of the documentation; `make docs` builds it and executes the tutorials."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import pages  # noqa: E402 - it stands in this folder

import tinydilate  # noqa: E402

project = "tinydilate"
author = "The tinydilate developers"
copyright = f"2026, {author}"
release = version = tinydilate.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.linkcode",
    "sphinx.ext.mathjax",
    "pages",
    "measured",
]
exclude_patterns = ["_build"]

# Tutorials live at the top of the repository; Sphinx reads only below docs/.
pages.copy_tutorials(HERE.parent / "tutorials", HERE / "tutorials")
pages.write_pages(HERE)

# Executed on every build: a stored result could outlive the code that made it.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
nb_ipywidgets_js = {}  # the widgets' scripts would come from the network
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath", "html_image"]
myst_heading_anchors = 3

default_role = "py:obj"  # `name` in a docstring is a link where the name is documented
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True  # DILATIONS, not (1, 1, 2, ...
autodoc_typehints = "none"  # the docstrings say more: shapes, units, ranges
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_use_param = False  # types are prose: "(N, C, H, W)", not names to link
add_module_names = False
linkcode_resolve = pages.link_to_source

html_theme = "pydata_sphinx_theme"
html_title = "tinydilate"
html_logo = "_static/logo.svg"
html_favicon = "_static/logo.svg"
html_static_path = ["_static"]
html_css_files = ["style.css"]
SINGLE_PAGES = (
    "index",
    "glossary",
    "paper_to_code",
    "own_network",
    "different_from_pytorch",
    "gpu",
    "explore",
    "receptive_fields",
    "prediction",
    "datasets",
    "measurements",
)
html_sidebars = {name: [] for name in SINGLE_PAGES}
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "tinydilate"},
    "show_prev_next": True,
    "navigation_with_keys": False,
    "show_nav_level": 1,
    "secondary_sidebar_items": ["page-toc"],
    "navbar_end": ["theme-switcher"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
# The pages work from a folder, without a network: MathJax is a file of ours.
mathjax_path = "mathjax/tex-svg.js"
mathjax3_config = {"options": {"enableMenu": False}}
