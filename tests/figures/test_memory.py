"""Peak memory of calls that allocate a known number of bytes."""

import os
import sys
import time

import numpy as np
import pytest

from figures import memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
MB = 1_000_000
ROOM = 4 * MB  # pages of 2 MB at either end, and counters that lag behind


def peak(call, small=lambda: None):
    return memory.peak(small, call)


@pytest.mark.parametrize("megabytes", [0, 8, 64])
def test_what_is_returned_counts(megabytes):
    found = peak(lambda: np.ones(megabytes * MB, np.uint8))
    assert abs(found - megabytes * MB) < ROOM


def test_what_is_gone_at_the_end_counts_and_what_was_there_does_not():
    before = np.ones(50 * MB, np.uint8)

    def call():
        more = before + np.uint8(1)
        time.sleep(0.1)  # a look falls here, however busy the machine
        return more[:10].copy()

    assert abs(peak(call) - 50 * MB) < ROOM


def test_what_was_freed_before_counts_again():
    """A large block that is freed makes the C library keep the next ones of its size for itself."""

    def small():
        for _ in range(3):
            np.ones(24 * MB, np.uint8)

    assert abs(peak(lambda: np.ones(23 * MB, np.uint8), small) - 23 * MB) < ROOM


def test_pages_of_a_file_do_not_count(tmp_path):
    np.save(tmp_path / "x.npy", np.ones(64 * MB, np.uint8))
    path = tmp_path / "x.npy"
    assert peak(lambda: int(np.load(path, mmap_mode="r").sum())) < ROOM
    assert peak(lambda: np.load(path)) > 60 * MB


def test_shared_memory_counts():
    import mmap

    def call():
        shared = mmap.mmap(-1, 32 * MB)
        shared.write(bytes(MB) * 32)
        return shared

    assert abs(peak(call) - 64 * MB) < 2 * ROOM  # and the bytes written


@pytest.mark.parametrize("at", ["small", "call"])
def test_a_call_that_fails_is_an_error(at, capfd):
    calls = {"small": lambda: None, "call": lambda: None} | {at: lambda: 1 // 0}
    with pytest.raises(RuntimeError, match="failed"):
        memory.peak(**calls)
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_no_such_process():
    assert memory.anonymous(2**22 + 1) == 0 < memory.anonymous(os.getpid())
