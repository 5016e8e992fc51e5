"""Language model: protocol, gradients through all layers, carried state, perplexity by hand."""

import numpy as np
import pytest
import scipy.special

from dpq_ref import SGD, DPQEmbedding, FullEmbedding, trainer
from dpq_ref.gradcheck import directional
from dpq_ref.layers import LSTM, RowSparse
from dpq_ref.tasks import language_model
from dpq_ref.tasks.language_model import SIZES, Batch, LanguageModel, Plan, batches

VOCAB, H = 13, 6
SMALL = Plan(n_hidden=H, batch_size=2, n_steps=3, init=0.5)


def embedding(kind="full", dtype=np.float64, **options):
    if kind == "full":
        return FullEmbedding(VOCAB, H, init=0.5, rng=1, dtype=dtype, **options)
    return DPQEmbedding(VOCAB, H, n_groups=2, n_codes=4, method=kind, init=0.5, rng=1, dtype=dtype, **options)


def corpus(n=200, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, n).astype(np.int32)


def test_sizes_are_those_of_the_paper():
    """19,775,200 parameters of the medium model; rates of the epochs."""
    plan = SIZES["medium"]
    n, h = 10_000, plan.n_hidden
    lstm = sum(p.size for p in LSTM(h, h).params.values())
    assert n * h + plan.n_layers * lstm + n * h + n == 19_775_200
    assert [SIZES["small"].rate(e) for e in (0, 3, 4, 14)] == [1, 1, 0.5, 0.5**11]
    assert plan.rate(5) == 1
    assert plan.rate(34) == pytest.approx(0.8**29)


@pytest.mark.parametrize("words", ["own", "table", "tied"])
def test_gradients_of_all_parameters(words, rng):
    """Against finite differences of the loss, the state before the batch included; DPQ has its own tests."""
    layer = embedding()
    table = {"own": None, "table": embedding(), "tied": layer}[words]
    model = LanguageModel(layer, SMALL, table=table, rng=2)
    state = [tuple(rng.standard_normal((2, H)) for _ in range(2)) for _ in range(2)]
    batch = Batch(rng.integers(0, VOCAB, (2, 3)), rng.integers(0, VOCAB, (2, 3)), fresh=False)

    def loss():
        model.carried = list(state)
        return model.loss_and_gradients(batch)

    loss()
    grads = {k: g.to_dense() if isinstance(g, RowSparse) else g for k, g in model.grads.items()}
    assert set(grads) == set(model.params)
    for name, array in model.params.items():

        def changed(x, array=array):
            kept = array.copy()
            array[...] = x
            result = loss()
            array[...] = kept
            return result

        assert directional(changed, array.copy(), grads[name], rng).error < 1e-8, name


def by_hand(model, ids):
    """Cross-entropy of each word but the first, step by step."""
    p, h = model.params, model.recurrent[0].n_hidden
    states = [(np.zeros(h), np.zeros(h)) for _ in model.recurrent]
    losses = []
    for word, following in zip(ids[:-1], ids[1:], strict=True):
        x = model.embedding.forward([word], train=False)[0]
        for i, (hidden, cell) in enumerate(states):
            name = f"lstm{i + 1}"
            gates = x @ p[f"{name}.input_weight"] + hidden @ p[f"{name}.hidden_weight"] + p[f"{name}.bias"]
            s = scipy.special.expit(gates)
            cell = s[h : 2 * h] * cell + s[:h] * np.tanh(gates[2 * h : 3 * h])
            x = s[3 * h :] * np.tanh(cell)
            states[i] = x, cell
        log_p = scipy.special.log_softmax(x @ p["output.weight"].T + p["output.bias"])
        losses.append(-log_p[following])
    return np.array(losses)


@pytest.mark.parametrize("kind", ["full", "sx", "vq"])
def test_perplexity_by_hand_whatever_the_chunks(kind, monkeypatch):
    """With dropout, which evaluation leaves out."""
    plan = Plan(n_hidden=H, batch_size=2, n_steps=3, init=0.5, keep=0.5)
    model, ids = LanguageModel(embedding(kind), plan, rng=2), corpus(30)
    expected = by_hand(model, ids)
    for chunk in (1, 7, 1000):
        monkeypatch.setattr(language_model, "CHUNK", chunk)
        np.testing.assert_allclose(model.losses(ids)[0], expected, rtol=1e-12)
        assert model.perplexity(ids) == pytest.approx(np.exp(expected.mean()), rel=1e-12)
    rows = model.losses(ids, batch_size=2, n_steps=4)
    assert rows.shape == (2, 12)
    for row, part in zip(rows, (ids[:13], ids[15:28]), strict=True):
        np.testing.assert_allclose(row, by_hand(model, part), rtol=1e-12)


def test_perplexity_of_replaced_tables(rng):
    model, ids = LanguageModel(embedding(), SMALL, rng=2), corpus(30)
    vectors, weight = rng.standard_normal((2, VOCAB, H))
    found = model.perplexity(ids, vectors=vectors, weight=weight)
    model.params["embedding.table"][:], model.params["output.weight"][:] = vectors, weight
    assert found == model.perplexity(ids)


@pytest.mark.parametrize("kind", ["full", "sx", "vq"])
@pytest.mark.parametrize("tied", [False, True])
def test_training_loss_at_rate_zero_is_the_evaluation_loss(kind, tied):
    """Summed over steps and averaged over rows; the state is carried and is fresh with each epoch."""
    layer = embedding(kind, **({} if kind == "full" else {"batch_norm": False, "trainable": []}))
    model = LanguageModel(layer, SMALL, table=layer if tied else None, rng=2)
    ids = corpus(2 * (3 * 3 + 1))
    history = trainer.train(model, batches(ids, 2, 3), SGD(model.params, 0.0), steps=6)
    losses = model.losses(ids, batch_size=2, n_steps=3).reshape(2, 3, 3).sum(axis=2).mean(axis=0)
    expected = losses + layer.codebook_loss if kind == "vq" else losses
    if kind != "vq":
        np.testing.assert_allclose(history.losses, np.tile(expected, 2), rtol=1e-10)
    else:  # the loss of the codebook differs from batch to batch
        assert (np.array(history.losses) > np.tile(losses, 2)).all()
    np.testing.assert_allclose(history.losses[3:], history.losses[:3], rtol=1e-12)


def test_batches_start_anywhere():
    ids = corpus(50)
    stream, later = batches(ids, 2, 3), batches(ids, 2, 3, start=9)
    for _ in range(9):
        next(stream)
    for _ in range(12):
        a, b = next(stream), next(later)
        assert a.fresh == b.fresh
        np.testing.assert_array_equal(a.inputs, b.inputs)


def test_state_holds_all_that_the_next_batch_needs():
    """A second model, of another seed, goes on bitwise from the state and the generators of the first."""
    plan = Plan(n_hidden=H, batch_size=2, n_steps=3, keep=0.7)
    ids, models = corpus(), [LanguageModel(embedding("vq", restart_after=2), plan, rng=r) for r in (2, 3)]
    trainer.train(models[0], batches(ids, 2, 3), SGD(models[0].params, 0.1), steps=5)
    models[1].load_state(models[0].state())
    for name, rng in models[0].generators.items():
        models[1].generators[name].bit_generator.state = rng.bit_generator.state
    losses = [
        trainer.train(m, batches(ids, 2, 3, start=5), SGD(m.params, 0.1), steps=4).losses for m in models
    ]
    assert losses[0] == losses[1]


def test_it_learns():
    """A cycle of words has perplexity 1."""
    model = LanguageModel(embedding(dtype=np.float32), Plan(n_hidden=H, batch_size=2, n_steps=5), rng=2)
    ids = np.tile(np.arange(VOCAB), 20).astype(np.int32)
    trainer.train(model, batches(ids, 2, 5), SGD(model.params, 1.0), steps=1000, clip_norm=3.0)
    assert model.perplexity(ids) < 2


def test_table_that_does_not_fit():
    with pytest.raises(ValueError, match="table has 13 rows of 6; it takes 13 of 7"):
        LanguageModel(embedding(), Plan(n_hidden=7), table=embedding())
