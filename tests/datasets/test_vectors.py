"""Tables in text, against Python's own reading of numbers."""

import gzip
import lzma
import subprocess
import sys

import numpy as np
import pytest

from dpq_ref.datasets import vectors as module
from dpq_ref.datasets.vectors import read_text_table


def written(tmp_path, content, name="t.txt"):
    path = tmp_path / name
    content = content if isinstance(content, bytes) else content.encode()
    path.write_bytes({".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)(content))
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
@pytest.mark.parametrize("name", ["t.txt", "t.gz", "t.xz"])
def test_lines_over_the_edges_of_blocks(tmp_path, monkeypatch, block, end, name):
    monkeypatch.setattr(module, "BLOCK", block)
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
from dpq_ref.datasets.vectors import read_text_table
peaks = []
for path in sys.argv[1:]:
    vectors = read_text_table(path)[1]
    peaks.append(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print((peaks[1] - peaks[0]) / vectors.nbytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in kB")
def test_there_is_never_a_second_table(tmp_path):
    n, numbers = 200_000, " ".join(["0.5", "0.25", "1"] * 100)
    (tmp_path / "one.txt").write_text(f"w {numbers}\n")
    with (tmp_path / "many.txt").open("w") as file:
        file.writelines(f"w{i} {numbers}\n" for i in range(n))
    paths = [tmp_path / "one.txt", tmp_path / "many.txt"]
    peak = subprocess.run([sys.executable, "-c", PEAK, *paths], capture_output=True, text=True, check=True)
    assert float(peak.stdout) < 1.6  # with the words and the blocks that are read; 2.3 with a second table
