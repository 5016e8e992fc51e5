"""Pairs of sentences: matrices and buckets."""

import numpy as np
import pytest

from dpq_ref.datasets.documents import Sequences
from dpq_ref.datasets.pairs import END, START, Buckets, SentencePairs


def sequences(*sentences):
    return Sequences(np.array(sum(sentences, []), np.int32), np.cumsum([0, *map(len, sentences)]))


def pairs_of(rng, n, longest):
    """Pairs in which every word of the source tells the pair, and every one of the target, too."""
    lengths = rng.integers(0, longest + 1, (2, n))
    sides = [sequences(*([10 + i] * length for i, length in enumerate(side))) for side in lengths]
    return SentencePairs(*sides, ("",) * n), *lengths


# --- Matrices -------------------------------------------------------------------------------------------


def test_batch_by_hand():
    pairs = SentencePairs(
        sequences([5], [6, 7, 8], []), sequences([9, 10], [], [11, 12, 13]), ("x y", "", "x y z")
    )
    batch = pairs.batch([2, 0, 1])
    assert batch.source.tolist() == [[END] * 3, [5, END, END], [6, 7, 8]]
    assert batch.source_lengths.tolist() == [0, 1, 3]
    assert batch.inputs.tolist() == [[START, 11, 12, 13], [START, 9, 10, END], [START, END, END, END]]
    assert batch.targets.tolist() == [[11, 12, 13, END], [9, 10, END, END], [END] * 4]
    assert batch.target_lengths.tolist() == [4, 3, 1]
    assert {a.dtype for a in (batch.source, batch.inputs, batch.targets)} == {np.dtype(np.int32)}

    cut = pairs.batch([2, 1], max_tokens=2)
    assert cut.source.tolist() == [[END, END], [6, 7]]
    assert cut.source_lengths.tolist() == [0, 2]
    assert cut.targets.tolist() == [[11, 12, END], [END] * 3]
    assert cut.target_lengths.tolist() == [3, 1]

    none = pairs.batch([])
    assert none.source.shape == (0, 1) and none.targets.shape == (0, 2)
    with pytest.raises(IndexError, match=r"row 3 is outside 0\.\.2"):
        pairs.batch([3])


def test_pairs_refuse():
    with pytest.raises(ValueError, match="2 source and 1 target sentences and 1 references"):
        SentencePairs(sequences([1], [2]), sequences([1]), ("x",))


# --- Buckets --------------------------------------------------------------------------------------------


SIZES = [(300, 7, 5), (300, 1, 3), (40, 64, 5), (90, 8, 1)]


@pytest.mark.parametrize(("n", "batch_size", "n_buckets"), SIZES)
def test_an_epoch_has_each_pair_once(rng, n, batch_size, n_buckets):
    pairs, source, target = pairs_of(rng, n, 30)
    buckets = Buckets(pairs, batch_size, max_tokens=20, n_buckets=n_buckets)
    width = -(-20 // n_buckets)
    seen, n_short = [], 0
    for step in range(buckets.batches_per_epoch):
        batch = buckets.batch(step)
        rows = batch.source[:, 0] - 10
        seen += rows.tolist()
        n_short += len(rows) < batch_size
        assert (batch.targets[:, 0] == batch.source[:, 0]).all()  # the two sides stay together
        assert batch.source_lengths.tolist() == np.minimum(source[rows], 20).tolist()
        assert batch.target_lengths.tolist() == (np.minimum(target[rows], 20) + 1).tolist()
        longer = np.maximum(batch.source_lengths, batch.target_lengths)
        assert len(set(np.minimum(longer // width, n_buckets))) == 1
    assert sorted(seen) == np.flatnonzero((source > 0) & (target > 0)).tolist()
    assert n_short <= n_buckets + 1


def test_steps_can_be_asked_for_in_any_order(rng):
    pairs, _, _ = pairs_of(rng, 100, 12)
    buckets = Buckets(pairs, 8, max_tokens=10)
    n = buckets.batches_per_epoch
    steps = list(range(2 * n))
    forward = [buckets.batch(step).source.tolist() for step in steps]
    assert [Buckets(pairs, 8, max_tokens=10).batch(s).source.tolist() for s in steps[::-5]] == forward[::-5]
    assert [buckets.batch(step).source.tolist() for step in steps[::-1]] == forward[::-1]
    assert forward[:n] != forward[n:]
    assert Buckets(pairs, 8, max_tokens=10, seed=1).batch(0).source.tolist() != forward[0]


def test_batches_of_long_and_short_pairs_are_mixed(rng):
    pairs, _, _ = pairs_of(rng, 2000, 40)
    buckets = Buckets(pairs, 10, max_tokens=40)
    widths = [buckets.batch(step).inputs.shape[1] for step in range(buckets.batches_per_epoch)]
    assert abs(np.corrcoef(widths, np.arange(len(widths)))[0, 1]) < 0.3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        ({"batch_size": 2.0}, TypeError, "batch_size=2.0"),
        ({"max_tokens": 0}, ValueError, "max_tokens=0"),
        ({"n_buckets": 0}, ValueError, "n_buckets=0"),
        ({"seed": -1}, ValueError, "seed=-1"),
    ],
)
def test_buckets_refuse(options, error, message):
    pairs = SentencePairs(sequences([1]), sequences([1]), ("x",))
    with pytest.raises(error, match=message):
        Buckets(pairs, **{"batch_size": 1} | options)
    with pytest.raises(ValueError, match="step=-1"):
        Buckets(pairs, 1).batch(-1)


def test_no_pair_with_two_sides():
    with pytest.raises(ValueError, match="none of 2 pairs has two sides"):
        Buckets(SentencePairs(sequences([1], []), sequences([], [1]), ("", "x")), 1)
