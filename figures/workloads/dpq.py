"""A DPQ layer's forward and backward, beside the released formulation in torch and a library."""

from functools import partial
from typing import Any

import numpy as np

from dpq_ref import DPQEmbedding
from dpq_ref.backend import to_numpy
from dpq_ref.quantize import EPSILON
from figures.speed import Work
from figures.workloads.zipf import zipf

VOCAB = 10_000


def dpq(method: str, tokens: int, dim: int, n_groups: int, n_codes: int, distinct: bool = False) -> Work:
    """Forward and backward of a DPQ layer with batch norm; words by Zipf's law, or each once."""
    rng = np.random.default_rng(0)
    ids = rng.permutation(VOCAB)[:tokens] if distinct else zipf(tokens, rng)
    layer = DPQEmbedding(VOCAB, dim, n_groups=n_groups, n_codes=n_codes, method=method, init=1.0)
    g = rng.standard_normal((tokens, dim)).astype(np.float32)

    def ours() -> Any:
        output = layer.forward(ids)
        layer.backward(g)
        return output, layer.grads

    s, rows = dim // n_groups, len(np.unique(ids))
    products = 4 if method == "sx" else 1
    return Work(
        f"{tokens:,} tokens, dim {dim}, D {n_groups}, K {n_codes}{', distinct' if distinct else ''}",
        ours,
        operations=2.0 * products * rows * n_groups * n_codes * s,
        traffic=8.0 * (rows + tokens) * dim,  # queries and output of the forward, their gradients
        **torch_dpq(layer, ids, g, ours),
    )


dpq_sx, dpq_vq = partial(dpq, "sx"), partial(dpq, "vq")


def moving_averages(tokens: int, dim: int, n_groups: int, n_codes: int, decay: float = 0.8) -> Work:
    """DPQ-VQ whose keys follow moving averages of their queries, beside vector-quantize-pytorch."""
    import torch
    from vector_quantize_pytorch import VectorQuantize

    rng = np.random.default_rng(0)
    ids, g = zipf(tokens, rng), rng.standard_normal((tokens, dim)).astype(np.float32)
    layer = DPQEmbedding(
        VOCAB,
        dim,
        n_groups=n_groups,
        n_codes=n_codes,
        method="vq",
        batch_norm=False,
        ema_decay=decay,
        init=1.0,
    )
    table = torch.tensor(layer.params["query"], requires_grad=True)
    index, upstream = torch.tensor(ids).long(), torch.tensor(g)
    peer = VectorQuantize(
        dim, heads=n_groups, codebook_dim=dim // n_groups, codebook_size=n_codes, decay=decay,
        separate_codebook_per_head=True,
    )  # fmt: skip
    peer._codebook.embed.copy_(torch.tensor(layer.params["keys"]))

    def ours() -> Any:
        output = layer.forward(ids)
        layer.backward(g)
        return output

    def theirs() -> Any:
        table.grad = None
        output, _, loss = peer(torch.nn.functional.embedding(index, table)[None])
        ((output[0] * upstream).sum() + loss.sum()).backward()
        return output[0]

    def agree() -> None:
        # The first step: later ones differ, as the library adds a constant to the size of each cluster.
        close = np.isclose(ours(), theirs().detach().numpy(), rtol=1e-4, atol=1e-5).mean()
        assert close > 0.998, f"{1 - close:.2%} of the output differ"

    return Work(
        f"{tokens:,} tokens, dim {dim}, D {n_groups}, K {n_codes}",
        ours,
        peers={"vector-quantize-pytorch": theirs},
        agree=agree,
        operations=2.0 * len(np.unique(ids)) * n_codes * dim,
    )


def torch_dpq(
    layer: DPQEmbedding, ids: np.ndarray, g: np.ndarray, ours: Any, device: str = "cpu"
) -> dict[str, Any]:
    """Peers: the released formulation in torch, eager and compiled."""
    import torch

    torch.compiler.reset()  # after some sizes more it would compile no longer
    D, K = layer.n_groups, layer.n_codes
    table = {
        name: torch.tensor(to_numpy(array), device=device, requires_grad=True)
        for name, array in layer.params.items()
    }
    norm = torch.nn.BatchNorm1d(K, eps=EPSILON, momentum=0.01, affine=False, device=device)
    index, upstream = torch.tensor(ids, device=device).long(), torch.tensor(g, device=device)

    def forward() -> Any:
        query = torch.nn.functional.embedding(index, table["query"]).reshape(len(index), D, -1)
        keys = table["keys"]
        if layer.method == "sx":
            responses = torch.einsum("bjc,jkc->bjk", query, keys)
        else:
            responses = -((query[:, :, None] - keys) ** 2).sum(dim=3)
        scores = norm(responses.reshape(-1, K)).reshape(-1, D, K)
        one_hot = torch.nn.functional.one_hot(scores.argmax(dim=2), K).to(query.dtype)
        if layer.method == "sx":
            p = torch.softmax(scores, dim=2)
            picked = torch.einsum("bjk,jkc->bjc", one_hot + p - p.detach(), table["values"])
            loss = 0.0
        else:
            nearest = torch.einsum("bjk,jkc->bjc", one_hot, keys)
            picked = query + (nearest - query).detach()
            loss = ((nearest - query.detach()) ** 2).mean()
        return picked.reshape(len(index), -1), loss

    def step(call: Any) -> Any:
        def run() -> Any:
            for parameter in table.values():
                parameter.grad = None
            output, loss = call()
            ((output * upstream).sum() + loss).backward()
            return output

        return run

    eager = step(forward)

    def agree() -> None:
        output, grads = ours()
        theirs = eager().detach().cpu().numpy()
        close = np.isclose(to_numpy(output), theirs, rtol=1e-4, atol=1e-5).mean()
        # Responses that differ by rounding alone may give another code, to a frequent word many times.
        assert close > 0.998, f"{1 - close:.2%} of the output differ"
        for name in grads.keys() & table.keys() - {"query"}:
            theirs = table[name].grad.cpu().numpy()
            error = np.linalg.norm(to_numpy(grads[name]) - theirs) / np.linalg.norm(theirs)
            assert error < 0.02, f"the gradient of {name} differs by {error:.2%} of its norm"

    return {"peers": {"torch": eager, "torch.compile": step(torch.compile(forward))}, "agree": agree}
