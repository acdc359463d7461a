"""How the documentation site is built: ``python -m sphinx docs FOLDER``, or `make doc`."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from shell_service import __version__  # noqa: E402 - found by the line above

project = "Shell Service"
author = "the Shell Service authors"
copyright = "the Shell Service authors"
version = release = __version__

extensions = ["myst_parser", "sphinx_copybutton", "docs.generated"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["attrs_block", "attrs_inline", "deflist"]
myst_heading_anchors = 3
nitpicky = True
smartquotes = False  # what stands here is typed as it stands

html_theme = "furo"
html_title = "Shell Service"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_favicon = "static/favicon.svg"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0f6b5c", "color-brand-content": "#0f6b5c"},
    "dark_css_variables": {"color-brand-primary": "#5cc8b4", "color-brand-content": "#5cc8b4"},
    "navigation_with_keys": True,
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"

# Prompts and what programs print are not for copying.
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True
copybutton_selector = "div.highlight:not(.highlight-text) > pre, div:not(.highlight-text) > div.highlight > pre"
