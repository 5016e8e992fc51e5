"""What a table of word vectors knows: similarity, analogies, categories, relations between concepts.

All take the `words` of a table and its `vectors` (n, d). A word is looked up as it is and, where that is not
in the table, lower-cased; of a word that comes twice the first row counts. What is not covered is left out
and counted: compare two tables of the same words only. Cosines with a zero vector are 0.

F. Hill, R. Reichart, A. Korhonen, *SimLex-999*, Computational Linguistics 2015, for the use of Spearman's
rho; T. Mikolov, W. Yih, G. Zweig, *Linguistic Regularities*, NAACL 2013 (3CosAdd); O. Levy, Y. Goldberg,
*Linguistic Regularities in Sparse and Explicit Word Representations*, CoNLL 2014 (3CosMul); M. Baroni,
A. Lenci, *How we BLESSed distributional semantic evaluation*, GEMS 2011 (relations).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.metrics.geometry import Float64, blocks, check_table, one_thread, quantised, unit_rows

Similarity = Callable[[Integers, Integers], Array]  # ids (m,), ids (m,) -> (m,)


class Vocabulary:
    """Row of each word of a table."""

    def __init__(self, words: Sequence[str]):
        self.rows: dict[str, int] = {}
        for row, word in enumerate(words):
            self.rows.setdefault(word, row)

    def __call__(self, word: str) -> int | None:
        """Row of a word: as is, then lower-cased; None if neither is there."""
        row = self.rows.get(word)
        return self.rows.get(word.lower()) if row is None else row


def _check_words(words: Sequence[str], vectors: Any) -> tuple[Vocabulary, Array]:
    vectors = check_table(vectors, "vectors")
    if len(words) != len(vectors):
        raise ValueError(f"{len(words)} words for vectors of {len(vectors)} rows; takes one a row")
    return Vocabulary(words), vectors


# --- Similarity -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WordSimilarity:
    """How a table orders pairs of words.

    Attributes
    ----------
    spearman : float or None
        Rank correlation with the human scores; 0 where the table gives all pairs the same similarity; None
        where the scores of the covered pairs do not differ, as with fewer than two.
    n_covered, n_pairs : int
        Pairs with both words in the table, and all.
    """

    spearman: float | None
    n_covered: int
    n_pairs: int


def word_similarity(
    pairs: Iterable[tuple[str, str, float]], words: Sequence[str], vectors: Any | Similarity
) -> WordSimilarity:
    """Spearman's rank correlation of cosines with human scores, ties at their mean rank.

    Parameters
    ----------
    pairs : iterable of (word, word, score)
    words : (n,) str
    vectors : (n, d), or callable
        A callable takes two (m,) arrays of row ids and gives the (m,) similarities, as `code_agreement` does.

    Returns
    -------
    WordSimilarity

    Examples
    --------
    >>> pairs = [("cat", "dog", 9.0), ("cat", "car", 2.0), ("dog", "car", 3.0), ("dog", "emu", 5.0)]
    >>> vectors = np.array([[1.0, 0.0], [0.9, 0.2], [0.1, 1.0]])
    >>> word_similarity(pairs, ["cat", "dog", "car"], vectors)
    WordSimilarity(spearman=1.0, n_covered=3, n_pairs=4)
    """
    if callable(vectors):
        vocabulary, similarity = Vocabulary(words), vectors
    else:
        vocabulary, vectors = _check_words(words, vectors)
        similarity = cosine_similarity(vectors)
    pairs = list(pairs)
    known = [(vocabulary(first), vocabulary(second), score) for first, second, score in pairs]
    known = [item for item in known if None not in item]
    scores = np.array([score for *_, score in known], np.float64)
    if len(np.unique(scores)) < 2:
        return WordSimilarity(None, len(known), len(pairs))
    i, j = np.array([item[:2] for item in known], np.int64).T
    return WordSimilarity(spearman(similarity(i, j), scores), len(known), len(pairs))


def cosine_similarity(vectors: Array) -> Similarity:
    """Cosines of rows of a table, to 2^-40."""
    return lambda i, j: quantised(np.einsum("ij,ij->i", unit_rows(vectors[i]), unit_rows(vectors[j])))


def code_agreement(codes: Integers) -> Similarity:
    """Share of the codes (n, D) that two rows have in common: for bits, 1 minus the Hamming distance by D."""
    return lambda i, j: (codes[i] == codes[j]).mean(axis=1)


def spearman(x: Array, y: Array) -> float:
    """Rank correlation, ties at their mean rank; 0 where either does not vary."""
    x, y = _ranks(x), _ranks(y)
    x, y = x - x.mean(), y - y.mean()
    size = np.sqrt((x @ x) * (y @ y))
    return float(np.clip(x @ y / size, -1, 1)) if size else 0.0


def _ranks(x: Array) -> Float64:
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


# --- Analogies ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Analogies:
    """Right answers to analogies.

    Attributes
    ----------
    sections : dict of str to (right, covered, questions)
    """

    sections: dict[str, tuple[int, int, int]]

    def count(self, part: str = "all") -> tuple[int, int, int]:
        """Right, covered and all questions of "semantic" or "syntactic" sections (``gram...``), or of all."""
        kept = [
            counts
            for section, counts in self.sections.items()
            if part == "all" or (part == "syntactic") == section.startswith("gram")
        ]
        right, covered, questions = map(sum, zip((0, 0, 0), *kept, strict=True))
        return right, covered, questions

    def accuracy(self, part: str = "all") -> float | None:
        """Right answers in percent of the covered questions, None where none is covered.

        Parameters
        ----------
        part : {"all", "semantic", "syntactic"}
        """
        if part not in ("all", "semantic", "syntactic"):
            raise ValueError(f"part={part!r}; it takes 'all', 'semantic' or 'syntactic'")
        right, covered, _ = self.count(part)
        return 100 * right / covered if covered else None


EPSILON = 1e-3  # of 3CosMul, as in Levy and Goldberg
STEP = 32  # scores are made in pieces of 1/32 of a block, so that they stay in the cache


@one_thread
def analogies(
    questions: Iterable[tuple[str, str, str, str, str]],
    words: Sequence[str],
    vectors: Any,
    formula: str = "add",
) -> Analogies:
    """Answer analogies a : b = c : d by the word nearest to b - a + c among all but a, b and c.

    A question counts if its four words are in the table. Of equal scores, the smallest row wins.

    Parameters
    ----------
    questions : iterable of (section, a, b, c, d)
    words : (n,) str
        For a restricted vocabulary pass fewer rows.
    vectors : (n, d)
    formula : {"add", "mul"}
        3CosAdd, cos(x, b) - cos(x, a) + cos(x, c), or 3CosMul, cos'(x, b) cos'(x, c) / (cos'(x, a) + 0.001),
        with cos' = (cos + 1) / 2.

    Returns
    -------
    Analogies

    Examples
    --------
    >>> words = ["man", "king", "woman", "queen", "axe"]
    >>> vectors = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 1], [1, 0, 1]])
    >>> analogies([("family", "man", "king", "woman", "queen")], words, vectors).accuracy()
    100.0
    """
    if formula not in ("add", "mul"):
        raise ValueError(f"formula={formula!r}; it takes 'add' or 'mul'")
    vocabulary, vectors = _check_words(words, vectors)
    questions = list(questions)
    known = []
    for section, *asked in questions:
        rows = [vocabulary(word) for word in asked]
        if None not in rows:
            known.append((section, rows))
    four = np.array([rows for _, rows in known], np.int64).reshape(-1, 4)
    right = _answers(vectors, four[:, :3], formula) == four[:, 3]

    counts = {section: [0, 0, 0] for section, *_ in questions}
    for section, *_ in questions:
        counts[section][2] += 1
    for (section, _), hit in zip(known, right, strict=True):
        counts[section][1] += 1
        counts[section][0] += int(hit)
    return Analogies({section: (r, c, q) for section, (r, c, q) in counts.items()})


def _answers(vectors: Array, abc: Integers, formula: str) -> Integers:
    """Row of the best answer to each question, (q, 3) -> (q,).

    The cosines of all rows with the few distinct words of the questions are one matrix product by block;
    questions gather from them.
    """
    distinct, place = np.unique(abc, return_inverse=True)
    a, b, c = place.reshape(abc.shape).T
    sought = unit_rows(vectors[distinct])
    best, answer = np.full(len(abc), -np.inf), np.full(len(abc), -1, np.int64)
    for rows in blocks(len(vectors), max(vectors.shape[1], len(distinct), 1)):
        cosines = quantised(sought @ unit_rows(vectors[rows]).T)
        if formula == "mul":
            cosines = np.maximum((cosines + 1) / 2, 0)
            inverse = 1 / (cosines + EPSILON)
        for part in blocks(len(abc), STEP * cosines.shape[1]):
            score = cosines[b[part]]
            if formula == "add":
                score -= cosines[a[part]]
                score += cosines[c[part]]
            else:
                score *= cosines[c[part]]
                score *= inverse[a[part]]
            asked = abc[part]
            question, word = np.nonzero((asked >= rows.start) & (asked < rows.stop))
            score[question, asked[question, word] - rows.start] = -np.inf
            first = score.argmax(axis=1)
            value = score[np.arange(len(first)), first]
            better = value > best[part]
            best[part][better] = value[better]
            answer[part][better] = first[better] + rows.start
    return answer


# --- Categories -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Categorisation:
    """How well clusters of concepts are their categories.

    Attributes
    ----------
    purity : float or None
        In percent; None where no concept is covered.
    n_covered, n_concepts : int
    n_categories : int
        Among the covered concepts; as many clusters were sought.
    """

    purity: float | None
    n_covered: int
    n_concepts: int
    n_categories: int


def categorisation(
    categories: Iterable[tuple[str, str]], words: Sequence[str], vectors: Any, *, random_state: int = 0
) -> Categorisation:
    """Purity of k-means clusters of unit vectors, as many as there are categories, best of 10 starts.

    Parameters
    ----------
    categories : iterable of (concept, category)
        A pair that comes again counts once.
    words : (n,) str
    vectors : (n, d)
    random_state : int

    Returns
    -------
    Categorisation

    Examples
    --------
    >>> categories = [("cat", "animal"), ("dog", "animal"), ("car", "vehicle"), ("bus", "vehicle")]
    >>> vectors = np.array([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [0.1, 3.0]])
    >>> categorisation(categories, ["cat", "dog", "car", "bus"], vectors).purity
    100.0
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    vocabulary, vectors = _check_words(words, vectors)
    concepts = list(dict.fromkeys(categories))
    known = [(row, category) for word, category in concepts if (row := vocabulary(word)) is not None]
    names = sorted({category for _, category in known})
    if not known:
        return Categorisation(None, 0, len(concepts), 0)
    unit = unit_rows(vectors[[row for row, _ in known]])
    clusters = min(len(names), len(np.unique(unit, axis=0)))
    with threadpool_limits(1):  # the same on any number of threads
        found = KMeans(clusters, n_init=10, random_state=random_state).fit_predict(unit)
    labels = np.array([names.index(category) for _, category in known])
    return Categorisation(purity(found, labels), len(known), len(concepts), len(names))


def purity(clusters: Integers, labels: Integers) -> float:
    """Share in percent of the items whose label is the commonest of their cluster.

    Examples
    --------
    >>> purity(np.array([0, 0, 0, 1]), np.array([5, 5, 7, 7]))
    75.0
    """
    _, clusters = np.unique(clusters, return_inverse=True)
    _, labels = np.unique(labels, return_inverse=True)
    table = np.zeros((clusters.max() + 1, labels.max() + 1), np.int64)
    np.add.at(table, (clusters, labels), 1)
    return 100 * float(table.max(axis=1).sum() / len(labels))


# --- Relations ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConceptRelations:
    """Which relations hold between near words.

    Attributes
    ----------
    z : dict of str to float
        By relation, the mean over concepts of the cosine with the nearest relatum, standardised by concept.
    first : dict of str to float
        By relation, the percentage of concepts whose nearest relatum of all stands in it; without a tie.
    n_covered, n_concepts : int
    """

    z: dict[str, float]
    first: dict[str, float]
    n_covered: int
    n_concepts: int


def concept_relations(
    relations: Iterable[tuple[str, str, str, str]], words: Sequence[str], vectors: Any
) -> ConceptRelations:
    """Relations between concepts and their nearest relata (BLESS; Baroni, Lenci 2011).

    For each concept and relation take the cosine with the nearest relatum; subtract from these the concept's
    mean over the relations and divide by its standard deviation (0 where that is 0). In a good table
    coordinates ("coord": cat, dog) come out above all and random words last. A concept counts if it is in
    the table, with at least one relatum of each relation; it is no relatum of itself.

    Parameters
    ----------
    relations : iterable of (concept, category, relation, relatum)
    words : (n,) str
    vectors : (n, d)

    Returns
    -------
    ConceptRelations
        z and first are empty where no concept counts.

    Examples
    --------
    >>> relations = [("cat", "animal", "coord", "dog"), ("cat", "animal", "random", "tax")]
    >>> vectors = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> found = concept_relations(relations, ["cat", "dog", "tax"], vectors)
    >>> found.z, found.first
    ({'coord': 1.0, 'random': -1.0}, {'coord': 100.0, 'random': 0.0})
    """
    vocabulary, vectors = _check_words(words, vectors)
    relata: dict[str, dict[str, list[int]]] = {}
    names = {}
    for concept, _, relation, relatum in relations:
        found = relata.setdefault(concept, defaultdict(list))
        names[relation] = True
        row = vocabulary(relatum)
        if row is not None and row != vocabulary(concept):
            found[relation].append(row)
    similarity = cosine_similarity(vectors)
    best = []
    for concept, rows in relata.items():
        row = vocabulary(concept)
        if row is not None and all(rows[name] for name in names):
            pairs = [(np.full(len(rows[name]), row), np.array(rows[name])) for name in names]
            best.append([similarity(*pair).max() for pair in pairs])
    if not best:
        return ConceptRelations({}, {}, 0, len(relata))
    cosines = np.array(best)
    spread = cosines.std(axis=1, keepdims=True)
    z = (cosines - cosines.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)
    top = (cosines == cosines.max(axis=1, keepdims=True)) & (spread > 0)
    top &= top.sum(axis=1, keepdims=True) == 1
    return ConceptRelations(
        dict(zip(names, z.mean(axis=0).tolist(), strict=True)),
        dict(zip(names, (100 * top.mean(axis=0)).tolist(), strict=True)),
        len(best),
        len(relata),
    )
