import ast
import subprocess
import sys

import numpy as np
import pytest

from dpq_ref.datasets import builtin, load, load_builtin
from dpq_ref.datasets.builtin import read_docstrings
from dpq_ref.datasets.text import SPLITS

LONG = "is what this text is about, and it goes on for long enough to be taken up among the documents."


def source(*docstrings):
    """A module with a function for each docstring."""
    return "\n".join(f"def f{i}():\n    {text!r}\n" for i, text in enumerate(docstrings))


def tree(folder, files):
    for path, content in files.items():
        path = folder / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def word(i):
    return "w" + chr(97 + i // 26) + chr(97 + i % 26)


@pytest.fixture
def caught(monkeypatch):
    """The texts as they go to build_dataset: there, words outside training are not yet unknown."""
    calls = []
    build = builtin.build_dataset

    def catch(name, splits, **options):
        calls.append(splits)
        return build(name, splits, **options)

    monkeypatch.setattr(builtin, "build_dataset", catch)
    return calls


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Two small packages in place of the six, and a cache folder of their own."""
    folders = {
        name: tree(tmp_path / name, {f"m{i}.py": source(f"{name}{word(i)} {LONG}") for i in range(50)})
        for name in ("one", "two")
    }
    reads = []

    def find():
        reads.append(1)
        return folders

    monkeypatch.setattr(builtin, "_folders", find)
    monkeypatch.setenv("DPQ_REF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache", reads


def all_texts(splits):
    return [" ".join(tokens) for split in SPLITS for tokens, _ in splits[split]]


def test_what_is_read(tmp_path, caught):
    module = f'''"""module {LONG}"""
class C:
    """class {LONG}"""
    async def f(self):
        """async {LONG}"""
        if self:
            def g():
                """nested
                {LONG}
                """
    x = 1
    """no docstring {LONG}"""
try:
    pass
except E:
    def h(): "handler {LONG}"
else:
    def i(): "else {LONG}"
finally:
    match 1:
        case 1:
            def j(): "case {LONG}"
def short(): "{"s" * 79}"
def padded(): "   {"s" * 79}"
def enough(): "{"e" * 80}"
def nothing(): pass
def number(): 1
'''
    read_docstrings({"x": tree(tmp_path, {"m.py": module})})
    firsts = [text.split()[0] for text in all_texts(caught[0])]
    assert firsts == ["module", "class", "async", "nested", "handler", "else", "case", "e" * 80]


def test_which_files_are_read(tmp_path, caught):
    kept = ["b/a.py", "b.py", "testing/x.py", "test_of_name.py", "b/test.py"]
    left = [
        "test/a.py",
        "b/tests/a.py",
        "site-packages/a.py",
        "b/__pycache__/a.py",
        "idle_test/a.py",
        "c.txt",
    ]
    files = {path: source(f"{word(i)} {LONG}") for i, path in enumerate(kept + left)}
    data = read_docstrings({"x": tree(tmp_path / "tests" / "x", files)})  # only folders below count
    assert sorted(text.split()[0] for text in all_texts(caught[0])) == [word(i) for i in range(5)]
    assert data.provenance["files"] == 5


def test_files_that_do_not_parse(tmp_path, caught):
    files = {
        "a.py": "def f(:",
        "b.py": b"x = 1\x00",
        "c.py": b"'\xe9'",
        "d.py": b"# coding: nonsense\n",
        "e.py": b"# coding: latin-1\n" + source(f"été {LONG}").encode("latin-1"),
        "f.py": 'def f(): "\\d ' + LONG + '"',  # an invalid escape is a warning, and not ours
        "g.py": "",
    }
    data = read_docstrings({"x": tree(tmp_path, files)})
    assert data.provenance["files"] == 7
    assert data.provenance["files_skipped"] == 4
    texts = all_texts(caught[0])
    assert len(texts) == 2
    assert any(text.startswith("été") for text in texts)


def test_duplicates(tmp_path, caught):
    a = tree(tmp_path / "a", {"m.py": source(f"one {LONG}", f"two {LONG}"), "n.py": source(f"One,  {LONG}")})
    a = tree(a, {"o.py": source(f"numpy one {LONG}", f"three {LONG}")})
    b = tree(tmp_path / "b", {"m.py": source(f"two {LONG}", f"four {LONG}", f"two {LONG}")})
    data = read_docstrings({"a": a, "b": b})
    labelled = {(" ".join(t).split()[0], label) for split in SPLITS for t, label in caught[0][split]}
    # "two" has two classes; "numpy one" is "one" without the name; "One," has one token more.
    assert labelled == {("one", 0), ("three", 0), ("four", 1)}
    texts = all_texts(caught[0])
    assert len(texts) == len(set(texts)) == 4
    assert data.provenance["duplicates_dropped"] == 4
    assert data.provenance["texts_of_two_classes"] == 1
    assert sum(data.provenance["documents"].values()) == 4


def test_first_duplicate_in_sorted_order_decides_the_split(tmp_path, caught):
    paths = [f"p{i:02}.py" for i in range(40)]
    folder = tree(tmp_path, {path: source(f"same {LONG}") for path in paths})
    read_docstrings({"x": folder})
    (split,) = [split for split in SPLITS if caught[0][split]]
    assert split == builtin._split_of("x", "p00.py")
    assert {builtin._split_of("x", path) for path in paths} == set(SPLITS)


def test_no_file_in_two_splits(tmp_path, caught):
    files = {f"m{i}.py": source(*(f"{word(i)} {word(j)} {LONG}" for j in range(5))) for i in range(200)}
    read_docstrings({"x": tree(tmp_path, files)})
    seen = [{tokens[0] for tokens, _ in caught[0][split]} for split in SPLITS]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 200
    assert [len(caught[0][split]) for split in SPLITS] == [5 * len(s) for s in seen]
    share = np.array([len(s) for s in seen]) / 200
    np.testing.assert_allclose(share, [0.7, 0.1, 0.2], atol=0.08)


def test_split_is_the_same_everywhere():
    # A change of these moves documents between training and test.
    assert [builtin._split_of("numpy", f"{c}.py") for c in "abcdefgh"] == [
        "train",
        "train",
        "test",
        "train",
        "test",
        "validation",
        "train",
        "train",
    ]


def test_names_are_gone(tmp_path, caught):
    names = (
        "NumPy np numpy.ndarray SciPy sp sklearn scikit-learn Scikit-Learn scikit_learn scikit learn scikits "
        "Matplotlib mpl plt mpl_toolkits mplot3d pyplot pylab matplotlibrc numba Numba nb numpydoc np2 "
        "Python cpython IPython pythonic python3 _np_"
    )
    files = {f"m{i}.py": source(f"{word(i)} {names} {LONG} We learn, sparse npz.") for i in range(60)}
    read_docstrings({"x": tree(tmp_path, files)})
    assert all(caught[0][split] for split in SPLITS)
    rest = [
        text.split(maxsplit=1)[1].removesuffix(" we learn , sparse npz .") for text in all_texts(caught[0])
    ]
    (left,) = set(rest)
    assert left == " ".join(
        [". ndarray", "toolkits", "3 d", "2", "3", *LONG[:-1].replace(",", " ,").split(), "."]
    )


def test_cache(fake):
    cache, reads = fake
    first = load_builtin()
    (file,) = cache.iterdir()
    assert file.suffix == ".npz"
    again = load("builtin")
    assert len(reads) == 1
    assert again.sha256 == first.sha256
    assert again.provenance == first.provenance
    assert again.label_names == ("one", "two")
    assert set(first.provenance["versions"]) == {
        "python", "numpy", "scipy", "scikit-learn", "matplotlib", "numba"
    }  # fmt: skip
    load_builtin(refresh=True)
    assert len(reads) == 2
    with np.load(file, allow_pickle=False) as arrays:
        assert all(array.dtype != object for array in arrays.values())


def test_cache_key(fake, monkeypatch):
    cache, reads = fake
    load_builtin()
    monkeypatch.setattr(builtin, "_FORMAT", -1)
    load_builtin()
    monkeypatch.setattr(builtin.platform, "python_version", lambda: "0")
    load_builtin()
    monkeypatch.setattr(builtin.importlib.metadata, "version", lambda name: "0")
    load_builtin()
    assert len(reads) == len(list(cache.iterdir())) == 4


def change_one_label(file):
    with np.load(file) as arrays:
        arrays = dict(arrays)
    arrays["train_labels"][0] ^= 1
    np.savez(file, **arrays)


def one_array_only(file):
    with file.open("wb") as stream:
        np.save(stream, np.zeros(3))


def drop_an_array(file):
    with np.load(file) as arrays:
        arrays = dict(arrays)
    del arrays["test_offsets"]
    np.savez(file, **arrays)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"nonsense"),
        lambda file: file.write_bytes(file.read_bytes()[:-200]),
        lambda file: file.write_bytes(file.read_bytes().replace(b"\x00\x00", b"\x00\x01")),
        lambda file: np.savez(file, facts=np.zeros(3, np.uint8)),
        one_array_only,
        change_one_label,
        drop_an_array,
    ],
)
def test_damaged_cache_is_rebuilt(fake, damage):
    cache, reads = fake
    whole = load_builtin()
    (file,) = cache.iterdir()
    damage(file)
    assert load_builtin().sha256 == whole.sha256
    assert len(reads) == 2
    assert load_builtin().sha256 == whole.sha256
    assert len(reads) == 2


def test_cache_is_written_at_once(fake, monkeypatch):
    cache, _ = fake
    before = load_builtin()
    (file,) = cache.iterdir()
    content = file.read_bytes()

    def die(stream, **arrays):
        stream.write(b"half of it")
        assert file.read_bytes() == content
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(builtin.np, "savez_compressed", die)
        with pytest.raises(KeyboardInterrupt):
            load_builtin(refresh=True)
    assert list(cache.iterdir()) == [file]
    assert load_builtin().sha256 == before.sha256

    replace, renamed = builtin.os.replace, []

    def look_then_replace(source, target):
        assert file.read_bytes() == content
        assert builtin._load(source) is not None  # already complete
        renamed.append(target)
        replace(source, target)

    file.write_bytes(content := b"damaged")
    monkeypatch.setattr(builtin.os, "replace", look_then_replace)
    load_builtin()
    assert renamed == [file]


def test_cache_that_cannot_be_written(fake):
    cache, _ = fake
    cache.write_text("a file in place of the folder")
    with pytest.warns(UserWarning, match="not cached"):
        assert len(load_builtin().train) > 0


def test_max_documents(fake):
    part, again, whole = load_builtin(max_documents=20), load_builtin(max_documents=20), load_builtin()
    assert part.sha256 == again.sha256
    assert sum(len(part.split(s)) for s in SPLITS) == 20
    assert abs(np.bincount(part.train.labels) - len(part.train) / 2).max() <= 1
    assert whole.counts[2:].min() >= 3
    assert part.counts[2:].min() >= 3
    assert len(part.vocabulary) <= len(whole.vocabulary)
    with pytest.raises(ValueError, match="max_documents=1"):
        load_builtin(max_documents=1)


def test_progress(fake, capsys):
    load_builtin()
    assert capsys.readouterr() == ("", "")
    load_builtin(refresh=True, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "reading docstrings" in err


def test_package_that_is_not_there(fake, monkeypatch):
    monkeypatch.setitem(builtin._PACKAGES, "no-such-package", "nosuch")
    with pytest.raises(ModuleNotFoundError, match="no-such-package"):
        load_builtin()


def test_nothing_is_imported(tmp_path):
    """Neither by the import, nor when sources are looked for and read."""
    code = (
        "import sys\n"
        "from dpq_ref.datasets import builtin, load_builtin\n"
        "folders = builtin._folders()\n"
        "assert list(folders) == ['python', 'numpy', 'scipy', 'scikit-learn', 'matplotlib', 'numba']\n"
        "assert all(len(builtin._sources(folder)) > 50 for folder in folders.values())\n"
        "builtin._sources = lambda folder, find=builtin._sources: find(folder)[:3]\n"
        "load_builtin()\n"
        "print(*(m for m in ('scipy', 'sklearn', 'matplotlib', 'numba', 'rich') if m in sys.modules))\n"
    )
    environment = {"DPQ_REF_CACHE": str(tmp_path), "PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.slow
def test_the_real_corpus(tmp_path, monkeypatch, caught):
    monkeypatch.setenv("DPQ_REF_CACHE", str(tmp_path))
    data = load_builtin()
    sizes = np.array([len(data.split(s)) for s in SPLITS])
    assert 12_000 < sizes.sum() < 20_000
    np.testing.assert_allclose(sizes / sizes.sum(), [0.7, 0.1, 0.2], atol=0.05)
    assert all(np.bincount(data.split(s).labels, minlength=6).min() > 50 for s in SPLITS)
    texts = all_texts(caught[0])
    assert len(texts) == len(set(texts))
    seen = {token for split in SPLITS for tokens, _ in caught[0][split] for token in tokens}
    assert not [token for token in seen if builtin._names_a_package(token)]
    assert {"array", "learn", "sparse"} <= seen
    assert load_builtin(max_documents=1000).provenance["versions"] == data.provenance["versions"]
    assert ast.literal_eval(repr(data.provenance)) == data.provenance
