"""The contract of the kernel sets: each primitive of `reference`, and what "equal" means for it."""

import inspect
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from dpq_ref import backend
from dpq_ref.kernels import cpu, reference

HOST = Path(__file__).parent / "host"
gpu = runpy.run_path(str(HOST / "cupy_on_host.py"))["kernel_set"]()
device = runpy.run_path(str(HOST / "numpy_on_device.py"))["OnDevice"]("dpq_ref.kernels.gpu-on-device")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="the kernels for a GPU need g++ here")
KERNEL_SETS = [cpu, pytest.param(gpu, marks=needs_compiler), pytest.param(device, marks=pytest.mark.gpu)]
DTYPES = [np.float32, np.float64]
SMOOTH = {np.dtype(np.float32): 2e-6, np.dtype(np.float64): 1e-12}
ON_DEVICE = 5  # times as far off may be what a GPU computes
BITWISE, CLOSE = "bitwise", "close"

D, K, S, N = 5, 11, 3, 17  # no multiples of a vector


@dataclass
class Row:
    """One primitive: what equal means, and its arguments for a batch of b rows."""

    equal: str
    arguments: Callable[..., tuple]
    nan: tuple[int, ...] = ()  # the arguments that may hold NaN
    chain: int = 1  # of so many smooth maps, each with its own rounding


class Draw:
    """Random arguments; ids and codes repeat, and values tie because they lie on a coarse grid when asked."""

    def __init__(self, dtype, b, n_groups=D, seed=0, grid=False):
        self.dtype, self.b, self.D, self.grid = dtype, b, n_groups, grid
        self.rng = np.random.default_rng(seed)

    def real(self, *shape):
        x = self.rng.standard_normal(shape)
        return (np.round(x) if self.grid else x).astype(self.dtype)

    def positive(self, *shape):
        return np.abs(self.real(*shape)) + self.dtype(0.1)

    def below(self, stop, *shape):
        return self.rng.integers(0, stop, shape)

    def counts(self):
        return self.below(4, self.b).astype(self.dtype)

    def book(self):
        return self.real(self.D, K, S)

    def query(self):
        return self.real(self.b, self.D, S)

    def responses(self):
        return self.real(self.b, self.D, K)

    def words(self, *shape):
        return self.rng.integers(0, 1 << 64, (*shape, 3), np.uint64)

    def codes(self):
        return self.below(K, self.b, self.D).astype(np.int32)


def packed(d: Draw) -> tuple:
    stream = reference.pack_codes(d.below(8, N, d.D), 3)
    return stream, 3, d.below(N, d.b), d.D


def levels(d: Draw) -> tuple:
    stream = reference.pack_codes(d.below(256, N, d.D), 8)
    return stream, 8, d.real(256), d.below(N, d.b), d.D


def packed_rows(d: Draw) -> tuple:
    """Codes of 4 bits, K = 11 of the 16; groups that the stream's last bytes hold; 3 values to a group."""
    stream = reference.pack_codes(d.below(K, N, d.D), 4)
    return stream, 4, d.below(N, d.b), d.D, d.book()


def packed_terms(d: Draw) -> tuple:
    return *packed_rows(d)[:4], d.real(5, d.D, K)


def lengths() -> np.ndarray:
    return np.array([3, 0, 1, 5, 3, 5, 4])  # code 1 never comes


def some_codes(d: Draw) -> np.ndarray:
    return np.array([0, 2, 3, 4, 5, 6])[d.below(6, d.b)]


# Copies, integers and choices are bitwise; so is whatever adds in a stated order. The rest is smooth.
CONTRACT = {
    # copies and integers
    "check_range": Row(BITWISE, lambda d: ("ids", d.below(N, d.b), N)),
    "scalar_like": Row(BITWISE, lambda d: (d.real(1), 0.1)),
    "distinct": Row(BITWISE, lambda d: (d.below(N, d.b),)),
    "gather": Row(BITWISE, lambda d: (d.real(N, 7), d.below(N, d.b)), nan=(0,)),
    "decode": Row(BITWISE, lambda d: (d.codes(), d.book()), nan=(1,)),
    "pack_codes": Row(BITWISE, lambda d: (d.codes(), 5)),
    "unpack_codes": Row(BITWISE, packed),
    "unpack_levels": Row(BITWISE, levels),
    "decode_packed": Row(BITWISE, packed_rows, nan=(4,)),
    "sum_packed": Row(BITWISE, packed_terms, nan=(4,)),
    "canonical_code": Row(BITWISE, lambda d: (lengths(),)),
    "pack_prefix": Row(BITWISE, lambda d: (some_codes(d), lengths())),
    "unpack_prefix": Row(
        BITWISE, lambda d: (reference.pack_prefix(some_codes(d), lengths()), lengths(), d.b)
    ),
    "hamming": Row(BITWISE, lambda d: (d.words(d.b), d.words(9))),
    "hamming_nearest": Row(BITWISE, lambda d: (d.words(d.b), d.words(700), 9)),
    # choices
    "argmax_code": Row(BITWISE, lambda d: (d.responses(),), nan=(0,)),
    "code_distances": Row(BITWISE, lambda d: (d.query(), d.book(), d.codes()), nan=(0, 1)),
    "nearest_code": Row(BITWISE, lambda d: (d.query(), d.book()), nan=(0, 1)),
    "beam_step": Row(
        BITWISE,
        lambda d: (d.below(K, d.b, 3, d.D), d.real(d.b, 3), d.real(d.b, K), d.real(d.D, K, K), 4),
    ),
    "conditional_modes": Row(BITWISE, lambda d: (d.codes(), d.responses(), d.real(d.D, K, d.D, K), 2)),
    # smooth maps
    "combine": Row(BITWISE, lambda d: (d.real(d.b, 6), d.real(6, 7)), nan=(0, 1)),
    "dot_responses": Row(BITWISE, lambda d: (d.query(), d.book()), nan=(0, 1)),
    "dot_responses_backward": Row(CLOSE, lambda d: (d.responses(), d.query(), d.book()), nan=(0, 1, 2)),
    "euclidean_responses": Row(BITWISE, lambda d: (d.query(), d.book()), nan=(0, 1)),
    "batch_norm": Row(CLOSE, lambda d: (d.responses(), d.counts(), 1e-3), nan=(0,)),
    "batch_norm_backward": Row(
        CLOSE, lambda d: (d.responses(), d.responses(), d.positive(K), d.counts(), 1e-3), nan=(0, 1, 2)
    ),
    "batch_norm_apply": Row(
        BITWISE, lambda d: (d.responses(), d.real(K), d.positive(K), 1e-3), nan=(0, 1, 2)
    ),
    "column_norm": Row(CLOSE, lambda d: (d.real(d.b, 37), d.real(37), d.real(37), 1e-3, 0.0), nan=(0, 1, 2)),
    "column_norm_backward": Row(
        CLOSE,
        lambda d: (*(d.real(d.b, 37) for _ in range(3)), d.real(37), d.positive(37), d.real(37), 1e-3, 0.0),
        nan=(0, 1, 2, 3, 4, 5),
    ),
    "column_norm_apply": Row(
        CLOSE,
        lambda d: (d.real(d.b, 37), d.real(37), d.positive(37), d.real(37), d.real(37), 1e-3, 0.0),
        nan=(0, 1, 2, 3, 4),
    ),
    "softmax": Row(CLOSE, lambda d: (d.responses(), 0.7), nan=(0,)),
    "softmax_backward": Row(CLOSE, lambda d: (d.responses(), d.positive(d.b, d.D, K), 0.7), nan=(0, 1)),
    "mean_pool": Row(CLOSE, lambda d: (d.real(N, 7), d.below(N, d.b, 6), d.real(d.b, 6) > 0), nan=(0,)),
    "mean_pool_backward": Row(
        CLOSE, lambda d: (d.real(d.b, 150), d.below(N, d.b, 6), d.real(d.b, 6) > 0, N), nan=(0,)
    ),
    "adam": Row(
        CLOSE,
        lambda d: (*(d.real(d.b, 7) for _ in range(3)), d.positive(d.b, 7), 3, 1e-2, 0.9, 0.99, 1e-8),
        nan=(0, 1, 2, 3),
    ),
    "lstm_cell": Row(CLOSE, lambda d: (d.real(d.b, 12), d.real(d.b, 3)), nan=(0, 1)),
    "lstm_cell_backward": Row(
        CLOSE,
        lambda d: (d.real(d.b, 3), d.real(d.b, 3), d.positive(d.b, 12), d.real(d.b, 3), d.real(d.b, 3)),
        nan=(0, 1, 2, 3, 4),
    ),
    "lstm": Row(
        CLOSE,
        lambda d: (d.real(4, d.b, 12), d.real(3, 12), d.real(d.b, 3), d.real(d.b, 3), d.real(4, d.b) > -1),
        nan=(0, 2, 3),
        chain=3,
    ),
    "lstm_backward": Row(
        CLOSE,
        lambda d: (
            *(d.real(4, d.b, 3), d.real(d.b, 3), d.real(d.b, 3), d.positive(4, d.b, 12)),
            *(d.real(5, d.b, 3), d.real(3, 12), d.real(4, d.b) > -1),
        ),
        nan=(0, 1, 2),
        chain=3,
    ),
    "cross_entropy": Row(
        CLOSE, lambda d: (d.real(d.b, 67), d.below(67, d.b), d.positive(d.b), 0.1), nan=(0, 2)
    ),
    "sx_statistics": Row(CLOSE, lambda d: (d.query(), d.book(), d.counts()), nan=(0, 1)),
    "sx_codes": Row(
        BITWISE,
        lambda d: (d.query(), d.book(), (d.real(K), d.positive(K)), 1e-3, d.responses()),
        nan=(0, 1, 4),
    ),
    "sx_backward": Row(
        CLOSE,
        lambda d: (
            *(d.query(), d.query(), d.book(), d.book(), d.counts()),
            *((d.real(K), d.positive(K)), 1e-3, 0.7, d.responses()),
        ),
        nan=(0, 1, 2, 3, 8),
        chain=6,
    ),
    "vq_statistics": Row(CLOSE, lambda d: (d.query(), d.book(), d.counts()), nan=(0, 1)),
    "vq_codes": Row(BITWISE, lambda d: (d.query(), d.book(), (d.real(K), d.positive(K)), 1e-3), nan=(0, 1)),
    "multiply": Row(CLOSE, lambda d: (d.real(d.b, 6), d.real(6, 7)), nan=(0, 1)),
    "sides": Row(BITWISE, lambda d: (d.real(d.b, 6), d.real(6, 70)), nan=(0, 1)),
    # sums over rows
    "cross": Row(CLOSE, lambda d: (d.real(d.b, 6), d.real(d.b, 7), d.counts())),
    "sign_products": Row(CLOSE, lambda d: (d.real(d.b, 6), d.real(6, 6), d.counts())),
    # sums over ids
    "scatter_add": Row(BITWISE, lambda d: (d.below(N, d.b), d.real(d.b, 150), N), nan=(1,)),
    "sum_by_code": Row(BITWISE, lambda d: (d.codes(), d.query(), K), nan=(1,)),
    "squared_norm": Row(CLOSE, lambda d: (d.real(d.b, 7),), nan=(0,)),
    "codebook_errors": Row(
        CLOSE, lambda d: (d.query(), d.book(), d.codes(), d.counts()), nan=(0, 1), chain=2
    ),
    "point_tiles": Row(BITWISE, lambda d: (d.real(d.b + 1, d.D, S),), nan=(0,)),
    "kmeans_sums": Row(CLOSE, lambda d: (d.real(d.b + 1, d.D, S), d.book(), d.positive(d.b + 1))),
    "plus_plus": Row(
        BITWISE, lambda d: (d.real(d.b + 1, d.D, S), d.positive(d.b + 1), d.rng.random((d.D, K, 3)))
    ),
    "count_codes": Row(BITWISE, lambda d: (d.codes(), d.counts(), K), nan=(1,)),
}


COPIES = ("gather", "decode", "decode_packed", "unpack_levels")  # the same bits on any device
DOUBLE = (
    "kmeans_sums",
    "cross",
    "sign_products",
    "squared_norm",
)  # whose sums are not rounded to the dtype of the rows


def functions(module) -> dict[str, Any]:
    """Public functions of a kernel set, whether defined there or taken over."""
    return {name: f for name, f in vars(module).items() if inspect.isfunction(f) and name[0] != "_"}


def as_tuple(result) -> tuple:
    return result if isinstance(result, tuple) else (result,)


def assert_equal(equal, actual, expected, chain=1, real=None):
    """Same types, shapes and NaN; bitwise, or within the tolerance relative to the largest magnitude."""
    actual, expected = as_tuple(actual), as_tuple(expected)
    assert len(actual) == len(expected)
    for x, y in zip(actual, expected, strict=True):
        if y is None:
            assert x is None
            continue
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        if equal == BITWISE or y.dtype.kind in "iu":
            np.testing.assert_array_equal(x, y)
        else:
            largest = np.max(np.abs(y), where=np.isfinite(y), initial=0)
            np.testing.assert_allclose(x, y, rtol=0, atol=chain * SMOOTH[real or y.dtype] * largest)


def check(module, name, arguments):
    """Equal to the reference, with the inputs as they were."""
    before = map_arrays(np.copy, arguments)
    expected = getattr(reference, name)(*before)
    actual = getattr(module, name)(*arguments)
    real = arguments[0].dtype if name in DOUBLE else None
    equal, chain = CONTRACT[name].equal, CONTRACT[name].chain
    if module is device and name not in COPIES:
        equal, chain = CLOSE, ON_DEVICE * chain
    assert_equal(equal, actual, expected, chain, real)
    for a, old in zip(arguments, before, strict=True):
        np.testing.assert_array_equal(a, old)
    for x in as_tuple(actual):
        assert not any(np.may_share_memory(x, a) for a in arguments if isinstance(x, np.ndarray))


def map_arrays(change, arguments) -> tuple:
    changed = (map_arrays(change, a) if isinstance(a, tuple) else a for a in arguments)
    return tuple(change(a) if isinstance(a, np.ndarray) else a for a in changed)


def strided(array):
    """The same numbers as every other entry of a larger array, along each axis, backwards along the first."""
    wide = np.full([2 * n for n in array.shape], 77, array.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in array.shape)][::-1]
    view[...] = array
    return view


def frozen(array):
    array = array.copy()
    array.flags.writeable = False
    return array


LAYOUTS = {"C": np.ascontiguousarray, "Fortran": np.asfortranarray, "strided": strided, "read-only": frozen}

each_set = pytest.mark.parametrize("module", KERNEL_SETS, ids=lambda m: m.__name__.rpartition(".")[2])
each_primitive = pytest.mark.parametrize("name", CONTRACT)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)


def test_contract_is_complete():
    assert set(CONTRACT) == set(functions(reference))


@each_set
def test_same_names_and_signatures(module):
    assert hasattr(module, "xp")
    ours, theirs = functions(module), functions(reference)
    ours.pop("njit", None)
    assert set(ours) == set(theirs)
    for name, function in theirs.items():
        assert inspect.signature(ours[name]) == inspect.signature(function), name


@each_set
@each_primitive
@each_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(module, name, dtype, layout):
    arguments = CONTRACT[name].arguments(Draw(dtype, 70))
    check(module, name, map_arrays(LAYOUTS[layout], arguments))


@each_primitive
def test_one_specialisation_per_dtype(name):
    """Whatever the layout, read-only or not: each compiled kernel knows float32 and float64, no more."""
    for dtype in DTYPES:
        for change in LAYOUTS.values():
            getattr(cpu, name)(*map_arrays(change, CONTRACT[name].arguments(Draw(dtype, 5))))
    home = inspect.getmodule(inspect.unwrap(getattr(cpu, name)))
    kernel = getattr(home, "_" + name, None)
    assert kernel is None or len(kernel.signatures) <= 2


@pytest.mark.parametrize("module", [reference, *KERNEL_SETS])
@each_primitive
@each_dtype
def test_dtype_is_kept(module, name, dtype):
    real = np.float64 if name in DOUBLE else dtype
    for x in as_tuple(getattr(module, name)(*CONTRACT[name].arguments(Draw(dtype, 5)))):
        assert not isinstance(x, np.ndarray) or x.dtype.kind != "f" or x.dtype == real


@each_set
@each_primitive
@each_dtype
@pytest.mark.parametrize("b", [0, 1, 2, 64, 65, 131])
def test_batch_sizes(module, name, dtype, b):
    check(module, name, CONTRACT[name].arguments(Draw(dtype, b, seed=b)))


@each_set
@each_primitive
@each_dtype
def test_ties_and_repeats(module, name, dtype):
    """Rounded inputs: keys, distances and responses that tie in nearly every row."""
    if name == "plus_plus" and module in (gpu, device):
        pytest.skip("of sums over rows that tie, which is the least depends on the order of the sum")
    check(module, name, CONTRACT[name].arguments(Draw(dtype, 40, grid=True)))


@each_set
@each_dtype
@pytest.mark.parametrize("name", [name for name, row in CONTRACT.items() if row.nan])
def test_nan(module, name, dtype):
    """NaN in a tenth of one input after the other: the same entries become NaN, the same codes are chosen."""
    for place in CONTRACT[name].nan:
        d = Draw(dtype, 40, seed=place)
        arguments = CONTRACT[name].arguments(d)
        arguments[place][d.rng.random(arguments[place].shape) < 0.1] = np.nan
        with np.errstate(invalid="ignore"):
            check(module, name, arguments)


@each_set
@each_dtype
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinity(module, dtype, value):
    """Logits of minus infinity have probability 0; distances to keys at infinity are never the smallest."""
    d = Draw(dtype, 30)
    responses, book = d.responses(), d.book()
    responses[d.rng.random(responses.shape) < 0.2] = value
    book[:, ::2, 0] = value
    with np.errstate(invalid="ignore"):
        check(module, "softmax", (responses, 0.7))
        check(module, "argmax_code", (responses,))
        check(module, "argmax_code", (np.full_like(responses, value),))
        check(module, "nearest_code", (d.query(), book))


@each_primitive
@each_dtype
def test_threads(name, dtype):
    """1, 2 and 4 threads: the same bits, with more blocks of rows and of groups than threads."""
    arguments = CONTRACT[name].arguments(Draw(dtype, 700, n_groups=37))
    results = []
    before = numba.get_num_threads()
    try:
        for n in (1, 2, 4):
            numba.set_num_threads(n)
            results.append(as_tuple(getattr(cpu, name)(*arguments)))
    finally:
        numba.set_num_threads(before)
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            assert x is None or x.tobytes() == y.tobytes()


@each_set
@each_dtype
@pytest.mark.parametrize(
    "name", ["dot_responses", "dot_responses_backward", "euclidean_responses", "nearest_code", "decode"]
)
def test_shared_codebook(module, name, dtype):
    *others, book = CONTRACT[name].arguments(Draw(dtype, 70))
    check(module, name, (*others, book[:1]))


@each_set
@each_dtype
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("b", [5, 300])
def test_sx_and_vq(module, dtype, shared, normalised, noisy, b):
    """With and without what is optional; values wider than queries."""
    d = Draw(dtype, b)
    query, keys, values, d_picked = d.query(), d.book(), d.real(D, K, 6), d.real(b, D, 6)
    if shared:
        keys, values = keys[:1], values[:1]
    counts, noise = d.counts(), d.responses() if noisy else None
    check(module, "sx_statistics", (query, keys, counts))
    statistics = reference.sx_statistics(query, keys, counts) if normalised else None
    check(module, "sx_codes", (query, keys, statistics, 1e-3, noise))
    check(module, "sx_backward", (d_picked, query, keys, values, counts, statistics, 1e-3, 0.7, noise))
    check(module, "vq_statistics", (query, keys, counts))
    if statistics:
        check(module, "vq_codes", (query, keys, statistics, 1e-3))


@each_set
@each_dtype
@pytest.mark.parametrize("n_codes", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("b", [0, 1, 33, 200])
def test_codes_of_few_keys_with_ties_and_nan(module, dtype, n_codes, b):
    """Fewer keys than are taken at a time, or not a multiple; tiles of every width."""
    d = Draw(dtype, b)
    query, keys = d.query(), d.book()[:, :n_codes]
    statistics = d.real(n_codes), d.positive(n_codes)
    for array in (keys.swapaxes(0, 1), *statistics):
        array[-1] = array[0]
    query[::9] = np.nan
    keys[0, -1] = np.nan
    with np.errstate(invalid="ignore"):
        for name in ("sx_codes", "vq_codes"):
            check(module, name, (query, keys, statistics, 1e-3))


@each_set
@pytest.mark.parametrize("offset", [0, 1e3])
def test_statistics_far_from_the_origin_lose_no_digits(module, offset):
    """In float32, against all in float64: the variance is a millionth of the square of the mean."""
    d = Draw(np.float32, 400)
    query, keys, counts = (d.query() + offset).astype(np.float32), abs(d.book()), d.counts()
    for name, book in (("sx_statistics", keys), ("vq_statistics", keys + np.float32(offset))):
        expected = getattr(reference, name)(*(x.astype(np.float64) for x in (query, book, counts)))
        deviation = np.sqrt(expected[1].max())
        for actual, exact in zip(getattr(module, name)(query, book, counts), expected, strict=True):
            np.testing.assert_allclose(actual, exact, rtol=2e-6, atol=1e-6 * deviation)


@pytest.mark.parametrize("module", [reference, *KERNEL_SETS])
@pytest.mark.parametrize("b", [2, 1000])
def test_column_norm_far_from_the_origin_loses_no_digits(module, b):
    """In float32, spread 0.01 at 1000: E[x^2] - E[x]^2 would lose every digit of the variance."""
    d = Draw(np.float32, b)
    x, ones = (1000 + d.real(b, 70) / 100).astype(np.float32), np.ones(70, np.float32)
    _, mean, variance = module.column_norm(x, ones, ones, 1e-3, -np.inf)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(axis=0), rtol=1e-7)
    np.testing.assert_allclose(variance, exact.var(axis=0), rtol=1e-6)


@each_set
@each_dtype
def test_softmax_over_its_whole_range(module, dtype):
    """Differences from 0 to beyond the smallest number: every entry by its own size."""
    logits = -np.linspace(0, 800, 4001).astype(dtype).reshape(1, 1, -1)
    actual = module.softmax(logits, 1.0)
    expected = reference.softmax(logits, 1.0)
    normal = expected > np.finfo(dtype).tiny * 1e3
    np.testing.assert_allclose(actual[normal], expected[normal], rtol=2e-6 if dtype == np.float32 else 1e-12)
    np.testing.assert_allclose(actual[~normal], 0, atol=np.finfo(dtype).tiny * 1e3)


@pytest.mark.parametrize("module", [reference, *KERNEL_SETS])
@each_dtype
@pytest.mark.parametrize("responses", ["dot_responses", "euclidean_responses"])
def test_responses_do_not_depend_on_the_batch(module, dtype, responses):
    """A row gets the same bits in any order, alone, and in batches of 2 and 7; so a code is a code."""
    d = Draw(dtype, 70)
    query, book = d.query(), d.book()
    function = getattr(module, responses)
    whole = function(query, book)
    order = d.rng.permutation(70)
    np.testing.assert_array_equal(function(query[order], book), whole[order])
    for size in (1, 2, 7):
        parts = [function(query[i : i + size], book) for i in range(0, 70, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    codes = module.nearest_code(query, book)
    for i in range(70):
        np.testing.assert_array_equal(module.nearest_code(query[i : i + 1], book)[0], codes[i])


@pytest.mark.parametrize("module", [reference, *KERNEL_SETS])
@pytest.mark.parametrize("integer", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
def test_any_integer_type(module, integer):
    d = Draw(np.float32, 20)
    codes, ids = d.codes().astype(integer), d.below(N, 20).astype(integer)
    table, query, book = d.real(N, 7), d.query(), d.book()
    stream = reference.pack_codes(d.below(8, N, D), 3)
    np.testing.assert_array_equal(module.gather(table, ids), table[ids.astype(int)])
    np.testing.assert_array_equal(module.decode(codes, book), reference.decode(d_int(codes), book))
    np.testing.assert_array_equal(
        module.sum_by_code(codes, query, K), reference.sum_by_code(d_int(codes), query, K)
    )
    np.testing.assert_array_equal(module.pack_codes(codes, 4), reference.pack_codes(d_int(codes), 4))
    np.testing.assert_array_equal(
        module.unpack_codes(stream, 3, ids, D), reference.unpack_codes(stream, 3, d_int(ids), D)
    )
    counts = module.count_codes(codes, np.arange(20), K)
    assert counts.dtype == np.int64 and counts.sum() == D * 190


@pytest.mark.parametrize("n_bits", range(1, 17))
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 16, 31])
def test_codes_are_packed_in_parts(n, n_bits, monkeypatch):
    monkeypatch.setattr("dpq_ref.kernels.packed.PACKED", 8)
    codes = Draw(np.float32, 20).below(1 << n_bits, n, 1)
    np.testing.assert_array_equal(cpu.pack_codes(codes, n_bits), reference.pack_codes(codes, n_bits))


def d_int(array):
    return array.astype(np.int64)


@pytest.mark.parametrize("module", [reference, *KERNEL_SETS])
@each_dtype
def test_integer_counts_keep_the_dtype(module, dtype):
    """The counts of `distinct` are integers; float32 responses stay float32."""
    d = Draw(dtype, 20)
    counts = d.below(4, 20)
    normalized, _, variance = module.batch_norm(d.responses(), counts, 1e-3)
    assert normalized.dtype == variance.dtype == dtype
    assert module.batch_norm_backward(d.responses(), normalized, variance, counts, 1e-3).dtype == dtype


@pytest.mark.parametrize("module", [reference, *KERNEL_SETS])
@pytest.mark.parametrize("bad", [-1, 4])
def test_indices_out_of_range(module, bad):
    x, ids, codes = np.zeros((4, 3)), np.array([0, bad, 1]), np.array([[0], [bad], [1]])
    calls: list[Callable[[], Any]] = [
        lambda: module.check_range("ids", ids, 4),
        lambda: module.gather(x, ids),
        lambda: module.scatter_add(ids, x[:3], 4),
        lambda: module.mean_pool(x, codes, codes > 0),
        lambda: module.mean_pool_backward(x[:3], codes, codes > 0, 4),
        lambda: module.adam(x, x[:3], x, x, 1, 0.1, 0.9, 0.99, 1e-8, rows=ids),
        lambda: module.decode(codes, x[None]),
        lambda: module.sum_by_code(codes, x[:3, None], 4),
        lambda: module.codebook_errors(x[:3, None], x[None], codes, np.ones(3)),
        lambda: module.count_codes(codes, np.ones(3), 4),
        lambda: module.pack_codes(codes, 2),
        lambda: module.unpack_codes(np.zeros(1, np.uint8), 2, ids, 1),
        lambda: module.decode_packed(np.zeros(1, np.uint8), 2, ids, 1, x[None]),
        lambda: module.sum_packed(np.zeros(1, np.uint8), 2, ids, 1, x[:, None]),
        lambda: module.pack_prefix(codes[:, 0], np.full(4, 2)),
    ]
    for call in calls:
        with pytest.raises(IndexError, match=rf"must lie in \[0, 4\), got {bad}"):
            call()


def wrong_one_by_one(arrays):
    """Arguments of which one array is too short."""
    for i in range(1, len(arrays)):
        yield [array[:-1] if i == k else array for k, array in enumerate(arrays)]


@each_set
def test_shapes_are_checked(module):
    """Loops without bounds checks must not be reached by arrays that do not fit."""
    d = Draw(np.float32, 6)
    r, q, book, counts = d.responses(), d.query(), d.book(), d.counts()
    codes, ids, mask = d.codes(), d.below(N, 6), d.real(6, 4) > 0
    r2 = r[:, 0]
    k, stream = np.abs(r[0, 0]), packed_rows(d)[0]
    calls: list[Callable[[], Any]] = [
        lambda: module.gather(r[:, 0], codes[:, :2] % 6),
        lambda: module.scatter_add(ids[:5], r[:, 0], N),
        lambda: module.codebook_errors(q, book[:2], codes, counts),
        lambda: module.codebook_errors(q, book, codes[:, :2], counts),
        lambda: module.codebook_errors(q, book, codes, counts[:5]),
        lambda: module.nearest_code(q, book[:2]),
        lambda: module.code_distances(q, book[:2], codes),
        lambda: module.code_distances(q, book, codes[:5]),
        lambda: module.kmeans_sums(q, book[:2], counts),
        lambda: module.kmeans_sums(q, book[:1], counts),
        lambda: module.kmeans_sums(q, book, counts[:5]),
        lambda: module.plus_plus(q, counts[:5], r[:D, :, :2]),
        lambda: module.plus_plus(q, counts, r[:2, :, :2]),
        *(
            partial(statistics_of, q, *arguments)
            for statistics_of in (module.sx_statistics, module.vq_statistics)
            for arguments in ((book[:2], counts), (book[:, :, :2], counts), (book[:, :0], counts))
        ),
        lambda: module.sx_statistics(q, book, counts[:5]),
        lambda: module.vq_statistics(q, book, counts[:5]),
        *(
            partial(codes_of, q, *arguments, 1e-3)
            for codes_of in (module.sx_codes, module.vq_codes)
            for arguments in (
                (book[:2], (k, k)),
                (book[:, :, :2], (k, k)),
                (book[:, :0], (k[:0], k[:0])),
                (book, (k[:1], k)),
                (book, (k, k[:1])),
            )
        ),
        lambda: module.sx_codes(q, book, (k, k), 1e-3, r[:5]),
        lambda: module.sx_backward(q[:5], q, book, book, counts, (k, k), 1e-3, 1.0),
        lambda: module.sx_backward(q[:, :2], q, book, book, counts, (k, k), 1e-3, 1.0),
        lambda: module.sx_backward(q, q, book[:2], book, counts, (k, k), 1e-3, 1.0),
        lambda: module.sx_backward(q, q, book, book[:, :, :2], counts, (k, k), 1e-3, 1.0),
        lambda: module.sx_backward(q, q, book, book[:, :2], counts, (k, k), 1e-3, 1.0),
        lambda: module.sx_backward(q, q, book, book, counts[:5], (k, k), 1e-3, 1.0),
        lambda: module.sx_backward(q, q, book, book, counts, (k[:1], k), 1e-3, 1.0),
        lambda: module.sx_backward(q, q, book, book, counts, (k, k), 1e-3, 1.0, r[:5]),
        lambda: module.softmax_backward(r[:5], r, 1.0),
        lambda: module.decode(codes, book[:2]),
        lambda: module.decode_packed(stream, 4, ids, D, book[:2]),
        lambda: module.decode_packed(stream, 4, ids, D, book, out=np.empty((6, D * S + 1), np.float32)),
        lambda: module.decode_packed(stream, 4, ids[:, None], D, book),
        lambda: module.sum_packed(stream, 4, ids, D, book[:2]),
        lambda: module.sum_packed(stream, 4, ids[:, None], D, book),
        lambda: module.beam_step(codes[:, None], r[:5, :1, 0], r[:, 0], r, 2),
        lambda: module.beam_step(codes[:, None], r[:, :1, 0], r[:, 0], r, 2),
        lambda: module.beam_step(codes[:, None], r[:, :1, 0], r[:5, 0], r, 2),
        lambda: module.conditional_modes(codes, r[:5], r, 1),
        lambda: module.conditional_modes(codes, r, r, 1),
        lambda: module.sum_by_code(codes[:5], q, K),
        lambda: module.count_codes(codes, counts[:5], K),
        lambda: module.unpack_levels(np.zeros(9, np.uint8), 8, counts, ids % 3, 3),
        lambda: module.multiply(r[0], r[0]),
        lambda: module.cross(r[0], r[:4, 0], r[0, :, 0]),
        lambda: module.cross(r[0], r[0], r[0, :4, 0]),
        lambda: module.sign_products(r[0], r[0], r[0, :, 0]),
        lambda: module.sign_products(r[0], r[0].T, r[0, :4, 0]),
        lambda: module.sign_products(r[0], r[0].T, r[0, :, 0], np.zeros((2, 2), bool)),
        lambda: module.sides(r[0], r[0]),
        *(partial(module.lstm, *arrays) for arrays in wrong_one_by_one(CONTRACT["lstm"].arguments(d))),
        *(
            partial(module.lstm_backward, *arrays)
            for arrays in wrong_one_by_one(CONTRACT["lstm_backward"].arguments(d))
        ),
        lambda: module.mean_pool(q[:, 0], codes[:, :3] % 6, mask),
        lambda: module.mean_pool_backward(q[:5, 0], codes[:, :4], mask, K),
        lambda: module.mean_pool_backward(q[:, 0], codes[:, :3], mask, K),
        lambda: module.adam(r2, r2, r2, r2[:5], 1, 0.1, 0.9, 0.99, 1e-8),
        lambda: module.adam(r2, r2, r2, r2, 1, 0.1, 0.9, 0.99, 1e-8, rows=ids[:2] % 6),
        lambda: module.adam(r2, r2, r2, r2, 1, 0.1, 0.9, 0.99, 1e-8, out=(r2, r2, r2[:5])),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="must have shape"):
            call()


@each_set
@each_dtype
def test_the_largest_packed_numbers(module, dtype):
    for n_bits in range(1, 17):
        codes = np.random.default_rng(n_bits).integers(0, 1 << n_bits, (9, 7))
        codes[0] = (1 << n_bits) - 1
        check(module, "pack_codes", (codes, n_bits))
        stream = reference.pack_codes(codes, n_bits)
        check(module, "unpack_codes", (stream, n_bits, np.array([8, 0, 3, 3]), 7))
        levels = np.arange(1 << n_bits).astype(dtype)
        check(module, "unpack_levels", (stream, n_bits, levels, np.array([8, 0, 3, 3]), 7))
        values = np.random.default_rng(0).standard_normal((1, 1 << n_bits, 2)).astype(dtype)
        for D in (7, 21, 63):  # rows of one word, and of many, from anywhere in a byte
            check(module, "decode_packed", (stream, n_bits, np.arange(63 // D)[::-1], D, values))
        terms = np.random.default_rng(0).standard_normal((20, 7, 1 << n_bits)).astype(dtype)
        for q in (0, 1, 3, 4, 20):
            check(module, "sum_packed", (stream, n_bits, np.array([8, 0, 3, 3, 1]), 7, terms[:q]))


@each_set
@each_dtype
@pytest.mark.parametrize("n_bits", [4, 8])
@pytest.mark.parametrize("b", [255, 257, 262])
def test_sums_of_more_rows_than_a_tile(module, dtype, n_bits, b):
    rng = np.random.default_rng(b)
    stream = reference.pack_codes(rng.integers(0, K, (N, D)), n_bits)
    terms = rng.standard_normal((5, D, K)).astype(dtype)
    for q in (1, 5):
        check(module, "sum_packed", (stream, n_bits, rng.integers(0, N, b), D, terms[:q]))


@pytest.mark.parametrize(
    ("module", "way"),
    [
        *((cpu, way) for way in ("one thread", "several", "past the caches")),
        pytest.param(gpu, "blocks", marks=needs_compiler),
        pytest.param(device, "blocks", marks=pytest.mark.gpu),
    ],
    ids=lambda x: x if isinstance(x, str) else x.__name__.rpartition(".")[2],
)
@each_dtype
@pytest.mark.parametrize("s", [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 15, 16, 17, 24, 26, 32, 33, 64, 65])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("n_bits", [4, 8])
def test_rows_of_every_width(module, dtype, s, shared, n_bits, way, monkeypatch):
    """Whole vectors, none beyond the end of the values or of the output, its last row included."""
    monkeypatch.setattr("dpq_ref.kernels.packed.SHARED", 1 << 62 if way == "one thread" else 0)
    monkeypatch.setattr("dpq_ref.kernels.packed.STREAMED", 0 if way == "past the caches" else 1 << 62)
    rng = np.random.default_rng(s)
    codes, values = rng.integers(0, K, (N, D)), rng.standard_normal((1 if shared else D, K, s)).astype(dtype)
    ids = np.r_[np.arange(N), N - 1, rng.integers(0, N, 130)]
    arguments = reference.pack_codes(codes, n_bits), n_bits, ids, D, values
    check(module, "decode_packed", arguments)
    frame = np.full((len(ids) + 2, D * s), 7, dtype)
    assert module.decode_packed(*arguments, out=frame[1:-1]) is not None
    np.testing.assert_array_equal(frame[[0, -1]], 7)
    np.testing.assert_array_equal(frame[1:-1], reference.decode_packed(*arguments))


@each_set
@each_dtype
def test_levels_of_a_byte_even_and_not(module, dtype):
    stream, ids = np.random.default_rng(0).integers(0, 256, 9 * 37).astype(np.uint8), np.array([8, 0, 3, 3])
    even = (np.float32(0.3) * (2 * np.arange(256) / 255 - 1)).astype(dtype)
    for at, level in ((0, 0.1), (128, np.inf), (255, np.inf), (255, -np.inf), (0, np.nan), (7, -0.0)):
        uneven = even.copy()
        uneven[at] = level
        check(module, "unpack_levels", (stream, 8, uneven, ids, 37))
    for levels in (even, -even, 0 * even, even + 7, np.repeat(even, 2)[::2]):
        check(module, "unpack_levels", (stream, 8, levels, ids, 37))
        check(module, "unpack_levels", (stream, 8, levels, ids[:0], 37))


@pytest.mark.parametrize("module", [reference, *KERNEL_SETS])
def test_packed_codes_beyond_the_values(module):
    stream, values = reference.pack_codes(np.array([[0, 3], [1, 2]]), 2), np.zeros((2, 3, 4))
    assert module.decode_packed(stream, 2, np.array([1]), 2, values).shape == (1, 8)
    with pytest.raises(IndexError, match="codes must lie in \\[0, 3\\), got 3"):
        module.decode_packed(stream, 2, np.array([1, 0]), 2, values)


@pytest.mark.parametrize("module", [reference, *KERNEL_SETS])
def test_prefix_codes(module):
    """Words by hand; one code, words of 62 bits; what is no code, no word, or cut off."""
    np.testing.assert_array_equal(module.canonical_code(np.array([2, 1, 3, 3])), [0b10, 0, 0b110, 0b111])
    packed = module.pack_prefix(np.array([2, 1, 0, 3]), np.array([2, 1, 3, 3]))
    np.testing.assert_array_equal(packed, [0b11010011, 1])  # 110 0 10 111, the first bit lowest
    one = module.pack_prefix(np.zeros(9, int), np.array([1, 0]))
    np.testing.assert_array_equal(module.unpack_prefix(one, np.array([1, 0]), 9), np.zeros(9))
    deep = np.r_[np.arange(1, 63), 62]
    codes = np.random.default_rng(0).integers(0, 63, 500)
    check(module, "pack_prefix", (codes, deep))
    np.testing.assert_array_equal(module.unpack_prefix(module.pack_prefix(codes, deep), deep, 500), codes)
    for wrong in ([1, 1, 1], [1, 2, 2, 62], [-1, 1], [63, 1]):
        with pytest.raises(ValueError, match="do not make a prefix code"):
            module.canonical_code(np.array(wrong))
    with pytest.raises(ValueError, match="code 1 has no word"):
        module.pack_prefix(np.array([0, 1]), np.array([1, 0]))
    for stream, sizes, n_codes in (
        ([0], [2, 2, 2, 2], 5),
        ([255], [2, 2, 2], 1),
        ([], [1, 1], 1),
        ([1], [0, 0], 1),
    ):
        with pytest.raises(ValueError, match=f"codes; {n_codes} are asked for"):
            module.unpack_prefix(np.array(stream, np.uint8), np.array(sizes), n_codes)


@pytest.mark.parametrize("module", [reference, *KERNEL_SETS])
def test_gradients_of_logits_may_take_their_place(module):
    rng = np.random.default_rng(0)
    logits, labels, weights = rng.standard_normal((3, 7)), np.array([0, 6, 2]), rng.random(3)
    losses, d_logits = module.cross_entropy(logits, labels, weights, 0.1)
    for out in (np.full((3, 7), np.nan), logits):
        again = module.cross_entropy(logits, labels, weights, 0.1, out=out)
        assert again[1] is out
        np.testing.assert_array_equal(again[0], losses)
        np.testing.assert_array_equal(out, d_logits)


@each_set
@each_dtype
@pytest.mark.parametrize("scale", [1e-25, 1e-3, 1, 1e15, 1e25])
@pytest.mark.parametrize("offset", [0, 1e3, 1e6])
@pytest.mark.parametrize("n_codes", [2, 63, 65, 200])
def test_codes_of_matrix_products_are_those_of_differences(module, dtype, scale, offset, n_codes):
    """Far off centre, where squares overflow or vanish, and for keys that repeat or nearly do."""
    rng = np.random.default_rng(0)
    query = ((rng.standard_normal((150, 2, 5)) + offset) * scale).astype(dtype)
    keys = ((rng.standard_normal((2, n_codes, 5)) + offset) * scale).astype(dtype)
    keys[:, 1::3] = keys[:, : len(keys[0, 1::3])]
    keys[:, 2::5] = np.nextafter(keys[:, : len(keys[0, 2::5])], dtype(np.inf))
    query[::4] = keys[:, rng.integers(0, n_codes, len(query[::4]))].swapaxes(0, 1)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        check(module, "nearest_code", (query, keys))
        weights = rng.random(150)
        codes = module.kmeans_sums(query, keys, weights)[0]
        np.testing.assert_array_equal(codes, reference.nearest_code(query, keys))


@each_set
@pytest.mark.parametrize("n", [1, 15, 131, 300])
@pytest.mark.parametrize("s", [1, 3, 4, 5, 8, 13])
@each_dtype
def test_tiles_of_every_width(module, n, s, dtype):
    """Quads and what they leave over, of columns and of rows."""
    d = Draw(dtype, n)
    points, keys = d.real(n, 3, s), d.real(3, 9, s)
    check(module, "point_tiles", (points,))
    check(module, "kmeans_sums", (points, keys, d.counts()))
    for book in (keys, keys[:1]):
        check(module, "nearest_code", (points, book))


@each_set
@each_dtype
def test_sides_of_planes_that_nearly_hold_the_rows(module, dtype):
    rng = np.random.default_rng(0)
    planes = rng.standard_normal((9, 5)).astype(dtype)
    rows = rng.standard_normal((600, 9))
    basis = np.linalg.svd(planes.T.astype(float))[2][5:]  # of what all planes hold
    check(module, "sides", ((rows @ basis.T @ basis).astype(dtype), planes))
    check(module, "sides", (np.zeros((3, 9), dtype), planes))


@pytest.mark.parametrize("module", [reference, *KERNEL_SETS])
@pytest.mark.parametrize("n", [0, 1, 700, 5000])
@each_dtype
def test_signs_that_change_and_those_that_do_not(module, n, dtype):
    """From the product of other signs, be they none, few or most; rows without weight, and ties at 0."""
    d = Draw(dtype, n)
    rows, weights = d.real(n, 6), d.counts()
    rows[::5] = 0
    rotation = d.real(6, 7)
    below = np.empty((n, 7), bool)
    product, _ = module.sign_products(rows, rotation, weights, below)
    for step in (0, 1e-3, 1e-2, 2):
        rotation = (rotation + step * d.real(6, 7)).astype(dtype)
        product, loss = module.sign_products(rows, rotation, weights, below, product)
        expected = np.empty((n, 7), bool)
        true = reference.sign_products(rows, rotation, weights, expected)
        assert_equal(CLOSE, (product, loss), true, real=np.dtype(dtype))
        np.testing.assert_array_equal(below, expected)
    again, _ = module.sign_products(rows, rotation, weights, below, product)
    np.testing.assert_array_equal(again, product)


@pytest.mark.parametrize("module", [reference, *KERNEL_SETS])
@each_dtype
def test_cross_of_rows_with_themselves(module, dtype):
    for n in (0, 1, 3000):
        d = Draw(dtype, n)
        rows = d.real(n, 7)
        for weights in (np.ones(n, dtype), d.counts()):
            gram = module.cross(rows, rows, weights)
            assert_equal(CLOSE, gram, reference.cross(rows, rows.copy(), weights), real=np.dtype(dtype))
            np.testing.assert_allclose(gram, gram.T, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("module", [reference, *KERNEL_SETS])
@each_dtype
def test_adam_in_place_and_of_some_rows(module, dtype):
    d = Draw(dtype, 40)
    x, m, v, rows = d.real(40, 7), d.real(40, 7), d.positive(40, 7), d.rng.permutation(40)[:9]
    for given, g in ((None, d.real(40, 7)), (rows, d.real(9, 7)), (rows[:0], d.real(0, 7))):
        hyper = (3, 1e-2, 0.9, 0.99, 1e-8, given)
        expected = reference.adam(x, g, m, v, *hyper)
        assert_equal(CLOSE, module.adam(x, g, m, v, *hyper), expected)
        again = tuple(array.copy() for array in (x, m, v))
        assert module.adam(again[0], g, *again[1:], *hyper, out=again)[0] is again[0]
        assert_equal(CLOSE, again, expected)


@each_set
@pytest.mark.parametrize("integer", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
def test_distinct_ids_near_and_far(module, integer):
    """Counted where they lie close together, sorted where not: the same, dtypes included."""
    top = min(int(np.iinfo(integer).max), 1 << 62)
    for ids in ([], [5], [top, 0, top], [3, 3, 1, 2, 3], [top, top - 1, top]):
        check(module, "distinct", (np.array(ids, integer),))
    if np.iinfo(integer).min:
        check(module, "distinct", (np.array([-3, 4, -3], integer),))


def test_one_blas_thread_and_then_as_many_as_before():
    """In nested use, and after an error."""
    libraries = backend._blas()
    assert libraries

    def threads():
        return [library.get_num_threads() for library in libraries]

    before = threads()
    for library in libraries:
        library.set_num_threads(2)
    several = threads()
    try:
        with pytest.raises(KeyError), backend.one_blas_thread:
            with backend.one_blas_thread:
                assert threads() == [1] * len(libraries)
            assert threads() == [1] * len(libraries)
            raise KeyError
        assert threads() == several
    finally:
        for library, n in zip(libraries, before, strict=True):
            library.set_num_threads(n)


HASHES = """
import hashlib, importlib.util, sys
import numpy as np
from dpq_ref.kernels import cpu
spec = importlib.util.spec_from_file_location("contract", sys.argv[1])
contract = importlib.util.module_from_spec(spec)
sys.modules["contract"] = contract
spec.loader.exec_module(contract)
for name, row in contract.CONTRACT.items():
    results = contract.as_tuple(getattr(cpu, name)(*row.arguments(contract.Draw(np.float32, 700))))
    digest = hashlib.sha256()
    for array in results:
        digest.update(b"" if array is None else np.ascontiguousarray(array))
    print(name, digest.hexdigest())
"""


@pytest.mark.slow
def test_compiled_now_or_long_ago(tmp_path):
    """Numbers do not change when kernels come from the cache rather than from the compiler."""
    command = [sys.executable, "-c", HASHES, __file__]
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    runs = [
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert len(runs[0].splitlines()) == len(CONTRACT)
    assert [a for a, b in zip(*map(str.splitlines, runs), strict=True) if a != b] == []
