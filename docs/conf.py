"""How Sphinx builds these pages; ``make docs`` calls it."""

import contextlib
import functools
import inspect
import io
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from sphinx.util.nodes import make_refnode

import ntk_inr
from ntk_inr import cli

HERE = Path(__file__).parent
ROOT = HERE.parent

project = "ntk_inr"
author = "The ntk_inr authors"
version = release = ntk_inr.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx_copybutton"]
exclude_patterns = ["_build", "_generated"]
nitpicky = True
# Python's own exceptions can't be linked to without a network.
nitpick_ignore_regex = [("py:exc", r"\w+")]

html_theme = "furo"
html_title = "ntk_inr"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_show_copyright = False
html_show_sphinx = False
smartquotes = False  # most quotes here are Python's

# One file of MathJax with its glyphs in it, from a wheel that holds the official 3.2.2: it installs with pip alone,
# adds nothing to the repository, and the pages show formulas without a network.
MATHJAX = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax" / "tex-svg-full.js"
mathjax_path = MATHJAX.name

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_merge_streams = True

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # docstrings say types and shapes
add_module_names = False
napoleon_numpy_docstring = False
# "Methods" are of a computation here, not of a class; "Attributes" are listed as arguments are.
napoleon_custom_sections = ["Methods", ("Attributes", "params_style")]

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def write_if_changed(path, text):
    """Write a file, unless it says that already, so that Sphinx rebuilds what changed alone."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


def prepare(app):
    """Copy the notebooks here, and write the tables of what was measured and the command's help."""
    notebooks = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "notebooks").glob("*.ipynb")}
    for path in (HERE / "notebooks").glob("*.ipynb"):
        if path.name not in notebooks:
            path.unlink()
    for name, text in notebooks.items():
        write_if_changed(HERE / "notebooks" / name, text)
    sys.path[:0] = [str(HERE), str(ROOT)]
    import measured

    for name, text in measured.tables(ROOT / "benchmarks" / "results").items():
        write_if_changed(HERE / "_generated" / f"{name}.md", text)
    for command in ("compare", "fit", "tune", "report", "render", "export"):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            cli.run([command, "--help"])
        write_if_changed(HERE / "_generated" / f"help_{command}.txt", printed.getvalue())


def copy_mathjax(app, error):
    """Put MathJax beside the pages."""
    if error is None and app.builder.format == "html":
        shutil.copy(MATHJAX, app.outdir / "_static")


def shorten_signature(app, what, name, obj, options, signature, returns):
    """Leave out what Flax adds to every module, and name the empty containers."""
    if signature:
        signature = re.sub(r", parent=.*\)$", ")", signature)
        signature = signature.replace("<factory>", "...").replace("<class 'jax.numpy.float32'>", "jnp.float32")
    return signature, None


def find_short_name(app, env, node, contnode):
    """Lead a name without its module to the one object that is called so, since docstrings don't repeat modules."""
    objects = env.domains["py"].objects
    matches = [
        name for name, entry in objects.items() if not entry.aliased and name.endswith("." + node.get("reftarget", ""))
    ]
    if node.get("refdomain") != "py" or len(matches) != 1:
        return None
    entry = objects[matches[0]]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, matches[0])


def skip_fields(app, what, name, obj, skip, options):
    """Leave out fields, which the class's docstring describes, and what results are printed by."""
    if name == "rows":
        return True
    return None if inspect.isroutine(obj) or isinstance(obj, property | functools.cached_property) else True


def undo_types(app, what, name, obj, options, lines):
    """Give back a property's docstring as it is: Napoleon takes what stands before a colon in it for a type."""
    if what == "property":
        lines[:] = [*inspect.getdoc(obj).splitlines(), ""]


def strip_code(app, doctree):
    """Leave out the empty line at the end of a block, which doctest needs before the fence."""
    for block in doctree.findall(nodes.literal_block):
        if block.rawsource == block.astext():
            block.rawsource = block.astext().rstrip()
            block[:] = [nodes.Text(block.rawsource)]


def setup(app):
    """Connect the steps above."""
    app.connect("builder-inited", prepare)
    app.connect("doctree-read", strip_code)
    app.connect("missing-reference", find_short_name)
    app.connect("build-finished", copy_mathjax)
    app.connect("autodoc-process-signature", shorten_signature)
    app.connect("autodoc-process-docstring", undo_types, priority=501)
    app.connect("autodoc-skip-member", skip_fields)
