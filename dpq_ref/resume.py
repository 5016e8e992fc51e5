"""Long work in steps: told as it goes on, taken up again where it was stopped, spread over a cluster.

Whoever does it asks for each block of rows by `stepwise` or `in_blocks`, and for what is learned by `kept`.
Whoever starts it says by `resuming` where results are kept, and by `on_cluster` which machines take steps.
The result does not depend on either, bit by bit; where nobody says anything, it is a loop.
"""

import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dpq_ref.compressed import write_atomically
from dpq_ref.progress import told

Step = TypeVar("Step")
Result = TypeVar("Result")

_folder: ContextVar[Path | None] = ContextVar("folder", default=None)
_on_cluster: ContextVar[bool] = ContextVar("on_cluster", default=False)


@contextmanager
def resuming(folder: Path) -> Iterator[None]:
    """Keep results of `kept` and `in_blocks` in a folder, and take those that are there.

    What is computed must be the same each time: a folder is of one computation, with all its parameters.
    """
    folder.mkdir(parents=True, exist_ok=True)
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


@contextmanager
def on_cluster(address: str) -> Iterator[None]:
    """Let the workers of a Dask scheduler do the steps; a step of one that is lost is done by another.

    Parameters
    ----------
    address : str
        As "dask://host:8786". Workers have this package and see the files under the same paths.

    Raises
    ------
    ValueError
        If it is no such address, or Dask is not installed.
    OSError
        If nobody answers.
    """
    from joblib import parallel_config

    scheme, _, host = address.partition("://")
    if scheme != "dask" or not host:
        raise ValueError(
            f"cluster={address!r}; it takes the address of a Dask scheduler, as dask://host:8786"
        )
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise ValueError("cluster: it needs Dask, pip install 'dpq-ref[cluster]'") from error
    with Client(f"tcp://{host}", timeout=10), parallel_config("dask"):
        token = _on_cluster.set(True)
        try:
            yield
        finally:
            _on_cluster.reset(token)


class Shared:
    """An array of two axes, pickled as its place in a file where it is a mapped one.

    Examples
    --------
    >>> import pickle, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(folder + "/x.npy", np.arange(80_000.0).reshape(-1, 8))
    ...     rows = Shared(np.load(folder + "/x.npy", mmap_mode="r")[2:])
    ...     pickled = pickle.dumps(rows)
    ...     len(pickled) < 1000, pickle.loads(pickled).array[0, :2]
    (True, memmap([16., 17.]))
    """

    def __init__(self, array: NDArray):
        self.array = array

    @property
    def _map(self) -> Any:
        """The whole map that the array is a part of, or None."""
        root: Any = self.array
        while root is not None and not (isinstance(root, np.memmap) and isinstance(root.base, mmap.mmap)):
            root = getattr(root, "base", None)
        return root

    @property
    def in_file(self) -> bool:
        """Whether it has a place in a file, as one piece."""
        return self._map is not None and self.array.flags.c_contiguous

    def __reduce__(self) -> Any:  # noqa: D105
        if not self.in_file:
            return Shared, (self.array,)
        offset = self._map.offset + self.array.ctypes.data - self._map.ctypes.data
        return _shared, (str(self._map.filename), self.array.dtype, offset, self.array.shape)


def _shared(path: str, dtype: np.dtype, offset: int, shape: tuple[int, ...]) -> Shared:
    return Shared(np.memmap(path, dtype, "r", offset, shape))


def stepwise(what: str, function: Callable[[Step], Result], steps: Sequence[Step]) -> Iterator[Result]:
    """Results of the steps in their order, telling after each.

    Parameters
    ----------
    what : str
        For whoever listens (`progress.listening`).
    function : callable
        For a cluster it is pickled with each step: it should carry no large array that is not in a file.
    steps : sequence

    Examples
    --------
    >>> list(stepwise("squares", lambda x: x * x, [1, 2, 3]))
    [1, 4, 9]
    """
    if not _on_cluster.get():
        for step in told(what, steps):
            yield function(step)
        return
    from joblib import Parallel, delayed

    results = Parallel(n_jobs=-1, return_as="generator", batch_size=1)(delayed(function)(s) for s in steps)
    for _, result in zip(told(what, steps), results, strict=True):
        yield result


def kept(name: str, learn: Callable[[], dict[str, Any]]) -> dict[str, NDArray]:
    """Arrays that `learn` returns; once they are kept, those.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, resuming(Path(folder)):
    ...     first = kept("mean", lambda: {"mean": np.ones(2)})
    ...     kept("mean", lambda: {"mean": np.zeros(2)})
    {'mean': array([1., 1.])}
    """
    folder = _folder.get()
    if folder is None:
        return {key: np.asarray(value) for key, value in learn().items()}
    path = folder / f"{name}.npz"
    if not path.exists():
        learned = learn()
        write_atomically(path, lambda file: np.savez(file, **learned))
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def in_blocks(
    name: str,
    function: Callable[[slice], NDArray],
    blocks: Sequence[slice],
    width: int,
    dtype: DTypeLike,
    smallest: DTypeLike | None = None,
) -> NDArray:
    """Rows that a function makes, block by block; blocks that are kept are not made again.

    They are kept in one file, block after block: whoever goes on drops a last one that is not whole.

    Parameters
    ----------
    name : str
    function : callable
        Slice of rows -> (rows, width); as for `stepwise`.
    blocks : sequence of slices that follow each other from 0 on
    width : int
    dtype : dtype
    smallest : dtype, optional
        To keep them in, where it holds all that can come.

    Returns
    -------
    (n, width) of the dtype

    Examples
    --------
    >>> in_blocks("rows", lambda rows: np.ones((2, 3)), [slice(0, 2), slice(2, 4)], 3, np.int8).shape
    (4, 3)
    """
    rows = np.empty((blocks[-1].stop if blocks else 0, width), dtype)
    folder, done = _folder.get(), 0
    if folder is None:
        for block, found in zip(blocks, stepwise(name, function, blocks), strict=True):
            rows[block] = found
        return rows
    stored = np.dtype(dtype if smallest is None else smallest)
    with (folder / f"{name}.rows").open("a+b") as file:
        size = file.tell()
        while done < len(blocks) and blocks[done].stop * width * stored.itemsize <= size:
            done += 1
        file.truncate(blocks[done - 1].stop * width * stored.itemsize if done else 0)
        file.seek(0)
        for block in blocks[:done]:
            count = (block.stop - block.start) * width
            rows[block] = np.fromfile(file, stored, count).reshape(-1, width)
        left = blocks[done:]
        for block, found in zip(left, stepwise(name, function, left), strict=True):
            file.write(np.ascontiguousarray(found, stored).tobytes())
            file.flush()
            os.fsync(file.fileno())
            rows[block] = found
    return rows
