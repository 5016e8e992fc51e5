"""Time and memory of a training step with DPQ embeddings of many K and D, beside the full embedding's.

`python -m figures.cost` writes cost-small.json for `dpq-ref paper`. Time: medians of the ratios to the full
model's step on the same batch, all models in turn, one thread. Memory: the most that parameters, gradients
and activations take together at any moment from the model's start to the end of its second step.
"""

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import click
import numpy as np
from threadpoolctl import threadpool_limits

from dpq_ref.compressed import write_atomically
from dpq_ref.environment import environment
from dpq_ref.kernels.reference import Integers
from dpq_ref.tasks.language_model import SIZES, Plan
from figures.workloads.training import language_stepper
from figures.workloads.zipf import zipf

CODES, GROUPS = (2, 8, 32, 128), (10, 25, 50)  # the grid of the released scripts


def peak_memory(plan: Plan, settings: dict[str, Any], text: Integers) -> int:
    """Bytes of all arrays of a model at their highest, over two steps."""
    tracemalloc.start()
    step = language_stepper(plan, settings, text)[1]
    for _ in range(2):
        step()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@click.command()
@click.option("--model", type=click.Choice(list(SIZES)), default="small", show_default=True)
@click.option("--runs", type=click.IntRange(1), default=15, show_default=True, help="Timed steps of each.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("figures/results/paper"), show_default=True
)
def main(model: str, runs: int, output: Path) -> None:
    """Measure what a training step of the language model costs with each embedding."""
    plan = SIZES[model]
    configurations: list[dict[str, Any]] = [{"kind": "full"}]
    configurations += [
        {"kind": kind, "n_codes": K, "n_groups": D, "shared": True}
        for kind in ("dpq-sx", "dpq-vq")
        for K in CODES
        for D in GROUPS
    ]
    text = zipf(plan.batch_size * ((2 + runs) * plan.n_steps + 1), np.random.default_rng(0))
    with threadpool_limits(1):
        steps = [language_stepper(plan, settings, text)[1] for settings in configurations]
        seconds = np.empty((len(steps), runs))
        for i in range(2 + runs):
            for row, step in zip(seconds, steps, strict=True):
                start = time.perf_counter()
                step()
                row[i - 2] = time.perf_counter() - start  # those of the first two are written over
        peaks = [peak_memory(plan, settings, text) for settings in configurations]
    records = [
        {
            "model": model,
            "method": settings["kind"],
            **{name: value for name, value in settings.items() if name != "kind"},
            "milliseconds": 1e3 * float(np.median(row)),
            "megabytes": peak / 1e6,
            "time_to_full": float(np.median(row / seconds[0])),
            "memory_to_full": peak / peaks[0],
            "runs": runs,
            "environment": environment(),
        }
        for settings, row, peak in zip(configurations, seconds, peaks, strict=True)
    ]
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / f"cost-{model}.json", json.dumps(records, indent=1).encode())
    for r in records:
        name = " ".join(str(r[k]) for k in ("method", "n_codes", "n_groups") if k in r)
        click.echo(f"{name:14} {r['time_to_full']:.2f}x time, {r['memory_to_full']:.2f}x memory")


if __name__ == "__main__":
    main()
