"""Translation: gradients through both models, decoding by enumeration, BLEU by hand, training in a folder."""

import itertools
import json
import sys
from collections import Counter

import numpy as np
import pytest
import scipy.special

from dpq_ref import SGD, Adam, DPQEmbedding, FullEmbedding, LowRankEmbedding, job, load, trainer
from dpq_ref.datasets.documents import Sequences
from dpq_ref.datasets.pairs import END, START, Buckets, SentencePairs
from dpq_ref.datasets.translation import TranslationDataset
from dpq_ref.gradcheck import directional
from dpq_ref.layers import RowSparse
from dpq_ref.metrics import METRICS, bleu
from dpq_ref.tasks.decode import beam, greedy, translate
from dpq_ref.tasks.seq2seq import AttentionTranslator, TransformerTranslator
from dpq_ref.tasks.translate import PLANS, Plan, train, translations

SOURCE, TARGET, E = 11, 9, 4


def embedding(kind="full", dtype=np.float64, **options):
    if kind == "full":
        return FullEmbedding(SOURCE, E, init=0.5, rng=1, dtype=dtype)
    if kind == "low-rank":
        table = np.random.default_rng(1).uniform(-0.5, 0.5, (SOURCE, E)).astype(dtype)
        return LowRankEmbedding.from_table(table, 2)
    options = {"n_groups": 2, "n_codes": 4, "init": 0.5, "rng": 1} | options
    return DPQEmbedding(SOURCE, E, method=kind, dtype=dtype, **options)


def translator(kind, layer=None, keep=1.0, **options):
    layer = embedding() if layer is None else layer
    if kind == "attention":
        return AttentionTranslator(layer, TARGET, n_hidden=3, keep=keep, init=0.5, rng=2, **options)
    return TransformerTranslator(layer, TARGET, n_layers=2, n_heads=2, hidden=6, keep=keep, rng=2, **options)


MODELS = pytest.mark.parametrize("kind", ["attention", "transformer"])


def sequences(sentences):
    offsets = np.cumsum([0, *map(len, sentences)])
    return Sequences(np.concatenate([[], *sentences]).astype(np.int32), offsets)


def sentence_pairs(sources, targets):
    references = tuple(" ".join(map(str, target)) for target in targets)
    return SentencePairs(sequences(sources), sequences(targets), references)


def random_pairs(n=6, seed=0, longest=5):
    rng = np.random.default_rng(seed)
    sides = [
        [rng.integers(3, size, rng.integers(1, longest + 1)) for _ in range(n)] for size in (SOURCE, TARGET)
    ]
    return sentence_pairs(*sides)


def seeded(model, seed=5):
    """Start all generators anew, so that dropout draws the same again."""
    for rng in model.generators.values():
        rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state


@MODELS
@pytest.mark.parametrize("keep", [1.0, 0.7])
def test_gradients_of_all_parameters(kind, keep, rng):
    """Against finite differences of the loss, dropout as drawn, at random parameters."""
    model = translator(kind, keep=keep)
    batch = random_pairs(3).batch([0, 1, 2])
    for array in model.params.values():
        array += 0.3 * rng.standard_normal(array.shape)

    def loss():
        seeded(model)
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

        assert grads[name].any(), name
        assert directional(changed, array.copy(), grads[name], rng).error < 1e-6, name


@pytest.mark.parametrize("layer", ["sx", "vq", "low-rank"])
@MODELS
def test_embeddings_get_the_gradient_of_their_rows(kind, layer):
    """What the layer is given back is the gradient of a full table that holds its output."""
    batch = random_pairs(3).batch([0, 1, 2])
    inner = embedding(layer)
    model = translator(kind, inner)
    seen = {}
    forward, backward = inner.forward, inner.backward
    inner.forward = lambda ids, train=True: seen.setdefault("x", forward(ids, train))
    inner.backward = lambda d: (seen.setdefault("d", d), backward(d))[1]
    loss = model.loss_and_gradients(batch)

    kept = np.arange(batch.source.shape[1]) < batch.source_lengths[:, None]
    full = translator(kind, FullEmbedding(SOURCE, E, init=0.5, rng=1, dtype=np.float64))
    full.load_state(model.state() | full.state(), without="embedding")
    ids = batch.source[kept]
    full.params["embedding.table"][ids] = seen["x"]
    expected = full.loss_and_gradients(batch)
    assert loss - getattr(inner, "codebook_loss", 0) == pytest.approx(expected, rel=1e-12)
    dense = np.zeros((SOURCE, E))
    np.add.at(dense, ids, seen["d"])
    np.testing.assert_allclose(dense, full.grads["embedding.table"].to_dense(), atol=1e-12)
    assert set(model.grads) == set(model.params)


def by_hand(model, source, inputs):
    """Log probabilities of the attention model, one sentence, step by step, from the equations."""
    p = model.params

    def lstm(name, x, hidden, cell):
        gates = x @ p[f"{name}.input_weight"] + hidden @ p[f"{name}.hidden_weight"] + p[f"{name}.bias"]
        i, f, g, o = np.split(gates, 4)
        cell = scipy.special.expit(f) * cell + scipy.special.expit(i) * np.tanh(g)
        return scipy.special.expit(o) * np.tanh(cell), cell

    h = p["encoder.forward.hidden_weight"].shape[0]
    ways, states = [], []
    for way, words in (("forward", source), ("backward", source[::-1])):
        state, outputs = (np.zeros(h), np.zeros(h)), []
        for word in words:
            state = lstm(f"encoder.{way}", p["embedding.table"][word], *state)
            outputs.append(state[0])
        ways.append(outputs if way == "forward" else outputs[::-1])
        states.append(state)
    memory, fed, rows = np.hstack(ways), np.zeros(h), []
    for word in inputs:
        states[0] = lstm("decoder1", np.hstack([p["target.table"][word], fed]), *states[0])
        states[1] = lstm("decoder2", states[0][0], *states[1])
        query = states[1][0]
        weights = scipy.special.softmax(p["attention.scale"] * (memory @ p["attention.memory"] @ query))
        fed = np.hstack([weights @ memory, query]) @ p["attention.output"]
        rows.append(scipy.special.log_softmax(p["output.weight"] @ fed + p["output.bias"]))
    return np.array(rows)


def test_attention_model_by_hand(rng):
    """Losses in evaluation, of sentences of different lengths, with dropout left out; the training loss."""
    model, pairs = translator("attention", keep=0.5), random_pairs()
    for array in model.params.values():
        array += 0.5 * rng.standard_normal(array.shape)
    losses = []
    for i in range(len(pairs)):
        one = pairs.batch([i])
        log_p = by_hand(model, one.source[0], one.inputs[0])
        losses.append(-log_p[np.arange(len(log_p)), one.targets[0]])
    batch, expected = pairs.batch(np.arange(6)), np.concatenate(losses)
    np.testing.assert_allclose(model.losses(batch, model.table()), expected, rtol=1e-10)
    assert model.perplexity(pairs) == pytest.approx(np.exp(expected.mean()), rel=1e-12)
    for dropout in model.dropouts:
        dropout.keep = 1
    assert model.loss_and_gradients(batch) == pytest.approx(expected.sum() / 6, rel=1e-12)


def test_weights_start_as_in_tensorflow_nmt():
    model = AttentionTranslator(FullEmbedding(20, 8), 30, n_hidden=50, init=0.1)
    assert model.params["decoder1.input_weight"].shape == (100, 200)
    for name, array in model.params.items():
        if name.endswith("bias") and name != "output.bias":
            np.testing.assert_array_equal(array, np.repeat([0, 1, 0, 0], 50), name)
        elif name in ("output.bias", "attention.scale"):
            assert (array == (name == "attention.scale")).all()
        elif not name.startswith("embedding"):
            assert 0.09 < abs(array).max() <= 0.1, name


@MODELS
@pytest.mark.parametrize("layer", ["sx", "vq"])
def test_padding_changes_nothing_unless_it_is_embedded(kind, layer):
    """Loss, gradients and statistics of a batch with more padding behind it."""
    outcomes = []
    for embed_padding, more in ((False, 0), (False, 3), (True, 0), (True, 3)):
        model = translator(kind, embedding(layer), embed_padding=embed_padding)
        batch = random_pairs(3).batch([0, 1, 2])
        padding = np.full((3, more), END, np.int32)
        for name in ("source", "inputs", "targets"):
            object.__setattr__(batch, name, np.hstack([getattr(batch, name), padding]))
        loss = model.loss_and_gradients(batch)
        outcomes.append((loss, model.grads["embedding.keys"], model.buffers["embedding.running_mean"]))
    for one, other in zip(*outcomes[:2], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-14)
    for one, other in zip(*outcomes[2:], strict=True):
        assert not np.allclose(one, other, rtol=1e-10, atol=1e-14)


@MODELS
def test_steps_of_decoding_are_those_of_evaluation(kind, rng):
    """Also for sentences taken in another order, and left out, on the way."""
    model = translator(kind, keep=0.5)
    for array in model.params.values():
        array += 0.5 * rng.standard_normal(array.shape)
    batch, table = random_pairs().batch(np.arange(6)), model.table()
    expected = np.full(batch.targets.shape, np.nan)
    mask = np.arange(expected.shape[1]) < batch.target_lengths[:, None]
    expected[mask] = model.losses(batch, table)
    state, rows = model.start(batch.source, batch.source_lengths, table), np.arange(6)
    for i in range(batch.inputs.shape[1]):
        log_p, state = model.step(batch.inputs[rows, i], state)
        np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1, rtol=1e-12)
        real = i < batch.target_lengths[rows]
        found = -log_p[np.arange(len(rows)), batch.targets[rows, i]]
        np.testing.assert_allclose(found[real], expected[rows[real], i], rtol=1e-9)
        order = rng.permutation(len(rows))[: max(2, len(rows) - 1)]
        rows, state = rows[order], state.select(order)


class Tree:
    """Model whose log probabilities are random numbers of the words so far; a state is these words."""

    def __init__(self, vocab_size, dtype=np.float64):
        self.vocab_size, self.dtype = vocab_size, dtype

    def start(self, n):
        return State([(i,) for i in range(n)])

    def log_p(self, history):
        logits = np.random.default_rng([7, *history]).standard_normal(self.vocab_size)
        return scipy.special.log_softmax(2 * logits.astype(self.dtype))

    def step(self, words, state):
        new = [(*h, int(w)) for h, w in zip(state.histories, words, strict=True)]
        return np.array([self.log_p(h) for h in new]), State(new)


class State:
    def __init__(self, histories):
        self.histories = histories

    def select(self, rows):
        return State([self.histories[i] for i in rows])


def enumerated(tree, sentence, limit, alpha):
    """The best of all hypotheses of at most `limit` words, the end symbol among them."""
    best = (-np.inf, ())
    others = [w for w in range(tree.vocab_size) if w != END]
    for n in range(limit + 1):
        for words in itertools.product(others, repeat=n):
            full = words if n == limit else (*words, END)
            total = sum(tree.log_p((sentence, START, *full[:i]))[w] for i, w in enumerate(full))
            best = max(best, (total / ((5 + len(full)) / 6) ** alpha, words))
    return best[1]


def test_a_beam_of_all_hypotheses_finds_the_best():
    tree, limits = Tree(4), [3, 1, 2, 3, 0, *[4] * 8]
    best = {}
    for alpha in (0.0, 1.0, -4.0):
        found = beam(tree, tree.start(len(limits)), limits, 200, alpha)
        best[alpha] = [enumerated(tree, i, limit, alpha) for i, limit in enumerate(limits)]
        assert [tuple(words.tolist()) for words in found] == best[alpha]
    sizes = [sum(map(len, best[alpha])) for alpha in (-4.0, 0.0, 1.0)]
    assert sizes[0] < sizes[1] < sizes[2]


def test_a_beam_of_one_is_greedy_and_a_wider_one_is_likelier():
    """The same steps, bit by bit; float32, where sums would make ties."""
    tree, limits = Tree(6, np.float32), np.arange(40) % 7
    expected = greedy(tree, tree.start(40), limits)
    assert all(len(words) <= limit for words, limit in zip(expected, limits, strict=True))
    found = {k: beam(tree, tree.start(40), limits, k, alpha=0.7) for k in (1, 10)}
    for one, other in zip(found[1], expected, strict=True):
        np.testing.assert_array_equal(one, other)

    def score(i, words):
        full = [*words, END][: limits[i]]
        total = sum(tree.log_p((i, START, *full[:j]))[w] for j, w in enumerate(full))
        return total / ((5 + len(full)) / 6) ** 0.7

    gains = [score(i, found[10][i]) - score(i, expected[i]) for i in range(40)]
    assert np.mean(gains) > 0.05
    assert greedy(tree, tree.start(0), []) == beam(tree, tree.start(0), [], 3) == []
    with pytest.raises(ValueError, match="width=0"):
        beam(tree, tree.start(1), [3], 0)


def test_ties_go_to_the_lowest_word():
    class Even(Tree):
        def log_p(self, history):
            return np.full(4, np.log(0.25))

    tree = Even(4)
    for words in (*greedy(tree, tree.start(2), [2, 3]), *beam(tree, tree.start(2), [2, 3], 3)):
        assert not words.any()


def test_sums_keep_apart_what_one_step_tells_apart():
    class Steep(Tree):
        def log_p(self, history):
            return np.float32([-1e8] * 4 if len(history) == 2 else [-1.5, -1.25, -9, -1.0])

    tree = Steep(4)
    (one,), (other,) = greedy(tree, tree.start(1), [3]), beam(tree, tree.start(1), [3], 1)
    assert one.tolist() == other.tolist() == [0, 3, 3]


@MODELS
def test_a_beam_of_one_is_greedy_for_the_models(kind, rng):
    model = translator(kind, embedding("sx", np.float32))
    for array in model.params.values():
        array += rng.standard_normal(array.shape).astype(np.float32)
    pairs = random_pairs(40)
    batch = pairs.batch(np.arange(40))
    state = model.start(batch.source, batch.source_lengths, model.table())
    limits = 2 * batch.source_lengths
    one, other = greedy(model, state, limits), beam(model, state, limits, 1)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len({len(a) for a in one}) > 2


@MODELS
@pytest.mark.parametrize("layer", ["sx", "vq", "low-rank"])
def test_translation_by_the_exported_table(kind, layer, rng):
    """The artefact in place of the layer's rows gives the same words and the same perplexity, bit by bit."""
    model, pairs = translator(kind, embedding(layer, np.float32)), random_pairs(40)
    for name, array in model.params.items():
        if not name.startswith("embedding"):
            array += rng.standard_normal(array.shape).astype(np.float32)
    vectors = model.embedding.export().reconstruct()
    assert model.perplexity(pairs) == model.perplexity(pairs, vectors=vectors)
    assert model.perplexity(pairs) != model.perplexity(pairs, vectors=-vectors)
    found = [translate(model, pairs.source, vectors=v, width=w) for v in (None, vectors) for w in (1, 3)]
    for one, other in zip(found[0] + found[1], found[2] + found[3], strict=True):
        np.testing.assert_array_equal(one, other)
    longest = 2 * pairs.source.lengths[:32].max()
    assert all(len(words) <= longest for words in found[0][:32])


def bleu_by_hand(hypotheses, references):
    """Geometric mean of the clipped precisions, times the brevity penalty, from the paper."""
    pairs = [(h.split(), r.split()) for h, r in zip(hypotheses, references, strict=True)]
    precisions = []
    for n in range(1, 5):
        matched = total = 0
        for pair in pairs:
            one, other = (Counter(tuple(w[i : i + n]) for i in range(len(w) - n + 1)) for w in pair)
            matched, total = matched + (one & other).total(), total + one.total()
        precisions.append(matched / max(total, 1))
    c, r = (sum(len(pair[i]) for pair in pairs) for i in (0, 1))
    if not min(precisions):
        return 0.0
    return 100 * min(1, np.exp(1 - r / c)) * np.exp(np.mean(np.log(precisions)))


@pytest.mark.parametrize("longer", [0, 1])
def test_bleu_by_hand(longer, rng):
    """Words with entities, upper case, a full stop at the end, white space of other kinds, empty lines."""
    words = ["a", "A", "b", "&quot;", "&", ".", "c\u00a0d", "x-y", "Việt", "<unk>"]
    references = [" ".join(rng.choice(words, rng.integers(1, 12))) for _ in range(60)]
    hypotheses = [r.replace("b", "a", 1) + " a" * longer for r in references]
    hypotheses[3], hypotheses[4] = "", hypotheses[4] + " "
    expected = bleu_by_hand(hypotheses, references)
    assert 20 < expected < 95
    assert bleu(hypotheses, references) == pytest.approx(expected, rel=1e-12)
    assert bleu([r.lower() for r in references], references) < 99
    assert bleu(references, references) == pytest.approx(100)


def test_bleu_at_the_edges():
    assert bleu(["a b c"], ["a b c"]) == 0  # no four words: not smoothed
    assert bleu(["a b c d", ""], ["x y z", "u"]) == bleu(["", ""], ["a b c d", "e"]) == 0
    for hypotheses, references in (([], []), (["a"], ["a", "b"])):
        with pytest.raises(ValueError, match="references; it takes one each"):
            bleu(hypotheses, references)
    assert METRICS["test_bleu"].better == METRICS["validation_bleu"].better == "higher"


def test_without_sacrebleu(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'dpq-ref\[translation\]'"):
        train(tmp_path, None, None, Plan(), config={})
    assert not list(tmp_path.iterdir())


def test_model_of_other_vocabularies(tmp_path):
    for layer, side in ((embedding(), "11 source"), (FullEmbedding(TARGET, E), "10 target")):
        model = AttentionTranslator(layer, 10, n_hidden=3)
        with pytest.raises(ValueError, match=f"model has {side} words; this data takes 9"):
            train(tmp_path, dataset(), model, Plan(), config={})


@MODELS
def test_nothing_to_translate(kind):
    model = translator(kind)
    assert translate(model, sequences([])) == []
    for width in (1, 2):
        assert [len(words) for words in translate(model, sequences([[], []]), width=width)] == [0, 0]
        assert len(translate(model, sequences([[], [3, 4]]), width=width)) == 2


@MODELS
def test_both_kernel_sets_agree(kind):
    batch, found = random_pairs(3).batch([0, 1, 2]), []
    for backend in ("numpy", "numba"):
        layer = DPQEmbedding(
            SOURCE, E, n_groups=2, n_codes=4, init=0.5, rng=1, dtype=np.float64, backend=backend
        )
        model = translator(kind, layer, keep=0.7)
        found.append((model.loss_and_gradients(batch), model.grads["embedding.query"].values))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-12)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-9, atol=1e-14)


def test_rates_are_those_of_the_release():
    """Halved every 1,000 steps from step 8,000 on, counted from 0: four rates."""
    rates = [PLANS["attention"].rate(step + 1) for step in range(12_000)]
    assert rates == [1.0] * 9000 + [0.5] * 1000 + [0.25] * 1000 + [0.125] * 1000
    with pytest.raises(ValueError, match="optimizer='lamb'; it takes 'sgd' or 'adam'"):
        Plan(optimizer="lamb")


def reversal(n, seed=0):
    """Sentences, and the same words the other way round."""
    rng = np.random.default_rng(seed)
    sides = [rng.integers(3, TARGET, rng.integers(1, 6)) for _ in range(n)]
    return sentence_pairs(sides, [side[::-1] for side in sides])


@pytest.mark.slow
@MODELS
def test_it_learns_to_turn_sentences_round(kind):
    if kind == "attention":
        layer = FullEmbedding(TARGET, 16, init=0.5, rng=1)
        model = AttentionTranslator(layer, TARGET, n_hidden=16, keep=1, init=0.3, rng=2)
        optimizer = SGD(model.params, 0.5)
    else:
        layer = FullEmbedding(TARGET, 24, init=0.5, rng=1)
        model = TransformerTranslator(layer, TARGET, n_layers=1, n_heads=2, hidden=48, keep=1, rng=2)
        optimizer = Adam(model.params, 5e-3)
    buckets, test = Buckets(reversal(3000), 32, max_tokens=6, n_buckets=2), reversal(100, seed=1)
    trainer.train(model, map(buckets.batch, itertools.count()), optimizer, steps=500, clip_norm=5.0)
    for width in (1, 3):
        found = translate(model, test.source, width=width)
        right = [" ".join(map(str, words)) == r for words, r in zip(found, test.references, strict=True)]
        assert np.mean(right) > 0.85


def dataset():
    """Letters, turned round."""
    words = ("<unk>", "<s>", "</s>", *"abcdef")
    splits = {}
    for i, (name, n) in enumerate({"train": 60, "validation": 40, "test": 12}.items()):
        pairs = reversal(n, seed=i)
        texts = tuple(" ".join(words[int(w)] for w in r.split()) for r in pairs.references)
        splits[name] = SentencePairs(pairs.source, pairs.target, texts)
    counts = np.bincount(splits["train"].source.tokens, minlength=TARGET)
    return TranslationDataset("turned", "x", "y", words, words, counts, **splits, provenance={"by": "hand"})


class Killed(Exception):
    pass


@MODELS
def test_killed_and_resumed_equals_unbroken(kind, tmp_path):
    """Bitwise, with dropout and the restarts of a codebook; and what is in the result."""
    optimizer = {"attention": "sgd", "transformer": "adam"}[kind]
    plan = Plan(
        8, batch_size=16, max_tokens=6, optimizer=optimizer, learning_rate=0.05, warm_up=3, evaluate_every=3
    )
    data = dataset()

    def run(folder, kill_at=None):
        def on_step(step):
            if step == kill_at:
                raise Killed

        layer = DPQEmbedding(TARGET, 4, n_groups=2, n_codes=4, method="vq", rng=1, restart_after=2)
        model = translator(kind, layer, keep=0.7)
        options = {"config": {"seed": 1}, "seed": 3, "on_step": on_step}
        return model, train(tmp_path / folder, data, model, plan, **options)

    whole, expected = run("whole")
    for kill_at in (3, 7):
        with pytest.raises(Killed):
            run("broken", kill_at)
    model, result = run("broken")
    for name, array in whole.state().items():
        assert model.state()[name].tobytes() == array.tobytes(), name
    for key in (
        "test_bleu",
        "test_bleu_last",
        "test_perplexity",
        "validation_perplexity",
        "best_step",
        "bits",
    ):
        assert result[key] == expected[key]
    assert [e["step"] for e in result["evaluations"]] == [3, 6, 8]
    best = max(result["evaluations"], key=lambda e: e["validation_bleu"])
    assert result["validation_bleu"] == best["validation_bleu"]

    assert expected["best_step"] < 8  # so that the last state is another one
    for name, array in job.best(tmp_path / "whole").items():
        assert whole.state()[name].tobytes() == array.tobytes(), name

    table = load(tmp_path / "whole/embedding.safetensors")
    assert table.bits() == result["bits"]
    lines = translations(whole, data, "test", vectors=table.reconstruct())
    assert (tmp_path / "whole/translations.txt").read_text().splitlines() == lines
    assert bleu(lines, data.test.references) == expected["test_bleu"]
    assert "tok:none|smooth:none" in result["bleu"]
    assert result["data"] == {"by": "hand"} and result["config"]["order"] == 3
    assert json.loads((tmp_path / "whole/result.json").read_text()) == expected
    with pytest.raises(ValueError, match="order 3 there, 4 here"):
        train(tmp_path / "whole", data, model, plan, config={"seed": 1}, seed=4)
