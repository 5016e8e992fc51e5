"""The code in the README runs, and does what it says."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf8"), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[-1][:40])
def test_code_runs(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    said = capsys.readouterr().out
    if "accuracy" in block:
        assert float(said.split()[-1]) > 0.95


def test_the_training_loop_is_short():
    loop = next(block for block in BLOCKS if "DPQEmbedding" in block)
    assert len([line for line in loop.splitlines() if line.strip()]) <= 25


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text(encoding="utf8"))
    assert links
    missing = [link for link in links if not (README.parent / link).exists()]
    assert not missing
