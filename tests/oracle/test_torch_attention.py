"""Layer norm, attention and the Transformer against torch, outputs and gradients, in float64."""

import numpy as np
import pytest

from dpq_ref.layers.attention import LuongAttention, MultiHeadAttention
from dpq_ref.layers.norm import LayerNorm
from dpq_ref.layers.transformer import Decoder, Encoder

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.oracle

RTOL, ATOL = 1e-10, 1e-12
LENGTHS = np.array([5, 1, 3])
WIDTH, HEADS, HIDDEN = 8, 2, 12


def leaf(x):
    return torch.tensor(x, requires_grad=True)


def padding(lengths, u):
    """Torch masks what we leave out."""
    return torch.tensor(np.arange(u) >= lengths[:, None])


def causal(t):
    return torch.triu(torch.ones(t, t, dtype=torch.bool), diagonal=1)


def assert_close(pairs):
    for name, (ours, theirs) in pairs.items():
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=RTOL, atol=ATOL, err_msg=name)


def shaken(layer, rng):
    for array in layer.params.values():
        array += 0.3 * rng.standard_normal(array.shape)
    return layer


def test_layer_norm(rng):
    layer = shaken(LayerNorm(6, dtype=np.float64), rng)
    x, d_output = rng.standard_normal((2, 3, 4, 6))
    tensors = [leaf(x), leaf(layer.params["gamma"]), leaf(layer.params["beta"])]
    y = torch.nn.functional.layer_norm(tensors[0], (6,), tensors[1], tensors[2], eps=1e-6)
    y.backward(torch.tensor(d_output))
    ours = layer.forward(x), layer.backward(d_output), layer.grads["gamma"], layer.grads["beta"]
    assert_close(dict(enumerate(zip(ours, [y, *(t.grad for t in tensors)], strict=True))))


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("tanh", [True, False])
def test_luong_attention_with_input_feeding(scaled, tanh, rng):
    layer = shaken(LuongAttention(4, 6, scaled=scaled, tanh=tanh, rng=rng, dtype=np.float64), rng)
    query, d_output = rng.standard_normal((2, 3, 7, 4))
    memory = rng.standard_normal((3, 5, 6))

    p = {name: leaf(array) for name, array in layer.params.items()}
    their_query, their_memory = leaf(query), leaf(memory)
    keys, fed, theirs = their_memory @ p["memory"], torch.zeros(3, 4, dtype=torch.float64), []
    for t in range(7):
        q = their_query[:, t] + fed
        scores = torch.einsum("bh,buh->bu", q, keys)
        if scaled:
            scores = scores * p["scale"]
        weights = torch.softmax(scores.masked_fill(padding(LENGTHS, 5), -torch.inf), dim=1)
        context = torch.einsum("bu,bum->bm", weights, their_memory)
        fed = torch.cat([context, q], dim=1) @ p["output"]
        if tanh:
            fed = torch.tanh(fed)
        theirs.append(fed)
    theirs = torch.stack(theirs, dim=1)
    theirs.backward(torch.tensor(d_output))

    layer.set_memory(memory, LENGTHS)
    ours, d_query = [np.zeros((3, 1, 4))], np.empty_like(query)
    for t in range(7):
        ours.append(layer.forward(query[:, t : t + 1] + ours[-1]))
    d_fed = 0
    for t in reversed(range(7)):
        d_query[:, t : t + 1] = d_fed = layer.backward(d_output[:, t : t + 1] + d_fed)
    d_memory = layer.backward_memory()
    assert_close(
        {
            "output": (np.concatenate(ours[1:], axis=1), theirs),
            "input query": (d_query, their_query.grad),
            "input memory": (d_memory, their_memory.grad),
        }
        | {name: (layer.grads[name], tensor.grad) for name, tensor in p.items()}
    )


def copy_attention(theirs, ours):
    """Weights of torch.nn.MultiheadAttention from ours; its biases, if any, become 0."""
    p = ours.params
    with torch.no_grad():
        stacked = np.concatenate([p[name].T for name in ("query", "key", "value")])
        theirs.in_proj_weight.copy_(torch.tensor(stacked))
        theirs.out_proj.weight.copy_(torch.tensor(p["output"].T))
        for bias in (theirs.in_proj_bias, theirs.out_proj.bias):
            if bias is not None:
                bias.zero_()


def attention_gradients(theirs, ours):
    """Pairs of gradients."""
    parts = [*theirs.in_proj_weight.grad.chunk(3), theirs.out_proj.weight.grad]
    names = ("query", "key", "value", "output")
    return {name: (ours.grads[name].T, part) for name, part in zip(names, parts, strict=True)}


@pytest.mark.parametrize("is_causal", [True, False])
def test_multi_head_attention(is_causal, rng):
    ours = MultiHeadAttention(WIDTH, HEADS, rng=rng, dtype=np.float64)
    query, memory, d_output = rng.standard_normal((3, 3, 5, WIDTH))
    theirs = torch.nn.MultiheadAttention(WIDTH, HEADS, bias=False, batch_first=True, dtype=torch.float64)
    copy_attention(theirs, ours)
    q, m = leaf(query), leaf(memory)
    mask = causal(5) if is_causal else None
    y, _ = theirs(q, m, m, key_padding_mask=padding(LENGTHS, 5), attn_mask=mask)
    y.backward(torch.tensor(d_output))
    output = ours.forward(query, memory, LENGTHS, causal=is_causal)
    d_query, d_memory = ours.backward(d_output)
    pairs = {"y": (output, y), "q": (d_query, q.grad), "m": (d_memory, m.grad)}
    assert_close(pairs | attention_gradients(theirs, ours))


def copy_layer(theirs, ours, attentions, norms):
    """Weights of a torch Transformer layer from ours."""
    for their_name, name in attentions.items():
        copy_attention(getattr(theirs, their_name), getattr(ours, name))
    p = ours.params
    with torch.no_grad():
        for name in norms:
            getattr(theirs, name).weight.copy_(torch.tensor(p[f"{name}.gamma"]))
            getattr(theirs, name).bias.copy_(torch.tensor(p[f"{name}.beta"]))
        for linear, name in ((theirs.linear1, "inner"), (theirs.linear2, "outer")):
            linear.weight.copy_(torch.tensor(p[f"feed_forward.{name}.weight"].T))
            linear.bias.copy_(torch.tensor(p[f"feed_forward.{name}.bias"]))


def layer_gradients(theirs, ours, attentions, norms):
    pairs = {}
    for their_name, name in attentions.items():
        found = attention_gradients(getattr(theirs, their_name), getattr(ours, name))
        pairs |= {f"{name}.{k}": pair for k, pair in found.items()}
    g = ours.grads
    for name in norms:
        pairs[f"{name}.gamma"] = g[f"{name}.gamma"], getattr(theirs, name).weight.grad
        pairs[f"{name}.beta"] = g[f"{name}.beta"], getattr(theirs, name).bias.grad
    for linear, name in ((theirs.linear1, "inner"), (theirs.linear2, "outer")):
        pairs[f"{name}.weight"] = g[f"feed_forward.{name}.weight"].T, linear.weight.grad
        pairs[f"{name}.bias"] = g[f"feed_forward.{name}.bias"], linear.bias.grad
    return pairs


def test_encoder_and_decoder(rng):
    """Two layers each, the gradient going from the target through the memory to the source."""
    encoder, decoder = (
        shaken(kind(2, WIDTH, HEADS, HIDDEN, dtype=np.float64), rng) for kind in (Encoder, Decoder)
    )
    sizes = {"d_model": WIDTH, "nhead": HEADS, "dim_feedforward": HIDDEN, "dropout": 0.0}
    manner = {"layer_norm_eps": 1e-6, "batch_first": True, "norm_first": True, "dtype": torch.float64}
    kinds = torch.nn.TransformerEncoderLayer, torch.nn.TransformerDecoderLayer
    their_encoder, their_decoder = ([kind(**sizes, **manner) for _ in range(2)] for kind in kinds)
    encoder_names = {"self_attn": "attention"}, ("norm1", "norm2")
    decoder_names = (
        {"self_attn": "self_attention", "multihead_attn": "attention"},
        ("norm1", "norm2", "norm3"),
    )
    for theirs, ours in zip(their_encoder, encoder.stack, strict=True):
        copy_layer(theirs, ours, *encoder_names)
    for theirs, ours in zip(their_decoder, decoder.stack, strict=True):
        copy_layer(theirs, ours, *decoder_names)

    def ends(layer):
        return {name: leaf(array) for name, array in layer.norm.params.items()}

    def embed(x):
        t = torch.arange(x.shape[1], dtype=torch.float64)[:, None]
        angle = t * torch.exp(-np.log(10000.0) * torch.arange(0, WIDTH, 2, dtype=torch.float64) / WIDTH)
        return x * np.sqrt(WIDTH) + torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)

    def normalize(x, p):
        return torch.nn.functional.layer_norm(x, (WIDTH,), p["gamma"], p["beta"], eps=1e-6)

    source, target = rng.standard_normal((3, 5, WIDTH)), rng.standard_normal((3, 4, WIDTH))
    d_output = rng.standard_normal(target.shape)
    s, t, encoder_end, decoder_end = leaf(source), leaf(target), ends(encoder), ends(decoder)
    x, mask = embed(s), padding(LENGTHS, 5)
    for layer in their_encoder:
        x = layer(x, src_key_padding_mask=mask)
    m = normalize(x, encoder_end)
    x = embed(t)
    for layer in their_decoder:
        x = layer(x, m, tgt_mask=causal(4), memory_key_padding_mask=mask)
    y = normalize(x, decoder_end)
    y.backward(torch.tensor(d_output))

    memory = encoder.forward(source, LENGTHS)
    output = decoder.forward(target, memory, LENGTHS)
    d_target, d_memory = decoder.backward(d_output)
    d_source = encoder.backward(d_memory)
    assert_close({"m": (memory, m), "y": (output, y), "t": (d_target, t.grad), "s": (d_source, s.grad)})
    for ours, end in ((encoder.norm, encoder_end), (decoder.norm, decoder_end)):
        assert_close({name: (ours.grads[name], tensor.grad) for name, tensor in end.items()})
    for theirs, ours in zip(their_encoder, encoder.stack, strict=True):
        assert_close(layer_gradients(theirs, ours, *encoder_names))
    for theirs, ours in zip(their_decoder, decoder.stack, strict=True):
        assert_close(layer_gradients(theirs, ours, *decoder_names))
