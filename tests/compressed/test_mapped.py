"""A mapped table: memory grows with what is looked up, whatever the size of the file; damage is refused."""

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from dpq_ref import ProductTable, load
from dpq_ref.compressed import BlockTable, DenseTable, FactoredTable, ScalarTable, SparseTable, base, files
from dpq_ref.compressed.files import StoredArray
from dpq_ref.compressed.hamming import hamming_similarity

LINUX = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
GROUPS = 250
READ = """
import sys
import numpy as np
import dpq_ref

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssFile")))

small = dpq_ref.load(sys.argv[1])  # so that all that is imported and compiled is there
small.lookup([0, 1])
before = resident()
table = dpq_ref.load(sys.argv[2])
loaded = resident()
ids = np.random.default_rng(0).integers(0, table.vocab_size, 100)
rows = table.lookup(ids)
print(table.vocab_size, loaded - before, resident() - loaded, rows.any())
"""


def stretched(path, small, n):
    """The file of a small table as one of n rows, all others of codes 0: a hole, which takes no disk."""
    table, size = load(small), n * GROUPS
    zeros = np.full(-(-size // 8192), crc32(bytes(8192)), np.uint32)
    zeros[-1] = crc32(bytes(size % 8192 or 8192))
    sums = np.concatenate([zeros, files.checksums({"values": table.values})])
    config = table.config() | {"vocab_size": n}
    arrays = {"codes": np.broadcast_to(np.uint8(0), (size,)), "values": table.values}
    head = {"format": 2, "kind": "product", "crc32": base._header_sum("product", config, arrays, sums)}
    first = table.values.nbytes + sums.nbytes
    header = {
        "__metadata__": {"dpq_ref": json.dumps(head | config)},
        "values": {"dtype": "F32", "shape": table.values.shape, "data_offsets": [0, table.values.nbytes]},
        "checksums": {"dtype": "U32", "shape": sums.shape, "data_offsets": [table.values.nbytes, first]},
        "codes": {"dtype": "U8", "shape": [size], "data_offsets": [first, first + size]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + table.values.tobytes() + sums.tobytes())
        file.truncate(8 + len(text) + first + size)


@LINUX
def test_memory_grows_with_what_is_looked_up(tmp_path):
    """A gigabyte of codes, of which loading reads none, and a hundred rows a few pages each."""
    n, small, large = 4_000_000, tmp_path / "small", tmp_path / "large"
    values = np.ones((GROUPS, 256, 1), np.float32)
    ProductTable.from_codes(np.zeros((8, GROUPS), int), values).save(small)
    stretched(large, small, n)
    assert large.stat().st_size > 1e9
    command = [sys.executable, "-c", READ, str(small), str(large)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert said[0] == str(n) and said[3] == "True"
    assert int(said[1]) < 4e6 and int(said[2]) < 20e6


# --- Which bytes are checked ------------------------------------------------------------------------------


@pytest.fixture
def lazy(monkeypatch):
    """Nothing checked before it is looked up, in blocks of 16 bytes."""
    monkeypatch.setattr(base, "AT_ONCE", 0)
    monkeypatch.setattr(files, "BLOCK", 16)


def refused(call):
    try:
        call()
    except ValueError as error:
        assert "is damaged: " in str(error)
        return True
    return False


@pytest.mark.parametrize("size", [1, 15, 16, 17, 50])
def test_a_span_is_refused_where_a_block_of_it_has_changed(lazy, size):
    whole = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    sums = files.checksums({"x": whole})
    for at in range(0, size, 7):
        damaged = whole.copy()
        damaged[at] ^= 4
        for start in range(size):
            for stop in range(start + 1, size + 1):
                hit = start // 16 <= at // 16 <= (stop - 1) // 16
                one, many = (StoredArray("f", "x", damaged, sums) for _ in range(2))
                assert refused(lambda: one.check(start, stop)) == hit  # noqa: B023
                spans = np.array([start, 0]), np.array([stop, 1])
                assert refused(lambda: many.check_spans(*spans)) == (hit or at < 16)  # noqa: B023
        part = StoredArray("f", "x", damaged, sums)
        assert refused(part.check) and refused(part.check) and not part.done
    part = StoredArray("f", "x", whole, sums)
    part.check()
    assert part.done


def test_rows_of_any_number_of_bits(lazy):
    whole = np.random.default_rng(0).integers(0, 256, 120, np.uint8)
    sums = files.checksums({"x": whole})
    for bits in (1, 3, 8, 24, 130, 300):
        for row in range(960 // bits):
            damaged = whole.copy()
            damaged[row * bits // 8] ^= 1
            for dtype in (np.uint8, np.int32):  # the first is too small for the places of its rows
                ids = np.array([row]).astype(np.int32 if row > 255 else dtype)
                assert refused(lambda: StoredArray("f", "x", damaged, sums).check_rows(ids, bits))  # noqa: B023
    nothing = StoredArray("f", "x", damaged, sums)
    nothing.check_rows(np.empty(0, int), 8)
    assert not nothing.done and StoredArray("f", "x", np.empty(0), sums[:0]).done


# --- No table gives away what has changed -----------------------------------------------------------------

N = 60


def tables():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    codes, kept = rng.integers(0, 5, (N, 3)), rng.random((N, 9)) < 0.3
    product, bits = ProductTable.from_codes(codes, draw(3, 5, 4)), ScalarTable.from_codes(codes % 2, 1)
    numbers = rng.integers(0, 6, kept.sum())
    factors = [draw(N // 2, 2), draw(N // 2, 5)], [draw(2, 5), None]
    coded = [rng.integers(0, 8, part.shape) for part in factors[0]], [rng.integers(0, 8, (2, 5)), None]
    return {
        "product": product,
        "ragged": ProductTable.from_codes(codes, draw(5, 11)),
        "additive": ProductTable.from_codes(codes, draw(3, 5, 4), additive=True),
        "dense": DenseTable(draw(N, 7)),
        "half": DenseTable(draw(N, 3).astype(np.float16)),
        "scalar": ScalarTable.from_codes(codes, 3, draw(N, 1), draw(8)),
        "signs": FactoredTable(bits, draw(3, 7), draw(7), draw(1) ** 2),
        "rotated": FactoredTable(product, draw(12, 12)),
        "low rank": FactoredTable(draw(N, 2), draw(2, 5)),
        "one block": BlockTable.from_factors(np.zeros(N, int), [draw(N, 2)], [draw(2, 5)]),
        "blocks": BlockTable.from_factors(np.arange(N) % 2, *factors),
        "coded blocks": BlockTable.from_factors(np.arange(N) % 2, *coded, draw(2, 2), n_bits=3),
        "columns": SparseTable.from_entries(kept, draw(kept.sum())),
        "huffman": SparseTable.from_entries(kept, numbers, np.arange(6, dtype=np.float32), huffman=True),
    }


TABLES = tables()
BY_ROW = TABLES.keys() - {"columns", "huffman"}


def flips(path, table, step):
    """Contents of the file with a bit flipped, in one of so many bytes of what is not its header."""
    table.words = [f"w{i % 50}" for i in range(N)]
    table.save(path)
    content = path.read_bytes()
    for i in range(8 + int.from_bytes(content[:8], "little"), len(content), step):
        yield content[:i] + bytes([content[i] ^ 1 << i % 8]) + content[i + 1 :]


@pytest.mark.parametrize("name", TABLES)
def test_a_row_is_refused_or_what_it_was(lazy, tmp_path, name):
    table, path, found = TABLES[name], tmp_path / "table", set()
    whole = table.reconstruct()
    for content in flips(path, table, 11):
        path.write_bytes(content)
        try:
            again = load(path)
        except ValueError as error:
            assert "its header does not match" in str(error)  # a checksum, of which the header has one
            continue
        rows = 0
        for i in range(0, N, 7):
            try:
                np.testing.assert_array_equal(again.lookup(i), whole[i])
                rows += 1
            except ValueError as error:
                assert f"{path} is damaged: " in str(error)
        found.add(rows)
        assert refused(again.check) and refused(lambda: again.save(tmp_path / "copy"))  # noqa: B023
        for call in (again.reconstruct, lambda: again.search(np.ones((1, again.dim)))):  # noqa: B023
            if not refused(call):
                np.testing.assert_array_equal(again.reconstruct(), whole)  # it is the words
    rows = len(range(0, N, 7))
    assert rows in found and bool(found - {0, rows}) == (name in BY_ROW)  # others are served


def test_words_are_refused_or_what_they_were(lazy, tmp_path):
    table, path, served = TABLES["half"], tmp_path / "table", 0
    for content in flips(path, table, 3):
        path.write_bytes(content)
        try:
            again = load(path)
        except ValueError:
            continue
        for word, row in (("w0", 0), ("w7", 7), ("w49", 49), ("w", None), ("x", None), ("", None)):
            try:
                assert word not in again if row is None else again.id_of(word) == row
                assert row is None or again.word_of(row) == word
                served += 1
            except ValueError as error:
                assert f"{path} is damaged: 'words." in str(error)
        if not refused(lambda: again.words):  # noqa: B023
            assert again.words == table.words
    assert served


def test_whatever_reads_codes_past_look_ups_checks_them(lazy, tmp_path):
    for name, calls in {
        "product": [lambda t: t.codes, pickle.dumps, copy.copy, lambda t: t.on("numpy")],
        "signs": [
            lambda t: hamming_similarity(t, [0]),
            lambda t: t.left.codes,
            lambda t: t.left.nearest([0], 2),
            lambda t: t.left.lookup([N - 1]),
            lambda t: pickle.dumps(t.left),
        ],
        "one block": [lambda t: t.block(0), lambda t: t.scores(np.ones((1, 5)))],
        "huffman": [lambda t: t.bytes_per_lookup()],
    }.items():
        table, path = TABLES[name], tmp_path / name
        table.save(path)
        content, last = path.read_bytes(), [*table.arrays().values()][0].tobytes()[-20:]
        path.write_bytes(content.replace(last, last[:-1] + bytes([last[-1] ^ 128])))
        for call in calls:
            again = load(path)
            again._mapped = None  # otherwise it is pickled as its path
            assert refused(lambda: call(again)), (name, call)  # noqa: B023
            assert not refused(lambda: call(TABLES[name]))  # noqa: B023


def test_parts_of_a_mapped_table_are_pickled_without_the_file(lazy, tmp_path):
    table = TABLES["rotated"]
    table.save(tmp_path / "t")
    left = load(tmp_path / "t").left
    assert left._stored and left._mapped is None
    again = pickle.loads(pickle.dumps(left))
    assert not again._stored
    np.testing.assert_array_equal(again.reconstruct(), table.left.reconstruct())


# --- Words ------------------------------------------------------------------------------------------------


def test_words_are_not_read_before_they_are_asked_for(lazy, tmp_path):
    n = 3000
    words = [f"{i * 7919 % n:04}" for i in range(n)]
    table = DenseTable(np.arange(n, dtype=np.float32)[:, None])
    table.words = words
    table.save(tmp_path / "t")
    mapped = load(tmp_path / "t")
    assert mapped.has_words and not mapped.__dict__.keys() & {"_vocabulary", "_ids"}
    assert mapped["0007"] == words.index("0007") and "3000" not in mapped and 7 not in mapped
    read = [1 - sum(part._left) / len(part._left) for part in mapped._stored_words.parts]
    assert max(read) < 0.1
    assert mapped.most_similar(np.float32([1]), 2) == [(words[1], 1.0), (words[2], 1.0)]
    assert "_vocabulary" not in mapped.__dict__
    assert mapped.words == words == list(mapped) and len(mapped) == n


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["a"],
        [""],
        ["b", "a", "b", "a"],
        ["\ud7ff", "\ue000", "\U0001f600", "z", "é", "e\u0301"],
        ["", ""],
    ],
    ids=str,
)
def test_words_by_bisection_are_those_of_a_list(tmp_path, words):
    table = DenseTable(np.zeros((len(words), 1), np.float32))
    table.words = words
    table.save(tmp_path / "t")
    again = load(tmp_path / "t")
    for word in [*words, "a", "c", "", "\ud800", "\U0010ffff", "\0"]:
        assert (word in again) == (word in words)
        if word in words:
            assert again.id_of(word) == words.index(word)
        else:
            with pytest.raises(KeyError):
                again[word]
    assert [again.word_of(i) for i in range(len(words))] == words == again.words


def test_words_that_are_none(tmp_path):
    table = DenseTable(np.zeros((2, 1), np.float32))
    for call in (lambda: "a" in table, lambda: table["a"], lambda: list(table), lambda: table.word_of(0)):
        with pytest.raises(ValueError, match="no words"):
            call()
    arrays = {
        "words.text": np.zeros(1, np.uint8),
        "words.ends": np.uint32([1]),
        "words.order": np.uint32([0]),
    }
    wrong = {
        "words.text": np.zeros(1, np.int8),
        "words.ends": np.uint64([1]),
        "words.order": np.uint32([0, 1]),
    }
    for name in [None, *arrays]:
        own = arrays | ({name: wrong[name]} if name else {})
        everything = table.arrays() | own
        sums = files.checksums(everything)
        head = {"format": 2, "kind": "dense", "crc32": base._header_sum("dense", {}, everything, sums)}
        with (tmp_path / "t").open("wb") as file:
            files.write_tensors(file, everything | {"checksums": sums}, {"dpq_ref": json.dumps(head)})
        with pytest.raises(ValueError, match="1 words" if name is None else "do not make words"):
            load(tmp_path / "t")
