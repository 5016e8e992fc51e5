"""Everything that judges a compressed table: task quality, geometry, words; and the registry of it all."""

from dpq_ref.metrics.geometry import mean_cosine, mean_squared_error, neighbour_overlap, relative_error
from dpq_ref.metrics.quality import CodeUsage, accuracy, code_changes, code_usage
from dpq_ref.metrics.registry import METRICS, Metric, judge
from dpq_ref.metrics.spaces import (
    SpectralBounds,
    eigenspace_overlap,
    isotropy,
    pip_loss,
    relative_pip_loss,
    spectral_bounds,
)
from dpq_ref.metrics.translation import bleu, bleu_signature
from dpq_ref.metrics.words import (
    Analogies,
    Categorisation,
    ConceptRelations,
    WordSimilarity,
    analogies,
    categorisation,
    code_agreement,
    concept_relations,
    word_similarity,
)

__all__ = [
    "METRICS",
    "Analogies",
    "Categorisation",
    "CodeUsage",
    "ConceptRelations",
    "Metric",
    "SpectralBounds",
    "WordSimilarity",
    "accuracy",
    "analogies",
    "bleu",
    "bleu_signature",
    "categorisation",
    "code_agreement",
    "code_changes",
    "code_usage",
    "concept_relations",
    "eigenspace_overlap",
    "isotropy",
    "judge",
    "mean_cosine",
    "mean_squared_error",
    "neighbour_overlap",
    "pip_loss",
    "relative_error",
    "relative_pip_loss",
    "spectral_bounds",
    "word_similarity",
]
