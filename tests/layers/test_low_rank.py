"""Low rank inside the network: exact at full rank, the tail below it, gradients, blocks."""

from fractions import Fraction

import numpy as np
import pytest

from dpq_ref import Adam, FullEmbedding, RowSparse
from dpq_ref.compressed import BlockTable, load
from dpq_ref.gradcheck import directional
from dpq_ref.layers import BlockEmbedding, Dense, LowRankEmbedding, rank_kept
from dpq_ref.tasks.classify import TextClassifier

SHAPES = [(60, 9), (9, 60), (20, 20), (40, 1), (1, 7), (30, 299)]
IDS = np.array([[3, 3, 0], [7, 3, 8]])


@pytest.fixture(params=["numpy", "numba"])
def backend_name(request):
    return request.param


def table_of(shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def product(layer):
    return layer.params["left"] @ layer.params["right"]


def dense_of(gradient):
    return gradient.to_dense() if isinstance(gradient, RowSparse) else gradient


# --- The start --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_the_error_right_after_replacement_is_the_tail(shape):
    table = table_of(shape)
    values = np.linalg.svd(table, compute_uv=False)
    for rank in range(1, min(shape) + 1):
        layer = LowRankEmbedding.from_table(table, rank)
        assert layer.params["left"].shape == (shape[0], rank)
        assert layer.params["right"].shape == (rank, shape[1])
        error = ((table - product(layer)) ** 2).sum()
        assert abs(error - (values[rank:] ** 2).sum()) < 1e-12 * (values**2).sum()


@pytest.mark.parametrize(
    "table",
    [
        np.ones((8, 5)),
        np.zeros((8, 5)),
        np.outer(np.arange(8.0), np.arange(5.0)),
        np.asfortranarray(table_of((8, 5))),
        table_of((8, 5)).astype(np.float16),
        np.arange(40).reshape(8, 5),
    ],
    ids=["constant", "zero", "rank one", "Fortran", "float16", "integers"],
)
def test_full_rank_gives_degenerate_tables_again(table, backend_name):
    layer = LowRankEmbedding.from_table(table, 5, backend=backend_name)
    np.testing.assert_allclose(layer.forward(np.arange(8)), table, atol=1e-6 * (np.abs(table).max() or 1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_full_rank_leaves_the_logits_as_they_are(dtype):
    full = FullEmbedding(12, 6, dtype=dtype)
    model = TextClassifier(full, 3, hidden=5)
    ids = np.array([[1, 2, 3, 1], [4, 0, 0, 0], [5, 6, 7, 0]])
    for _ in range(3):
        model.forward(ids)  # batch norm has seen something
    other = TextClassifier(LowRankEmbedding.from_table(full.params["table"], 6), 3, hidden=5, rng=9)
    other.load_state(model.state(), without=["embedding"])
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == np.float32 else {"rtol": 1e-10, "atol": 1e-12}
    np.testing.assert_allclose(other.forward(ids, False), model.forward(ids, False), **tolerance)


def test_the_right_factor_can_be_absorbed_by_the_next_layer(rng):
    layer = LowRankEmbedding.from_table(table_of((30, 12)), 4)
    dense = Dense(12, 7, rng=rng, dtype=np.float64)
    short = Dense(4, 7, rng=rng, dtype=np.float64)
    short.params = {
        "weight": layer.params["right"] @ dense.params["weight"],
        "bias": dense.params["bias"],
    }
    ids = rng.integers(0, 30, 50)
    np.testing.assert_allclose(
        short.forward(layer.params["left"][ids]), dense.forward(layer.forward(ids)), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize(
    ("n", "d", "reduction", "rank"),
    [
        (400_000, 300, 0.9, 29),
        (10_000, 200, 0.9, 19),
        (10_000, 1500, 0.9, 130),
        (90, 10, 0.9, 0),  # exactly 0.9
        (900, 100, 0.9, 9),  # exactly 9; 1 - 0.9 in floating point makes 8
        (2, 2, 0, 1),
    ],
)
def test_the_rank_of_a_reduction(n, d, reduction, rank):
    if rank == 0:
        with pytest.raises(ValueError, match="leaves rank 0"):
            rank_kept(n, d, reduction)
    else:
        assert rank_kept(n, d, reduction) == rank == rank_kept(n, d, str(reduction))


def test_the_rank_stays_within_the_budget_and_uses_it(rng):
    for _ in range(500):
        n, d, percent = int(rng.integers(20, 5000)), int(rng.integers(20, 400)), int(rng.integers(0, 90))
        k, kept = rank_kept(n, d, percent / 100), Fraction(100 - percent, 100)
        assert k * (n + d) <= kept * n * d < (k + 1) * (n + d)
        assert k < min(n, d)


@pytest.mark.parametrize("reduction", [1, 1.5, -0.1, float("nan"), float("inf"), "much", None, "1/0"])
def test_a_reduction_out_of_range_is_refused(reduction):
    with pytest.raises(ValueError, match="reduction="):
        rank_kept(100, 50, reduction)


# --- The layer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_are_those_of_the_product(backend_name, dtype):
    layer = LowRankEmbedding(table_of((9, 3), 1, dtype), table_of((3, 5), 2, dtype), backend=backend_name)
    for train in (True, False):
        output = layer.forward(IDS, train)
        assert output.shape == (2, 3, 5) and output.dtype == dtype == layer.dtype
        np.testing.assert_allclose(output, product(layer)[IDS], rtol=1e-5, atol=1e-6)
    assert layer.forward(5).shape == (5,)


def test_gradients(backend_name, rng):
    layer = LowRankEmbedding(table_of((9, 3), 1), table_of((3, 5), 2), backend=backend_name)
    d_output = rng.standard_normal((2, 3, 5))
    before = d_output.copy(), {k: v.copy() for k, v in layer.params.items()}
    layer.forward(IDS)
    layer.backward(d_output)
    np.testing.assert_array_equal(d_output, before[0])
    assert set(layer.grads) == {"left", "right"}
    np.testing.assert_array_equal(layer.grads["left"].rows, [0, 3, 7, 8])
    for name, gradient in layer.grads.items():
        np.testing.assert_array_equal(layer.params[name], before[1][name])

        def loss(x, name=name):
            factors = layer.params | {name: x}
            return float((d_output * (factors["left"] @ factors["right"])[IDS]).sum())

        for _ in range(3):
            assert directional(loss, layer.params[name], dense_of(gradient), rng).error < 1e-9, name


def test_an_empty_batch(backend_name):
    layer = LowRankEmbedding(np.ones((4, 2)), np.ones((2, 3)), backend=backend_name)
    assert layer.forward(np.zeros((0, 7), int)).shape == (0, 7, 3)
    layer.backward(np.zeros((0, 7, 3)))
    assert len(layer.grads["left"].rows) == 0
    np.testing.assert_array_equal(layer.grads["right"], np.zeros((2, 3)))


def test_what_it_returns_is_what_it_exports(backend_name, rng, tmp_path):
    layer = LowRankEmbedding.from_table(table_of((50, 12), 0, np.float32), 5, backend=backend_name)
    optimizer = Adam(layer.params, 0.01, backend=backend_name)
    for _ in range(3):
        output = layer.forward(rng.integers(0, 50, (4, 6)))
        layer.backward(rng.standard_normal(output.shape).astype(np.float32))
        optimizer.step(layer.grads)
    table = layer.export()
    assert sum(table.bits().values()) == 32 * 5 * (50 + 12)
    table.save(tmp_path / "table.safetensors")
    for ids in (np.arange(50), rng.integers(0, 50, (3, 4)), np.array([7])):
        for train in (True, False):
            np.testing.assert_array_equal(layer.forward(ids, train), table.lookup(ids))
    np.testing.assert_array_equal(load(tmp_path / "table.safetensors").reconstruct(), table.reconstruct())
    kept = table.lookup(3).copy()
    layer.params["left"][:] = 0
    np.testing.assert_array_equal(table.lookup(3), kept)


def test_factors_given_are_copied():
    left, right = np.ones((4, 2)), np.ones((2, 3))
    layer = LowRankEmbedding(left, right)
    layer.params["left"][:] = 5
    layer.params["right"][:] = 5
    assert left.max() == right.max() == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LowRankEmbedding(np.ones((4, 2)), np.ones((3, 3))), "do not make a table"),
        (lambda: LowRankEmbedding(np.full((4, 2), np.nan), np.ones((2, 3))), "left has 8"),
        (lambda: LowRankEmbedding(np.ones((4, 2)), np.full((2, 3), np.inf)), "right has 6"),
        (lambda: LowRankEmbedding.from_table(np.ones((4, 3)), 4), "rank=4"),
        (lambda: LowRankEmbedding.from_table(np.ones((4, 3)), 0), "rank=0"),
        (lambda: LowRankEmbedding.from_table(np.full((4, 3), np.nan), 1), "table has 12"),
    ],
)
def test_bad_factors_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_backward_needs_a_forward_and_its_shape():
    layer = LowRankEmbedding(np.ones((4, 2)), np.ones((2, 3)))
    with pytest.raises(RuntimeError, match="forward"):
        layer.backward(np.ones((1, 3)))
    layer.forward([1, 2], train=False)
    with pytest.raises(RuntimeError, match="forward"):
        layer.backward(np.ones((2, 3)))
    layer.forward([1, 2])
    with pytest.raises(ValueError, match="shape"):
        layer.backward(np.ones((3, 3)))
    with pytest.raises(IndexError, match="ids"):
        layer.forward([4])


# --- Blocks -----------------------------------------------------------------------------------------------

BLOCK_OF_WORD = np.array([1, 0, 2, 1, 0, 1, 2, 1, 1])  # 2, 5 and 2 words


def blocks(backend="numpy", dtype=np.float64):
    low = [
        LowRankEmbedding(table_of((n, k), n, dtype), table_of((k, 4), k, dtype), backend=backend)
        for n, k in ((2, 1), (5, 3))
    ]
    return [*low, FullEmbedding(2, 4, dtype=dtype, backend=backend)]


def rows_by_hand(layers):
    """Row of each word, counted off in the order of the vocabulary."""
    seen = [0] * len(layers)
    rows = []
    for block in BLOCK_OF_WORD:
        layer = layers[block]
        whole = layer.params["table"] if isinstance(layer, FullEmbedding) else product(layer)
        rows.append(whole[seen[block]])
        seen[block] += 1
    return np.array(rows)


def test_each_word_has_the_row_of_its_block(backend_name):
    layer = BlockEmbedding(BLOCK_OF_WORD, blocks(backend_name))
    assert (layer.vocab_size, layer.dim, layer.dtype) == (9, 4, np.float64)
    for train in (True, False):
        output = layer.forward(IDS, train)
        np.testing.assert_allclose(output, rows_by_hand(layer.blocks)[IDS], rtol=1e-12)
    # A batch without words of some blocks, and one without any.
    np.testing.assert_allclose(layer.forward([4, 1]), rows_by_hand(layer.blocks)[[4, 1]], rtol=1e-12)
    assert layer.forward(np.zeros((0, 3), int)).shape == (0, 3, 4)


def test_gradients_of_the_blocks(backend_name, rng):
    layer = BlockEmbedding(BLOCK_OF_WORD, blocks(backend_name))
    ids = np.array([[3, 3, 0], [7, 3, 2]])  # no word of block 0
    d_output = rng.standard_normal((2, 3, 4))
    layer.forward(ids)
    layer.backward(d_output)
    assert set(layer.grads) == set(layer.params) == {"0.left", "0.right", "1.left", "1.right", "2.table"}
    assert len(layer.grads["0.left"].rows) == 0 and not layer.grads["0.right"].any()
    for name, gradient in layer.grads.items():
        block, key = name.split(".")
        params = layer.blocks[int(block)].params

        def loss(x, params=params, key=key):
            kept, params[key] = params[key], x
            value = float((d_output * rows_by_hand(layer.blocks)[ids]).sum())
            params[key] = kept
            return value

        assert directional(loss, layer.params[name], dense_of(gradient), rng).error < 1e-9, name


def test_one_optimizer_moves_all_blocks(rng):
    layer = BlockEmbedding(BLOCK_OF_WORD, blocks())
    before = {name: array.copy() for name, array in layer.params.items()}
    layer.forward(np.arange(9))
    layer.backward(rng.standard_normal((9, 4)))
    Adam(layer.params, 0.1, backend="numpy").step(layer.grads)
    for b, block in enumerate(layer.blocks):
        for name, array in block.params.items():
            assert np.abs(array - before[f"{b}.{name}"]).min() > 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blocks_return_what_they_export_and_start_again_from_it(backend_name, dtype, rng, tmp_path):
    layer = BlockEmbedding(BLOCK_OF_WORD, blocks(backend_name, dtype))
    table = layer.export()
    size = np.dtype(dtype).itemsize * 8
    assert table.bits() == {"factors": size * (2 * 1 + 1 * 4 + 5 * 3 + 3 * 4 + 2 * 4), "blocks": 9 * 2}
    for ids in (np.arange(9), IDS, np.array([2])):
        np.testing.assert_array_equal(layer.forward(ids, False), table.lookup(ids))
    table.save(tmp_path / "table.safetensors")
    again = BlockEmbedding.from_table(load(tmp_path / "table.safetensors"), backend=backend_name)
    assert [type(block) for block in again.blocks] == [type(block) for block in layer.blocks]
    for name, array in layer.params.items():
        np.testing.assert_array_equal(again.params[name], array)
    layer.forward(IDS)
    layer.backward(rng.standard_normal((2, 3, 4)).astype(dtype))
    Adam(layer.params, 0.1, backend=backend_name).step(layer.grads)
    np.testing.assert_array_equal(layer.forward(IDS), layer.export().lookup(IDS))
    np.testing.assert_array_equal(table.lookup(IDS), again.forward(IDS))


def test_codes_of_factors_become_numbers():
    left, right = np.array([[0], [3], [1]]), np.array([[0, 3, 2, 1]])
    table = BlockTable.from_factors([0, 0, 0], [left], [right], np.float32([[2.0, 0.5]]), n_bits=2)
    layer = BlockEmbedding.from_table(table)
    np.testing.assert_array_equal(layer.forward([0, 1, 2]), table.reconstruct())
    assert layer.dtype == np.float32


def test_one_block_is_its_layer(rng):
    alone = blocks()[1]
    layer = BlockEmbedding(np.zeros(5, int), [alone])
    ids, d_output = rng.integers(0, 5, (3, 4)), rng.standard_normal((3, 4, 4))
    output = layer.forward(ids)
    layer.backward(d_output)
    through = layer.grads
    np.testing.assert_array_equal(output, alone.forward(ids))
    alone.backward(d_output)
    for name, gradient in alone.grads.items():
        np.testing.assert_allclose(dense_of(through[f"0.{name}"]), dense_of(gradient), rtol=1e-12)


@pytest.mark.parametrize(
    ("block_of_word", "layers", "error", "message"),
    [
        ([0, 1, 1], blocks()[:2], ValueError, r"blocks\[0\] has 2 rows .* takes 1 rows"),
        ([0, 0, 2], blocks()[:2], IndexError, "block_of_word"),
        ([0.0, 0.0], blocks()[:1], TypeError, "block_of_word"),
        ([[0, 0]], blocks()[:1], ValueError, "block_of_word"),
        ([], blocks()[:1], ValueError, "block_of_word"),
        ([0], [], IndexError, "block_of_word"),
        ([0, 0, 1, 1], [blocks()[0], FullEmbedding(2, 5, dtype=np.float64)], ValueError, r"blocks\[1\]"),
        ([0, 0, 1, 1], [blocks()[0], FullEmbedding(2, 4)], ValueError, r"blocks\[1\]"),
        ([0, 0, 1, 1], [blocks()[0], blocks("numba")[0]], ValueError, "kernels"),
    ],
)
def test_bad_blocks_are_refused_by_name(block_of_word, layers, error, message):
    with pytest.raises(error, match=message):
        BlockEmbedding(block_of_word, layers)
