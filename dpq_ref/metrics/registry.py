"""Registry of what is measured: name, unit, which direction is better, and the function where there is one.

Figures and tables take their labels from here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dpq_ref.metrics.geometry import (
    N_NEIGHBOURS,
    check_tables,
    mean_cosine,
    mean_squared_error,
    neighbour_overlap,
    relative_error,
)
from dpq_ref.metrics.quality import accuracy
from dpq_ref.metrics.spaces import (
    SharedBasis,
    eigenspace_overlap,
    isotropy,
    pip_loss,
    relative_pip_loss,
    spectral_bounds,
)
from dpq_ref.metrics.translation import bleu
from dpq_ref.metrics.words import analogies, categorisation, concept_relations, word_similarity


@dataclass(frozen=True)
class Metric:
    """One thing that is measured.

    Attributes
    ----------
    name : str
    label : str, for axes and headers
    unit : str, "" for a plain number
    better : {"higher", "lower"}
    function : callable or None, if it comes out of a whole training
    """

    name: str
    label: str
    unit: str
    better: str
    function: Callable[..., Any] | None = None

    @property
    def axis(self) -> str:
        """Label with unit and direction."""
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.label}{unit}, {self.better} is better"


METRICS = {
    metric.name: metric
    for metric in (
        Metric("test_accuracy", "test accuracy", "%", "higher", accuracy),
        Metric("test_accuracy_best", "best test accuracy of all evaluations", "%", "higher", accuracy),
        Metric("validation_accuracy", "validation accuracy", "%", "higher", accuracy),
        Metric("test_perplexity", "test perplexity", "", "lower"),
        Metric("test_perplexity_last", "test perplexity after the last epoch", "", "lower"),
        Metric("validation_perplexity", "validation perplexity", "", "lower"),
        Metric("test_bleu", "test BLEU", "", "higher", bleu),
        Metric("test_bleu_last", "test BLEU after the last step", "", "higher", bleu),
        Metric("validation_bleu", "validation BLEU", "", "higher", bleu),
        Metric("codes_used", "codes used", "share", "higher"),
        Metric("codes_changed", "codes changed since the last evaluation", "share", "lower"),
        Metric("code_perplexity", "perplexity of the codes", "codes", "higher"),
        # Of a table and its reconstruction; "weighted" with the frequencies as weights.
        Metric("mean_squared_error", "mean squared error", "", "lower", mean_squared_error),
        Metric(
            "weighted_mean_squared_error", "mean squared error by frequency", "", "lower", mean_squared_error
        ),
        Metric("relative_error", "relative squared error", "", "lower", relative_error),
        Metric("weighted_relative_error", "relative squared error by frequency", "", "lower", relative_error),
        Metric("mean_cosine", "mean cosine with the original", "", "higher", mean_cosine),
        Metric("weighted_mean_cosine", "mean cosine by frequency", "", "higher", mean_cosine),
        Metric("neighbour_overlap", "nearest neighbours kept", "share", "higher", neighbour_overlap),
        Metric("pip_loss", "PIP loss", "", "lower", pip_loss),
        Metric("relative_pip_loss", "relative PIP loss", "", "lower", relative_pip_loss),
        Metric("eigenspace_overlap", "eigenspace overlap", "", "higher", eigenspace_overlap),
        Metric("delta_1", "spectral bound Δ₁", "", "lower", spectral_bounds),  # both bounds in one result
        Metric("delta_2", "spectral bound Δ₂", "", "lower", spectral_bounds),
        Metric("isotropy", "isotropy", "", "higher", isotropy),  # of one table
        # Of words and their vectors; each function's result has more to say.
        Metric("word_similarity", "word similarity (Spearman)", "", "higher", word_similarity),
        Metric("analogies_add", "analogies by 3CosAdd", "%", "higher", analogies),
        Metric("analogies_mul", "analogies by 3CosMul", "%", "higher", analogies),
        Metric("analogies_semantic", "semantic analogies", "%", "higher", analogies),
        Metric("analogies_syntactic", "syntactic analogies", "%", "higher", analogies),
        Metric("categorisation_purity", "purity of categories", "%", "higher", categorisation),
        Metric("decoded_word_similarity", "word similarity of decoded signs", "", "higher", word_similarity),
        Metric("coordinates_first", "nearest relatum is a coordinate", "%", "higher", concept_relations),
        # What it costs.
        Metric("fit_seconds", "time to fit", "s", "lower"),
        Metric("lookup_microseconds", "time to look up a word, in batches", "µs", "lower"),
        Metric("flops_per_lookup", "operations of a look-up", "FLOP", "lower"),
        Metric("bytes_per_lookup", "bytes read by a look-up", "B", "lower"),
        Metric("file_bytes", "size of the file", "B", "lower"),
    )
}


def judge(table: Any, other: Any, weights: Any = None, *, random_state: int = 0) -> dict[str, float]:
    """Measure all that two tables tell without words or a task, by the names in `METRICS`.

    Left out is what is not defined: errors and cosines of tables of different widths, weighted ones without
    weights, and neighbours in tables of 10 rows or fewer. Isotropy is that of `other`.

    Parameters
    ----------
    table : (n, d), not all zero
    other : (n, k)
    weights : (n,), optional
    random_state : int
        For the sample of `neighbour_overlap`.

    Returns
    -------
    dict of float
    """
    table, other = check_tables(table, other, same_width=False)
    found = {}
    if table.shape == other.shape:
        for measure in (mean_squared_error, relative_error, mean_cosine):
            found[measure.__name__] = measure(table, other)
            if weights is not None:
                found[f"weighted_{measure.__name__}"] = measure(table, other, weights)
    if len(table) > N_NEIGHBOURS:
        found["neighbour_overlap"] = neighbour_overlap(table, other, random_state=random_state)
    shared = SharedBasis.of(table, other)
    for name in ("pip_loss", "relative_pip_loss", "eigenspace_overlap"):
        found[name] = getattr(shared, name)()
    return found | shared.spectral_bounds()._asdict() | {"isotropy": isotropy(other)}
