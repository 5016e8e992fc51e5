"""Damaged files: a reader refuses them with a ValueError, or reads exactly what is there, never at length.

Files are damaged as they are stored, and inside of their packing with all lengths and checksums made right.
"""

import gzip
import io
import lzma
import re
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from dpq_ref.cli import main
from dpq_ref.compressed import (
    BlockTable,
    DenseTable,
    FactoredTable,
    ProductTable,
    ScalarTable,
    SparseTable,
    base,
    load,
)
from dpq_ref.datasets import files
from dpq_ref.datasets import words as wordfiles
from dpq_ref.datasets.files import read_text
from dpq_ref.tables import read_table, read_words

zstd = files._zstd()
PEAK = 100 << 20  # bytes; a packed file may always hold 16 MiB
WORDS = ["the", "new york", "ä", "5"]
X = np.float32([[0.5, -1, 3], [1e-20, 2, 0.1], [7, 8, 9], [-0.0, 1e10, 42]])


# --- Valid files, and what is in them ---------------------------------------------------------------------


def text(header):
    lines = [f"{w} {' '.join(map(str, row))}\n" for w, row in zip(WORDS, X, strict=True)]
    return "".join([header, *lines]).encode()


def binary():
    rows = [w.replace(" ", "_").encode() + b" " + x.tobytes() + b"\n" for w, x in zip(WORDS, X, strict=True)]
    return b"4 3\n" + b"".join(rows)


def npy(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def npz(words, vectors):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("words.npy", words)
        archive.writestr("vectors.npy", vectors)
    return content.getvalue()


CHECKPOINT = save_safetensors({"word_embeddings.weight": X, "bias": X[0]}, {"format": "pt"})


def text_by_hand(content):
    """Words and vectors, by Python's own means; ValueError where there are none."""
    content = content.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
    lines = content.removesuffix(b"\n").split(b"\n") if content else []
    stated, head = None, lines[0].split()
    if len(head) == 2 and head[0].isdigit() and head[1].isdigit():
        stated, d, lines = int(head[0]), int(head[1]), lines[1:]
    else:
        d = len(head) - 1
    words, rows = [], []
    for line in lines:
        word, *numbers = line.rstrip().rsplit(b" ", d)
        words.append(word.decode())
        rows.append([float(number) for number in numbers])
    if d < 1 or not words or {len(row) for row in rows} != {d} or stated not in (None, len(words)):
        raise ValueError
    with np.errstate(over="ignore"):
        return words, np.array(rows).astype(np.float32)


def binary_by_hand(content):
    file = io.BytesIO(content)
    n, d = map(int, file.readline().split())
    words, rows = [], []
    for _ in range(n):
        word = b""
        while (byte := file.read(1)) != b" ":
            word += byte
        words.append(word.lstrip(b"\n").decode())
        rows.append(struct.unpack(f"<{d}f", file.read(4 * d)))
    return words, np.float32(rows).reshape(n, d)


def npy_by_hand(content):
    return None, np.load(io.BytesIO(content))


def npz_by_hand(content):
    with np.lib.npyio.NpzFile(io.BytesIO(content), allow_pickle=False) as arrays:
        return arrays["words"].tolist(), arrays["vectors"]


def checkpoint_by_hand(content):
    tables = {name: a for name, a in load_safetensors(content).items() if a.ndim == 2 and a.dtype.kind == "f"}
    return None, next(a for name, a in tables.items() if re.search("embed|lookup", name, re.IGNORECASE))


def repack_npz(damage):
    members = [npy(np.array(WORDS)), npy(X)]
    which = damage.integer(1)
    members[which] = damage(members[which])
    return npz(*members)


def repack_safetensors(damage, content):
    """Its header damaged, and the length of the header right."""
    size = int.from_bytes(content[:8], "little")
    header = damage(content[8 : 8 + size])
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


# Ending, how a file is damaged, what it then says.
FILES = {
    "txt": (".txt", lambda damage: damage(text("")), text_by_hand),
    "vec": (".vec", lambda damage: damage(text("4 3\n")), text_by_hand),
    "gz": (
        ".gz",
        lambda damage: damage(gzip.compress(text(""), mtime=0)),
        lambda c: text_by_hand(gzip.decompress(c)),
    ),
    "xz": (".xz", lambda damage: damage(lzma.compress(text(""))), lambda c: text_by_hand(lzma.decompress(c))),
    "zst": (
        ".zst",
        lambda damage: damage(zstd.compress(text(""), options={zstd.CompressionParameter.checksum_flag: 1})),
        lambda c: text_by_hand(zstd.decompress(c)),
    ),
    "bin": (".bin", lambda damage: damage(binary()), binary_by_hand),
    "bin.gz": (
        ".bin.gz",
        lambda damage: damage(gzip.compress(binary(), mtime=0)),
        lambda c: binary_by_hand(gzip.decompress(c)),
    ),
    "bin inside gz": (
        ".bin.gz",
        lambda damage: gzip.compress(damage(binary()), mtime=0),
        lambda c: binary_by_hand(gzip.decompress(c)),
    ),
    "npy": (".npy", lambda damage: damage(npy(X)), npy_by_hand),
    "npz": (".npz", lambda damage: damage(npz(npy(np.array(WORDS)), npy(X))), npz_by_hand),
    "npz inside": (".npz", repack_npz, npz_by_hand),
    "checkpoint": (".safetensors", lambda damage: damage(CHECKPOINT), checkpoint_by_hand),
    "checkpoint header": (
        ".safetensors",
        lambda damage: repack_safetensors(damage, CHECKPOINT),
        checkpoint_by_hand,
    ),
}


# --- Damage -----------------------------------------------------------------------------------------------

NASTY = [
    b"-1",
    b"0",
    b"1",
    b"2",
    b"4300",
    b"65536",
    b"99999999",
    b"4294967297",
    b"9223372036854775808",
    b"9" * 30,
]
NASTY += [
    b"1e999",
    b"nan",
    b"-",
    b"_",
    b"3.5",
    b"true",
    b"null",
    b'""',
    b"[]",
    b"{}",
    b"[" * 2000,
    b'"F64"',
    b'"O"',
]
NASTY += [b"", b" ", b"\n", b"\r\n", b"\0", b"\xff" * 8, b"PK\x03\x04", b"\x93NUMPY\x03\x00"]


class Damage:
    """A few places of a file replaced by something else; numbers are hit more often than by chance."""

    def __init__(self, draw):
        self.draw = draw

    def integer(self, most):
        return self.draw(st.integers(0, most))

    def __call__(self, content):
        for _ in range(1 + self.integer(2)):
            numbers = [match.span() for match in re.finditer(rb"[0-9]+", content)]
            start = self.integer(len(content))
            stop = min(len(content), start + self.draw(st.sampled_from([0, 1, 2, 8, 10**6])))
            if numbers and self.integer(1):
                start, stop = self.draw(st.sampled_from(numbers))
            new = self.draw(st.sampled_from(NASTY) | st.binary(max_size=4))
            content = content[:start] + new + content[stop:]
        return content


def run(check, name, damage, folder, examples, seed=0):
    """Run a check on so many damaged files."""

    @settings(max_examples=examples, deadline=None, database=None)
    @given(data=st.data())
    def each(data):
        check(name, damage(Damage(data.draw)), folder)

    hypothesis_seed(seed)(each)()


@contextmanager
def little_memory():
    tracemalloc.start()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < PEAK


def check_table(name, content, folder):
    """Read a table with little memory: either refused, or what is there. Whether it was read."""
    ending, _, by_hand = FILES[name]
    path = folder / f"table{ending}"
    path.write_bytes(content)
    try:
        with little_memory():
            words, vectors, _ = read_table(path)
    except ValueError as error:
        assert str(path) in str(error)
        return False
    expected_words, expected = by_hand(content)
    assert words == expected_words
    dtype = np.float64 if expected.dtype == np.float64 else np.float32
    assert vectors.dtype == dtype and vectors.shape == expected.shape
    assert vectors.tobytes() == expected.astype(dtype).tobytes()
    return True


@pytest.mark.parametrize("name", FILES)
def test_damaged_tables(name, tmp_path):
    run(check_table, name, FILES[name][1], tmp_path, 60)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_many_damaged_tables(name, tmp_path):
    run(check_table, name, FILES[name][1], tmp_path, 5000)


@pytest.mark.parametrize("name", FILES)
def test_the_files_are_valid_before(name, tmp_path):
    ending, damage, by_hand = FILES[name]

    class NoDamage(Damage):
        def __init__(self):
            pass

        def integer(self, most):
            return most

        def __call__(self, content):
            return content

    (tmp_path / f"table{ending}").write_bytes(damage(NoDamage()))
    words, vectors, _ = read_table(tmp_path / f"table{ending}")
    np.testing.assert_array_equal(vectors, X)
    assert words in (None, WORDS, [word.replace(" ", "_") for word in WORDS])


# --- Compressed tables ------------------------------------------------------------------------------------


def compressed():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    codes, kept = rng.integers(0, 5, (20, 3)), rng.random((20, 9)) < 0.3
    wide = rng.random((20, 100)) < 0.02
    numbers, levels = rng.integers(0, 6, kept.sum()), np.arange(6, dtype=np.float32)
    product, scalar = ProductTable.from_codes(codes, draw(3, 5, 4)), ScalarTable.from_codes(codes, 3)
    return {
        "product": product,
        "shared": ProductTable.from_codes(codes, draw(1, 5, 4)),
        "additive": ProductTable.from_codes(codes, draw(3, 5, 4), additive=True),
        "ragged": ProductTable.from_codes(codes, draw(5, 11)),
        "dense": DenseTable(draw(20, 4)),
        "half": DenseTable(draw(20, 4).astype(np.float16)),
        "scalar": scalar,
        "scaled": ScalarTable.from_codes(codes, 3, draw(20, 1), draw(8)),
        "rotated": FactoredTable(product, draw(12, 12)),
        "signs": FactoredTable(ScalarTable.from_codes(codes % 2, 1), draw(3, 7), draw(7), draw(1) ** 2),
        "one block": BlockTable.from_factors(np.zeros(20, int), [draw(20, 2)], [draw(2, 5)]),
        "blocks": BlockTable.from_factors(np.arange(20) % 2, [draw(10, 2), draw(10, 5)], [draw(2, 5), None]),
        "coded blocks": BlockTable.from_factors(
            np.arange(20) % 2,
            [rng.integers(0, 8, (10, 2)), rng.integers(0, 8, (10, 5))],
            [rng.integers(0, 8, (2, 5)), None],
            draw(2, 2),
            n_bits=3,
        ),
        "bitmap": SparseTable.from_entries(kept, draw(kept.sum())),
        "columns": SparseTable.from_entries(wide, draw(wide.sum())),
        "huffman": SparseTable.from_entries(kept, numbers, levels, huffman=True),
    }


TABLES = compressed()


def artefact(name, folder):
    table = TABLES[name]
    table.words = [f"w{i}" for i in range(20)]
    table.save(folder / "whole")
    return (folder / "whole").read_bytes()


def check_artefact(name, content, folder):
    """Refused, or all as it was, also where nothing is checked before it is looked up."""
    table, path = TABLES[name], folder / "table"
    path.write_bytes(content)
    return {load_and_compare(path, table, at_once) for at_once in (0, base.AT_ONCE)} == {True}


def load_and_compare(path, table, at_once=base.AT_ONCE):
    """Whether a file is read; then it must be the table."""
    try:
        with little_memory(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(base, "AT_ONCE", at_once)
            same(load(path), table)
    except ValueError as error:
        assert str(path) in str(error)
        return False
    return True


def same(again, table):
    assert type(again) is type(table) and again.words == table.words
    assert [again.id_of(word) for word in table.words] == [*range(20)]
    np.testing.assert_array_equal(again.reconstruct(), table.reconstruct(), strict=True)


WAYS = {"anywhere": lambda damage, content: damage(content), "header": repack_safetensors}


def damage_artefact(name, way, folder, examples):
    content = artefact(name, folder)
    run(check_artefact, name, lambda damage: WAYS[way](damage, content), folder, examples)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", TABLES)
def test_damaged_artefacts(name, way, tmp_path):
    damage_artefact(name, way, tmp_path, 25)


def test_the_program_that_goes_on_for_minutes():
    command = [sys.executable, "-m", "tests.fuzz", "--minutes", "0.001", "--seed", "0"]
    ended = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0 and "nothing found" in ended.stdout, ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", TABLES)
def test_many_damaged_artefacts(name, way, tmp_path):
    damage_artefact(name, way, tmp_path, 1000)


# --- Every bit --------------------------------------------------------------------------------------------


def flipped(content, bits):
    """Copies of a file with one bit of a byte flipped, each bit or another one from byte to byte."""
    for i in range(len(content)):
        for bit in bits or [i % 8]:
            yield i, content[:i] + bytes([content[i] ^ 1 << bit]) + content[i + 1 :]


def check_bits(name, folder, bits, verified_from=0):
    content, path = artefact(name, folder), folder / "table"
    for i, altered in flipped(content, bits):
        path.write_bytes(altered)
        refused = {not load_and_compare(path, TABLES[name], at_once) for at_once in (0, base.AT_ONCE)}
        assert len(refused) == 1
        if i >= verified_from:
            result = CliRunner().invoke(main, ["verify", str(path)])
            assert {result.exit_code} == refused, result.output
            assert result.exit_code == 0 or re.fullmatch("Error: .+\n", result.stderr)


@pytest.mark.parametrize(
    "name", ["ragged", "half", "scaled", "signs", "coded blocks", "huffman"]
)  # one of a kind
def test_a_bit_of_any_byte_flipped(name, tmp_path):
    size = len(artefact(name, tmp_path))
    check_bits(name, tmp_path, None, 0 if name == "half" else size - 20)


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_any_bit_of_any_byte_flipped(name, tmp_path):
    check_bits(name, tmp_path, range(8))


# --- Lists of words ---------------------------------------------------------------------------------------

LISTS = {
    "frequencies": (wordfiles.read_frequencies, "the 12\nnew york 3\nä 0\n"),
    "similarity": (wordfiles.read_similarity, "a\tb\t1.5\nc\td\t-2\n"),
    "analogies": (wordfiles.read_analogies, ": section\na b c d\n"),
    "relations": (wordfiles.read_relations, "a-n\tb\thyper\tc-v\n"),
    "words": (read_words, "a\nä b\n\nc\n"),
}


def damage_list(name, damage):
    """A list in each packing, damaged before or after it is packed."""
    ending, pack = damage.draw(st.sampled_from(list(PACKS.items())))
    content = LISTS[name][1].encode()
    return ending, pack(damage(content)) if damage.integer(1) else damage(pack(content))


def plain_zst(content):
    return zstd.compress(content)


PACKS = {".txt": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": plain_zst}


def check_list(name, damaged, folder):
    ending, content = damaged
    path = folder / f"list{ending}"
    path.write_bytes(content)
    try:
        with little_memory():
            LISTS[name][0](path)
    except ValueError as error:
        assert str(path) in str(error)
        return False
    return True


@pytest.mark.parametrize("name", LISTS)
def test_damaged_lists(name, tmp_path):
    run(check_list, name, lambda damage: damage_list(name, damage), tmp_path, 40)


# --- Files that ask for more than there is ----------------------------------------------------------------


def huge_npy(shape, rest=b""):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (-(10 + len(header) + 1) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + rest


def deflated(**members):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, member in members.items():
            archive.writestr(f"{name}.npy", member)
    return content.getvalue()


MANY = 40 << 20  # bytes that a small file unpacks to
ZEROS = bytes(MANY)
LINE = b"a" + b" 0" * 500 + b"\n"
ASKS = {
    "npy header of 10 GB": (".npy", lambda: huge_npy((10**7, 250)), "npy"),
    "npy header that is long": (".npy", lambda: b"\x93NUMPY\x02\x00" + b"\xff" * 4 + b" " * 20_000, "npy"),
    "npz header of 10 GB": (
        ".npz",
        lambda: npz(npy(np.array(WORDS)), huge_npy((10**7, 250))),
        "its header takes",
    ),
    "npz of zeros": (
        ".npz",
        lambda: deflated(words=npy(np.array(WORDS)), vectors=huge_npy((4, MANY // 16), ZEROS)),
        "more than 100 times its size",
    ),
    "bin header of 10 GB": (".bin", lambda: b"10000000 250\n" + binary()[4:], "too small"),
    "bin.gz header of 10 GB": (
        ".bin.gz",
        lambda: gzip.compress(b"10000000 250\n" + binary()[4:]),
        "too small",
    ),
    "bin.gz of zeros": (".bin.gz", lambda: gzip.compress(b"1 1\n" + ZEROS), "no word|more than"),
    "text header of 10 GB": (".vec", lambda: b"10000000 250\n" + text("")[4:], "numbers, takes 250"),
    "one line": (".gz", lambda: gzip.compress(b"a" + b" 0" * (MANY // 2)), "more than"),
    "lines": (".gz", lambda: gzip.compress(LINE * (MANY // len(LINE))), "more than 100 times its size"),
    "lines, xz": (
        ".xz",
        lambda: lzma.compress(LINE * (MANY // len(LINE)), preset=0),
        "more than 100 times its size",
    ),
    "lines, zst": (".zst", lambda: zstd.compress(LINE * (MANY // len(LINE))), "more than 100 times its size"),
    "safetensors header of 2**62 bytes": (
        ".safetensors",
        lambda: b"\0" * 7 + b"\x40" + b"{}" * 99,
        "damaged",
    ),
    "safetensors header of 90 MB": (".safetensors", lambda: struct.pack("<Q", 90 << 20) + b"{}", "damaged"),
    "tensor of 10 GB": (
        ".safetensors",
        lambda: repack_safetensors(lambda head: head.replace(b"[4,3]", b"[10000000,250]"), CHECKPOINT),
        "damaged",
    ),
}


@pytest.mark.parametrize("name", ASKS)
def test_what_asks_for_more_than_there_is(name, tmp_path):
    ending, make, message = ASKS[name]
    path = tmp_path / f"t{ending}"
    path.write_bytes(make())
    with pytest.raises(ValueError, match=message) as error, little_memory():
        read_table(path)
    assert str(path) in str(error.value)
    if name == "lines":
        for read in (read_words, wordfiles.read_frequencies, read_text):
            with pytest.raises(ValueError, match="more than 100 times its size"), little_memory():
                read(path)


def test_a_second_stream_that_is_damaged_is_no_end(tmp_path):
    for ending, pack in PACKS.items():
        parts = [pack(line) for line in (b"a 1\n", b"b 2\n")]
        path = tmp_path / f"t{ending}"
        path.write_bytes(b"".join(parts))
        assert read_table(path).words == ["a", "b"]
        if ending != ".txt":
            for rest in (parts[1][:-1], b"\xff" + parts[1][1:], b"junk"):
                path.write_bytes(parts[0] + rest)
                with pytest.raises(ValueError, match="damaged"):
                    read_table(path)
            path.write_bytes(b"")
            with pytest.raises(ValueError, match="empty"):
                read_table(path)


def test_a_shape_that_is_not_the_file_s(tmp_path):
    """One flipped bit makes fewer columns, and NumPy does not look at the rest, nor at the checksum."""
    vectors = npy(np.arange(100_000, dtype=np.float32).reshape(2, 50_000))
    damaged = vectors.replace(b"(2, 50000)", b"(2, 10000)")
    (tmp_path / "t.npy").write_bytes(damaged)
    with pytest.raises(ValueError, match="its header takes"):
        read_table(tmp_path / "t.npy")
    whole = npz(npy(np.array(["a", "b"])), vectors)
    (tmp_path / "t.npz").write_bytes(whole.replace(b"(2, 50000)", b"(2, 10000)"))
    with pytest.raises(ValueError, match="its header takes"):
        read_table(tmp_path / "t.npz")
    (tmp_path / "t.npz").write_bytes(whole.replace(b"<f4", b"<i4"))
    with pytest.raises(ValueError, match="CRC"):
        read_table(tmp_path / "t.npz")


def test_zstandard_that_is_not_there(tmp_path, monkeypatch):
    (tmp_path / "t.txt.zst").write_bytes(plain_zst(b"a 1\n"))
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    with pytest.raises(ModuleNotFoundError, match=r"backports\.zstd: pip install 'dpq-ref\[zstd\]'"):
        read_table(tmp_path / "t.txt.zst")
    result = CliRunner().invoke(main, ["convert", str(tmp_path / "t.txt.zst"), str(tmp_path / "t.npy")])
    assert result.exit_code == 1 and "pip install" in result.stderr
