"""The classifier: its gradients end to end, its protocol, and that it learns."""

import numpy as np
import pytest

from dpq_ref import DPQEmbedding, FullEmbedding, RowSparse
from dpq_ref.datasets.text import build_dataset
from dpq_ref.gradcheck import directional
from dpq_ref.layers import softmax_cross_entropy
from dpq_ref.tasks import classify
from dpq_ref.tasks.classify import Plan, TextClassifier, train


@pytest.fixture(scope="module")
def data():
    """Three classes told apart by which letters they use, with words that say nothing."""
    rng = np.random.default_rng(0)

    def text(label):
        telling = rng.choice([f"{'abc'[label]}{'xyzuvw'[i]}" for i in range(6)], 4)
        return " ".join([*telling, *rng.choice(["the", "of", "and", "in"], rng.integers(0, 9))])

    def split(n):
        return [(text(i % 3), i % 3) for i in range(n)]

    splits = {"train": split(300), "validation": split(60), "test": [*split(90), ("", 0)]}
    return build_dataset("toy", splits, min_count=1, label_names=("a", "b", "c"), provenance={})


def test_gradients_of_the_whole_model(rng):
    model = TextClassifier(FullEmbedding(12, 6, dtype=np.float64), 3, hidden=5)
    ids = np.array([[1, 2, 3, 1], [4, 0, 0, 0], [0, 0, 0, 0], [5, 6, 7, 0], [1, 1, 9, 11]])
    labels = np.array([0, 1, 2, 0, 1])

    def loss_of(name):
        def loss(changed):
            layer, key = name.split(".")
            owner = model.embedding if layer == "embedding" else model.layers[layer]
            kept, owner.params[key] = owner.params[key], changed
            result = softmax_cross_entropy(model.forward(ids), labels)[0]
            owner.params[key] = kept
            return result

        return loss

    model.backward(softmax_cross_entropy(model.forward(ids), labels)[1])
    assert set(model.grads) == set(model.params)
    for name, gradient in model.grads.items():
        dense = gradient.to_dense() if isinstance(gradient, RowSparse) else gradient
        check = directional(loss_of(name), model.params[name], dense, rng, step=1e-5)
        # The bias before a batch norm has no effect: both slopes are 0 up to rounding.
        assert check.error < 1e-6 or max(abs(check.analytic), abs(check.numeric)) < 1e-9, name


@pytest.mark.parametrize("method", ["full", "sx", "vq"])
def test_it_learns(method, data):
    n = len(data.vocabulary)
    if method == "full":
        embedding = FullEmbedding(n, 12, padding_id=0)
    else:
        embedding = DPQEmbedding(n, 12, n_groups=4, n_codes=4, method=method, padding_id=0)
    model = TextClassifier(embedding, 3, hidden=16)
    outcome = train(model, data, Plan(steps=150, batch_size=32, learning_rate=1e-2, evaluate_every=50))
    assert outcome.accuracy > 90
    assert [e["step"] for e in outcome.evaluations] == [50, 100, 150]
    assert outcome.accuracy_best_test == max(e["test"] for e in outcome.evaluations)
    best = max(outcome.evaluations, key=lambda e: e["validation"])
    assert (outcome.best_step, outcome.accuracy) == (best["step"], best["test"])


def test_same_seed_same_numbers(data):
    def run():
        embedding = DPQEmbedding(len(data.vocabulary), 12, n_groups=4, n_codes=4, padding_id=0, rng=3)
        model = TextClassifier(embedding, 3, hidden=16, rng=4)
        outcome = train(model, data, Plan(steps=20, batch_size=32, evaluate_every=10), rng=5)
        return outcome.evaluations, model.state()

    (first, a), (second, b) = run(), run()
    assert first == second
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_prediction_from_the_artefact_is_that_of_the_layer(data):
    embedding = DPQEmbedding(len(data.vocabulary), 12, n_groups=4, n_codes=4, padding_id=0)
    model = TextClassifier(embedding, 3, hidden=16)
    train(model, data, Plan(steps=20, batch_size=32, evaluate_every=20))
    table = embedding.export().reconstruct()
    np.testing.assert_array_equal(model.table(), table)
    other = TextClassifier(FullEmbedding(1, 12), 3, hidden=16, rng=9)
    other.load_state(model.state(), without=["embedding"])
    np.testing.assert_array_equal(model.predict(data.test), other.predict(data.test, table=table))


def test_prediction_does_not_depend_on_how_texts_are_batched(data, monkeypatch):
    model = TextClassifier(FullEmbedding(len(data.vocabulary), 12), 3, hidden=16)
    whole = model.predict(data.test)
    monkeypatch.setattr(classify, "EVALUATION_BATCH", 7)
    np.testing.assert_array_equal(model.predict(data.test), whole)


def test_batches_visit_every_row_once_an_epoch(rng):
    stream = classify.batches(10, 3, rng)
    for _ in range(2):
        epoch = np.concatenate([next(stream) for _ in range(3)])
        assert len(set(epoch)) == 9
    assert len(next(classify.batches(2, 64, rng))) == 2


def test_a_loss_that_is_not_a_number_stops_with_its_step(data):
    model = TextClassifier(FullEmbedding(len(data.vocabulary), 12), 3, hidden=16)
    model.layers["dense2"].params["bias"][0] = np.nan
    with pytest.raises(FloatingPointError, match="step 1"):
        train(model, data, Plan(steps=2))


@pytest.mark.parametrize("method", ["full", "sx"])
def test_norms_of_gradients_are_those_of_the_batch(data, method):
    def model():
        n = len(data.vocabulary)
        layer = FullEmbedding(n, 12) if method == "full" else DPQEmbedding(n, 12, n_groups=4, n_codes=4)
        return TextClassifier(layer, 3, hidden=16)

    outcome = train(model(), data, Plan(steps=120, batch_size=32, evaluate_every=60), rng=7)
    assert outcome.gradient_norms["step"] == [1, *range(2, 121, 2)]
    rows = next(classify.batches(len(data.train), 32, np.random.default_rng(7)))
    fresh = model()
    fresh.loss_and_gradients((data.train.pad(rows, None), data.train.labels[rows]))
    assert set(outcome.gradient_norms) == {"step", *fresh.params}
    for name, gradient in fresh.grads.items():
        dense = gradient.to_dense() if isinstance(gradient, RowSparse) else gradient
        # A bias before a batch norm has a gradient of rounding alone.
        expected = pytest.approx(np.linalg.norm(dense.astype(np.float64)), rel=1e-4, abs=1e-6)
        assert outcome.gradient_norms[name][0] == expected


def test_changes_of_codes_count_from_the_start_and_from_the_last_evaluation(data):
    embedding = DPQEmbedding(len(data.vocabulary), 12, n_groups=4, n_codes=4, padding_id=0)
    model, seen = TextClassifier(embedding, 3, hidden=16), [embedding.all_codes()]

    def on_step(step):
        if step % 10 == 0:
            seen.append(embedding.all_codes())

    plan = Plan(steps=20, batch_size=32, learning_rate=1e-2, evaluate_every=10)
    evaluations = train(model, data, plan, on_step=on_step).evaluations
    changed = [np.mean(a != b) for a, b in zip(seen[1:], seen, strict=False)]
    assert changed[0] > 0
    assert [e["codes_changed"] for e in evaluations] == changed
    assert all(1 <= e["code_perplexity"] <= 4 and 0 < e["codes_used"] <= 1 for e in evaluations)
