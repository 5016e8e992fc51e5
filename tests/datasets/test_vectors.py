"""Tables in text, against Python's own reading of numbers."""

import gzip
import lzma
import shutil
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from dpq_ref.datasets import files
from dpq_ref.datasets import vectors as vectors_module
from dpq_ref.datasets.vectors import read_text_table
from dpq_ref.tables import read_table, write_table


def written(tmp_path, content, name="t.txt"):
    path = tmp_path / name
    content = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(
        {".gz": gzip.compress, ".xz": lzma.compress, ".zst": files._zstd().compress}.get(path.suffix, bytes)(
            content
        )
    )
    return path


NUMBERS = [
    *(
        "0",
        "-0",
        "1",
        "-1",
        "+2",
        "007",
        "0.5",
        ".5",
        "5.",
        "-.25",
        "1e3",
        "1E-3",
        "-2.5e+2",
        "1e22",
        "1e-22",
    ),
    *("0.418", "-0.00065023", "123456789", "9007199254740992", "9007199254740993", "0.1234567890123456789"),
    *("3.4028234e38", "1e-45", "1.4e-46", "16777217", "2.5e-40", "1e-50", "123456789012345678e-17"),
]


@pytest.mark.parametrize("text", NUMBERS)
def test_each_number_is_that_of_python(tmp_path, text):
    words, table = read_text_table(written(tmp_path, f"a {text} 1\nb 1 {text}"))
    expected = np.array([[float(text), 1], [1, float(text)]], np.float32)
    assert words == ["a", "b"]
    assert table.dtype == np.float32
    assert table.tobytes() == expected.tobytes()


def test_random_numbers_in_many_forms(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 7)) * 10.0 ** rng.integers(-8, 8, (300, 7))
    forms = ["%.5g", "%.3f", "%r", "%.9g", "%.17g", "%.2e"]
    lines = [[forms[i % 6] % float(x) for x in row] for i, row in enumerate(X)]
    text = "".join(f"w{i} {' '.join(line)}\n" for i, line in enumerate(lines))
    table = read_text_table(written(tmp_path, text))[1]
    np.testing.assert_array_equal(table, np.array(lines, float).astype(np.float32))


@pytest.mark.parametrize("block", [1, 7, 10_000])
@pytest.mark.parametrize("end", ["\n", "\r\n", " \n"])
@pytest.mark.parametrize("name", ["t.txt", "t.gz", "t.xz", "t.zst"])
def test_lines_over_the_edges_of_blocks(tmp_path, monkeypatch, block, end, name):
    monkeypatch.setattr(vectors_module, "BLOCK", block)
    words, table = read_text_table(written(tmp_path, end.join(["the 1 2", "é 3 4", ". . . 5 6"]), name))
    assert words == ["the", "é", ". . ."]
    np.testing.assert_array_equal(table, [[1, 2], [3, 4], [5, 6]])


def test_header(tmp_path):
    words, table = read_text_table(written(tmp_path, "2 3\na 1 2 3\nb 4 5 6\n"))
    assert words == ["a", "b"]
    np.testing.assert_array_equal(table, [[1, 2, 3], [4, 5, 6]])
    assert read_text_table(written(tmp_path, "a 1\n"))[1].shape == (1, 1)


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "0 rows"),
        ("a\n", "line 1: takes a word and numbers"),
        ("3 2\na 1 2\n", "1 rows, and its header says 3"),
        ("a 1 2\nb 1\n", "line 2: 1 numbers, takes 2"),
        ("a 1 2\n\nb 1 2\n", "line 2: 0 numbers, takes 2"),
        ("a 1 2\nb 1 x2\n", "line 2, column 2: 'x2' is no number"),
        ("a 1 2\nb 1  2\n", "line 2, column 1: '' is no number"),
        ("a 1 2\nb 1 1e\n", "line 2, column 2: '1e'"),
        ("a 1 2\nb 1 -\n", "line 2, column 2: '-'"),
        ("a 1 2\nb nan 1\n", "line 2, column 1: 'nan' is no number"),
        ("a 1 2\nb 1 1e39\n", "line 2, column 2: '1e39' is .* not one of float32"),
        ("a 1 2\nb 3 -inf\n", "line 2, column 2: '-inf'"),
        ("a 1 2\nb 3 1_0\n", "line 2, column 2: '1_0'"),
        ("a 1 2\nb 3 \t4\n", "line 2, column 2: .*4'"),
        ("a 1 2\nb 3 \u0664\n", "line 2, column 2: '\u0664'"),
        ("a 1 2\nb 1 2 3\n", "line 2: more than 2 numbers"),
        ("a 1 2\nb\t0 2 3\n", "line 2: more than 2 numbers"),
        ("a 1 2\nb nan 2 3\n", "line 2: more than 2 numbers"),
        ("2 2\na 1 2 3\nb 1 2 3\n", "line 2: more than 2 numbers"),  # the header says 2
        ("a\t1\t2\n", "line 1: 0 numbers, takes 2, between single spaces"),
        ("2 2\na 1 2\n\nb 1 2\n", "line 3: 0 numbers, takes 2"),
        ("a 1 2\nb 1 2\n\n", "line 3: 0 numbers, takes 2"),
        (b"a 1 2\n\xff 1 2\n", "line 2: 'utf-8' codec can't decode"),
    ],
)
def test_what_is_no_table(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"t\.txt.*{message}"):
        read_text_table(written(tmp_path, content))


def test_no_file_and_damaged_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        read_text_table(tmp_path / "none.txt")
    for name in ("t.gz", "t.xz"):
        path = written(tmp_path, "a 1 2\n" * 100, name)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(ValueError, match=name):
            read_text_table(path)


PEAK = """
import resource, sys
from dpq_ref.tables import read_table
peaks = []
for path in sys.argv[1:]:
    vectors = read_table(path).vectors
    peaks.append(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print((peaks[1] - peaks[0]) / vectors.nbytes)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Folder with a table of 100,000 x 300 in each format, random, so that packing saves little."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "one.txt").write_text(f"w {' '.join(['0.5'] * 300)}\n")
    vectors = np.random.default_rng(0).integers(-9999, 9999, (100_000, 300)).astype(np.float32) / 1000
    write_table(folder / "many.bin", [f"w{i}" for i in range(len(vectors))], vectors)
    with (folder / "many.txt").open("w") as file:
        file.writelines(
            f"w{i} {' '.join([f'{x:.3f}' for x in row])}\n" for i, row in enumerate(vectors.tolist())
        )
    for name in ("many.bin", "many.txt"):
        for ending, opened in ((".gz", gzip.open), (".xz", lzma.open), (".zst", files._zstd().open)):
            fast = {".gz": {"compresslevel": 1}, ".xz": {"preset": 0}}.get(ending, {})
            with (folder / name).open("rb") as source, opened(folder / (name + ending), "wb", **fast) as file:
                shutil.copyfileobj(source, file, 1 << 20)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in kB")
@pytest.mark.parametrize("ending", ["", ".gz", ".xz", ".zst"])
@pytest.mark.parametrize("name", ["many.txt", "many.bin"])
def test_there_is_never_a_second_table(large, name, ending):
    paths = [large / "one.txt", large / f"{name}{ending}"]
    peak = subprocess.run([sys.executable, "-c", PEAK, *paths], capture_output=True, text=True, check=True)
    assert float(peak.stdout) < 1.3  # with the words and the blocks that are read; 2.3 with a second table


@pytest.mark.parametrize("name", ["t.txt", "t.gz", "t.zst", "t.bin", "t.bin.gz"])
def test_what_is_held_at_a_time(tmp_path, monkeypatch, name):
    for module in (vectors_module, files):
        monkeypatch.setattr(module, "BLOCK", 1 << 14)
    X = np.random.default_rng(0).standard_normal((3000, 100)).astype(np.float32)
    plain = tmp_path / ("plain.bin" if ".bin" in name else "plain.txt")
    write_table(plain, [f"w{i}" for i in range(len(X))], X)
    path = written(tmp_path, plain.read_bytes(), name)
    read_table(plain)  # compiled
    tracemalloc.start()
    words, table, _ = read_table(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(table, X)
    assert peak < 1.3 * X.nbytes + sum(map(sys.getsizeof, words))
