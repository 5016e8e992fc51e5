"""What `figures.gpu` measures: work on a GPU, beside torch on the same GPU where there is one, and floors.

Each work is held equal to the back end of NumPy or Numba before it is timed.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from dpq_ref import DPQEmbedding, ProductTable, backend
from dpq_ref.tasks.language_model import SIZES, batches
from dpq_ref.tasks.recipe import presets
from figures.speed import Work
from figures.workloads.dpq import VOCAB, torch_dpq
from figures.workloads.training import first_losses, language_stepper, torch_language_model
from figures.workloads.zipf import zipf

CHECKED = 1000  # rows that are compared with the host's


def torch_on_gpu() -> bool:
    """Whether torch is installed and finds a GPU."""
    try:
        import torch
    except ModuleNotFoundError:
        return False
    return bool(torch.cuda.is_available())


def dpq(method: str, tokens: int, dim: int, n_groups: int, n_codes: int) -> Work:
    """Forward and backward of a DPQ layer with batch norm, its gradients left on the device."""
    rng = np.random.default_rng(0)
    ids, g = zipf(tokens, rng), rng.standard_normal((tokens, dim)).astype(np.float32)

    def layer_on(name: str) -> DPQEmbedding:
        return DPQEmbedding(
            VOCAB, dim, n_groups=n_groups, n_codes=n_codes, method=method, init=1.0, backend=name
        )

    layer, host = layer_on("cupy"), layer_on("numba")
    there = layer.kernels.xp.asarray(g)

    def ours() -> Any:
        with backend.trusted_indices():
            output = layer.forward(ids)
            layer.backward(there)
        return output, layer.grads

    peers, agree = {}, None
    if torch_on_gpu():
        peers, agree = torch_dpq(layer, ids, g, ours, "cuda").values()

    def agree_with_all() -> None:
        output, grads = ours()
        expected = host.forward(ids)
        host.backward(g)
        close = np.isclose(backend.to_numpy(output), expected, rtol=1e-4, atol=1e-5).mean()
        # Responses that differ by rounding alone may give another code, to a frequent word many times.
        assert close > 0.998, f"{1 - close:.2%} of the output differ from the host's"
        for name in grads.keys() - {"query"}:
            error = np.linalg.norm(backend.to_numpy(grads[name]) - host.grads[name])
            assert error < 0.02 * np.linalg.norm(host.grads[name]), f"the gradient of {name} differs"
        if agree:
            agree()

    rows = len(np.unique(ids))
    return Work(
        f"{tokens:,} tokens, dim {dim}, D {n_groups}, K {n_codes}",
        ours,
        peers,
        agree_with_all,
        operations=2.0 * (4 if method == "sx" else 1) * rows * dim * n_codes,
        traffic=8.0 * (rows + tokens) * dim,
    )


dpq_sx, dpq_vq = partial(dpq, "sx"), partial(dpq, "vq")


def language_model(model: str, n_steps: int, embedding: str = "full", **changes: Any) -> Work:
    """Training step of a language model, loss read after each; torch's has cuDNN's LSTM and a full table."""
    plan = replace(SIZES[model], n_steps=n_steps, keep=1.0, **changes)
    text = zipf(plan.batch_size * (4 * n_steps + 1), np.random.default_rng(0))
    full = {"kind": "full"}
    settings = full if embedding == "full" else presets()[f"ptb-{model}-{embedding}"]["embedding"]
    ours, host = (language_stepper(plan, settings, text, name)[1] for name in ("cupy", "numba"))
    peers = {}
    if torch_on_gpu():
        start = language_stepper(plan, full, text)[0]
        stream = batches(text, plan.batch_size, n_steps)
        peers = {"torch, full": torch_language_model(plan, start, stream, "cuda")}

    def agree() -> None:
        losses, *others = first_losses(ours, host, *peers.values())
        np.testing.assert_allclose(losses, others[0], rtol=1e-4)
        for theirs in others[1:]:
            np.testing.assert_allclose(losses, theirs, rtol=1e-3 if embedding == "full" else 0.02)

    h, tokens = plan.n_hidden, plan.batch_size * n_steps
    operations = 6.0 * tokens * h * (VOCAB + 8 * h * plan.n_layers)
    return Work(f"{model} (2 x {h}), {n_steps} steps, {embedding}", ours, peers, agree, operations)


def decode(tokens: int, dim: int, n_groups: int, n_codes: int) -> Work:
    """Rows of a compressed table, straight from its packed codes, beside a copy of as many bytes."""
    rng, xp = np.random.default_rng(0), backend.get("cupy").xp
    codes = rng.integers(0, n_codes, (VOCAB, n_groups))
    values = rng.standard_normal((n_groups, n_codes, dim // n_groups)).astype(np.float32)
    table, ids = ProductTable.from_codes(codes, values), zipf(tokens, rng).astype(np.int64)
    there, index = table.on("cupy"), xp.asarray(ids)
    out, source = xp.empty((tokens, dim), np.float32), xp.zeros((tokens, dim), np.float32)

    def ours() -> Any:
        return there.lookup(index, out=out)

    def agree() -> None:
        np.testing.assert_array_equal(backend.to_numpy(ours()[:CHECKED]), table.lookup(ids[:CHECKED]))

    return Work(
        f"{tokens:,} ids, dim {dim}, D {n_groups}, K {n_codes}",
        ours,
        {"copy": lambda: xp.copyto(out, source)},
        agree,
        traffic=tokens * (table.bytes_per_lookup() + out.itemsize * dim),
    )


def assignment(n: int, dim: int, n_groups: int, n_codes: int) -> Work:
    """Nearest centroid of each row in each group, beside the matrix products that distances need at least."""
    kernels, rng = backend.get("cupy"), np.random.default_rng(0)
    points = rng.standard_normal((n, n_groups, dim // n_groups)).astype(np.float32)
    keys = rng.standard_normal((n_groups, n_codes, dim // n_groups)).astype(np.float32)
    xp = kernels.xp
    there, book = xp.asarray(points), xp.asarray(keys)
    left, right = xp.ascontiguousarray(there.swapaxes(0, 1)), xp.ascontiguousarray(book.swapaxes(1, 2))
    product = xp.empty((n_groups, n, n_codes), np.float32)

    def agree() -> None:
        found = kernels.nearest_code(there[:CHECKED], book)
        expected = backend.get().nearest_code(points[:CHECKED], keys)
        np.testing.assert_array_equal(backend.to_numpy(found), expected)

    return Work(
        f"{n:,} rows, dim {dim}, D {n_groups}, K {n_codes}",
        lambda: kernels.nearest_code(there, book),
        {"matrix product": lambda: xp.matmul(left, right, out=product)},
        agree,
        operations=2.0 * n * dim * n_codes,
    )
