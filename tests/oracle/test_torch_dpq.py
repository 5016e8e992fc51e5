"""Outputs and gradients against the released formulation, written in PyTorch and differentiated by it."""

from itertools import product

import numpy as np
import pytest

from dpq_ref.layers.embedding import DPQEmbedding, FullEmbedding, RowSparse
from dpq_ref.quantize import EPSILON

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.oracle

N, D, K, S = 40, 4, 6, 3
DIM = D * S
BOUND = 1e-10  # of the largest entry


class Release:
    """DPQ as its authors released it, on every token of a batch."""

    def __init__(self, layer):
        self.layer = layer
        self.table = {name: torch.tensor(array, requires_grad=True) for name, array in layer.params.items()}
        # The released batch norm: momentum 0.99 is 0.01 here; no scale, no shift; K channels.
        self.norm = torch.nn.BatchNorm1d(K, eps=EPSILON, momentum=0.01, affine=False, dtype=torch.float64)

    def book(self, name):
        return self.table[name].expand(D, -1, -1)

    def query(self, ids):
        return torch.nn.functional.embedding(ids, self.table["query"]).reshape(-1, D, self.layer.query_width)

    def scores(self, query):
        keys = self.book("keys")
        if self.layer.method == "sx":
            responses = torch.einsum("bjc,jkc->bjk", query, keys)
        else:
            responses = -((query[:, :, None] - keys) ** 2).sum(dim=3)
        if not self.layer.batch_norm:
            return responses
        return self.norm(responses.reshape(-1, K)).reshape(-1, D, K)

    def __call__(self, ids):
        """Output and the loss that the layer adds to the objective."""
        query = self.query(ids)
        scores = self.scores(query)
        codes = scores.argmax(dim=2)
        one_hot = torch.nn.functional.one_hot(codes, K).to(torch.float64)
        if self.layer.method == "sx":
            p = torch.softmax(scores / self.layer.temperature, dim=2)
            picked = torch.einsum("bjk,jkc->bjc", one_hot + p - p.detach(), self.book("values"))
            loss = torch.zeros((), dtype=torch.float64)
        else:
            nearest = torch.einsum("bjk,jkc->bjc", one_hot, self.book("keys"))
            picked = query + (nearest - query).detach()
            loss = self.layer.codebook_weight * ((nearest - query.detach()) ** 2).mean()
            loss = loss + self.layer.commitment_weight * ((nearest.detach() - query) ** 2).mean()
        output = picked.mean(dim=1) if self.layer.additive else picked.reshape(len(query), -1)
        return output.reshape(*ids.shape, DIM), loss


def difference(ours, theirs):
    """Largest difference, relative to the largest entry."""
    ours = ours.to_dense() if isinstance(ours, RowSparse) else ours
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape and abs(theirs).max() > 0
    return abs(ours - theirs).max() / abs(theirs).max()


def compare(layer, ids, steps=1):
    """Differences between layer and release in everything that a training step computes."""
    release = Release(layer)
    rng = np.random.default_rng(1)
    differences = {}
    for step in range(steps):
        g = rng.standard_normal((*ids.shape, DIM))
        output = layer.forward(ids)
        layer.backward(g)
        for parameter in release.table.values():
            parameter.grad = None
        their_output, loss = release(torch.tensor(ids))
        ((their_output * torch.tensor(g)).sum() + loss).backward()
        found = {"output": difference(output, their_output)}
        for name, gradient in layer.grads.items():
            found[name] = difference(gradient, release.table[name].grad)
        if layer.method == "vq":
            found["loss"] = abs(layer.codebook_loss - loss.item()) / loss.item()
        if layer.batch_norm:
            entries = ids.size * D
            # PyTorch moves its running variance by the unbiased variance.
            unbiased = 0.01 * entries / (entries - 1)
            kept = 0.99 ** (step + 1)
            theirs = (release.norm.running_var - kept) / unbiased * 0.01 + kept
            found["running mean"] = difference(layer.running_mean, release.norm.running_mean)
            found["running variance"] = difference(layer.running_variance, theirs)
        assert set(found) >= {"output", *layer.params}
        differences = {name: max(value, differences.get(name, 0)) for name, value in found.items()}
        with torch.no_grad():
            for name, array in layer.params.items():
                gradient = release.table[name].grad
                release.table[name] -= 0.03 * gradient
                array -= 0.03 * gradient.numpy()
    return differences


def cases():
    for shared, additive, batch_norm in product([False, True], repeat=3):
        options = {"shared": shared, "additive": additive, "batch_norm": batch_norm}
        for temperature, query_width in ((1.0, None), (0.5, 2)):
            yield {"method": "sx", "temperature": temperature, "query_width": query_width} | options
        for alpha, beta in ((1.0, 0.0), (0.5, 0.25)):
            yield {"method": "vq", "codebook_weight": alpha, "commitment_weight": beta} | options


def make(backend="numpy", **options):
    return DPQEmbedding(
        N, DIM, n_groups=D, n_codes=K, init=0.9, rng=2, dtype=np.float64, backend=backend, **options
    )


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("options", list(cases()), ids=lambda o: "-".join(str(v) for v in o.values()))
def test_outputs_and_gradients_are_those_of_the_release(backend, options):
    ids = np.random.default_rng(0).zipf(1.5, (7, 9)) % N  # some ids many times
    assert len(np.unique(ids)) < 40 and np.bincount(ids.ravel()).max() > 5
    differences = compare(make(backend, **options), ids)
    assert max(differences.values()) < BOUND, differences


@pytest.mark.parametrize("method", ["sx", "vq"])
def test_they_stay_together_over_some_steps(method):
    ids = np.random.default_rng(0).integers(0, N, (5, 11))
    differences = compare(make(method=method), ids, steps=5)
    assert max(differences.values()) < BOUND, differences


@pytest.mark.parametrize("method", ["sx", "vq"])
def test_evaluation_takes_the_codes_of_the_release(method):
    layer = make(method=method)
    release = Release(layer)
    ids = np.random.default_rng(0).integers(0, N, 60)
    for _ in range(20):
        layer.forward(ids)
    release.norm.running_mean[:] = torch.tensor(layer.running_mean)
    release.norm.running_var[:] = torch.tensor(layer.running_variance)
    release.norm.eval()
    everything = torch.arange(N)
    codes = release.scores(release.query(everything)).argmax(dim=2).numpy()
    np.testing.assert_array_equal(layer.codes(np.arange(N)), codes)
    output, _ = release(everything)
    assert difference(layer.forward(np.arange(N), train=False), output) < BOUND


def test_padding_is_left_out_as_if_it_were_not_there():
    # Statistics and loss over the kept tokens alone; the output of padding is another matter.
    for method in ("sx", "vq"):
        layer = make(method=method, padding_id=0)
        release = Release(layer)
        ids = np.random.default_rng(0).integers(1, N, 30)
        g = np.random.default_rng(1).standard_normal((30, DIM))
        layer.forward(np.r_[ids, np.zeros(12, int)])
        layer.backward(np.r_[g, np.zeros((12, DIM))])
        output, loss = release(torch.tensor(ids))
        ((output * torch.tensor(g)).sum() + loss).backward()
        for name, gradient in layer.grads.items():
            assert difference(gradient, release.table[name].grad) < BOUND


def test_the_full_table():
    layer = FullEmbedding(N, DIM, dtype=np.float64)
    table = torch.tensor(layer.params["table"], requires_grad=True)
    ids = np.random.default_rng(0).integers(0, 9, (7, 9))
    g = np.random.default_rng(1).standard_normal((7, 9, DIM))
    output = torch.nn.functional.embedding(torch.tensor(ids), table)
    (output * torch.tensor(g)).sum().backward()
    np.testing.assert_array_equal(layer.forward(ids), output.detach().numpy())
    layer.backward(g)
    assert difference(layer.grads["table"], table.grad) < BOUND
