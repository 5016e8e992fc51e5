"""What the documentation shows for other programs gives the rows and neighbours that ours does."""

import os
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

import dpq_ref
from baselines import LowRank, OptimizedProductQuantizer
from dpq_ref.compressed.product import group_columns
from dpq_ref.tables import write_table

pytestmark = pytest.mark.oracle
HOWTO = Path(__file__).parents[2] / "docs/howto"


def product(how, K=16, dtype=np.float32, n=50, D=5, s=3):
    rng = np.random.default_rng(K)
    books = 1 if "shared" in how else D
    shape = (K, group_columns(13, D).sum()) if how == "ragged" else (books, K, s)
    codes = rng.integers(0, K, (n, D))
    codes[-1] = K - 1
    values = rng.standard_normal(shape).astype(dtype)
    return dpq_ref.ProductTable.from_codes(codes, values, additive="additive" in how)


def saved(table, folder):
    table.words = [f"w{i}" for i in range(table.vocab_size)]
    table.save(folder / "table.safetensors")
    return folder / "table.safetensors"


IDS = 7, [3, 0, 49, 3], [[1], [2]], np.zeros((0, 2), np.int64), np.arange(50)


# --- torch ------------------------------------------------------------------------------------------------


def torch_embedding(path):
    pytest.importorskip("torch")
    return runpy.run_path(str(HOWTO / "torch_embedding.py"))["CompressedEmbedding"](path)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("K", [2, 3, 16, 300, 65_536])
@pytest.mark.parametrize("how", ["apart", "shared", "additive", "additive shared", "ragged"])
def test_torch_rows_are_ours_bit_by_bit(how, K, dtype, tmp_path):
    torch = pytest.importorskip("torch")
    table = product(how, K, dtype)
    layer = torch_embedding(saved(table, tmp_path))
    assert (layer.num_embeddings, layer.embedding_dim) == (table.vocab_size, table.dim)
    for ids in IDS:
        rows = layer(torch.as_tensor(ids))
        assert not rows.requires_grad
        np.testing.assert_array_equal(rows.numpy(), table.lookup(ids), strict=True)
    for ids in (-1, 50):
        with pytest.raises(IndexError, match=r"ids must lie in \[0, 50\)"):
            layer(torch.tensor([ids]))


@pytest.mark.parametrize("offset", [False, True])
def test_torch_rows_of_a_rotated_table(offset, tmp_path):
    torch = pytest.importorskip("torch")
    X = np.random.default_rng(0).standard_normal((50, 12)).astype(np.float32)
    table = OptimizedProductQuantizer(3, 8, random_state=0).fit(X).compress()
    if offset:
        table = dpq_ref.FactoredTable(table.left, table.right, X[0])
    layer = torch_embedding(saved(table, tmp_path))
    np.testing.assert_allclose(layer(torch.arange(50)).numpy(), table.reconstruct(), atol=1e-5)


def test_torch_state_and_training_of_the_values(tmp_path):
    torch = pytest.importorskip("torch")
    table = product("apart")
    layer, other = torch_embedding(saved(table, tmp_path)), torch_embedding(saved(table, tmp_path))
    assert list(layer.state_dict()) == ["codes", "values"] and not list(layer.parameters())
    other.values.zero_()
    other.load_state_dict(layer.state_dict())
    layer.values = torch.nn.Parameter(layer.values)
    layer(torch.tensor([[4, 4]])).sum().backward()
    expected = np.zeros_like(table.values)
    expected[np.arange(5), table.codes[4]] = 2  # both rows of it
    np.testing.assert_array_equal(layer.values.grad, expected)
    np.testing.assert_array_equal(other(torch.arange(50)), table.reconstruct())


def test_torch_refuses_other_tables(tmp_path):
    X = np.random.default_rng(0).standard_normal((50, 12)).astype(np.float32)
    left, right = product("apart"), np.eye(15, dtype=np.float32)
    bounded = dpq_ref.FactoredTable(left, right, bound=np.ones(1, np.float32))
    for table in (dpq_ref.DenseTable(X), LowRank(3).fit(X).compress(), bounded):
        with pytest.raises(ValueError, match="it takes a product table"):
            torch_embedding(saved(table, tmp_path))


# --- Keras ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("K", [2, 3, 300])
@pytest.mark.parametrize("how", ["apart", "shared"])
def test_keras_rows_are_ours_bit_by_bit(how, K, tmp_path):
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", reason="Keras is in none of the extras")
    make = runpy.run_path(str(HOWTO / "keras_layer.py"))["CompressedEmbedding"]
    table = product(how, K)
    layer = make(saved(table, tmp_path))
    for ids in IDS:
        rows = keras.ops.convert_to_numpy(layer(np.asarray(ids)))
        np.testing.assert_array_equal(rows, table.lookup(ids), strict=True)
    inputs = keras.Input((4,), dtype="int32")
    model = keras.Model(inputs, layer(inputs))
    ids = np.arange(48).reshape(12, 4)
    np.testing.assert_array_equal(model.predict(ids, verbose=0), table.lookup(ids))
    for other in ("additive", "ragged"):
        with pytest.raises(ValueError, match="not additive|not equally wide"):
            make(saved(product(other), tmp_path))


# --- faiss, gensim ----------------------------------------------------------------------------------------


def test_the_blocks_of_the_page_run(tmp_path, monkeypatch):
    """Those that the default tests leave out, after the first that they do not."""
    for name in ("faiss", "torch", "gensim"):
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    namespace = runpy.run_path(str(HOWTO / "torch_embedding.py"))
    page = (HOWTO / "frameworks.md").read_text(encoding="utf8")
    made = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    blocks = re.findall(r"```{code-block} python\n(.*?)```", page, re.DOTALL)
    assert made and len(blocks) == 3
    for block in (made[1], *blocks):
        exec(compile(block, "frameworks.md", "exec"), namespace)
    table, ids = namespace["table"], namespace["ids"]
    scores = ((namespace["X"][:5, None] - table.reconstruct()) ** 2).sum(axis=2)
    best = np.sort(scores, axis=1)[:, :10]
    np.testing.assert_allclose(np.take_along_axis(scores, ids, axis=1), best, rtol=1e-4)
    np.testing.assert_array_equal(namespace["rows"].numpy(), table.lookup([[3, 5, 7]]))


@pytest.mark.parametrize("how", ["apart", "additive", "ragged"])
def test_gensim_finds_the_same_neighbours(how, tmp_path):
    models = pytest.importorskip("gensim.models")
    table = product(how, K=300)
    table.words = [f"w{i}" for i in range(table.vocab_size)]
    vectors = models.KeyedVectors(table.dim)
    vectors.add_vectors(table.words, table.reconstruct())
    write_table(tmp_path / "table.bin", table.words, table.reconstruct())
    from_file = models.KeyedVectors.load_word2vec_format(tmp_path / "table.bin", binary=True)
    for word in ("w0", "w7", "w49"):
        ours = table.most_similar(word, 20)
        for theirs in (vectors, from_file):
            found = theirs.most_similar(word, topn=20)
            assert [w for w, _ in found] == [w for w, _ in ours]
            np.testing.assert_allclose([c for _, c in found], [c for _, c in ours], atol=1e-6)
