"""What runs keep of their tables, and the figures that look inside."""

import csv
import json

import numpy as np
import pytest

from dpq_ref.datasets.text import build_dataset
from figures import plot, plot_inside, plot_neighbours
from figures.inside import content_words, inside, positions, rounded, singular_values


@pytest.mark.parametrize("shape", [(40, 6), (5, 6), (1, 3)])
def test_singular_values_are_those_of_the_whole_table(rng, shape):
    table = rng.standard_normal(shape).astype(np.float32)
    expected = np.linalg.svd(table.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(singular_values(table), expected, rtol=1e-12)


def test_singular_values_of_a_low_rank_table_end_at_its_rank(rng):
    table = rng.standard_normal((50, 2)) @ rng.standard_normal((2, 8))
    values = singular_values(table)
    assert values[1] > 0.1
    assert (values[2:] < 1e-12 * values[0]).all()


def test_positions_keep_distances_within_a_plane(rng):
    """Unit vectors on one circle of the sphere lie in a plane: a projection on it is a motion."""
    angles = rng.uniform(0, 2 * np.pi, 7)
    circle = np.c_[0.6 * np.cos(angles), 0.6 * np.sin(angles), np.full(7, 0.8)]
    turned = circle @ np.linalg.qr(rng.standard_normal((3, 3)))[0]
    scaled = turned * rng.uniform(0.5, 2, (7, 1))  # lengths of vectors do not count
    found = positions(scaled, scaled)

    def distances(points):
        return np.linalg.norm(points[:, None] - points[None], axis=-1)

    np.testing.assert_allclose(distances(found), distances(circle), atol=1e-12)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-12)
    assert np.var(found[:, 0]) >= np.var(found[:, 1])


def test_moved_rows_are_seen_in_the_plane_of_the_full_ones():
    """Points spread along x, then y; z is not seen, and the middle stays that of the full table."""
    full = np.array(
        [[0.8, 0.0, 0.6], [-0.8, 0.0, 0.6], [0.0, 0.3, np.sqrt(0.91)], [0.0, -0.3, np.sqrt(0.91)]]
    )
    moved = np.array([[0.5, 0.1, np.sqrt(0.74)]] * 4)
    np.testing.assert_allclose(np.abs(positions(full, full)), [[0.8, 0]] * 2 + [[0, 0.3]] * 2, atol=1e-12)
    np.testing.assert_allclose(np.abs(positions(moved, full)), [[0.5, 0.1]] * 4, atol=1e-12)


def test_words_are_frequent_ones_of_content():
    vocabulary = [
        "<pad>",
        "the",
        "a",
        "b",
        *(f"w{'abcdefghij'[i // 10]}{'abcdefghij'[i % 10]}" for i in range(100)),
    ]
    assert content_words(vocabulary) == ["wah", "wbf", "wdb", "wgd", "wjj"]  # 8th, 16th, 32nd, 64th, the last
    assert content_words(["<pad>", "the", "7"]) == []


@pytest.fixture(scope="module")
def data():
    """Texts of 24 words."""
    rng = np.random.default_rng(0)
    words = ["q" + a + b for a in "abcd" for b in "uvwxyz"]
    split = [(" ".join(rng.choice(words, 30)), i % 2) for i in range(20)]
    splits = {name: split for name in ("train", "validation", "test")}
    return build_dataset("toy", splits, min_count=1, label_names=("a", "b"), provenance={})


def test_neighbours_are_those_of_brute_force(rng, data):
    full = rng.standard_normal((len(data.vocabulary), 5)).astype(np.float32)
    table = full + 0.5 * rng.standard_normal(full.shape).astype(np.float32)
    found = json.loads(json.dumps(inside(table, data, full)))
    assert len(found["neighbours"]) == 3  # the 8th, the 16th, the last
    units = table / np.linalg.norm(table, axis=1, keepdims=True)
    for word, near in found["neighbours"].items():
        cosines = units @ units[data.vocabulary.index(word)]
        order = [data.vocabulary[i] for i in np.argsort(-cosines)]
        assert near == [other for other in order if other != word][:8]
    around = {word: [word, *near] for word, near in inside(full, data)["neighbours"].items()}
    for word, names in around.items():
        ids = [data.vocabulary.index(name) for name in names]
        assert found["neighbourhoods"][word] == rounded(positions(table[ids], full[ids]))
    assert "neighbourhoods" not in inside(table, data)


# --- Figures --------------------------------------------------------------------------------------------


def record(method, ratio, parameters=None, seed=0, **more):
    specification = {"dataset": "toy", "method": method, "parameters": parameters or {}, "seed": seed}
    return {
        "specification": specification,
        "bits": {"all": 1},
        "compression_ratio": ratio,
        "seconds": {"fit": 1.0},
        "metrics": {"test_accuracy": 90.0},
    } | more


def table_of(near, move=0.0):
    """What a run keeps of a table, by hand; `near` are the neighbours of "word"."""
    return {
        "singular_values": [4.0, 2.0, 1e-7],
        "neighbours": {"word": near},
        "neighbourhoods": {"word": [[0.0, 0.0], [1.0 + move, 0.0], [0.0, 1.0]]},
    }


def norms(*names, scale=1.0):
    return {"gradient_norms": {"step": [1, 2], **{n: [scale * (i + 1), 1.0] for i, n in enumerate(names)}}}


def evaluations(*changed):
    return {
        "evaluations": [
            {"step": 10 * (i + 1), "codes_changed": c, "code_perplexity": 3.0} for i, c in enumerate(changed)
        ]
    }


@pytest.fixture
def records():
    """Full, both DPQ, and two offline methods, one far smaller than the rest."""
    heads = "dense1.weight", "dense2.bias"
    dpq = "embedding.query", *heads
    sx, vq = {"n_groups": 4, "n_codes": 4}, {"n_groups": 4, "n_codes": 4, "batch_norm": False}
    full = norms("embedding.table", *heads)
    full["gradient_norms"]["dense1.bias"] = [1e-9, 1e-9]
    full |= table_of(["aa", "bb"]) | {"evaluations": [{"step": 10}]}
    near = table_of(["bb", "cc"])
    del near["neighbourhoods"]
    return [
        record("full", 1.0, **full),
        record("dpq-sx", 10.0, sx, 0, **near, **norms(*dpq), **evaluations(0.5, 0.25)),
        record("dpq-sx", 10.0, sx, 1, **near, **norms(*dpq, scale=3), **evaluations(0.3, 0.1)),
        record("dpq-vq", 10.0, vq, 0, **near, **norms(*dpq), **evaluations(0.2, 0.1)),
        record("product", 12.0, **table_of(["bb", "aa"], 0.5)),
        record("itq", 64.0, **table_of(["cc", "dd"])),
    ]  # fmt: skip


def rows(path):
    with path.open(encoding="utf8", newline="") as file:
        return list(csv.DictReader(file))


def test_each_figure_shows_what_the_records_say(records, tmp_path):
    written = plot_inside.draw(tmp_path, records) + plot_neighbours.draw(tmp_path, records)
    names = ["code_changes", "gradients", "spectra", "neighbours", "neighbourhoods"]
    assert [path.name for path in written if path.suffix == ".png"] == [f"{name}.png" for name in names]

    codes = rows(tmp_path / "code_changes.csv")
    changed = [
        (r["method"], r["seed"], r["step"], float(r["percent"])) for r in codes if "ch" in r["quantity"]
    ]
    assert changed[:4] == [("dpq-sx", str(s), t, p) for s, t, p in
                           ((0, "10", 50), (0, "20", 25), (1, "10", 30), (1, "20", 10))]  # fmt: skip
    assert {float(r["percent"]) for r in codes if r["quantity"] == "code_perplexity"} == {75.0}

    gradients = rows(tmp_path / "gradients.csv")
    assert {r["parameter"] for r in gradients if r["method"] == "full"} == {
        "embedding.table", "dense1.weight", "dense2.bias",
    }  # fmt: skip
    sx = {(r["parameter"], r["step"]): float(r["norm"]) for r in gradients if r["method"] == "dpq-sx"}
    assert sx["embedding.query", "1"] == 2 and sx["dense1.weight", "1"] == 4  # means of two seeds
    assert {r["method"] for r in gradients} == {"full", "dpq-sx", "dpq-vq"}

    spectra = rows(tmp_path / "spectra.csv")
    assert {(r["panel"], r["method"]) for r in spectra} == {
        ("16", "full"), ("16", "dpq-sx"), ("16", "dpq-vq"), ("16", "product"), ("64", "full"), ("64", "itq"),
    }  # fmt: skip
    assert {r["rank"] for r in spectra} == {"1", "2"}  # what is rounding is no value

    found = rows(tmp_path / "neighbours.csv")
    kept = {
        m: [r["kept"] for r in found if r["method"] == m] for m in ("full", "dpq-sx", "dpq-vq", "product")
    }
    assert kept == {"full": ["True"] * 2, "dpq-sx": ["True", "False"], "dpq-vq": ["True", "False"],
                    "product": ["True"] * 2}  # fmt: skip
    assert "itq" not in {r["method"] for r in found}  # of another size

    moves = rows(tmp_path / "neighbourhoods.csv")
    assert [(r["method"], r["neighbour"], r["x_full"], r["x"]) for r in moves] == [
        ("product", "word", "0.0", "0.0"), ("product", "aa", "1.0", "1.5"), ("product", "bb", "0.0", "0.0"),
    ]  # fmt: skip


def test_records_without_them_have_no_such_figures(records, tmp_path):
    (tmp_path / "runs").mkdir()
    for i, run in enumerate(records):
        old = {k: v for k, v in run.items() if k in record("full", 1.0)}
        (tmp_path / f"runs/{i}.json").write_text(json.dumps(old), encoding="utf8")
    drawn = {path.stem for path in plot.draw(tmp_path)}
    assert drawn == {"results", "table", "matched_bits", "accuracy", "time"}


def test_of_each_method_the_setting_nearest_in_ratio(records):
    settings = [plot_inside.Setting("m", {"r": r}, [record("m", r)]) for r in (2.0, 7.0, 9.0, 32.0)]
    assert [s.ratio for s in plot_inside.nearest_of_each(settings, 8.0)] == [9.0]
    assert [s.ratio for s in plot_inside.nearest_of_each(settings, 15.0)] == [9.0]  # 15/9 < 32/15
    assert plot_inside.nearest_of_each(settings, 100.0, factor=2) == []
    assert plot_inside.middle_ratio(settings) == 7.0  # of one there is
    assert plot_inside.middle_ratio(plot_inside.settings_with("singular_values", records)) == 10.0


def test_without_another_table_of_the_seed_there_are_no_neighbours_to_compare(records, tmp_path):
    full, product = records[0], records[4]
    later = record("product", 12.0, seed=1, **table_of(["aa", "bb"]))
    no_words = [record(m, r, neighbours={}, neighbourhoods={}) for m, r in (("full", 1.0), ("half", 2.0))]
    for some in ([full], [product], [full, later], no_words, []):
        assert plot_neighbours.draw(tmp_path, some) == []
