"""The page: all results in it and nothing from elsewhere; in a browser its tables sort."""

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner

from dpq_ref.cli import main
from figures.plot import draw
from figures.report import report
from figures.sweep import command_line

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
RUNS = [  # method, parameters, seed, ratio, accuracy
    ("full", {}, 0, 1.0, 90.0),
    ("full", {}, 1, 1.0, 92.0),
    ("product", {"n_codes": 4}, 0, 10.0, 85.5),
    ("product", {"n_codes": 4}, 1, 10.0, 84.5),
    ("mine & <yours>", {"size": 3}, 0, 9.0, 100.0),
]


@pytest.fixture
def results(tmp_path):
    """Folder of results: five runs, one more that failed."""
    (tmp_path / "runs").mkdir()
    for i, (method, parameters, seed, ratio, accuracy) in enumerate(RUNS):
        record = {
            "name": f"{method}-{seed}",
            "specification": {"dataset": "toy", "method": method, "parameters": parameters, "seed": seed},
            "bits": {"codes": 1000, "codebooks": 234},
            "compression_ratio": ratio,
            "metrics": {"test_accuracy": accuracy},
            "seconds": {"fit": 0.5},
            "command": "dpq-ref compare --output 'a b'",
            "environment": {"python": "3.11", "commit": "abc" if seed else "def"},
        }
        (tmp_path / "runs" / f"{i}.json").write_text(json.dumps(record), encoding="utf8")
    del record["metrics"], record["bits"]
    record |= {"name": "broken", "error": "Traceback ...\nValueError: no <b>"}
    (tmp_path / "runs" / "9.json").write_text(json.dumps(record), encoding="utf8")
    return tmp_path


class Page(HTMLParser):
    """Texts of the cells of the table, row by row, and what the page would load."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.loads, self.stack, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag, attributes):
        self.loads += [value for name, value in attributes if name in ("src", "href")]
        if tag in ("meta", "img"):
            return
        self.stack.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & {*self.stack}:
            self.rows[-1][-1] += data


def test_the_page_holds_all_results_and_loads_nothing(results):
    page = Page(report(results, draw(results)))
    assert page.rows[0] == [
        "method",
        "parameters",
        "seeds",
        "ratio",
        "bits",
        "test accuracy (%) ↑",
        "seconds to fit",
    ]
    assert page.rows[1:4] == [
        ["full embedding", "", "2", "1.0", "1,234", "91 ± 1.4", "0.5"],
        ["product quantization", "n_codes=4", "2", "10.0", "1,234", "85 ± 0.71", "0.5"],
        ["mine & <yours>", "size=3", "1", "9.0", "1,234", "100", "0.5"],
    ]
    assert page.rows[4:] == [  # at equal bits
        ["method", "ratio 8"],
        ["product quantization", "85 ± 0.7"],
        ["mine & <yours>", "100 *"],
    ]
    assert page.loads
    assert all(address.startswith("data:") for address in page.loads)
    assert not re.findall(r"url\(|@import|https?://", report(results, []))
    for words in ("5 runs of 2 seeds, and 1 run that failed", "broken: ValueError: no <b>", "def, abc"):
        assert words in page.text
    assert page.text.count("dpq-ref compare --output 'a b'") == 1


def test_the_command_writes_the_page_and_says_what_is_missing(results, tmp_path):
    output = tmp_path / "new" / "page.html"
    result = CliRunner().invoke(main, ["report", str(results), "-o", str(output)])
    assert result.exit_code == 0, result.output
    assert output.read_text(encoding="utf8").startswith("<!DOCTYPE html>")
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(main, ["report", str(tmp_path / "empty"), "-o", str(tmp_path / "no.html")])
    assert result.exit_code == 1
    assert "no results" in result.output
    assert not (tmp_path / "no.html").exists()


def test_commands_are_told_without_the_folders_of_a_machine():
    told = command_line(["/usr/bin/dpq-ref", "compare", "--data", "/secret/ag news", "--output", "results/x"])
    assert told == "dpq-ref compare --data 'ag news' --output results/x"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_tables_sort_and_pictures_show_in_a_browser(results, tmp_path):
    probe = """<script>
    const rows = () => [...document.querySelectorAll(".long tbody tr")];
    const order = () => rows().map((row) => row.cells[0].textContent[0]).join("");
    const buttons = document.querySelectorAll(".long th button"), seen = [order()];
    for (const column of [5, 5, 3, 0]) { buttons[column].click(); seen.push(order()); }
    addEventListener("load", () => {
      const broken = [...document.images].filter((image) => !image.naturalWidth).length;
      document.title = ["found", ...seen, broken, document.images.length,
                        document.documentElement.scrollWidth <= innerWidth].join(" ");
    });
    addEventListener("error", () => { document.title = "script error"; });
    </script>"""
    page = tmp_path / "page.html"
    page.write_text(report(results, draw(results)).replace("</body>", probe + "</body>"), encoding="utf8")
    for width in (400, 1400):
        flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking".split()
        flags += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--dump-dom"]
        shown = subprocess.run([CHROMIUM, *flags, page.as_uri()], capture_output=True, text=True, check=True)
        title = re.search("<title>(.*)</title>", shown.stdout)[1]
        # As it comes; by accuracy, up and down; by ratio; by name.
        assert title == "found fpm pfm mfp fmp fmp 0 2 true"


def test_the_numbers_behind_a_figure_can_be_saved(results):
    import base64

    saved = re.search(
        r'download="accuracy.csv" href="data:text/csv;base64,([^"]*)"', report(results, draw(results))
    )
    rows = list(csv.DictReader(base64.b64decode(saved[1]).decode().splitlines()))
    assert [row["mean"] for row in rows] == ["91.0", "85.0", "100.0"]
