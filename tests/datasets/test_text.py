import dataclasses

import numpy as np
import pytest

from dpq_ref.datasets import Documents, tokenize
from dpq_ref.datasets.text import build_dataset, subset


def documents(*texts, labels=None):
    """Documents from lists of ids."""
    labels = [0] * len(texts) if labels is None else labels
    return Documents(
        np.array([i for text in texts for i in text], np.int32),
        np.cumsum([0, *map(len, texts)]),
        np.array(labels, np.int32),
    )


def tiny(train, validation=(), test=(), **options):
    splits = {"train": train, "validation": validation, "test": test}
    options = {"min_count": 1, "label_names": ["x", "y"], "provenance": {}} | options
    return build_dataset("tiny", splits, **options)


def words(dataset, split, row):
    documents = dataset.split(split)
    ids = documents.tokens[documents.offsets[row] : documents.offsets[row + 1]]
    return [dataset.vocabulary[i] for i in ids]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        (" \t\n_\u2028\u0085", []),
        ("The cat", ["the", "cat"]),
        ("n_samples", ["n", "samples"]),
        ("conv2d", ["conv", "2", "d"]),
        ("1234.50", ["1234", ".", "50"]),
        ("...", [".", ".", "."]),
        ("don't", ["don", "'", "t"]),
        ("Straße ÉTÉ", ["straße", "été"]),
        ("one\u2028two\u0085three", ["one", "two", "three"]),
        ("a\u200bb", ["a", "\u200b", "b"]),  # not white space, hence a token
        ("x²", ["x²"]),  # no decimal digit
    ],
)
def test_tokenize(text, tokens):
    assert tokenize(text) == tokens


def test_pad():
    d = documents([5, 6, 7], [], [8])
    assert len(d) == 3
    padded = d.pad([2, 0, 1, 0])
    assert padded.dtype == np.int32
    np.testing.assert_array_equal(padded, [[8, 0, 0], [5, 6, 7], [0, 0, 0], [5, 6, 7]])
    np.testing.assert_array_equal(d.pad([0, 2], max_tokens=2), [[5, 6], [8, 0]])
    np.testing.assert_array_equal(d.pad([2], max_tokens=2), [[8]])


def test_pad_empty():
    d = documents([5], [])
    np.testing.assert_array_equal(d.pad([1]), [[0]])
    assert d.pad([]).shape == (0, 1)
    assert documents([]).pad([0]).tolist() == [[0]]
    assert len(documents()) == 0
    assert documents().pad([]).shape == (0, 1)


def test_pad_takes_unsigned_rows():
    d = documents(*[[i] for i in range(256)])
    assert d.pad(np.array([255], np.uint8)).tolist() == [[255]]


def test_pad_agrees_with_a_loop():
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, 100, n).tolist() for n in rng.integers(0, 9, 50)]
    d, rows = documents(*texts), rng.integers(0, 50, 30)
    padded = d.pad(rows, max_tokens=6)
    for line, row in zip(padded, rows, strict=True):
        assert line.tolist() == (texts[row][:6] + [0] * padded.shape[1])[: padded.shape[1]]


@pytest.mark.parametrize(
    ("rows", "options", "error", "message"),
    [
        ([3], {}, IndexError, r"row 3 is outside 0\.\.2"),
        ([0, -1], {}, IndexError, "row -1"),
        ([0.0], {}, TypeError, "float64"),
        ([True, False, True], {}, TypeError, "bool"),
        (1, {}, ValueError, "one axis"),
        ([0], {"max_tokens": 0}, ValueError, "max_tokens=0"),
    ],
)
def test_pad_refuses(rows, options, error, message):
    with pytest.raises(error, match=message):
        documents([1], [2], [3]).pad(rows, **options)


def test_take():
    d = documents([5, 6, 7], [], [8], [9, 9], labels=[0, 1, 2, 3])
    part = d.take([3, 1, 0, 3])
    assert part.tokens.tolist() == [9, 9, 5, 6, 7, 9, 9]
    assert part.offsets.tolist() == [0, 2, 2, 5, 7]
    assert part.labels.tolist() == [3, 1, 0, 3]
    assert len(d.take([])) == 0
    with pytest.raises(IndexError):
        d.take([4])


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"tokens": np.array([1, 2])}, TypeError),
        ({"labels": [0]}, TypeError),
        ({"labels": np.zeros((1, 1), np.int32)}, ValueError),
        ({"offsets": np.array([0])}, ValueError),
        ({"offsets": np.array([1, 2])}, ValueError),
        ({"offsets": np.array([0, 3])}, ValueError),
        ({"offsets": np.array([0, 3, 2]), "labels": np.zeros(2, np.int32)}, ValueError),
    ],
)
def test_documents_refuse(changes, error):
    good = {"tokens": np.ones(2, np.int32), "offsets": np.array([0, 2]), "labels": np.zeros(1, np.int32)}
    Documents(**good)
    with pytest.raises(error):
        Documents(**good | changes)


def test_vocabulary_by_hand():
    data = tiny([("b e b c", 0), ("e b a d a", 1), ("", 1)], test=[("z d b", 1)], min_count=2)
    # b 3, a 2, e 2, though e comes first; c and d come once.
    assert data.vocabulary == ("<pad>", "<unk>", "b", "a", "e")
    assert data.train.tokens.tolist() == [2, 4, 2, 1, 4, 2, 3, 1, 3]
    assert data.train.offsets.tolist() == [0, 4, 9, 9]
    assert data.train.labels.tolist() == [0, 1, 1]
    assert data.test.tokens.tolist() == [1, 1, 2]
    assert data.counts.tolist() == [0, 2, 3, 2, 2]
    assert data.counts.dtype == np.int64
    assert len(data.validation) == 0


def test_tokens_are_taken_as_they_are():
    data = tiny([(["New_York", "<unk>", "New_York"], 0)])
    assert data.vocabulary == ("<pad>", "<unk>", "New_York")
    assert data.train.tokens.tolist() == [2, 1, 2]


def test_one_document_and_no_word():
    data = tiny([("", 0)])
    assert data.vocabulary == ("<pad>", "<unk>")
    assert data.counts.tolist() == [0, 0]
    assert data.train.pad([0]).tolist() == [[0]]


@pytest.mark.parametrize(
    ("train", "options", "message"),
    [
        ([("a", 2)], {}, r"train: label 2 is outside 0\.\.1"),
        ([("a", -1)], {}, "label -1"),
        ([(["<pad>"], 0)], {}, "<pad>"),
        ([("a", 0)], {"min_count": 0}, "min_count=0"),
    ],
)
def test_build_refuses(train, options, message):
    with pytest.raises(ValueError, match=message):
        tiny(train, **options)
    with pytest.raises(ValueError, match="validation"):
        build_dataset("x", {"train": []}, min_count=1, label_names=[], provenance={})


def test_split_by_name():
    data = tiny([("a", 0)])
    assert data.split("test") is data.test
    with pytest.raises(ValueError, match="'dev'.*validation"):
        data.split("dev")


def test_sha256_says_equal_data():
    train = [("a b", 0), ("b \ud800", 1)]  # half a surrogate pair has no UTF-8
    data = tiny(train)
    assert len(data.sha256) == 64
    assert tiny(train, provenance={"from": "elsewhere"}).sha256 == data.sha256
    others = [
        tiny([("a b", 0), ("b \ud800", 0)]),
        tiny([("b a", 0), ("b \ud800", 1)]),
        tiny([("a", 0), ("b b \ud800", 1)]),
        tiny([("a c", 0), ("c \ud800", 1)]),
        tiny(train, label_names=["x", "z"]),
        tiny(train, test=[("a", 0)]),
        tiny(train, validation=[("a", 0)]),
    ]
    assert len({data.sha256, *(other.sha256 for other in others)}) == 8


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny([("a", 0)]).name = "other"


def test_subset_is_the_same_as_building_from_the_part():
    rng = np.random.default_rng(1)

    def texts(n):
        return [(" ".join(rng.choice(list("abcdefgh"), rng.integers(0, 6))), i * 2 // n) for i in range(n)]

    train, validation, test = texts(70), texts(10), texts(20)
    part = subset(tiny(train, validation, test), 10, min_count=3)
    by_hand = tiny(train[::10], validation[:1], test[::10], min_count=3)
    assert part.vocabulary == by_hand.vocabulary
    # Words of validation and test that come nowhere in training are unknown either way.
    assert part.sha256 == by_hand.sha256
    assert part.provenance == {"max_documents": 10}
    assert np.bincount(part.train.labels).tolist() == [4, 3]


@pytest.mark.parametrize("max_documents", [3, 4, 7, 50, 99, 100, 101, None])
def test_subset_sizes(max_documents):
    data = tiny([("a", 0)] * 70, [("b", 0)] * 10, [("c", 0)] * 20)
    part = subset(data, max_documents, min_count=1)
    sizes = [len(part.split(s)) for s in ("train", "validation", "test")]
    assert min(sizes) >= 1
    most = 100 if max_documents is None else min(100, max_documents)
    assert most - 1 <= sum(sizes) <= most


def test_subset_refuses_and_keeps_empty_splits():
    data = tiny([("a", 0)] * 9)
    with pytest.raises(ValueError, match="max_documents=2"):
        subset(data, 2, min_count=1)
    part = subset(data, 4, min_count=1)
    assert (len(part.train), len(part.validation), len(part.test)) == (4, 0, 0)
