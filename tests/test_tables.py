"""Embedding tables in files: what is written is read again bit by bit, what is damaged is refused."""

import gzip
import struct

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save_file

from dpq_ref.compressed import DenseTable, ProductTable, load, to_bfloat16
from dpq_ref.tables import read_table, read_words, write_table

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0"), min_size=1)
ENDINGS = [".txt", ".vec", ".bin", ".npz"]
EXTREME = np.float32([[-0.0, 1e-45], [np.finfo(np.float32).max, np.finfo(np.float32).tiny]])


@st.composite
def tables(draw):
    vectors = draw(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2), elements=FLOATS))
    return draw(st.lists(WORDS, min_size=len(vectors), max_size=len(vectors))), vectors


@pytest.mark.parametrize("ending", ENDINGS)
@given(table=tables())
@example(table=(["5", "3"], np.float32([[1], [2]])))  # no header, though it looks like one
@example(table=(["a", "a"], EXTREME))
@example(table=(["new york", "\u00a0"], EXTREME))
@example(table=(['"', "\ufeff"], EXTREME.T))
@settings(max_examples=60, deadline=None)
def test_round_trip(ending, table, tmp_path_factory):
    words, vectors = table
    path = tmp_path_factory.mktemp("table") / f"table{ending}"
    try:
        write_table(path, words, vectors)
    except ValueError as error:
        assert "does not go into this format" in str(error)
        assert ending != ".npz" and any(c in " \t\v\f" for word in words for c in word)
        assert not path.exists()
        return
    read = read_table(path)
    assert read.words == words
    assert read.vectors.tobytes() == vectors.tobytes()


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
