"""Readers of word lists and tables: what comes back, and what each damaged line says."""

import gzip
import lzma
import os
from pathlib import Path

import numpy as np
import pytest

from dpq_ref.datasets.words import (
    Analogy,
    Relation,
    SimilarityPair,
    counts_for,
    read_analogies,
    read_frequencies,
    read_npz_table,
    read_relations,
    read_similarity,
)

TEXT_READERS = [read_similarity, read_analogies, read_relations, read_frequencies]


def written(path, text):
    content = text.encode()
    if path.suffix in (".gz", ".xz"):
        content = (gzip if path.suffix == ".gz" else lzma).compress(content)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("packing", ["", ".gz", ".xz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_is_read(tmp_path, packing, end):
    def read(reader, *lines):
        return reader(written(tmp_path / f"set.txt{packing}", end.join(lines) + end))

    assert read(read_similarity, "love\tsex\t6.77", "", "New York\té\t-1e1") == [
        SimilarityPair("love", "sex", 6.77),
        SimilarityPair("New York", "é", -10.0),
    ]
    assert read(read_analogies, ": family", "boy girl he she", ": gram1-adverb", "a b\tc d") == [
        Analogy("family", "boy", "girl", "he", "she"),
        Analogy("gram1-adverb", "a", "b", "c", "d"),
    ]
    assert read(read_relations, "cat-n\tmammal\trandom-j\tset-up-j", "-n\tx\thyper\tset-viewer") == [
        Relation("cat", "mammal", "random-j", "set-up"),
        Relation("-n", "x", "hyper", "set-viewer"),
    ]
    assert read(read_frequencies, "the 12", "New York\t3", "é 0") == {"the": 12, "New York": 3, "é": 0}


def test_no_line_end_at_the_end_and_a_byte_order_mark(tmp_path):
    assert read_frequencies(written(tmp_path / "f", "\ufeffthe 12\nof 7")) == {"the": 12, "of": 7}


@pytest.mark.parametrize(
    ("reader", "text", "message"),
    [
        (read_similarity, "a\tb\t1\na b 2\n", r"set, line 2: takes word<TAB>word<TAB>score, got 'a b 2'"),
        (read_similarity, "a\tb\t1\na\t\t2\n", "line 2: takes word"),
        (read_similarity, "a\tb\t1\t2\n", "line 1: takes word"),
        (read_similarity, "a\tb\tx\n", "line 1: the score 'x' is no number"),
        (read_similarity, "\na\tb\tnan\n", "line 2: the score 'nan' is no number"),
        (read_similarity, "\n\n", "no pairs"),
        (read_analogies, ": s\na b c d\na b c\n", "line 3: 3 words, takes 4: 'a b c'"),
        (read_analogies, "a b c d\n", "line 1: a question before the first"),
        (read_analogies, ": s\n", "no questions"),
        (read_relations, "a-n\tc\tr\n", "line 1: takes concept<TAB>category"),
        (read_relations, "", "no relations"),
        (read_frequencies, "the 12\nof\n", "line 2: takes 'word count', got 'of'"),
        (read_frequencies, "the -3\n", "line 1: takes 'word count'"),
        (read_frequencies, "the 1.5\n", "line 1: takes 'word count'"),
        (read_frequencies, "the 12\nof 3\nthe 4\n", "line 3: 'the' comes a second time"),
        (read_frequencies, "", "no frequencies"),
    ],
)
def test_bad_lines(tmp_path, reader, text, message):
    with pytest.raises(ValueError, match=message):
        reader(written(tmp_path / "set", text))


@pytest.mark.parametrize("reader", [*TEXT_READERS, read_npz_table])
def test_missing_files(tmp_path, reader):
    with pytest.raises(FileNotFoundError, match="no file .*nowhere"):
        reader(tmp_path / "nowhere")


@pytest.mark.parametrize("reader", TEXT_READERS)
@pytest.mark.parametrize("name", ["set.gz", "set.xz", "set.txt"])
def test_damaged_files(tmp_path, reader, name):
    path = written(tmp_path / name, "the\tof\t1\n" * 100)
    path.write_bytes(path.read_bytes()[:40] + b"\xff\xfe")
    with pytest.raises(ValueError, match=f"{name}: damaged"):
        reader(path)


# --- Counts ---------------------------------------------------------------------------------------------


def test_counts():
    frequencies = {"the": 9, "paris": 2, "may": 3, "May": 1, "IBM": 5}
    counts = counts_for(["May", "may", "MAY", "Paris", "ibm", "the", "xyzzy"], frequencies)
    assert counts.tolist() == [1, 3, 3, 2, 0, 9, 0] and counts.dtype == np.int64
    assert counts_for([], frequencies).shape == (0,)
    assert counts_for(np.array(["the", "of"]), frequencies).tolist() == [9, 0]


# --- Tables ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_tables(tmp_path, dtype):
    vectors = np.asfortranarray(np.arange(6).reshape(3, 2).astype(dtype))
    np.savez(tmp_path / "t.npz", words=np.array(["a", "é", "New York"]), vectors=vectors, more=1)
    words, read = read_npz_table(tmp_path / "t.npz")
    assert words == ["a", "é", "New York"] and type(words[0]) is str
    np.testing.assert_array_equal(read, vectors)
    assert read.dtype == max(dtype, np.float32, key=lambda t: np.dtype(t).itemsize)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"words": np.array(["a"])}, "no array vectors; it has words"),
        ({"table": np.eye(2)}, "no array words and no vectors; it has table"),
        ({"words": np.array(["a", "b"]), "vectors": np.eye(3)}, r"words <U1 \(2,\) for vectors \(3, 3\)"),
        ({"words": np.arange(3), "vectors": np.eye(3)}, r"words int64 \(3,\)"),
        ({"words": np.array(["a"]), "vectors": np.ones(1)}, r"must have shape \(rows, dim\), got \(1,\)"),
        ({"words": np.array(["a"]), "vectors": [[np.nan]]}, "vectors has 1 entry that is NaN"),
        ({"words": np.array(["a"]), "vectors": [["x"]]}, "vectors must hold real numbers"),
        ({"words": np.array(["a"], object), "vectors": np.eye(1)}, "allow_pickle"),
    ],
)
def test_bad_tables(tmp_path, arrays, message):
    path = tmp_path / "t.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=f"t\\.npz: .*{message}"):
        read_npz_table(path)


def test_files_that_are_no_table(tmp_path):
    path = tmp_path / "t.npz"
    np.savez_compressed(path, words=np.array([str(i) for i in range(999)]), vectors=np.ones((999, 30)))
    whole = path.read_bytes()
    with path.open("wb") as file:
        np.save(file, np.eye(3))
    with pytest.raises(ValueError, match=r"t\.npz: File is not a zip file"):
        read_npz_table(path)
    for damaged in (b"", b"the 1\n", whole[: len(whole) // 2], whole[:900] + b"\xff" * 99 + whole[999:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"t\.npz: "):
            read_npz_table(path)


@pytest.mark.skipif("DPQ_REF_DATA" not in os.environ, reason="DPQ_REF_DATA names no folder of data")
def test_real_lists():
    data = Path(os.environ["DPQ_REF_DATA"])
    questions = read_analogies(data / "word-similarity/questions-words.txt.xz")
    assert len(questions) == 19_544 and len({q.section for q in questions}) == 14
    relations = read_relations(data / "word-similarity/BLESS.txt.xz")
    assert len(relations) == 26_554
    assert len({r.concept for r in relations}) == 200 and len({r.category for r in relations}) == 17
    sizes = {file.stem: len(read_similarity(file)) for file in (data / "word-similarity").glob("*.tsv")}
    assert len(sizes) == 11 and sizes["RW-STANFORD"] == 2034 and sizes["VERB-143"] == 144
    wiki = read_frequencies(data / "word-frequency/enwiki_vocab_min200.txt.xz")
    assert len(wiki) == 188_033 and max(wiki.values()) == wiki["the"] == 167_485_604
    words, vectors = read_npz_table(data / "embeddings/glove-6b-300d-3k.npz")
    counts = counts_for(words, wiki)
    assert (counts == 0).sum() == 371 and (counts[-371:] == 0).all() and (np.diff(counts) <= 0).all()
