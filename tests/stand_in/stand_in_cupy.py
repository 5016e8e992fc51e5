"""A stand-in for CuPy on machines without a GPU: strict where programs for a GPU go wrong.

Its arrays wrap NumPy's and compute by NumPy, so that results are those of the host, bit by bit. As CuPy's
they never become NumPy arrays by themselves, do not mix with them, and give 0-d arrays where NumPy gives
numbers. Stricter than CuPy's, they refuse NumPy's own functions, and lists and NumPy arrays as indices: those
are copies to the device in disguise. The namespace is NumPy's less what CuPy 14 lacks.

Whatever makes the host wait for the device is noted in `waits`; `asarray` of a NumPy array does not.
"""

import sys
import time
from types import ModuleType
from typing import Any

import numpy as np

__version__ = "0.stand-in"

waits: list[str] = []  # what the host has waited for, in order

# Names of NumPy that CuPy 14.2 does not have, and `ufunc.at`, `initial` and `where` of reductions below.
LACKS = {
    *("asmatrix", "block", "bmat", "einsum_path", "errstate", "frompyfunc", "geomspace", "insert", "matvec"),
    *(
        "memmap",
        "nanpercentile",
        "nanquantile",
        "ndenumerate",
        "nditer",
        "ndindex",
        "ma",
        "matrix",
        "spacing",
    ),
    *("recarray", "unstack", "vecdot", "vecmat", "strings", "char", "polydiv", "polyint", "polyder", "isnat"),
    *(
        "random",
        "testing",
        "lib",
        "rec",
        "record",
        "emath",
        "ctypeslib",
        "show_runtime",
        "histogram_bin_edges",
    ),
}
REFUSED = ("initial", "where")  # of reductions and ufuncs
SIZED = {"nonzero", "flatnonzero", "unique", "compress", "extract", "argwhere", "bincount", "array_split"}
METHODS = {  # of CuPy's arrays that need no more than NumPy's
    *(
        "all",
        "any",
        "argmax",
        "argmin",
        "argpartition",
        "argsort",
        "astype",
        "choose",
        "clip",
        "copy",
        "cumprod",
    ),
    *("cumsum", "diagonal", "dot", "fill", "flatten", "max", "mean", "min", "partition", "prod", "put"),
    *(
        "ravel",
        "repeat",
        "reshape",
        "round",
        "searchsorted",
        "sort",
        "squeeze",
        "std",
        "sum",
        "swapaxes",
        "take",
    ),
    *("trace", "transpose", "var", "view"),
}
OPERATORS = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "divmod", "pow", "matmul", "and", "or", "xor"),
    *("lshift", "rshift"),
)
COMPARISONS = ("lt", "le", "eq", "ne", "gt", "ge")
PLAIN = (bool, int, float, complex, str, bytes, slice, type, type(None), type(Ellipsis), np.dtype, np.generic)


class ndarray:  # noqa: N801 (as CuPy's)
    """An array of the device that is not there."""

    __array_ufunc__ = None  # neither np.exp(x) nor NumPy array + x
    __cuda_array_interface__ = property(lambda self: {"shape": self.shape, "version": 3})

    def __init__(self, host: Any):
        self._host = host if isinstance(host, np.ndarray) else np.array(host)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def __array_function__(self, function: Any, *rest: Any) -> Any:
        raise TypeError(f"numpy.{function.__name__} of an array of the device")

    def get(self) -> np.ndarray:
        """Copy to the host."""
        return _waited("get", self._host.copy())

    def item(self) -> Any:
        return _waited("item", self._host.item())

    def tolist(self) -> Any:
        return _waited("tolist", self._host.tolist())

    def __bool__(self) -> bool:
        return _waited("bool", bool(self._host))

    def __int__(self) -> int:
        return _waited("int", int(self._host))

    def __float__(self) -> float:
        return _waited("float", float(self._host))

    def __index__(self) -> int:
        return _waited("index", self._host.__index__())

    def __format__(self, form: str) -> str:
        return format(self.item() if self.ndim == 0 else str(self), form)

    def __repr__(self) -> str:
        return _waited("repr", repr(self._host))

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    __hash__ = None  # type: ignore[assignment]

    def __getitem__(self, index: Any) -> "ndarray":
        if _has_mask(index):
            waits.append("a mask as an index")
        return _wrap(self._host[_unwrap(index, "an index")])

    def __setitem__(self, index: Any, value: Any) -> None:
        if _has_mask(index) and isinstance(value, ndarray) and value.ndim:
            waits.append("a mask as an index")
        self._host[_unwrap(index, "an index")] = _unwrap(value, "__setitem__")

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: self._host.flags)
    T = property(lambda self: ndarray(self._host.T))
    real = property(lambda self: ndarray(self._host.real))

    def nonzero(self) -> Any:
        return _waited("nonzero", _wrap(self._host.nonzero()))


ndarray.__module__ = "cupy"


def asarray(
    a: Any, dtype: Any = None, order: Any = None, *, copy: Any = None, blocking: bool = False
) -> ndarray:
    """Array of the device: of one of the host a copy."""
    return array(a, dtype, bool(copy), order or "K", blocking=blocking)


def array(
    obj: Any, dtype: Any = None, copy: bool = True, order: str = "K", *, blocking: bool = False
) -> ndarray:
    """As `asarray`, a copy in any case."""
    if isinstance(obj, ndarray):
        if not copy and (dtype is None or obj.dtype == dtype):
            return obj
        return ndarray(np.array(obj._host, dtype, order=order))
    if isinstance(obj, (list, tuple)) and any(isinstance(x, ndarray) for x in obj):
        obj = [_unwrap(x, "array") for x in obj]
    return ndarray(np.array(obj, dtype, order=order))


def asnumpy(a: Any) -> np.ndarray:
    """Copy to the host."""
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    """In C order; a NumPy array is copied to the device."""
    return ndarray(np.ascontiguousarray(asarray(a)._host, dtype))


def get_array_module(*arrays: Any) -> Any:
    """CuPy if one of the arrays is its, else NumPy."""
    return sys.modules[__name__] if any(isinstance(a, ndarray) for a in arrays) else np


def array_equal(a: Any, b: Any) -> ndarray:
    """A 0-d array, as CuPy's."""
    return _wrap(np.array_equal(_unwrap(a, "array_equal"), _unwrap(b, "array_equal")))


def repeat(a: ndarray, repeats: Any, axis: Any = None) -> ndarray:
    """CuPy's takes numbers of the host."""
    if isinstance(repeats, ndarray):
        raise TypeError("repeats must be integers of the host")
    return _wrap(np.repeat(_unwrap(a, "repeat"), repeats, axis))


def _waited(what: str, value: Any) -> Any:
    waits.append(what)
    return value


def _has_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, ndarray) and part.dtype == bool for part in parts)


def _unwrap(value: Any, where: str) -> Any:
    """What NumPy computes with; TypeError for what is on the host."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, (tuple, list)):
        if isinstance(value, list) and where == "an index":
            raise TypeError("a list as an index of an array of the device")
        return type(value)(_unwrap(x, where) for x in value)
    if isinstance(value, PLAIN):
        return value
    raise TypeError(f"Unsupported type {type(value)} in {where}")


def _wrap(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return ndarray(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_wrap(x) for x in value)
    return ndarray(np.array(value)) if isinstance(value, bool) else value


def _function(name: str, function: Any) -> Any:
    """A function of NumPy for arrays of the device alone."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if refused := [key for key in REFUSED if key in kwargs]:
            raise TypeError(f"{name}() has no {refused[0]} in CuPy")
        if name in SIZED or (name == "where" and len(args) == 1):
            waits.append(name)
        args = tuple(_unwrap(x, name) for x in args)
        out = kwargs.get("out")
        found = _wrap(function(*args, **{key: _unwrap(x, name) for key, x in kwargs.items()}))
        return found if out is None else out

    call.__name__ = name
    return call


def _method(name: str) -> Any:
    return _function(name, getattr(np.ndarray, name))


for _name in METHODS:
    setattr(ndarray, _name, _method(_name))
for _name in (*OPERATORS, *COMPARISONS, *(f"r{name}" for name in OPERATORS)):
    setattr(ndarray, f"__{_name}__", _method(f"__{_name}__"))
for _name in ("neg", "pos", "abs", "invert"):
    setattr(ndarray, f"__{_name}__", _method(f"__{_name}__"))


def _in_place(name: str) -> Any:
    def call(self: ndarray, other: Any) -> ndarray:
        getattr(np.ndarray, f"__i{name}__")(self._host, _unwrap(other, f"__i{name}__"))
        return self

    return call


for _name in OPERATORS:
    if _name not in ("divmod", "matmul"):
        setattr(ndarray, f"__i{_name}__", _in_place(_name))


def __getattr__(name: str) -> Any:
    if name.startswith("_") or name in LACKS or not hasattr(np, name):
        raise AttributeError(f"module 'cupy' has no attribute {name!r}")
    found = getattr(np, name)
    if isinstance(found, (type, ModuleType)) or not callable(found):
        return found if not isinstance(found, ModuleType) else _no_module(name)
    return _function(name, found)


def _no_module(name: str) -> Any:
    raise AttributeError(f"the stand-in has no cupy.{name}")


class cuda:  # noqa: N801 (a module of CuPy's)
    """What tells of the device."""

    class Device:
        """The one there is."""

        id = 0

    class Event:
        """A moment."""

        def record(self) -> None:
            """Take the time."""
            self.seconds = time.perf_counter()

        def synchronize(self) -> None:
            """Wait."""
            waits.append("event")

    @staticmethod
    def get_elapsed_time(start: Any, end: Any) -> float:
        """Milliseconds."""
        return 1e3 * (end.seconds - start.seconds)

    class runtime:  # noqa: N801
        """Of CUDA."""

        @staticmethod
        def getDeviceProperties(device: int) -> dict[str, Any]:  # noqa: N802
            """Its name."""
            return {"name": b"stand-in"}

        CUDARuntimeError = RuntimeError

        @staticmethod
        def getDeviceCount() -> int:  # noqa: N802
            """One."""
            return 1

        @staticmethod
        def driverGetVersion() -> int:  # noqa: N802
            """CUDA 13.0."""
            return 13000
