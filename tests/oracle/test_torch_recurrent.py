"""LSTM, softmax over a vocabulary and the whole language model against torch, in float64."""

import numpy as np
import pytest

from dpq_ref import SGD, FullEmbedding, trainer
from dpq_ref.layers import LSTM, BidirectionalLSTM, SoftmaxOutput
from dpq_ref.tasks.language_model import LanguageModel, Plan, batches

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.oracle

RTOL, ATOL = 1e-10, 1e-13
B, T, N, H, VOCAB = 4, 6, 5, 7, 23


def close(actual, expected):
    np.testing.assert_allclose(actual, expected.detach().numpy(), rtol=RTOL, atol=ATOL)


def copy_lstm(module, params, suffix):
    """Gates of both stand in the order input, forget, candidate, output; torch has two biases."""
    with torch.no_grad():
        getattr(module, f"weight_ih_{suffix}").copy_(torch.tensor(params["input_weight"].T))
        getattr(module, f"weight_hh_{suffix}").copy_(torch.tensor(params["hidden_weight"].T))
        getattr(module, f"bias_ih_{suffix}").copy_(torch.tensor(params["bias"]))
        getattr(module, f"bias_hh_{suffix}").zero_()


def gradients(module, suffix):
    return {
        "input_weight": getattr(module, f"weight_ih_{suffix}").grad.T,
        "hidden_weight": getattr(module, f"weight_hh_{suffix}").grad.T,
        "bias": getattr(module, f"bias_ih_{suffix}").grad,
    }


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_lstm(backend, rng):
    layer = LSTM(N, H, rng=rng, forget_bias=1.0, init=0.5, dtype=np.float64, backend=backend)
    module = torch.nn.LSTM(N, H, batch_first=True, dtype=torch.float64)
    copy_lstm(module, layer.params, "l0")
    x, d = rng.standard_normal((B, T, N)), rng.standard_normal((B, T, H))
    state, d_state = rng.standard_normal((2, B, H)), rng.standard_normal((2, B, H))
    tensor = torch.tensor(x, requires_grad=True)
    before = [torch.tensor(s[None], requires_grad=True) for s in state]
    theirs, after = module(tensor, tuple(before))
    total = (theirs * torch.tensor(d)).sum()
    (total + sum((a * torch.tensor(g)).sum() for a, g in zip(after, d_state, strict=True))).backward()

    close(layer.forward(x, state=tuple(state)), theirs)
    for mine, other in zip(layer.state, after, strict=True):
        close(mine, other[0])
    close(layer.backward(d, d_state=tuple(d_state)), tensor.grad)
    for mine, other in zip(layer.d_state, before, strict=True):
        close(mine, other.grad[0])
    for name, gradient in gradients(module, "l0").items():
        close(layer.grads[name], gradient)


def test_both_ways_with_lengths(rng):
    lengths = np.array([6, 1, 4, 3])
    layer = BidirectionalLSTM(N, H, rng=rng, init=0.5, dtype=np.float64)
    module = torch.nn.LSTM(N, H, batch_first=True, bidirectional=True, dtype=torch.float64)
    for way, suffix in (("forward", "l0"), ("backward", "l0_reverse")):
        copy_lstm(module, layer.layers[way].params, suffix)
    x, d = rng.standard_normal((B, T, N)), rng.standard_normal((B, T, 2 * H))
    tensor = torch.tensor(x, requires_grad=True)
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        tensor, torch.tensor(lengths), True, enforce_sorted=False
    )
    theirs, _ = torch.nn.utils.rnn.pad_packed_sequence(module(packed)[0], batch_first=True)
    (theirs * torch.tensor(d)).sum().backward()

    close(layer.forward(x, lengths=lengths), theirs)
    close(layer.backward(d), tensor.grad)
    for way, suffix in (("forward", "l0"), ("backward", "l0_reverse")):
        for name, gradient in gradients(module, suffix).items():
            close(layer.layers[way].grads[name], gradient)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_over_a_vocabulary(smoothing, rng):
    layer = SoftmaxOutput(VOCAB, H, rng=rng, init=2.0, smoothing=smoothing, dtype=np.float64)
    layer.params["bias"][:] = rng.standard_normal(VOCAB)
    x, labels, weights = rng.standard_normal((B, H)), rng.integers(0, VOCAB, B), rng.random(B)
    weight, bias, tensor = (
        torch.tensor(a, requires_grad=True) for a in (layer.params["weight"], layer.params["bias"], x)
    )
    theirs = torch.nn.functional.cross_entropy(
        tensor @ weight.T + bias, torch.tensor(labels), reduction="none", label_smoothing=smoothing
    )
    (theirs * torch.tensor(weights)).sum().backward()
    losses, d_x = layer.loss(x, labels, weights)
    close(losses, theirs)
    close(d_x, tensor.grad)
    close(layer.grads["weight"], weight.grad)
    close(layer.grads["bias"], bias.grad)


@pytest.mark.parametrize("tied", [False, True])
def test_language_model_follows_torch_for_two_epochs(tied, rng):
    """Losses, and parameters at the end: clipped descent with the state carried and cut."""
    plan = Plan(n_hidden=H, batch_size=3, n_steps=4, init=0.5, clip_norm=1.0)
    ids = rng.integers(0, VOCAB, 3 * (4 * 4 + 1)).astype(np.int32)
    embedding = FullEmbedding(VOCAB, H, init=0.5, rng=1, dtype=np.float64)
    model = LanguageModel(embedding, plan, table=embedding if tied else None, rng=2)
    table = torch.nn.Embedding(VOCAB, H, dtype=torch.float64)
    lstm = torch.nn.LSTM(H, H, num_layers=2, batch_first=True, dtype=torch.float64)
    output = torch.nn.Linear(H, VOCAB, dtype=torch.float64)
    with torch.no_grad():
        table.weight.copy_(torch.tensor(model.params["embedding.table"]))
        output.bias.zero_()
        if not tied:
            output.weight.copy_(torch.tensor(model.params["output.weight"]))
    if tied:
        output.weight = table.weight
    for i in (1, 2):
        copy_lstm(lstm, model.recurrent[i - 1].params, f"l{i - 1}")
    for name, parameter in lstm.named_parameters():
        if name.startswith("bias_hh"):
            parameter.requires_grad_(False)  # one bias, as here
    parameters = {p for m in (table, lstm, output) for p in m.parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    theirs, state, stream = [], None, batches(ids, 3, 4)
    for _ in range(8):
        batch = next(stream)
        if batch.fresh:
            state = None
        x, state = lstm(table(torch.tensor(batch.inputs).long()), state)
        state = tuple(s.detach() for s in state)
        logits, labels = output(x).reshape(-1, VOCAB), torch.tensor(batch.targets.ravel()).long()
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / 3
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        theirs.append(loss.item())

    history = trainer.train(model, batches(ids, 3, 4), SGD(model.params, 0.5), steps=8, clip_norm=1.0)
    # torch divides by the norm plus 1e-6
    np.testing.assert_allclose(history.losses, theirs, rtol=1e-5)
    np.testing.assert_allclose(
        model.params["embedding.table"], table.weight.detach().numpy(), rtol=1e-4, atol=1e-6
    )
