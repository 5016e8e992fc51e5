"""A table of word vectors, compressed by each method of a grid and judged against the original.

Every method ends in a `Compressed` table, which is saved, loaded, looked up, and measured by the same code:
errors, neighbours, spectra, and where there are word sets, similarity, analogies, categories and relations.
"""

import hashlib
import os
import resource
import tempfile
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from dpq_ref.compressed import Compressed, FactoredTable, ScalarTable, load
from dpq_ref.datasets import words as wordfiles
from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.metrics import judge
from dpq_ref.metrics.words import (
    analogies,
    categorisation,
    code_agreement,
    concept_relations,
    word_similarity,
)
from dpq_ref.tables import read_table
from figures.sweep import Record, Run, Sweep, cells
from figures.timing import timed_fit

GRID = Path(__file__).parent / "grids" / "tables.toml"
LOOKUP_IDS = 1000
LEAST_PAIRS = 50  # a similarity set with fewer covered pairs does not enter the mean


@dataclass(frozen=True)
class Paths:
    """Files that a comparison reads.

    Attributes
    ----------
    table : str, as `dpq_ref.tables.read_table` takes it
    frequencies : str or None, `word count` a line, or "zipf"
    word_sets : str or None
        Folder with similarity sets (`*.tsv`), analogies (questions-words.txt) and relations (BLESS.txt), all
        or some, plain or compressed.
    tensor : str or None
        Which one of a checkpoint.
    named_by : str or None
        Compressed file that has the words, where the table has none.
    """

    table: str
    frequencies: str | None = None
    word_sets: str | None = None
    tensor: str | None = None
    named_by: str | None = None


@dataclass(frozen=True)
class WordTable:
    """A table with all that it is judged by.

    Attributes
    ----------
    words : list of str, none where the file has none
    vectors : (n, d)
    weights : (n,) float64 or None
        Counts of the words; one that the list does not have counts once.
    similarity : dict of name to pairs
    questions, relations : list
    sha256 : str, of vectors and weights
    """

    words: list[str]
    vectors: Array
    weights: Array | None
    similarity: dict[str, list]
    questions: list
    relations: list
    sha256: str


@lru_cache(maxsize=1)
def read(paths: Paths) -> WordTable:
    """Read a table and what it is judged by.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is missing or none of these, or the folder of word sets has nothing that is known.
    """
    words, vectors, _ = read_table(paths.table, tensor=paths.tensor)
    if words is None and paths.named_by is not None:
        words = load(paths.named_by).words
    if words is None and paths.word_sets:
        raise ValueError(f"{paths.table} has no words, which word sets need")
    weights = None
    if paths.frequencies is not None:
        weights = wordfiles.weights_for(paths.frequencies, words, len(vectors), paths.table)
    similarity: dict[str, list] = {}
    questions, relations = [], []
    if paths.word_sets is not None:
        folder = Path(paths.word_sets)
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}")
        for path in sorted(folder.iterdir()):
            stem, *endings = path.name.split(".")
            if endings[:1] == ["tsv"]:
                similarity[stem] = wordfiles.read_similarity(path)
            elif stem == "questions-words":
                questions = wordfiles.read_analogies(path)
            elif stem == "BLESS":
                relations = wordfiles.read_relations(path)
        if not (similarity or questions or relations):
            raise ValueError(f"{folder} has no similarity sets (*.tsv), questions-words.txt or BLESS.txt")
    digest = hashlib.sha256(np.ascontiguousarray(vectors).data)
    digest.update(b"" if weights is None else weights.tobytes())
    return WordTable(words or [], vectors, weights, similarity, questions, relations, digest.hexdigest())


def sweep(grid: str | os.PathLike, paths: Paths, n_seeds: int | None = None) -> tuple[Sweep, list[Run]]:
    """Read a grid file and a table: what to run.

    Parameters
    ----------
    grid : path-like
        TOML with `seeds`, maybe a name as `dataset` (by default that of the file), and a [[method]] for each,
        with its parameters; `weighted = true` fits by frequency; `figure = "name"` draws its runs apart from
        the comparison, in a figure of their own; `seeds` of a method take the place of the grid's.
    paths : Paths
    n_seeds : int, optional
        Seeds from 0 on in place of the grid's.

    Raises
    ------
    ValueError
        If a key is missing or unknown, or a method weighs by frequencies that there are not.
    """
    content = tomllib.loads(Path(grid).read_text(encoding="utf8"))
    methods = content.pop("method", [])
    try:
        dataset, seeds = content.pop("dataset", Path(paths.table).stem), content.pop("seeds")
    except KeyError as error:
        raise ValueError(f"grid {grid}: no {error}") from error
    if content:
        raise ValueError(f"grid {grid}: unknown {', '.join(content)}")
    data = read(paths)
    runs = []
    for entry in methods:
        own = entry.pop("seeds", seeds)
        own = own if n_seeds is None else range(n_seeds)
        runs += [Run(*cell, seed) for cell in cells([entry]) for seed in own]
    if data.weights is None and any(run.parameters.get("weighted") for run in runs):
        raise ValueError(f"grid {grid} has methods weighted by frequency: it needs a list of frequencies")
    n, d = data.vectors.shape
    provenance = {"rows": n, "columns": d, "frequencies": data.weights is not None}
    specification = partial(_specification, dataset, data.sha256)
    return Sweep(partial(execute, paths), specification, _line, provenance), runs


def _specification(dataset: str, sha256: str, run: Run) -> Record:
    own = {"method": run.method, "parameters": run.parameters, "seed": run.seed}
    return {"dataset": dataset, "sha256": sha256} | own


def _line(record: Record) -> str:
    error, ratio = record["metrics"]["relative_error"], record["compression_ratio"]
    return f"error {error:.4f} at ratio {ratio:.1f}, {record['seconds']['fit']:.1f} s"


def execute(paths: Paths, run: Run, work: Path, on_step: Callable[[int], None]) -> Record:
    """Compress the table and measure.

    Returns
    -------
    dict
        bits by part, compression_ratio, metrics, seconds (compile, fit, lookup of LOOKUP_IDS words), and
        what a look-up takes.
    """
    data = read(paths)
    estimator, weights = make_estimator(run, data.weights)
    made, seconds = timed_fit(estimator, data.vectors, weights)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        made.save(Path(folder, "table"))
        table, stored = load(Path(folder, "table")), Path(folder, "table").stat().st_size
    rows = table.reconstruct()
    metrics = judge(data.vectors, rows, data.weights, random_state=run.seed)
    return {
        "bits": table.bits(),
        "file_bytes": stored,
        "compression_ratio": table.compression_ratio,
        "metrics": metrics | judge_words(data, rows, table),
        "seconds": seconds | {"lookup": lookup_seconds(table, data.weights)},
        "flops_per_lookup": table.flops_per_lookup(data.weights),
        "bytes_per_lookup": table.bytes_per_lookup(data.weights),
        "process_peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def make_estimator(run: Run, weights: Array | None) -> tuple[Any, Array | None]:
    """Unfitted estimator of a run, and the weights to fit it with."""
    from baselines import REGISTRY

    if run.method not in REGISTRY:
        raise ValueError(f"no method {run.method!r}; there are {', '.join(REGISTRY)}")
    parameters = {k: v for k, v in run.parameters.items() if k not in ("weighted", "figure")}
    estimator = REGISTRY[run.method](**parameters)
    if "random_state" in estimator.get_params():
        estimator.set_params(random_state=run.seed)
    return estimator, weights if run.parameters.get("weighted") else None


def lookup_seconds(table: Compressed, weights: Array | None, repeats: int = 15) -> float:
    """Median time to look up LOOKUP_IDS words drawn by frequency, kernels compiled."""
    shares = None if weights is None else weights / weights.sum()
    ids = np.random.default_rng(0).choice(table.vocab_size, LOOKUP_IDS, p=shares)
    table.lookup(ids)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        table.lookup(ids)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def judge_words(data: WordTable, rows: Array, table: Compressed | None = None) -> dict[str, float]:
    """Word similarity, analogies, categories and relations; what is not covered is left out.

    Signs are compared as codes where the table has them: that is what binary codes are for. The vectors that
    they decode to are under "decoded_word_similarity".
    """
    found: dict[str, float] = {}
    if not data.words:
        return found
    signs = signs_of(table)
    similarity: Any = rows if signs is None else code_agreement(signs)
    for name, vectors in (("word_similarity", similarity), ("decoded_word_similarity", rows)):
        if name == "decoded_word_similarity" and signs is None:
            continue
        judged = {k: word_similarity(pairs, data.words, vectors) for k, pairs in data.similarity.items()}
        scores = {
            k: s.spearman for k, s in judged.items() if s.n_covered >= LEAST_PAIRS and s.spearman is not None
        }
        if scores:
            found[name] = float(np.mean(list(scores.values())))
            found |= {f"{name}_{k}": score for k, score in scores.items()}
    for formula in ("add", "mul"):
        score = analogies(data.questions, data.words, rows, formula).accuracy()
        found |= {} if score is None else {f"analogies_{formula}": score}
    if data.relations:
        categories = [(concept, category) for concept, category, *_ in data.relations]
        purity = categorisation(categories, data.words, rows).purity
        first = concept_relations(data.relations, data.words, rows).first
        found |= {} if purity is None else {"categorisation_purity": purity}
        found |= {"coordinates_first": first["coord"]} if "coord" in first else {}
    return found


def signs_of(table: Compressed | None) -> Integers | None:
    """Signs (n, c) that a table of binary codes is made of; None for others."""
    left = table.left if isinstance(table, FactoredTable) else table
    return left.codes if isinstance(left, ScalarTable) and left.n_bits == 1 else None
