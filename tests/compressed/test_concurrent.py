"""One mapped file under many threads and processes: each gets the rows that one alone gets."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

from dpq_ref import FactoredTable, ProductTable, ScalarTable, SparseTable, load
from dpq_ref.compressed import BlockTable, DenseTable, base

N, THREADS = 500, 4


def product(additive=False):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((6, 11, 4)).astype(np.float32)
    return ProductTable.from_codes(rng.integers(0, 11, (N, 6)), values, additive=additive)


def scalar():
    rng = np.random.default_rng(0)
    return ScalarTable.from_codes(rng.integers(0, 8, (N, 9)), 3, np.ones((N, 1), np.float32))


def blocks():
    rng = np.random.default_rng(0)
    left = [rng.standard_normal((N // 2, r)).astype(np.float32) for r in (2, 5)]
    return BlockTable.from_factors(
        np.arange(N) % 2, left, [rng.standard_normal((2, 5)).astype(np.float32), None]
    )


def sparse():
    rng = np.random.default_rng(0)
    kept = rng.random((N, 20)) < 0.2
    return SparseTable.from_entries(
        kept, rng.integers(0, 9, kept.sum()), np.arange(9, dtype=np.float32), huffman=True
    )


TABLES = {
    "product": product,
    "additive": lambda: product(additive=True),
    "dense": lambda: DenseTable(np.random.default_rng(0).standard_normal((N, 7)).astype(np.float32)),
    "rotated": lambda: FactoredTable(product(), np.eye(24, dtype=np.float32)[::-1]),
    "scalar": scalar,
    "blocks": blocks,
    "sparse": sparse,
}


@pytest.fixture(params=TABLES)
def saved(request, tmp_path):
    """Table and its file."""
    table = TABLES[request.param]()
    table.words = [f"word {i}" for i in range(N)]
    table.save(tmp_path / "table.safetensors")
    return table, tmp_path / "table.safetensors"


@pytest.fixture
def switching():
    """Threads take turns all the time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_threads_on_one_mapped_table(saved, switching, monkeypatch):
    """What is made at the first look-up, bases and words among it, is asked for by all at once."""
    whole, path = saved[0].reconstruct(), saved[1]
    monkeypatch.setattr(base, "AT_ONCE", 0)
    for mapped in [load(path) for _ in range(8)]:
        start = Barrier(THREADS)

        def look_up(seed, mapped=mapped, start=start):
            rng, found = np.random.default_rng(seed), []
            start.wait()
            for i in range(20):
                if seed == 0 and i == 5:
                    mapped.check()  # after which nothing is asked whether it was
                word, row = mapped.words[seed], mapped[f"word {seed}"]
                ids = rng.integers(0, N, rng.integers(0, 60))
                found.append((ids, mapped.lookup(ids), row, word))
            return found

        with ThreadPoolExecutor(THREADS) as pool:
            for seed, found in enumerate(pool.map(look_up, range(THREADS))):
                for ids, rows, row, word in found:
                    np.testing.assert_array_equal(rows, whole[ids])
                    np.testing.assert_array_equal(row, whole[seed])
                    assert word == f"word {seed}"


PROCESS = """
import sys
import numpy as np
from dpq_ref import load
from dpq_ref.compressed import base

for path in sys.argv[2:]:
    base.AT_ONCE = 0
    table = load(path)
    assert all(not array.flags.owndata and not array.flags.writeable for array in table.arrays().values())
    ids = np.random.default_rng(int(sys.argv[1])).integers(0, table.vocab_size, 1000)
    sys.stdout.buffer.write(table.lookup(ids).tobytes())
"""


def test_two_processes_on_the_same_mapped_files(tmp_path):
    tables = [product(), scalar()]
    paths = [tmp_path / "product", tmp_path / "scalar"]
    for table, path in zip(tables, paths, strict=True):
        table.save(path)
    commands = [[sys.executable, "-c", PROCESS, str(seed), *map(str, paths)] for seed in range(2)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for command in commands]
    for seed, process in enumerate(running):
        said = process.communicate(timeout=300)[0]
        assert process.returncode == 0
        ids = np.random.default_rng(seed).integers(0, N, 1000)
        assert said == b"".join(table.lookup(ids).tobytes() for table in tables)
