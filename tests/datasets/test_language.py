"""Corpora for language models: files, vocabulary, dropped words, batches."""

import gzip
import lzma
import os
from pathlib import Path

import numpy as np
import pytest

from dpq_ref.datasets import language as module
from dpq_ref.datasets import load_builtin_language, load_language, unroll
from dpq_ref.datasets.text import build_dataset


def write(folder, **files):
    """Write files given as name=text, where __ stands for a point."""
    for name, text in files.items():
        path = folder / name.replace("__", ".")
        packed = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
        path.write_bytes(packed(text.encode()))
    return folder


def words(data, split):
    return [data.vocabulary[i] for i in getattr(data, split)]


# --- What is read ---------------------------------------------------------------------------------------


def test_by_hand(tmp_path):
    train = " b a c \n \nB a\n\nlast <unk>"
    write(tmp_path, train__txt=train, valid__txt="a z\nnew B z", test__txt="\n")
    data = load_language(tmp_path)
    # <eos> 4, a 2, then by code point: "<unk>" < "B" < "b" < "c" < "last".
    assert data.vocabulary == ("<eos>", "a", "<unk>", "B", "b", "c", "last")
    assert data.counts.tolist() == [4, 2, 1, 1, 1, 1, 1] and data.counts.dtype == np.int64
    assert words(data, "train") == "b a c <eos> <eos> B a <eos> <eos> last <unk>".split()
    assert words(data, "validation") == ["a", "<eos>", "B"]
    assert words(data, "test") == ["<eos>"]
    assert all(getattr(data, s).dtype == np.int32 for s in ("train", "validation", "test"))
    assert data.provenance["tokens"] == {"train": 11, "validation": 3, "test": 1}
    assert data.provenance["dropped"] == {"train": 0, "validation": 3, "test": 0}
    assert data.name == tmp_path.name


@pytest.mark.parametrize("line_separator", ["\u2028", "\u0085", "\x0b", "\x1e", "\r"])
def test_only_newlines_are_line_breaks(tmp_path, line_separator):
    write(tmp_path, train__txt=f"a{line_separator}b\r\n", valid__txt="a", test__txt="a")
    assert words(load_language(tmp_path), "train") == ["a", "b", "<eos>"]


@pytest.mark.parametrize(
    "names",
    [
        ("train__txt", "valid__txt", "test__txt"),
        ("ptb__train__txt__xz", "ptb__valid__txt__gz", "ptb__test__txt"),
        ("wiki__train__tokens", "validation__tokens__gz", "my-set__test__tokens__xz"),
    ],
)
def test_file_names_and_packing(tmp_path, names):
    others = ["ptb__char__train__txt", "train__csv", "training__txt", "_train__md", "__train__txt", "test"]
    write(tmp_path, **dict.fromkeys(others, "x"), **dict(zip(names, ["a b\n", "b", "a"], strict=True)))
    data = load_language(tmp_path)
    assert [words(data, s) for s in ("train", "validation", "test")] == [["a", "b", "<eos>"], ["b"], ["a"]]
    assert list(data.provenance["sha256"]) == [name.replace("__", ".") for name in names]


def test_missing_and_several_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere"):
        load_language(tmp_path / "nowhere")
    write(tmp_path, train__txt="a", test__txt="a")
    with pytest.raises(FileNotFoundError, match=r"no file \[NAME\.\]SPLIT.* SPLIT is valid or validation"):
        load_language(str(tmp_path))
    write(tmp_path, valid__txt="a", validation__txt="a")
    with pytest.raises(ValueError, match=r"which is the validation file: valid\.txt, validation\.txt\?"):
        load_language(tmp_path)
    (tmp_path / "valid.txt").unlink()
    write(tmp_path, ptb__test__txt__xz="a")
    with pytest.raises(ValueError, match=r"test file: ptb\.test\.txt\.xz, test\.txt\?"):
        load_language(tmp_path)


@pytest.mark.parametrize(("train", "valid", "split"), [("", "a", "train"), ("a\n", "b", "validation")])
def test_splits_without_a_word(tmp_path, train, valid, split):
    with pytest.raises(ValueError, match=f"the {split} split has no word"):
        load_language(write(tmp_path, train__txt=train, valid__txt=valid, test__txt="a"))


def test_damaged_file(tmp_path):
    write(tmp_path, train__txt__xz="a b c " * 100, valid__txt="a", test__txt="a")
    (tmp_path / "train.txt.xz").write_bytes((tmp_path / "train.txt.xz").read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"train\.txt\.xz: damaged"):
        load_language(tmp_path)


def test_sha256_says_equal_data(tmp_path):
    texts = [("a b", "a", "b"), ("b a", "a", "b"), ("a b", "b", "b"), ("a b", "a", "a"), ("a c", "a", "c")]
    digests = set()
    for train, valid, test in [*texts, texts[0]]:
        write(tmp_path, train__txt=train, valid__txt=valid, test__txt=test)
        digests.add(load_language(tmp_path).sha256)
    assert len(digests) == 5


@pytest.mark.skipif("DPQ_REF_DATA" not in os.environ, reason="DPQ_REF_DATA names no folder of data")
@pytest.mark.parametrize(
    ("name", "n", "tokens", "first"),
    [
        ("ptb", 10_000, (929_589, 73_760, 82_430), ("the", "<unk>", "<eos>", "N", "of")),
        ("wikitext-2", 33_278, (2_088_628, 217_646, 245_569), ("the", ",", ".", "of", "<unk>")),
    ],
)
def test_published_counts(name, n, tokens, first):
    data = load_language(Path(os.environ["DPQ_REF_DATA"], name))
    assert len(data.vocabulary) == n
    assert (len(data.train), len(data.validation), len(data.test)) == tokens
    assert data.vocabulary[:5] == first
    assert data.provenance["dropped"] == {"train": 0, "validation": 0, "test": 0}
    assert data.counts.sum() == tokens[0] and data.counts.min() >= 1
    assert (np.diff(data.counts) <= 0).all()
    if name == "ptb":
        assert len(unroll(data.train, 20, 35)[0]) == 1_327


# --- The built-in corpus --------------------------------------------------------------------------------


def test_builtin(monkeypatch):
    train = [("a b a", 0), ("", 0), ("b a c", 0)]
    corpus = build_dataset(
        "builtin",
        {"train": train, "validation": [("a c", 0)], "test": [("b", 0), ("", 0)]},
        min_count=2,
        label_names=["x"],
        provenance={"versions": {}},
    )
    monkeypatch.setattr(module, "load_builtin", lambda max_documents: corpus)
    data = load_builtin_language()
    assert data.vocabulary == ("<eos>", "a", "b", "<unk>")
    assert words(data, "train") == "a b a <eos> <eos> b a <unk> <eos>".split()
    assert words(data, "validation") == ["a", "<unk>", "<eos>"]
    assert words(data, "test") == ["b", "<eos>", "<eos>"]
    assert data.provenance["versions"] == {}


# --- Batches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "batch_size", "n_steps"), [(101, 4, 3), (929, 20, 5), (12, 1, 11), (7, 1, 1)])
def test_batches_continue_each_other(rng, n, batch_size, n_steps):
    ids = rng.integers(0, 50, n).astype(np.int32)
    inputs, targets = unroll(ids, batch_size, n_steps)
    length = n // batch_size
    n_batches = (length - 1) // n_steps
    assert inputs.shape == targets.shape == (n_batches, batch_size, n_steps)
    for i in range(n_batches):
        for row in range(batch_size):
            start = row * length + i * n_steps
            assert inputs[i][row].tolist() == ids[start : start + n_steps].tolist()
            assert targets[i][row].tolist() == ids[start + 1 : start + n_steps + 1].tolist()
    assert np.shares_memory(inputs, ids) and np.shares_memory(targets, ids)


@pytest.mark.parametrize(
    ("ids", "batch_size", "n_steps", "error", "message"),
    [
        (np.arange(11), 2, 5, ValueError, "11 words for batches of 2 x 5 .* takes 12 or more"),
        ([], 1, 1, ValueError, "0 words for batches of 1 x 1"),
        (np.arange(9), 0, 1, ValueError, "batch_size=0"),
        (np.arange(9), 1, 0, ValueError, "n_steps=0"),
        (np.arange(9), 1.0, 1, TypeError, "batch_size=1.0"),
        (np.ones(9), 1, 1, TypeError, "ids is float64"),
        (np.ones((3, 3), int), 1, 1, ValueError, r"ids has shape \(3, 3\)"),
    ],
)
def test_unroll_refuses(ids, batch_size, n_steps, error, message):
    with pytest.raises(error, match=message):
        unroll(np.asarray(ids, np.int32) if len(ids) == 0 else ids, batch_size, n_steps)


def test_least_that_unrolls():
    inputs, targets = unroll(np.arange(12), 2, 5)
    assert inputs.tolist() == [[[0, 1, 2, 3, 4], [6, 7, 8, 9, 10]]]
    assert targets.tolist() == [[[1, 2, 3, 4, 5], [7, 8, 9, 10, 11]]]
