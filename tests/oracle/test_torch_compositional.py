"""Learned codes against the same models written in PyTorch and differentiated by it."""

import numpy as np
import pytest

from baselines.coders import GumbelCoder, KDCoder, least_squares, one_hot
from baselines.reconstruction import Reconstruction
from dpq_ref import backend
from dpq_ref.layers.embedding import DPQEmbedding, RowSparse
from dpq_ref.optim import Adam, clip_global_norm

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.oracle

N, D, M, K, H, W = 30, 6, 4, 5, 9, 3
TAU = 0.7
BOUND = 1e-10  # of the largest entry


class Fixed:
    """A generator that draws the exponentials it was given, one batch after the other."""

    def __init__(self, drawn):
        self.drawn = iter(drawn)

    def standard_exponential(self, shape, dtype):
        return next(self.drawn).astype(dtype)


def coder(kind, drawn, name):
    rng = np.random.default_rng(0)
    shapes = {"logits": (D, M * K), "logits_bias": (M * K,), "codebooks": (M * K, D)}
    if kind == "gumbel":
        shapes |= {"hidden": (D, H), "hidden_bias": (H,), "logits": (H, M * K)}
    elif kind == "kd, map":
        shapes |= {"codebooks": (M * K, W), "basis": (W, D)}
    return (GumbelCoder if kind == "gumbel" else KDCoder)(
        {name: rng.standard_normal(shape) for name, shape in shapes.items()},
        rng.standard_normal((N, D)),
        n_groups=M,
        temperature=TAU,
        kernels=backend.get(name),
        rng=Fixed(drawn),
    )


def loss_of(kind, p, x, exponentials):
    """Half the squared error of a row, mean over the batch."""
    if kind == "gumbel":
        z = torch.nn.functional.linear(torch.tanh(x @ p["hidden"] + p["hidden_bias"]), p["logits"].T)
        logits = torch.log(torch.nn.functional.softplus(z + p["logits_bias"]) + 1e-8)
        noisy = (logits - torch.log(exponentials)).reshape(-1, M, K)
        weights = torch.softmax(noisy / TAU, dim=2)
    else:
        logits = (x @ p["logits"] + p["logits_bias"]).reshape(-1, M, K)
        soft = torch.softmax(logits / TAU, dim=2)
        hard = torch.nn.functional.one_hot(logits.argmax(dim=2), K)
        weights = hard + soft - soft.detach()
    output = torch.einsum("bmk,mkw->bw", weights, p["codebooks"].reshape(M, K, -1))
    output = output @ p["basis"] if "basis" in p else output
    return ((x - output) ** 2).sum(dim=1).mean() / 2


def assert_same(ours, theirs):
    ours = ours.to_dense() if isinstance(ours, RowSparse) else ours
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape and abs(theirs).max() > 0
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=BOUND * abs(theirs).max())


@pytest.mark.parametrize("name", ["numpy", "numba"])
@pytest.mark.parametrize("kind", ["gumbel", "kd", "kd, map"])
def test_five_clipped_steps_of_adam(kind, name):
    rng = np.random.default_rng(1)
    drawn = rng.standard_exponential((5, 8, M * K))
    model = coder(kind, drawn, name)
    params = {k: torch.tensor(v, requires_grad=True) for k, v in model.params.items()}
    ours, theirs = Adam(model.params, 0.02, backend=name), torch.optim.Adam(params.values(), 0.02)
    for exponentials in drawn:
        ids = rng.integers(0, N, 8)
        loss = model.loss_and_gradients(ids)
        theirs.zero_grad()
        expected = loss_of(kind, params, torch.tensor(model.rows[ids]), torch.tensor(exponentials))
        expected.backward()
        np.testing.assert_allclose(loss, expected.item(), rtol=1e-12)
        for parameter, gradient in model.grads.items():
            assert_same(gradient, params[parameter].grad)
        clip_global_norm(model.grads, 0.1)
        ours.step(model.grads)
        norm = torch.sqrt(sum((p.grad**2).sum() for p in params.values()))
        for p in params.values():
            p.grad *= 0.1 / norm  # clip_grad_norm_ adds 1e-6 to the norm
        theirs.step()
    for parameter, array in model.params.items():
        np.testing.assert_allclose(array, params[parameter].detach().numpy(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", ["sx", "vq"])
@pytest.mark.parametrize("shared", [False, True])
def test_reconstruction_by_dpq(method, shared):
    rng = np.random.default_rng(2)
    rows, ids = rng.standard_normal((N, D)), np.array([0, 7, 7, 7, 29, 3])
    layer = DPQEmbedding(
        N,
        D,
        n_groups=3,
        n_codes=K,
        method=method,
        shared=shared,
        batch_norm=False,
        temperature=TAU,
        init=rows,
        dtype=np.float64,
    )
    model = Reconstruction(layer, rows)
    loss = model.loss_and_gradients(ids)
    p = {k: torch.tensor(v, requires_grad=True) for k, v in layer.params.items()}
    x = torch.tensor(rows[ids])
    query = p["query"][torch.tensor(ids)].reshape(-1, 3, 2)
    keys = p["keys"].expand(3, -1, -1)
    if method == "sx":
        logits = torch.einsum("bjc,jkc->bjk", query, keys)
        soft = torch.softmax(logits / TAU, dim=2)
        hard = torch.nn.functional.one_hot(logits.argmax(dim=2), K) + soft - soft.detach()
        output = torch.einsum("bjk,jkc->bjc", hard, p["values"].expand(3, -1, -1))
        extra = torch.zeros((), dtype=torch.float64)
    else:
        codes = ((query[:, :, None] - keys) ** 2).sum(dim=3).argmin(dim=2)
        nearest = keys[torch.arange(3), codes]
        output = query + (nearest - query).detach()
        extra = ((nearest - query.detach()) ** 2).mean()
    expected = ((output.reshape(x.shape) - x) ** 2).mean() + extra
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-12)
    assert set(model.grads) == set(p)
    for name, gradient in model.grads.items():
        assert_same(gradient, p[name].grad)


def test_refit_is_the_least_squares_of_torch():
    rng = np.random.default_rng(3)
    rows, weights = rng.standard_normal((200, D)), rng.random(200)
    inputs = one_hot(rng.integers(0, K, (200, M)), K)
    found = inputs @ least_squares(inputs, rows, weights, np.zeros((M * K, D)))
    root = torch.tensor(np.sqrt(weights))[:, None]
    dense = torch.tensor(inputs.toarray())
    best = torch.linalg.lstsq(root * dense, root * torch.tensor(rows), driver="gelsd").solution
    np.testing.assert_allclose(found, (dense @ best).numpy(), atol=1e-6)
