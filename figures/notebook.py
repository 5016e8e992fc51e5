"""The study as a notebook and as a page, run from top to bottom: `make study`.

The page holds all that it shows: pictures are in it, and formulas are MathML, which browsers draw themselves.
"""

import re
import sys
from pathlib import Path
from string import Template
from typing import Any

from dpq_ref.compressed import write_atomically

HERE = Path(__file__).parent
FORMULA = re.compile(r"(\$\$?)(.+?)\1", re.DOTALL)


def build(folder: Path, study: Path = HERE / "study.py") -> list[Path]:
    """Run the study and write it as .ipynb and .html.

    Parameters
    ----------
    folder : path
        Where both go; made if it is not there.
    study : path
        A script in jupytext's percent format.

    Returns
    -------
    list of paths

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell fails; nothing is written.
    """
    import jupytext
    import nbclient
    import nbformat

    notebook = jupytext.read(study)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbclient.NotebookClient(notebook, timeout=600, record_timing=False).execute()
    texts = {".ipynb": nbformat.writes(notebook), ".html": page(notebook)}
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{study.stem}{ending}" for ending in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_atomically(path, text.encode())
    return paths


def page(notebook: Any) -> str:
    """One page of a notebook, with nothing in it to be loaded from elsewhere."""
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = with_mathml(cell.source)
    body, _ = HTMLExporter(template_name="basic").from_notebook_node(notebook)
    return Template((HERE / "study.html").read_text(encoding="utf8")).substitute(
        title=re.search(r"^# (.+)", notebook.cells[0].source)[1],  # type: ignore[index]
        style=HtmlFormatter(style="default").get_style_defs(".highlight"),
        body=body,
    )


def with_mathml(markdown: str) -> str:
    """Markdown with its formulas as MathML, those between double dollars as blocks."""
    from latex2mathml.converter import convert

    def formula(match: re.Match[str]) -> str:
        return convert(" ".join(match[2].split()), display="inline" if match[1] == "$" else "block")

    return FORMULA.sub(formula, markdown)


if __name__ == "__main__":
    sys.stdout.writelines(f"{path}\n" for path in build(Path("build")))
