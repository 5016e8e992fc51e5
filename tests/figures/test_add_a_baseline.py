"""The page that tells how to add a baseline: its code is one, and its CSV is drawn."""

import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.utils.estimator_checks import check_estimator

import baselines
from dpq_ref.cli import main
from dpq_ref.compressed import load
from figures import style, tables
from figures.records import read_records

PAGE = (Path(__file__).parents[2] / "docs" / "add_a_baseline.md").read_text(encoding="utf8")
CODE, ENTRY = re.findall(r"```py(?:thon)?\n(.*?)```", PAGE, re.DOTALL)
(GRID,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
(CSV,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def method(monkeypatch):
    """The class of the page, registered as the page says."""
    module = types.ModuleType("baselines.columns")
    monkeypatch.setitem(sys.modules, "baselines.columns", module)
    exec(CODE, module.__dict__)
    ((name, (file, cls)),) = eval(f"{{{ENTRY}}}").items()
    monkeypatch.setitem(baselines.METHODS, name, (file, cls))
    monkeypatch.setitem(baselines.MODULES, cls, file)
    return baselines.REGISTRY["columns"]


def test_it_does_what_it_says(method, tmp_path):
    X = np.array([[0, 5, 1, 2], [4, 5, 1, 0], [8, 6, 1, 1]], np.float32)
    model = method(n_columns=2).fit(X)
    table = model.compress()
    expected = X.copy()
    expected[:, 1], expected[:, 2] = 16 / 3, 1  # the columns of least variance
    np.testing.assert_allclose(table.reconstruct(), expected, rtol=1e-6)
    np.testing.assert_allclose(model.inverse_transform(model.transform(X)), expected, rtol=1e-6)
    assert sum(table.bits().values()) == 32 * (3 * 2 + 2 * 4 + 4)
    table.save(tmp_path / "table")
    np.testing.assert_array_equal(load(tmp_path / "table").reconstruct(), table.reconstruct())
    with pytest.raises(ValueError, match="n_columns=5; a table of 4 columns takes at most as many"):
        method(n_columns=5).fit(X)


def test_it_has_the_manners_of_scikit_learn(method):
    check_estimator(method(n_columns=1), on_skip=None)


def test_it_is_compared_with_others(method, tmp_path):
    rng = np.random.default_rng(0)
    vectors = (rng.standard_normal((200, 16)) * np.arange(16, 0, -1)).astype(np.float32)
    np.savez(tmp_path / "vectors.npz", words=np.array([f"w{i}" for i in range(200)]), vectors=vectors)
    (tmp_path / "columns.toml").write_text(GRID, encoding="utf8")
    do, runs = tables.sweep(tmp_path / "columns.toml", tables.Paths(str(tmp_path / "vectors.npz")))
    do(runs, tmp_path / "out", jobs=1)
    errors = {r["name"]: r["metrics"]["relative_error"] for r in read_records(tmp_path / "out")}
    assert len(errors) == 4
    for ratio in (2, 4):
        assert errors[f"low-rank_ratio={ratio}_seed=0"] < errors[f"columns_ratio={ratio}_seed=0"] < 1


def test_its_csv_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setitem(style.RC, "figure.dpi", 50)
    (tmp_path / "my_codes.csv").write_text(CSV, encoding="utf8")
    paths = [tmp_path / "my_codes.csv", "--output", tmp_path / "out"]
    done = CliRunner().invoke(main, list(map(str, ["plot", *paths])))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "accuracy.png").is_file() and "88.90" in done.output


def test_links_lead_somewhere():
    folder = Path(__file__).parents[2] / "docs"
    for page in ("add_a_baseline.md", "results_format.md"):
        text = (folder / page).read_text(encoding="utf8")
        links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
        assert links and not [link for link in links if not (folder / link).exists()]
