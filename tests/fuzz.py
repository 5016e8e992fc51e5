"""Damage files for some minutes: all readers and `load`, in turn, with the checks of test_damaged_files.

Run as `make fuzz`, or `python -m tests.fuzz --minutes 1`. What is found ends it, cut down to its smallest.
"""

import tempfile
import time
from collections import Counter
from functools import partial
from itertools import cycle
from pathlib import Path

import click

from tests import test_damaged_files as tests

BATCH = 200  # files of a kind before the next


def checks(folder):
    """What is damaged, how, and what is then held against it, by name."""
    for name, (_, damage, _) in tests.FILES.items():
        yield name, tests.check_table, damage
    for name in tests.LISTS:
        yield name, tests.check_list, partial(tests.damage_list, name)
    for name in tests.TABLES:
        content = tests.artefact(name, folder)
        for way, damage in tests.WAYS.items():
            yield f"{name}, {way}", tests.check_artefact, partial(damage, content=content)


@click.command()
@click.option("--minutes", type=float, default=10, show_default=True)
@click.option("--seed", type=int, help="Of the first batch; by default the time.")
def main(minutes, seed):
    """Damage files for so long, and print how many were refused and how many read as what they are."""
    start = time.time()
    seed = int(start) if seed is None else seed
    click.echo(f"seed {seed}")
    counts: Counter = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for name, check, damage in cycle(list(checks(folder))):
            if time.time() - start > 60 * minutes:
                break

            def counted(kind, content, folder, name=name, check=check):
                counts[name, bool(check(kind, content, folder))] += 1

            tests.run(counted, name.partition(",")[0], damage, folder, BATCH, seed)
            seed += 1
    click.echo(f"{'':28}{'refused':>10}{'read':>10}")
    for name in dict.fromkeys(name for name, _ in counts):
        click.echo(f"{name:28}{counts[name, False]:10,}{counts[name, True]:10,}")
    click.echo(f"{sum(counts.values()):,} files in {(time.time() - start) / 60:.1f} minutes: nothing found")


if __name__ == "__main__":
    main()
