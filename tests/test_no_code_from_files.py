"""Nothing that is read is ever run, and no name inside of a file becomes a path: the source has no way to."""

import ast
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dpq_ref.tables import read_table

ROOT = Path(__file__).parents[1]
SOURCES = [path for folder in ("dpq_ref", "baselines") for path in sorted((ROOT / folder).rglob("*.py"))]
MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "yaml",
    "runpy",
    "code",
}
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {"extract", "extractall", "unpack_archive"}  # of archives: names inside become paths
LOADS = {"load", "read_array", "NpzFile"}  # of numpy: may unpickle


def findings(source):
    """What in a source may run what it reads, or write where a file says."""
    found, tree = [], ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{name}" for name in names)]
            found += [name for name in names if name.split(".")[0] in MODULES or name == "joblib.load"]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        owner, _, name = called.rpartition(".")
        if called in CALLS or name in METHODS or called in ("joblib.load", "torch.load"):
            found.append(called)
        if name in LOADS and owner.split(".")[0] in ("np", "numpy"):
            safe = any(k.arg == "allow_pickle" and ast.unparse(k.value) == "False" for k in node.keywords)
            found += [] if safe else [called]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_is_run(path):
    assert not findings(path.read_text(encoding="utf8"))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib\njoblib.load(f)",
        "from joblib import load",
        "eval(x)",
        "exec(x)",
        "np.load(f)",
        "np.load(f, allow_pickle=True)",
        "numpy.load(f, allow_pickle=allow)",
        "np.lib.format.read_array(f)",
        "yaml.load(f)" + "\nimport yaml",
        "archive.extractall(folder)",
        "shutil.unpack_archive(f)",
        "__import__(name)",
    ],
)
def test_what_would_be_found(source):
    assert findings(source)


@pytest.mark.parametrize("source", ["np.load(f, allow_pickle=False)", "re.compile(x)", "json.load(f)"])
def test_what_is_fine(source):
    assert not findings(source)


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("ending", [".npy", ".npz", ".txt", ".bin", ".safetensors"])
def test_a_pickle_is_not_unpickled(ending, tmp_path):
    content, trap = io.BytesIO(), tmp_path / "trap"
    np.save(content, np.array([[Bomb(trap)]], object), allow_pickle=True)
    if ending == ".npz":
        with zipfile.ZipFile(tmp_path / "t.npz", "w") as archive:
            archive.writestr("words.npy", content.getvalue())
            archive.writestr("vectors.npy", content.getvalue())
    else:
        (tmp_path / f"t{ending}").write_bytes(
            content.getvalue() if ending == ".npy" else pickle.dumps(Bomb(trap))
        )
    with pytest.raises(ValueError, match=f"t\\{ending}"):
        read_table(tmp_path / f"t{ending}")
    assert not trap.exists()


def test_names_in_an_archive_are_no_paths(tmp_path):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "t.npz"
    array = io.BytesIO()
    np.save(array, np.eye(2))
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("../vectors.npy", "../words.npy", "/x.npy"):
            archive.writestr(name, array.getvalue())
    with pytest.raises(ValueError, match="no array words and no vectors"):
        read_table(path)
    np.testing.assert_array_equal(read_table(path, tensor="../vectors").vectors, np.eye(2))
    assert [p.name for p in tmp_path.rglob("*")] == ["in", "t.npz"]
