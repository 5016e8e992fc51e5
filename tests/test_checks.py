"""Errors at the door: the argument by name, what it got, what it takes."""

import numpy as np
import pytest

from dpq_ref import checks


@pytest.mark.parametrize(
    "ids, shape",
    [
        (3, ()),
        (np.int64(3), ()),
        ([1, 2], (2,)),
        ([], (0,)),
        ([[], []], (2, 0)),
        (np.ones((2, 3), np.uint8), (2, 3)),
    ],
    ids=str,
)
def test_ids_keep_their_shape_and_are_integers(ids, shape):
    array = checks.as_ids(ids, 10)
    assert array.shape == shape and array.dtype.kind in "iu"


@pytest.mark.parametrize(
    "ids", [1.0, [1.5], True, [False], "1", None, [None], np.zeros(0), np.array([1 + 0j]), [10**30]], ids=repr
)
def test_ids_that_are_not_integers(ids):
    with pytest.raises(TypeError, match="ids must be integers, got dtype"):
        checks.as_ids(ids, 10)


@pytest.mark.parametrize(
    "ids, got", [(10, 10), (-1, -1), ([[0, 12], [-3, 5]], -3), (np.uint64(2**64 - 1), 2**64 - 1)]
)
def test_ids_out_of_range(ids, got):
    with pytest.raises(IndexError, match=rf"codes must lie in \[0, 10\), got {got}$"):
        checks.as_ids(ids, 10, "codes")


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", ">i2", "i4", ">i8", "i8", "u8"])
def test_ids_of_every_width(dtype):
    ids = np.array([[3, 100], [127, 0]], dtype).T
    assert checks.as_ids(ids, 128) is ids and checks.as_ids(ids, 1 << 40) is ids
    with pytest.raises(IndexError, match="got 127$"):
        checks.as_ids(ids, 127)
    if ids.dtype.kind == "i":
        with pytest.raises(IndexError, match="got -3$"):
            checks.as_ids(ids - ids.dtype.type(3), 1 << 40)


def test_no_id_fits_an_empty_table():
    assert checks.as_ids([], 0).size == 0
    with pytest.raises(IndexError):
        checks.as_ids([0], 0)


@pytest.mark.parametrize(
    "dtype, expected",
    [("f4", "f4"), ("f8", "f8"), (">f4", "f4"), (">f8", "f8"), ("f2", "f4"), ("i8", "f4"), ("u1", "f4")],
)
def test_tables_become_float32_or_stay_float64_in_native_c_order(dtype, expected):
    numbers = np.arange(12).reshape(3, 4)
    for array in (
        numbers.astype(dtype),
        np.asfortranarray(numbers.astype(dtype)),
        np.repeat(numbers, 2, axis=1).astype(dtype)[:, ::2],
    ):
        table = checks.as_table(array)
        assert table.dtype == np.dtype(expected) and table.dtype.isnative and table.flags.c_contiguous
        np.testing.assert_array_equal(table, numbers)


def test_a_double_keeps_its_digits_whatever_its_byte_order():
    table = np.full((1, 2), 0.1, ">f8")
    assert checks.as_table(table)[0, 0] == 0.1


@pytest.mark.parametrize("table", [[["a"]], [[None]], [[1j]], [[True]]], ids=str)
def test_tables_of_something_else(table):
    with pytest.raises(TypeError, match="init must hold real numbers, got dtype"):
        checks.as_table(table, "init")


@pytest.mark.parametrize("shape", [(), (3,), (3, 0), (1, 2, 3)])
def test_tables_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"X must have shape \(rows, dim\), got \(.*\)$"):
        checks.as_table(np.zeros(shape))


def test_a_table_without_rows_is_a_table():
    assert checks.as_table(np.zeros((0, 3))).shape == (0, 3)


def test_nan_and_infinity_are_counted():
    table = np.zeros((5, 4), np.float32)
    table[3, 1] = np.nan
    with pytest.raises(ValueError, match="X has 1 entry that is NaN or infinite, the first in row 3"):
        checks.as_table(table)
    table[2, :2] = np.inf, -np.inf
    with pytest.raises(ValueError, match="X has 3 entries that are NaN or infinite, the first in row 2"):
        checks.as_table(table)


def test_what_is_not_finite_is_counted_over_blocks(monkeypatch):
    monkeypatch.setattr(checks, "BLOCK", 4)
    table = np.zeros((5, 2))
    table[0, 0] = 1e200  # finite, and its square is not
    assert checks.as_table(table) is table
    table[3, 1] = table[4, 0] = np.nan
    with pytest.raises(ValueError, match="X has 2 entries that are NaN or infinite, the first in row 3"):
        checks.as_table(table)


@pytest.mark.parametrize("dtype", [np.float32, "float64", float, np.dtype("f4")])
def test_dtypes_to_compute_in(dtype):
    assert checks.as_real(dtype) == np.dtype(dtype)


@pytest.mark.parametrize("dtype", [np.float16, int, bool, complex, "U3"])
def test_dtypes_not_to_compute_in(dtype):
    with pytest.raises(ValueError, match="dtype=.*it takes float32 or float64"):
        checks.as_real(dtype)


def test_positive():
    assert checks.positive("k", np.int32(4)) == 4 and type(checks.positive("k", np.int32(4))) is int
    assert checks.positive("k", 0, least=0) == 0
    for value in (True, 1.0, "1", None, np.float64(2)):
        with pytest.raises(TypeError, match="k=.*it takes an integer"):
            checks.positive("k", value)
    for value in (0, -3):
        with pytest.raises(ValueError, match=f"k={value}; it takes an integer of at least 1"):
            checks.positive("k", value)


def test_number_of_codes():
    assert checks.number_of_codes(2) == 2 and checks.number_of_codes(65_536) == 65_536
    with pytest.raises(ValueError, match="n_codes=1;"):
        checks.number_of_codes(1)
    with pytest.raises(ValueError, match="n_codes=65537; it takes at most 65536"):
        checks.number_of_codes(65_537)


def test_group_width_names_the_nearest_divisors():
    assert checks.group_width(300, 25) == 12 and checks.group_width(7, 1) == checks.group_width(7, 7) * 7
    for dim, n_groups, near in ((300, 7, "6, 10"), (300, 301, "300"), (7, 5, "1, 7"), (650, 300, "130, 325")):
        message = f"n_groups={n_groups} does not divide dim={dim}; divisors near {n_groups}: {near}$"
        with pytest.raises(ValueError, match=message):
            checks.group_width(dim, n_groups)
