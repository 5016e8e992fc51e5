"""Translation of the paper: training by the protocol of tensorflow/nmt, BLEU of greedy translations.

The models are in `dpq_ref.tasks.seq2seq`, the search in `dpq_ref.tasks.decode`.
"""

import os
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from dpq_ref import job
from dpq_ref.compressed.base import write_atomically
from dpq_ref.datasets.pairs import Buckets
from dpq_ref.datasets.translation import TranslationDataset
from dpq_ref.kernels.reference import Array
from dpq_ref.metrics import bleu, bleu_signature
from dpq_ref.optim import SGD, Adam
from dpq_ref.tasks.decode import translate
from dpq_ref.tasks.seq2seq import Translator

OPTIMIZERS = {"sgd": SGD, "adam": Adam}


@dataclass(frozen=True)
class Plan:
    """How a model is trained.

    Attributes
    ----------
    steps : int
    batch_size : int
        Sentences.
    max_tokens, n_buckets : int
        Words kept of a sentence in training, and buckets of similar length.
    optimizer : {"sgd", "adam"}
    learning_rate : float
    warm_up : int
        Steps over which the rate rises to that, in equal parts.
    constant_steps, halve_every : int
        After so many steps the rate is halved every so many.
    clip_norm : float
        Of all gradients together.
    evaluate_every : int
        Steps.
    """

    steps: int = 12_000
    batch_size: int = 128
    max_tokens: int = 50
    n_buckets: int = 5
    optimizer: str = "sgd"
    learning_rate: float = 1.0
    warm_up: int = 0
    constant_steps: int = 8_000
    halve_every: int = 1_000
    clip_norm: float = 5.0
    evaluate_every: int = 1_000

    def __post_init__(self) -> None:  # noqa: D105
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer={self.optimizer!r}; it takes 'sgd' or 'adam'")

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 1.

        Examples
        --------
        >>> [Plan().rate(step) for step in (1, 9000, 9001, 10001, 12000)]
        [1.0, 1.0, 0.5, 0.25, 0.125]
        >>> [Plan(warm_up=4).rate(step) for step in (1, 4, 5)]
        [0.25, 1.0, 1.0]
        """
        halvings = max(0, step - 1 - self.constant_steps) // self.halve_every
        return self.learning_rate * 0.5**halvings * min(1.0, step / max(1, self.warm_up))


PLANS = {  # by model; that of the Transformer is our choice, the paper has none
    "attention": Plan(),
    "transformer": Plan(optimizer="adam", learning_rate=5e-4, warm_up=1_000),
}

PROTOCOL = (
    "test_bleu: at the evaluation of the highest validation BLEU, the earliest of several; test_bleu_last: "
    "after the last step. BLEU-4 on the tokens of the files, one reference, case-sensitive, not smoothed, of "
    "greedy translations at most twice as long as the longest source sentence of their batch of 32. "
    "Perplexity: of all target words and ends of sentences, nothing cut."
)


def translations(
    model: Translator, data: TranslationDataset, split: str, *, vectors: Array | None = None, **options: Any
) -> list[str]:
    """Translate a split, into words with spaces between.

    Parameters
    ----------
    model : Translator
    data : TranslationDataset
    split : {"train", "validation", "test"}
    vectors, **options
        As in `dpq_ref.tasks.decode.translate`.

    Returns
    -------
    list of str
    """
    found = translate(model, getattr(data, split).source, vectors=vectors, **options)
    return [" ".join(data.target_vocabulary[i] for i in words) for words in found]


def train(
    folder: str | os.PathLike,
    data: TranslationDataset,
    model: Translator,
    plan: Plan,
    *,
    config: dict[str, Any],
    seed: int = 0,
    **options: Any,
) -> dict[str, Any] | None:
    """Train a translator in a folder by the paper's protocol, or go on there; see `dpq_ref.job`.

    Parameters
    ----------
    folder : path
        What it gets is said in `dpq_ref.job`; at the end translations.txt, too, those of the test set.
    data : TranslationDataset
    model : Translator
        As it starts.
    plan : Plan
    config : dict
        JSON-able; what `model` was made from, its seed included.
    seed : int
        Gives the order of the batches.
    **options
        patience, max_minutes, on_start and on_step of `dpq_ref.job.fit`.

    Returns
    -------
    dict or None
        What is in result.json; None if time was up before.

    Raises
    ------
    ModuleNotFoundError
        If `sacrebleu` is not installed.
    ValueError
        If the vocabularies of model and data are not of one size; or as in `dpq_ref.job.fit`.
    FloatingPointError
        As in `dpq_ref.job.fit`.
    """
    signature = bleu_signature()  # first of all: without it the training would end in vain
    for side, layer in (("source", model.embedding), ("target", model.target)):
        words = len(getattr(data, f"{side}_vocabulary"))
        if layer.vocab_size != words:
            raise ValueError(f"model has {layer.vocab_size} {side} words; this data takes {words}")
    buckets = Buckets(
        data.train, plan.batch_size, max_tokens=plan.max_tokens, n_buckets=plan.n_buckets, seed=seed
    )

    def evaluate() -> dict[str, float]:
        vectors = model.table()
        return {
            "validation_bleu": bleu(
                translations(model, data, "validation", vectors=vectors), data.validation.references
            ),
            "validation_perplexity": model.perplexity(data.validation, vectors=vectors),
        }

    progress = job.fit(
        folder,
        model,
        OPTIMIZERS[plan.optimizer](model.params, plan.learning_rate, backend=model.kernels),
        lambda start: map(buckets.batch, count(start)),
        config=config | {"plan": asdict(plan), "order": seed, "data_sha256": data.sha256},
        steps=plan.steps,
        evaluate=evaluate,
        metric="validation_bleu",
        evaluate_every=plan.evaluate_every,
        schedule=plan.rate,
        clip_norm=plan.clip_norm,
        **options,
    )
    if progress.result or not progress.done:
        return progress.result
    last = bleu(translations(model, data, "test"), data.test.references)
    model.load_state(job.best(folder))
    table = model.embedding.export()
    vectors = table.reconstruct()
    lines = translations(model, data, "test", vectors=vectors)
    write_atomically(Path(folder) / "translations.txt", "".join(f"{line}\n" for line in lines).encode())
    found = {
        "test_bleu": bleu(lines, data.test.references),
        "test_bleu_last": last,
        "validation_bleu": progress.best["validation_bleu"],
        "test_perplexity": model.perplexity(data.test, vectors=vectors),
        "validation_perplexity": progress.best["validation_perplexity"],
        "protocol": PROTOCOL,
        "bleu": signature,
    }
    return job.finish(folder, progress, found, table, data.provenance)
