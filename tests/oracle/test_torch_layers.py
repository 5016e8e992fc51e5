"""Optimizers, batch norm and the loss against torch, in float64."""

import numpy as np
import pytest

from dpq_ref import SGD, Adagrad, Adam
from dpq_ref.layers import BatchNorm, Dense, softmax_cross_entropy

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.oracle

RTOL = 1e-10


def test_optimizers_follow_torch(rng):
    kinds = [
        (SGD, torch.optim.SGD, {}),
        (Adagrad, torch.optim.Adagrad, {}),
        (Adam, torch.optim.Adam, {}),
    ]
    for ours, theirs, extra in kinds:
        x = rng.standard_normal((4, 3))
        tensor = torch.nn.Parameter(torch.tensor(x))
        optimizer, oracle = ours({"x": x}, 0.05), theirs([tensor], lr=0.05, **extra)
        for _ in range(10):
            gradient = rng.standard_normal(x.shape)
            optimizer.step({"x": gradient})
            tensor.grad = torch.tensor(gradient)
            oracle.step()
        np.testing.assert_allclose(x, tensor.detach().numpy(), rtol=RTOL)


def test_batch_norm_dense_and_loss_follow_torch(rng):
    x, labels = rng.standard_normal((8, 5)), rng.integers(0, 3, 8)
    norm, dense = BatchNorm(5, dtype=np.float64), Dense(5, 3, rng=rng, dtype=np.float64)
    norm.params["gamma"][:] = rng.standard_normal(5)
    their_norm = torch.nn.BatchNorm1d(5, eps=1e-3, momentum=0.1, dtype=torch.float64)
    their_dense = torch.nn.Linear(5, 3, dtype=torch.float64)
    with torch.no_grad():
        their_norm.weight.copy_(torch.tensor(norm.params["gamma"]))
        their_dense.weight.copy_(torch.tensor(dense.params["weight"].T))
        their_dense.bias.zero_()
    tensor = torch.tensor(x, requires_grad=True)
    their_loss = torch.nn.functional.cross_entropy(their_dense(their_norm(tensor)), torch.tensor(labels))
    their_loss.backward()

    loss, d_logits = softmax_cross_entropy(dense.forward(norm.forward(x)), labels)
    d_x = norm.backward(dense.backward(d_logits))
    assert loss == pytest.approx(their_loss.item(), rel=RTOL)
    np.testing.assert_allclose(d_x, tensor.grad.numpy(), rtol=1e-8, atol=1e-14)
    np.testing.assert_allclose(norm.grads["gamma"], their_norm.weight.grad.numpy(), rtol=1e-8, atol=1e-14)
    np.testing.assert_allclose(
        dense.grads["weight"].T, their_dense.weight.grad.numpy(), rtol=1e-8, atol=1e-14
    )
    np.testing.assert_allclose(norm.buffers["mean"], their_norm.running_mean.numpy(), rtol=RTOL)
