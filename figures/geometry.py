"""A DPQ that one can see: one group, two wide, on a toy task, before and after training.

Each of a few words has a target in the plane, around one of K centres; the output of the embedding is to come
near it. The result has queries, keys, values, the cell of each key and all gradients; `figures.plot_geometry`
draws it.
"""

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from dpq_ref import quantize
from dpq_ref.compressed import write_atomically
from dpq_ref.kernels.reference import Array
from dpq_ref.layers import DPQEmbedding
from dpq_ref.optim import Adam
from figures.inside import rounded

N_WORDS = 40
K = 5
SETTINGS: dict[str, Any] = {"n_groups": 1, "n_codes": K, "batch_norm": False, "init": 1.0}
STEPS = 200
LEARNING_RATE = 0.03
SEED = 0
PIXELS = 90  # of a side of the picture of the cells


def task(rng: np.random.Generator) -> Array:
    """Draw targets around K points of the unit circle, (N_WORDS, 2)."""
    angles = 2 * np.pi * np.arange(N_WORDS) / K
    noise = rng.normal(0, 0.12, (N_WORDS, 2))
    return (np.c_[np.cos(angles), np.sin(angles)] + noise).astype(np.float32)


def gradients(layer: DPQEmbedding, targets: Array) -> tuple[float, Array]:
    """Fill the gradients of the loss, half the squared distance to the targets, a sum over words.

    Returns
    -------
    loss : float
        Mean over words.
    d_output : (N_WORDS, 2)
    """
    d_output = layer.forward(np.arange(N_WORDS)) - targets
    layer.backward(d_output)
    return float(np.square(d_output).sum() / 2 / N_WORDS), d_output


def state(layer: DPQEmbedding, targets: Array) -> dict[str, Any]:
    """Where all is, and the gradients: arrays (N_WORDS or K, 2), codes (N_WORDS,), and the cells.

    The cells are the codes of the pixels of the square from -side to side, a line of digits a row, y rising.
    """
    loss, d_output = gradients(layer, targets)
    found = {"d_output": d_output, "d_query": layer.grads["query"].to_dense()}
    found |= {name: array.reshape(-1, 2) for name, array in layer.params.items()}
    found |= {f"d_{name}": layer.grads[name][0] for name in layer.params if name != "query"}
    reach = max(np.abs(found[name]).max() for name in ("query", "keys"))
    side = float(np.ceil(11.5 * reach)) / 10
    own = {"loss": loss, "codes": layer.codes(np.arange(N_WORDS))[:, 0].tolist(), "side": side}
    return own | {name: rounded(array) for name, array in found.items()} | {"cells": _cells(layer, side)}


def _cells(layer: DPQEmbedding, side: float) -> list[str]:
    at = side * (2 * (np.arange(PIXELS) + 0.5) / PIXELS - 1)
    points = np.stack(np.meshgrid(at, at), axis=-1).reshape(-1, 1, 2).astype(np.float32)
    codes = quantize.codes_of(layer.kernels, layer.method, points, layer.params["keys"])
    return ["".join(map(str, row)) for row in codes.reshape(PIXELS, PIXELS)]


def train(method: str, targets: Array) -> dict[str, Any]:
    """Train a DPQ on the task.

    Parameters
    ----------
    method : {"sx", "vq"}
    targets : (N_WORDS, 2)

    Returns
    -------
    dict
        before and after, each a `state`.
    """
    layer = DPQEmbedding(N_WORDS, 2, method=method, rng=SEED, **SETTINGS)
    before = state(layer, targets)
    optimizer = Adam(layer.params, LEARNING_RATE)
    for _ in range(STEPS):
        gradients(layer, targets)
        optimizer.step(layer.grads)
    return {"before": before, "after": state(layer, targets)}


@click.command()
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default="figures/results/geometry",
    show_default=True,
)
def main(output: Path) -> None:
    """Train DPQ-SX and DPQ-VQ on the toy task; write geometry.json."""
    targets = task(np.random.default_rng(SEED))
    result: dict[str, Any] = {"settings": SETTINGS, "steps": STEPS, "learning_rate": LEARNING_RATE}
    result |= {"seed": SEED, "targets": rounded(targets)}
    result |= {f"dpq-{method}": train(method, targets) for method in ("sx", "vq")}
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / "geometry.json", json.dumps(result).encode())
    click.echo(output / "geometry.json")


if __name__ == "__main__":
    main()
