"""Peak memory of one call, in a process of its own that holds what this call needs and nothing else.

Counted is what is resident and anonymous or shared (RssAnon and RssShmem of Linux): arrays, heap, buffers.
Pages of files are not, mapped or cached: they are the file's, and the system takes them back. Another process
looks, since compiled code may hold the lock of the interpreter; it misses what comes and goes in INTERVAL,
and the kernel's counters lag behind by a few hundred kB.
"""

import ctypes
import gc
import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

INTERVAL = 0.001  # seconds between two looks
COUNTED = ("RssAnon:", "RssShmem:")


def anonymous(pid: int) -> int:
    """Bytes of anonymous and shared resident memory of a process; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(COUNTED))


def peak(small: Callable[[], Any], call: Callable[[], Any], threads: int = 1) -> int:
    """Bytes that a call takes at most, its result included, beyond those of before.

    Parameters
    ----------
    small : callable
        Called before: the same on little data, so that imports and compilation do not count, and what the
        call keeps for another time does.
    call : callable
        Goes to the other process by value, with the variables that it takes from around it.
    threads : int

    Returns
    -------
    int

    Raises
    ------
    OSError
        Unless the system is Linux.
    RuntimeError
        If either call fails; its traceback is on stderr.
    """
    from joblib import wrap_non_picklable_objects

    if sys.platform != "linux":
        raise OSError("memory is read from /proc, which only Linux has")
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    calls = (wrap_non_picklable_objects(c, keep_wrapper=False) for c in (small, call))
    process = context.Process(target=_call, args=(*calls, threads, there), daemon=True)
    process.start()
    there.close()  # so that its end is seen here
    try:
        here.recv()
        before = most = anonymous(process.pid or 0)
        here.send("go")
        while not here.poll(INTERVAL):
            most = max(most, anonymous(process.pid or 0))
        here.recv()
        most = max(most, anonymous(process.pid or 0))  # the result, however short the call was
        here.send("end")
    except EOFError:
        raise RuntimeError("the call whose memory is measured failed") from None
    finally:
        process.join()
    return most - before


def _call(small: Callable[[], Any], call: Callable[[], Any], threads: int, other: Connection) -> None:
    from figures.speed import threads_of_all

    with threads_of_all(threads):
        small()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # or the call takes what is free in the heap, which counts as held
        other.send("ready")
        other.recv()
        result = call()
        other.send("done")
        other.recv()
    del result  # held until it was seen
