"""Sphinx settings of the documentation site (`make docs`); build.py makes the source folder."""

import os

project = "Cloud-HPC experiment kit"
author = "The Cloud-HPC experiment kit authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_click", "sphinx_copybutton"]
root_doc = "docs/site/index"
include_patterns = ["*.md", "docs/**", "notebooks/*"]
exclude_patterns = ["docs/site/*.py"]
html_theme = "furo"
html_title = project
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
nb_execution_mode = "off"  # the notebooks were run by `kit reproduce`; build.py takes those copies
nb_merge_streams = True
myst_heading_anchors = 4
autodoc_preserve_defaults = True  # otherwise a page shows the value of `os.environ`: secrets
autodoc_typehints = "description"
autodoc_member_order = "bysource"
suppress_warnings = ["mystnb.unknown_mime_type"]
os.environ["COLUMNS"] = "100"


def setup(app: object) -> None:
    """Leave out arguments without a name: old forms that a command accepts for one release."""

    def drop_unnamed(_app: object, _context: object, lines: list[str]) -> None:
        if any(line.strip() == ".. option::" for line in lines):
            lines.clear()

    app.connect("sphinx-click-process-arguments", drop_unnamed)  # type: ignore[attr-defined]
