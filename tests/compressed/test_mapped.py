"""A mapped table: memory grows with what is looked up, whatever the size of the file."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dpq_ref import ProductTable, load

LINUX = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
GROUPS = 250
READ = """
import sys
import numpy as np
import dpq_ref
from dpq_ref.compressed import base

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssFile")))

small = dpq_ref.load(sys.argv[1], mapped=True)  # so that all that is imported and compiled is there
small.lookup([0, 1])
before = resident()
table = dpq_ref.load(sys.argv[2], mapped=True)
loaded = resident()
ids = np.random.default_rng(0).integers(0, table.vocab_size, 100)
rows = table.lookup(ids)
print(table.vocab_size, loaded - before, resident() - loaded, rows.any())
"""


def stretched(path, small, n):
    """The file of a small table as one of n rows, all others of codes 0: a hole, which takes no disk."""
    content = small.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    start, stop = header["codes"]["data_offsets"]
    assert stop == len(data)  # codes come last
    header["codes"] |= {"shape": [n * GROUPS], "data_offsets": [start, start + n * GROUPS]}
    config = json.loads(header["__metadata__"]["dpq_ref"]) | {"vocab_size": n}
    header["__metadata__"]["dpq_ref"] = json.dumps(config)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + data)
        file.truncate(8 + len(text) + start + n * GROUPS)


@LINUX
def test_memory_grows_with_what_is_looked_up(tmp_path):
    """A gigabyte of codes, of which loading reads none, and a hundred rows a few pages each."""
    n, small, large = 4_000_000, tmp_path / "small", tmp_path / "large"
    values = np.ones((GROUPS, 256, 1), np.float32)
    ProductTable.from_codes(np.zeros((8, GROUPS), int), values).save(small)
    stretched(large, small, n)
    assert large.stat().st_size > 1e9
    command = [sys.executable, "-c", READ, str(small), str(large)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert said[0] == str(n) and said[3] == "True"
    assert int(said[1]) < 4e6 and int(said[2]) < 20e6


def test_words_are_not_read_before_they_are_asked_for(tmp_path):
    table = ProductTable.from_codes(np.zeros((3, 2), int), np.ones((2, 2, 1), np.float32))
    table.words = ["a", "b", "c"]
    table.save(tmp_path / "t")
    mapped = load(tmp_path / "t", mapped=True)
    assert isinstance(mapped._stored_words[0], np.memmap)
    assert mapped.id_of("b") == 1 and mapped._stored_words is None
