"""How Sphinx builds the documentation: `make docs`.

Formulas become MathML when the pages are made, so a browser shows them without script or network.
"""

import importlib
import re
from typing import Any

import click
from docutils import nodes
from docutils.parsers.rst import Directive
from latex2mathml.converter import convert
from sphinx.util import logging

import dpq_ref

logger = logging.getLogger(__name__)

project = "dpq-ref"
author = "the dpq-ref authors"
version = release = dpq_ref.__version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # shapes and dtypes are in the docstrings
default_role = "literal"
numpydoc_show_class_members = False

html_theme = "furo"
html_title = f"dpq-ref {version}"
html_copy_source = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_math_renderer = "mathml"


def mathml(node: Any, display: str) -> str:
    """MathML of a formula; a command that is not known is a warning."""
    text = convert(node.astext(), display=display)
    if "\\" in text:
        logger.warning("not known in formulas: %s", re.findall(r"\\\S+?\b", text), location=node)
    # Browsers leave it to the letter to be bold.
    bold = r'<mi mathvariant="bold">([A-Z])</mi>'
    return re.sub(bold, lambda match: f"<mi>{chr(ord(match[1]) + ord('𝐀') - ord('A'))}</mi>", text)


def inline_formula(translator: Any, node: nodes.math) -> None:
    """Write a formula within a line."""
    translator.body.append(mathml(node, "inline"))
    raise nodes.SkipNode


def formula(translator: Any, node: nodes.math_block) -> None:
    """Write a formula on lines of its own; a wide one scrolls."""
    translator.body.append(f'<div class="formula">{mathml(node, "block")}</div>')
    raise nodes.SkipNode


class CommandHelp(Directive):
    """What a command (module and function) and those below it print with --help."""

    required_arguments = 2
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Make a section of each command."""
        where, name = self.arguments
        module, function = where.split(":")
        return list(self._sections(getattr(importlib.import_module(module), function), name, None))

    def _sections(self, command: click.Command, name: str, parent: click.Context | None) -> Any:
        with click.Context(command, parent, name, terminal_width=88, **command.context_settings) as context:
            text = command.get_help(context)
            section = nodes.section(ids=[context.command_path.replace(" ", "-")])
            section += nodes.title(text=context.command_path)
            section += nodes.literal_block(text=text, language="text")
            yield section
            for child, inner in getattr(command, "commands", {}).items():
                yield from self._sections(inner, child, context)


def take_literally(app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Let |x| and rotation_ in docstrings be what they look like, not the markup that reST takes them for."""
    for i, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            lines[i] = re.sub(r"\||(?<=\w)_(?=[\s,.;:)]|$)", r"\\\g<0>", line)


def leave_out(app: Any, what: str, name: str, found: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what has its place on the page of `dpq_ref`, and what scikit-learn adds to estimators."""
    of_top = any(getattr(dpq_ref, public) is found for public in dpq_ref.__all__)
    elsewhere = what == "module" and app.env.current_document.autodoc_module != "dpq_ref"
    return True if (of_top and elsewhere) or re.fullmatch(r"set_\w+_request", name) else None


def setup(app: Any) -> None:
    """Register the renderer of formulas, the directive, and what is done to docstrings."""
    app.add_html_math_renderer("mathml", (inline_formula, None), (formula, None))
    app.add_directive("command-help", CommandHelp)
    app.connect("autodoc-process-docstring", take_literally, priority=100)  # before numpydoc
    app.connect("autodoc-skip-member", leave_out)
