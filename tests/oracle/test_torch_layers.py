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
    np.testing.assert_allclose(
        norm.buffers["variance"], 0.9 + 0.1 * x.var(axis=0), rtol=RTOL
    )  # torch's is the unbiased one

    their_norm.running_var.copy_(torch.tensor(norm.buffers["variance"]))
    their_norm.eval()
    expected = their_norm(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(norm.forward(x, train=False), expected, rtol=RTOL)


def test_batch_norm_in_float32_is_as_close_as_that_of_torch(rng):
    """Off centre by ten deviations, a batch as long as those of the bench; both against torch in float64."""
    x, d_y = ((shift + rng.standard_normal((1024, 70))).astype(np.float32) for shift in (10, 0))
    norm, gamma = BatchNorm(70), rng.standard_normal(70).astype(np.float32)
    norm.params["gamma"][:] = gamma
    ours = norm.forward(x), norm.backward(d_y), norm.grads["gamma"], norm.grads["beta"]

    def theirs(dtype):
        layer, tensor = torch.nn.BatchNorm1d(70, eps=1e-3, dtype=dtype), torch.tensor(x, dtype=dtype)
        layer.weight = torch.nn.Parameter(torch.tensor(gamma, dtype=dtype))
        y = layer(tensor.requires_grad_())
        y.backward(torch.tensor(d_y, dtype=dtype))
        found = y.detach(), tensor.grad, layer.weight.grad, layer.bias.grad
        return [array.numpy().astype(np.float64) for array in found]

    for mine, their, exact in zip(ours, theirs(torch.float32), theirs(torch.float64), strict=True):
        assert abs(mine - exact).max() <= 2 * abs(their - exact).max()
