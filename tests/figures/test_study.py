"""The study runs from top to bottom, its claims hold, and it keeps its promises; so does its page."""

import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

STUDY = Path(__file__).parents[2] / "figures" / "study.py"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def cells():
    """Line, kind and text of each cell."""
    text = STUDY.read_text(encoding="utf8")
    marks = [*re.finditer(r"^# %%(.*)\n", text, re.MULTILINE)]
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return [
        (text[: mark.end()].count("\n"), mark[1].strip(), text[mark.end() : end])
        for mark, end in zip(marks, ends, strict=True)
    ]


def parts():
    """Text and code of each numbered part."""
    found = []
    for _, kind, text in cells():
        if heading := re.match(r"# ## (\d+)\.", text):
            found.append([int(heading[1]), "", ""])
        if found:
            found[-1][1 if kind else 2] += text
    return found


@pytest.mark.slow
def test_every_cell_runs_and_every_picture_is_drawn(tmp_path, monkeypatch):
    from matplotlib import image, pyplot

    monkeypatch.chdir(tmp_path)
    with pyplot.rc_context():
        scope = {}
        for line, kind, text in cells():
            if not kind:
                exec(compile("\n" * line + text, STUDY, "exec"), scope)  # errors name lines of the file
        assert not pyplot.get_fignums()
    drawn = {path.stem for path in Path("results/study").iterdir()}
    assert drawn == set(re.findall(r'(?:show|compare)\("([\d\w-]+)"', STUDY.read_text(encoding="utf8")))
    for number, _, _ in parts():
        assert any(name.startswith(f"{number}-") for name in drawn)
    for name in drawn:
        assert image.imread(f"results/study/{name}.png").std() > 0.02


def test_parts_are_numbered_and_each_ends_with_an_exercise():
    assert [number for number, *_ in parts()] == list(range(1, 10))
    for _, text, code in parts():
        assert "**Exercises.**" in text.rstrip().split("\n#\n")[-1]
        assert "assert" in code or "check(" in code


def test_cells_are_short_and_no_result_is_typed():
    for line, kind, text in cells():
        if not kind:
            assert len([row for row in text.splitlines() if row.strip()]) <= 24, f"cell at line {line}"
        else:
            prose = re.sub(r"\*\*Exercises.*|\$\$?.*?\$\$?|`.*?`|ICML 2020", "", text, flags=re.DOTALL)
            assert not re.search(r"\d\.\d|\d ?%|\d{3}", prose), f"cell at line {line}"


def test_formulas_become_mathml():
    pytest.importorskip("latex2mathml")
    from figures.notebook import with_mathml

    shown = with_mathml("of $K$ and\n\n$$a_{ij} =\n\\frac{1}{2}$$\nso")
    assert re.fullmatch(r"of <math.*?</math> and\n\n<math.*?</math>\nso", shown)
    inline, block = (ElementTree.fromstring(found) for found in re.findall("<math.*?</math>", shown))
    assert (inline.get("display"), block.get("display")) == ("inline", "block")
    assert [node.text for node in block.iter() if node.text] == ["a", "i", "j", "=", "1", "2"]
    for _, kind, text in cells():
        if kind:
            assert "$" not in with_mathml(text)
            assert "\\" not in with_mathml(text)  # a command that it does not know


SMALL = """# %% [markdown]
# # A small study
#
# With $x^2$.

# %%
print(6 * 7)
from matplotlib import pyplot
pyplot.plot([1, 2])
pyplot.show()
"""


@pytest.mark.slow
def test_the_page_holds_output_pictures_and_formulas_and_loads_nothing(tmp_path):
    for name in ("jupytext", "nbconvert", "nbclient", "ipykernel", "latex2mathml"):
        pytest.importorskip(name)
    from nbclient.exceptions import CellExecutionError

    from figures.notebook import build

    study = tmp_path / "small.py"
    study.write_text(SMALL, encoding="utf8")
    notebook, page = build(tmp_path / "new", study)
    assert [path.name for path in (notebook, page)] == ["small.ipynb", "small.html"]
    text = page.read_text(encoding="utf8")
    assert "<title>A small study</title>" in text
    assert re.search(r"<pre>42\s*</pre>", text)
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in text.replace("\n", "")
    assert "data:image/png" in text
    assert not re.findall(r"""<script|url\(|@import|(?:src|href)=["'](?!data:|\#)""", text)
    assert "$x^2$" in notebook.read_text(encoding="utf8")

    study.write_text(SMALL.replace("6 * 7", "1 / 0"), encoding="utf8")
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        build(tmp_path / "none", study)
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_page_of_the_study_fits_in_a_browser(tmp_path):
    pytest.importorskip("nbconvert")
    from figures.notebook import build

    probe = """<script>addEventListener("load", () => {
      const broken = [...document.images].filter((image) => !image.naturalWidth).length;
      const formulas = [...document.querySelectorAll("math")];
      const flat = formulas.filter((formula) => !formula.getBoundingClientRect().height).length;
      document.title = ["found", broken, flat, document.documentElement.scrollWidth <= innerWidth].join(" ");
    });</script>"""
    page = build(tmp_path)[1]
    page.write_text(page.read_text(encoding="utf8").replace("</body>", probe + "</body>"), encoding="utf8")
    for width in (400, 1400):
        flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking".split()
        flags += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--dump-dom"]
        shown = subprocess.run([CHROMIUM, *flags, page.as_uri()], capture_output=True, text=True, check=True)
        assert re.search("<title>(.*)</title>", shown.stdout)[1] == "found 0 0 true"
