"""Embedding tables in files: what is written is read again bit by bit, what is damaged is refused."""

import gzip
import lzma
import re
import struct

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save_file

from dpq_ref.compressed import (
    BlockTable,
    DenseTable,
    FactoredTable,
    ProductTable,
    ScalarTable,
    SparseTable,
    load,
    to_bfloat16,
)
from dpq_ref.compressed.base import KINDS
from dpq_ref.datasets import files
from dpq_ref.datasets.vectors import ends_in_number
from dpq_ref.tables import read_table, read_words, write_table

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
LETTERS = st.characters() | st.sampled_from(" \t\n\r\0\"'\\\ud800\u0301\u200f\u2028\u00a0\ufeff.5")
WORDS = st.text(LETTERS, max_size=6)
ENDINGS = [".txt", ".vec", ".bin", ".npz"]
EXTREME = np.float32([[-0.0, 1e-45], [np.finfo(np.float32).max, np.finfo(np.float32).tiny]])
PACKS = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": files._zstd().compress}


@st.composite
def tables(draw):
    vectors = draw(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2), elements=FLOATS))
    return draw(st.lists(WORDS, min_size=len(vectors), max_size=len(vectors))), vectors


def is_hard(word, ending, first):
    """Whether a format may refuse a word."""
    if any("\ud800" <= letter <= "\udfff" for letter in word):
        return True
    if ending == ".npz":
        return word.endswith("\0")
    if ending == ".bin":
        return not word or " " in word or "\n" in word
    parts = re.split("[ \t\f\v]", word)
    bad_first = first and ending == ".txt" and (len(parts) > 1 or word[:1] == "\ufeff")
    return "\n" in word or "\r" in word or not (parts[0] and parts[-1]) or bad_first or ends_in_number(word)


@pytest.mark.parametrize("ending", ENDINGS)
@given(table=tables())
@example(table=(["5", "3"], np.float32([[1], [2]])))  # no header, though it looks like one
@example(table=(["a", "a"], EXTREME))
@example(table=(["new york", "\u00a0"], EXTREME))
@example(table=(['"', "\ufeff"], EXTREME.T))
@example(table=(["\ufeffa", "e\u0301 \u0627"], EXTREME))
@example(table=(["a", "area 51"], EXTREME))  # text takes it for a row of three
@example(table=(["a\0b", "b\0"], EXTREME))
@example(table=(["half", "\udc80"], EXTREME))
@settings(max_examples=60, deadline=None)
def test_round_trip(ending, table, tmp_path_factory):
    words, vectors = table
    path = tmp_path_factory.mktemp("table") / f"table{ending}"
    hard = [i for i, word in enumerate(words) if is_hard(word, ending, not i)]
    try:
        write_table(path, words, vectors)
    except ValueError as error:
        what = "(?s)row ([0-9]+): the word .* (does not go into this format|has no UTF-8)"
        found = re.match(what, str(error))
        assert found and int(found[1]) in hard
        assert not any(path.parent.iterdir())
        return
    assert not hard
    read = read_table(path)
    assert read.words == words
    assert read.vectors.tobytes() == vectors.tobytes()


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("ending", [".txt", ".vec", ".bin", ""])
def test_packed_is_the_same(ending, pack, tmp_path):
    words = [f"wörd{i}" for i in range(2000)]
    vectors = np.random.default_rng(0).standard_normal((2000, 7)).astype(np.float32)
    write_table(tmp_path / f"t{ending or '.txt'}", words, vectors)
    packed = tmp_path / f"p{ending}{pack}"
    packed.write_bytes(PACKS[pack]((tmp_path / f"t{ending or '.txt'}").read_bytes()))
    read = read_table(packed)
    assert read.words == words and read.source == str(packed)
    assert read.vectors.tobytes() == vectors.tobytes()


@pytest.mark.parametrize("ending", [".npz", ".npy"])
def test_doubles_stay_doubles(ending, tmp_path):
    vectors = np.float64([[1e-300, -0.0], [np.pi, 5e-324]])
    write_table(tmp_path / f"t{ending}", ["a", "b"], np.asfortranarray(vectors))
    read = read_table(tmp_path / f"t{ending}").vectors
    assert read.dtype == np.float64 and read.tobytes() == vectors.tobytes()


def test_arrays_are_not_read_packed(tmp_path):
    for name in ("t.npy.gz", "t.npz.xz", "t.safetensors.zst"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ValueError, match="unpack it first"):
            read_table(tmp_path / name)


def test_an_array_of_an_npz_by_its_name(tmp_path):
    np.savez(tmp_path / "t.npz", users=EXTREME, items=EXTREME.T, n=np.float32(3))
    words, vectors, source = read_table(tmp_path / "t.npz", tensor="items")
    assert words is None and source.endswith("t.npz: items")
    np.testing.assert_array_equal(vectors, EXTREME.T)
    with pytest.raises(ValueError, match="it has users, items, n, and --tensor .* names another"):
        read_table(tmp_path / "t.npz")
    with pytest.raises(ValueError, match="no array x"):
        read_table(tmp_path / "t.npz", tensor="x")
    with pytest.raises(ValueError, match="n must have shape"):
        read_table(tmp_path / "t.npz", tensor="n")


def test_a_byte_order_mark_is_no_part_of_the_first_word(tmp_path):
    for head in ("", "1 2\n"):
        (tmp_path / "t.txt").write_text(f"{head}the 1 2\n", encoding="utf-8-sig")
        assert read_table(tmp_path / "t.txt").words == ["the"]


@pytest.mark.parametrize(
    ("word", "error"), [("\ud800", "row 1: the word .* has no UTF-8: surrogates"), (5, "got int in row 1")]
)
def test_words_that_are_none(word, error, tmp_path):
    table = DenseTable(EXTREME)
    table.words = ["a", word]
    with pytest.raises((ValueError, TypeError), match=error):
        table.save(tmp_path / "t.safetensors")
    for ending in ENDINGS:
        with pytest.raises((ValueError, TypeError), match=error):
            write_table(tmp_path / f"t{ending}", ["a", word], EXTREME)
    assert not any(tmp_path.iterdir())


@given(
    words=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), min_size=2, max_size=2),
    vectors=hnp.arrays(np.float32, (2, 3), elements=FLOATS),
)
@example(words=["", "\0"], vectors=np.zeros((2, 3), np.float32))
@settings(max_examples=15, deadline=None)
def test_round_trip_of_artefacts(words, vectors, tmp_path_factory):
    """Any words, and any numbers in each kind of array that has them."""
    path = tmp_path_factory.mktemp("table") / "t.safetensors"
    one = np.zeros((1, 3), np.uint8)
    made = [
        DenseTable(vectors),
        ProductTable.from_codes(np.array([[0, 1, 1], [1, 0, 1]]), vectors.T.reshape(3, 2, 1)),
        ScalarTable.from_codes(np.array([[0, 1, 1], [1, 0, 1]]), 1, vectors[:1], vectors[0, :2]),
        FactoredTable(np.eye(2, dtype=np.float32), vectors, vectors[1]),
        BlockTable.from_factors([0, 1], [vectors[:1], one[:, :1].astype(np.float32)], [None, vectors[1:]]),
        SparseTable.from_entries(np.ones((2, 3), bool), vectors.ravel()),
    ]
    assert {table.kind for table in made} == set(KINDS)
    for table in made:
        table.words = words
        table.save(path)
        for mapped in (False, True):
            again = load(path, mapped=mapped)
            assert again.words == words and again.config() == table.config()
            for name, array in table.arrays().items():
                assert again.arrays()[name].tobytes() == array.tobytes(), name


def test_npy_is_mapped_and_has_no_words(tmp_path):
    write_table(tmp_path / "a.npy", None, EXTREME)
    words, vectors, source = read_table(tmp_path / "a.npy")
    assert words is None and vectors.tobytes() == EXTREME.tobytes() and source.endswith("a.npy")
    assert isinstance(vectors.base, np.memmap) or isinstance(vectors, np.memmap)


@pytest.mark.parametrize("vectors", [np.zeros(3), np.float32([[1, np.nan]]), np.array([[object()]])])
def test_npy_that_is_no_table(vectors, tmp_path):
    np.save(tmp_path / "a.npy", vectors, allow_pickle=True)
    with pytest.raises(ValueError, match="a.npy"):
        read_table(tmp_path / "a.npy")


@pytest.mark.parametrize("between", [b"", b"\n"])
def test_word2vec_binary_by_hand(between, tmp_path):
    rows = [("a", 1.0, 2.0), ("ä", -3.0, 0.5)]
    body = b"".join(word.encode() + b" " + struct.pack("<2f", *x) + between for word, *x in rows)
    path = tmp_path / "w.bin"
    path.write_bytes(b"2 2\n" + body)
    words, vectors, _ = read_table(path)
    assert words == ["a", "ä"]
    np.testing.assert_array_equal(vectors, [[1, 2], [-3, 0.5]])
    for end in range(len(path.read_bytes()) - len(between)):
        (tmp_path / "cut.bin").write_bytes(path.read_bytes()[:end])
        with pytest.raises(ValueError, match=r"cut\.bin"):
            read_table(tmp_path / "cut.bin")


@pytest.mark.parametrize(
    "head", [b"", b"2\n", b"x y\n", b"-1 2\n", b"1 0\n", b"99999999999999 300\n", b"1 1\nab"]
)
def test_word2vec_binary_with_a_wrong_header(head, tmp_path):
    (tmp_path / "w.bin").write_bytes(head + b" " * 8)
    with pytest.raises(ValueError, match=r"w\.bin"):
        read_table(tmp_path / "w.bin")


def test_word2vec_binary_with_more_than_its_header_says(tmp_path):
    (tmp_path / "w.bin").write_bytes(b"1 1\na " + struct.pack("<f", 1) + b"\nb " + struct.pack("<f", 2))
    with pytest.raises(ValueError, match="more than the 1 rows"):
        read_table(tmp_path / "w.bin")


TABLE = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
MODEL = {
    "encoder.word_embeddings.weight": TABLE,
    "encoder.position_embeddings.weight": TABLE[:2],
    "encoder.layer.weight": TABLE[:3],
    "encoder.bias": TABLE[0],
    "embeddings.step": np.zeros((2, 2), np.int64),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_the_embedding_of_a_checkpoint(dtype, tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({k: a if a.dtype == np.int64 else a.astype(dtype) for k, a in MODEL.items()}, path)
    words, vectors, source = read_table(path)
    assert words is None and source == f"{path}: encoder.word_embeddings.weight"
    assert vectors.dtype == (np.float64 if dtype is np.float64 else np.float32)
    np.testing.assert_array_equal(vectors, TABLE.astype(dtype))
    np.testing.assert_array_equal(
        read_table(path, tensor="encoder.layer.weight").vectors, TABLE[:3].astype(dtype)
    )


def test_bfloat16(tmp_path):
    halves = to_bfloat16(TABLE)
    header = b'{"embed":{"dtype":"BF16","shape":[5,3],"data_offsets":[0,30]}}'
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + halves.tobytes())
    np.testing.assert_array_equal(read_table(path).vectors, DenseTable(halves).reconstruct())


def test_a_checkpoint_with_no_or_several_embeddings(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"a.embed": TABLE, "b.embed": TABLE}, path)
    with pytest.raises(ValueError, match=r"several tensors.*a\.embed \(5, 3\), b\.embed"):
        read_table(path)
    save_file({"a": TABLE, "bias": TABLE[0]}, path)
    with pytest.raises(ValueError, match=r"no tensor.*a \(5, 3\)"):
        read_table(path)
    with pytest.raises(ValueError, match="no table 'bias'; it has a"):
        read_table(path, tensor="bias")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged"):
        read_table(path)


def test_a_compressed_table_is_read_as_what_it_stands_for(tmp_path):
    table = product()
    table.save(tmp_path / "t.safetensors")
    words, vectors, _ = read_table(tmp_path / "t.safetensors")
    assert words == table.words
    np.testing.assert_array_equal(vectors, table.reconstruct())


def test_what_it_takes(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / "none.txt")
    (tmp_path / "a.txt").write_text("a 1\n")
    with pytest.raises(ValueError, match="no .safetensors"):
        read_table(tmp_path / "a.txt", tensor="x")
    with pytest.raises(ValueError, match=r"\.txt, \.vec, \.bin"):
        write_table(tmp_path / "a.csv", ["a"], TABLE[:1])
    with pytest.raises(ValueError, match="no words"):
        write_table(tmp_path / "b.txt", None, TABLE)
    with pytest.raises(ValueError, match="1 words for 5 rows"):
        write_table(tmp_path / "b.txt", ["a"], TABLE)
    with pytest.raises(ValueError, match="range of float32"), np.errstate(over="ignore"):
        write_table(tmp_path / "b.bin", ["a"], np.float64([[1e300]]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt"]


def test_words_a_line(tmp_path):
    (tmp_path / "w").write_bytes(b"a\r\nb c\n\nd")
    assert read_words(tmp_path / "w") == ["a", "b c", "", "d"]
    with gzip.open(tmp_path / "w.gz", "wb") as file:
        file.write("ä\n".encode())
    assert read_words(tmp_path / "w.gz") == ["ä"]


def product(n=40):
    rng = np.random.default_rng(1)
    values = rng.standard_normal((3, 4, 2)).astype(np.float32)
    table = ProductTable.from_codes(rng.integers(0, 4, (n, 3)), values)
    table.words = [f"word {i}" for i in range(n - 3)] + ["", "ä\n", "word 0"]
    return table


def test_words_of_a_compressed_table(tmp_path):
    table = product()
    table.save(tmp_path / "t.safetensors")
    read = load(tmp_path / "t.safetensors")
    assert read.words == table.words and read.bits() == table.bits()
    assert read.id_of("word 0") == 0  # the first of two
    np.testing.assert_array_equal(read["ä\n"], table.lookup(38))
    assert "" in read and "Word 0" not in read
    with pytest.raises(KeyError, match="no word 'x'"):
        read["x"]
    with pytest.raises(ValueError, match="39 words for 40 rows"):
        read.words = read.words[:-1]
    read.words = None
    with pytest.raises(ValueError, match="no words"):
        "a" in read  # noqa: B015


def test_a_byte_of_the_words_altered(tmp_path):
    path = tmp_path / "t.safetensors"
    product().save(path)
    whole = path.read_bytes()
    place = whole.index(b"word 7")
    path.write_bytes(whole[:place] + b"W" + whole[place + 1 :])
    with pytest.raises(ValueError, match="checksum"):
        load(path)


def test_most_similar_against_all_cosines():
    table = product()
    rows = table.reconstruct().astype(np.float64)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = unit @ unit[5]
    cosines[5] = -2
    order = np.argsort(-cosines, kind="stable")[:7]
    found = table.most_similar("word 5", 7)
    np.testing.assert_allclose([c for _, c in found], cosines[order], rtol=1e-5)
    table.words = None
    of_vector = table.most_similar(3 * rows[5], 8)
    assert 5 in [i for i, c in of_vector if c > 1 - 1e-6]
    with pytest.raises(ValueError, match="shape"):
        table.most_similar(np.zeros(4))
    with pytest.raises(ValueError, match="n=0"):
        table.most_similar(rows[0], 0)


def test_most_similar_to_and_among_zeros():
    table = DenseTable(np.float32([[0, 0], [1, 1], [-1, -1]]))
    assert table.most_similar([0.0, 0.0], 5) == [(0, 0.0), (1, 0.0), (2, 0.0)]
    assert [i for i, _ in table.most_similar([2.0, 2.0])] == [1, 0, 2]
