import csv
import gzip
import io
import lzma
import os
from pathlib import Path

import numpy as np
import pytest

from dpq_ref.datasets import folder as module
from dpq_ref.datasets import load, load_folder


def write(folder, **files):
    """Write files given as name=text, where __ stands for a point."""
    for name, text in files.items():
        path = folder / name.replace("__", ".")
        packed = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
        path.write_bytes(packed(text.encode()))


def texts(dataset, split):
    documents = dataset.split(split)
    bounds = zip(documents.offsets, documents.offsets[1:], strict=False)
    return [" ".join(dataset.vocabulary[i] for i in documents.tokens[a:b]) for a, b in bounds]


def read(folder, **options):
    return load_folder(folder, **{"min_count": 1, "validation_fraction": 0} | options)


def test_csv_rules(tmp_path):
    rows = [
        r'"2","Title","first\second \\third"',
        r'"1","say ""hello""","end\"',  # a backslash does not escape the quote
        r'"10","",""',
        '"2","real\nline break","x,y"',
    ]
    write(tmp_path, train__csv="\n".join(rows) + "\n", test__csv='"10","only one field"')
    data = read(tmp_path)
    assert texts(data, "train") == [
        "title first second third",
        'say " hello " end',
        "",
        "real line break x , y",
    ]
    assert data.label_names == ("1", "2", "10")  # by number, not by letter
    assert data.train.labels.tolist() == [1, 0, 2, 1]
    assert data.test.labels.tolist() == [2]


def test_csv_backslash_n(tmp_path):
    write(
        tmp_path,
        train__csv=r'"1","nice\n\nplace\nhere, \""quoted\"""' "\n",
        test__csv=r'"1","a\new and\nice\place\to be"',
    )
    data = read(tmp_path, min_count=1)
    assert texts(data, "train") == ['nice place here , " quoted "']
    write(tmp_path, train__csv=r'"1","a\new and\nice\place\to be\at"')
    assert texts(read(tmp_path), "train") == ["a new and nice place to be at"]


def test_csv_long_field_and_global_limit(tmp_path):
    limit = csv.field_size_limit()
    write(tmp_path, train__csv='"1","' + "a " * 100_000 + '"', test__csv='"1","a"')
    assert len(read(tmp_path).train.tokens) == 100_000
    assert csv.field_size_limit() == limit


def test_tsv_rules(tmp_path):
    train = 'pos\tgood\tvery "good\nneg\tone\u2028two\u0085three\x0cfour\\n\npos\t\n'
    write(tmp_path, train__tsv=train, test__tsv="neg\tbad\r\nneg\tworse")
    data = read(tmp_path)
    assert texts(data, "train") == ['good very " good', "one two three four \\ n", ""]
    assert data.label_names == ("neg", "pos")
    assert data.train.labels.tolist() == [1, 0, 1]
    assert len(data.test) == 2


@pytest.mark.parametrize("line_separator", ["\u2028", "\u0085", "\x0b", "\x1e"])
def test_unicode_line_separators_end_no_row(tmp_path, line_separator):
    write(tmp_path, train__tsv=f"1\ta{line_separator}b", test__csv=f'"1","a{line_separator}b"')
    data = read(tmp_path)
    assert texts(data, "train") == texts(data, "test") == ["a b"]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train__csv", "test__csv"),
        ("train__csv__gz", "test__csv__xz"),
        ("train_partial__csv__xz", "test-2__csv"),
    ],
)
def test_file_names_and_packing(tmp_path, train, test):
    write(tmp_path, **{train: '"1","a"\n"2","b"', test: '"2","a b"', "readme__txt": "x", "training": "x"})
    data = read(tmp_path)
    assert texts(data, "train") == ["a", "b"]
    assert texts(data, "test") == ["a b"]
    assert data.name == tmp_path.name
    assert set(data.provenance["sha256"]) == {train.replace("__", "."), test.replace("__", ".")}


def test_byte_order_mark(tmp_path):
    write(tmp_path, train__csv='\ufeff"1","a"', test__csv='"1","a"')
    assert read(tmp_path).label_names == ("1",)


def test_test_file_of_the_training_format(tmp_path):
    write(tmp_path, train__tsv__xz="1\ta", test__tsv__xz="1\ta tsv", test__csv__xz='"1","a csv"')
    assert len(read(tmp_path, min_count=1).test.tokens) == 2
    assert list(read(tmp_path).provenance["sha256"]) == ["train.tsv.xz", "test.tsv.xz"]


def test_missing_and_ambiguous_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"train\*\.csv"):
        load(tmp_path)
    write(tmp_path, train__csv='"1","a"')
    with pytest.raises(FileNotFoundError, match=r"test\*\.csv"):
        load(str(tmp_path))
    write(tmp_path, test__csv='"1","a"', train__csv__gz='"1","a"')
    with pytest.raises(ValueError, match=r"train file: train\.csv, train\.csv\.gz"):
        load(tmp_path)
    (tmp_path / "train.csv.gz").unlink()
    write(tmp_path, test_2__csv='"1","a"')
    with pytest.raises(ValueError, match=r"test file: test\.csv, test_2\.csv"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train__csv", '"1","a\nb"\n"2"\n', r"train\.csv, line 3: no text field after the label '2'"),
        ("train__csv", '"1","a\rb"\n"1"\n', r"line 2: no text field"),
        ("train__csv", '"1","a"\n"","b"\n', r"line 2: no label"),
        ("train__csv", '"1","a"\n\n"1","b"\n', r"line 2: no label"),
        ("train__csv", '"1","a"\n"1","b"c"\n', r"train\.csv, line 2: "),
        ("train__csv", '"1","a"\n"1","b\n', r"train\.csv, line 2: "),
        ("train__tsv", "1\ta\n1 b\n", r"train\.tsv, line 2: no text field after the label '1 b'"),
        ("train__tsv", "1\ta\n \tb\n", r"line 2: no label"),
        ("train__tsv", "1\ta\n\n", r"line 2: no label"),
        ("train__tsv", "", r"train\.tsv: no documents"),
        ("train__tsv", "2\ta", r"test\.tsv, line 2: label '1' does not come in train\.tsv"),
    ],
)
def test_bad_rows(tmp_path, name, content, message):
    write(tmp_path, test__tsv="2\ta\n1\tb\n", **{name: content})
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("name", ["train.csv.gz", "train.csv.xz"])
def test_damaged_files(tmp_path, name):
    write(tmp_path, **{name.replace(".", "__"): '"1","a"\n' * 1000, "test__csv": '"1","a"'})
    path = tmp_path / name
    packed = path.read_bytes()
    for damaged in (packed[: len(packed) // 2], b"x" + packed[1:], packed[:20] + b"xxxx" + packed[24:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name}: damaged"):
            load(tmp_path)


def test_not_utf8(tmp_path):
    write(tmp_path, test__csv='"1","a"')
    (tmp_path / "train.csv").write_bytes(b'"1","\xe9t\xe9"')
    with pytest.raises(ValueError, match=r"train\.csv: .*UTF-8"):
        load(tmp_path)


def test_class_names(tmp_path):
    write(
        tmp_path, train__tsv="2\ta\n1\tb\n10\tc", test__tsv="1\ta", classes__txt="World\nSports\r\nTech\n\n"
    )
    data = read(tmp_path)
    assert data.label_names == ("World", "Sports", "Tech")
    assert data.train.labels.tolist() == [1, 0, 2]
    write(tmp_path, classes__txt="World\nSports\n")
    with pytest.raises(ValueError, match=r"classes\.txt: 2 names for 3 labels \(1, 2, 10\)"):
        read(tmp_path)


def test_class_names_that_are_the_labels(tmp_path):
    write(tmp_path, train__tsv="pos\ta\nneg\tb", test__tsv="pos\ta", classes__txt="pos\nneg\n")
    data = read(tmp_path)
    assert data.label_names == ("pos", "neg")
    assert data.train.labels.tolist() == [0, 1]


def test_validation_split(tmp_path):
    rows = [f"{i % 2}\tw{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(100)]
    write(tmp_path, train__tsv="\n".join(rows), test__tsv="0\ta")
    first, again, other = (load_folder(tmp_path, min_count=1, seed=s) for s in (0, 0, 1))
    assert (len(first.train), len(first.validation)) == (90, 10)
    assert first.sha256 == again.sha256 != other.sha256
    whole = read(tmp_path)
    assert len(whole.validation) == 0
    kept = texts(first, "train")
    assert kept == sorted(kept)  # still in the order of the file
    left_out = set(texts(whole, "train")) - set(kept)
    assert len(left_out) == 10
    # Every text is one word of its own: in validation none of them is known.
    assert (first.validation.tokens == 1).all()


def test_validation_labels_are_those_of_the_rows_left_out(tmp_path):
    write(tmp_path, train__tsv="\n".join(f"{i}\tx" for i in range(20)), test__tsv="0\tx")
    data = load_folder(tmp_path, validation_fraction=0.25, seed=3)
    assert len(data.validation) == 5
    assert sorted([*data.train.labels, *data.validation.labels]) == list(range(20))


def test_one_document_stays_for_training(tmp_path):
    write(tmp_path, train__tsv="0\ta", test__tsv="0\ta")
    data = load_folder(tmp_path, min_count=1, validation_fraction=0.9)
    assert (len(data.train), len(data.validation)) == (1, 0)


@pytest.mark.parametrize("fraction", [-0.1, 1, float("nan")])
def test_bad_fraction(tmp_path, fraction):
    with pytest.raises(ValueError, match="validation_fraction"):
        load_folder(tmp_path, validation_fraction=fraction)


def test_ag_news():
    if "DPQ_REF_DATA" not in os.environ:
        pytest.skip("DPQ_REF_DATA names no folder of real data")
    folder = Path(os.environ["DPQ_REF_DATA"], "ag_news")
    data = load_folder(folder)
    assert data.label_names == ("World", "Sports", "Business", "Sci/Tech")
    assert len(data.train) + len(data.validation) == 67_647
    assert np.bincount(data.test.labels).tolist() == [1900] * 4
    total = np.bincount([*data.train.labels, *data.validation.labels])
    assert total.tolist() == [16986, 16953, 16819, 16889]


def test_ag_news_csv_and_tsv_are_the_same(tmp_path):
    if "DPQ_REF_DATA" not in os.environ:
        pytest.skip("DPQ_REF_DATA names no folder of real data")
    folder = Path(os.environ["DPQ_REF_DATA"], "ag_news")
    digests = set()
    for form in ("csv", "tsv"):
        place = tmp_path / form
        place.mkdir()
        for part in ("train", "test"):
            (place / f"{part}.{form}.xz").write_bytes((folder / f"test.{form}.xz").read_bytes())
        digests.add(load_folder(place).sha256)
    assert len(digests) == 1


def test_what_csv_writer_writes_comes_back(tmp_path):
    alphabet = list('ab",\n\r\t \u2028')
    rng = np.random.default_rng(0)
    written = ["".join(rng.choice(alphabet, rng.integers(1, 12))) for _ in range(200)]
    stream = io.StringIO(newline="")
    csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([1, text] for text in written)
    write(tmp_path, train__csv=stream.getvalue(), test__csv='"1","a"')
    from dpq_ref.datasets import tokenize

    assert texts(read(tmp_path), "train") == [" ".join(tokenize(text)) for text in written]


def test_numbers_between_label_and_text_are_left_out(tmp_path):
    write(tmp_path, train__tsv="0\t3\tbad\tfilm\n1\t10\tgood\n", test__tsv="0\t-1\t\n1\t7\t8\t9\n")
    data = read(tmp_path)
    assert texts(data, "train") == ["bad film", "good"]
    assert data.test.lengths.tolist() == [0, 2]
    # Not in every row: text, as everything else after the label.
    write(tmp_path, train__tsv="0\t3\tbad\n1\tten\tgood\n")
    assert texts(read(tmp_path), "train") == ["3 bad", "ten good"]
    write(tmp_path, train__tsv="0\t3\n1\t10\n")
    assert texts(read(tmp_path), "train") == ["3", "10"]


@pytest.mark.parametrize("name", ["valid__tsv", "validation__tsv__xz", "valid_part__csv__gz"])
def test_validation_file(tmp_path, name):
    valid = '"1","b a"' if "csv" in name else "1\tb a\n"
    write(tmp_path, train__tsv="0\ta\n" * 9 + "1\tb\n", test__tsv="0\ta", **{name: valid})
    data = load_folder(tmp_path, min_count=1)
    assert len(data.train) == 10
    assert texts(data, "validation") == ["b a"]
    assert data.validation.labels.tolist() == [1]
    assert data.provenance["validation_fraction"] is None
    assert len(data.provenance["sha256"]) == 3
    write(tmp_path, **{name: valid.replace("1", "2", 1)})
    with pytest.raises(ValueError, match=r"valid.*, line 1: label '2' does not come in train\.tsv"):
        load_folder(tmp_path)
    write(tmp_path, **{name: valid, "validation_2__tsv": "0\ta"})
    if "csv" in name:  # that of the training format
        assert texts(read(tmp_path), "validation") == ["a"]
    else:
        with pytest.raises(ValueError, match="which is the validation file"):
            load_folder(tmp_path)


def test_one_file_for_cross_validation():
    if "DPQ_REF_DATA" not in os.environ:
        pytest.skip("DPQ_REF_DATA names no folder of real data")
    with pytest.raises(FileNotFoundError, match=r"sentence-classification: no train\*\.csv or train\*\.tsv"):
        load_folder(Path(os.environ["DPQ_REF_DATA"], "sentence-classification"))


def test_imdb():
    if "DPQ_REF_DATA" not in os.environ:
        pytest.skip("DPQ_REF_DATA names no folder of real data")
    for part in ("train", "test"):
        rows = module._rows(Path(os.environ["DPQ_REF_DATA"], "imdb", f"{part}.tsv.xz"))
        assert [sum(label == name for _, label, _ in rows) for name in "01"] == [12_500] * 2
        # The text begins with the review, not with its stars.
        assert sum(text.split(" ", 1)[0].isdecimal() for _, _, text in rows) < 150
