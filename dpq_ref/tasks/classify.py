"""Text classification of the paper (hyperparameters of its released code), forward and backward.

The mean of the word vectors, batch norm, ReLU, dense, batch norm, ReLU, dense; cross-entropy; row-sparse Adam
at 1e-3, batches of 64. The embedding is any layer with `forward(ids, train, mask)`, `backward(d_output)`,
`params` and `grads`.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from dpq_ref import job, trainer
from dpq_ref.backend import to_numpy
from dpq_ref.datasets import Documents, TextDataset
from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.layers import BatchNorm, Dense, DPQEmbedding, softmax_cross_entropy
from dpq_ref.metrics import accuracy, code_changes
from dpq_ref.network import Network
from dpq_ref.optim import Adam, gradient_norms

PADDING = 0


class TextClassifier(Network):
    """Mean of word vectors, then two dense layers with batch norm.

    Parameters
    ----------
    embedding : layer
        From ids (b, t) and a mask of them to means of vectors (b, dim).
    n_classes : int
    hidden : int
    rng : int or numpy.random.Generator
        Draws the dense layers.

    """

    def __init__(
        self, embedding: Any, n_classes: int, *, hidden: int = 300, rng: int | np.random.Generator = 0
    ):
        rng = np.random.default_rng(rng)
        dtype = embedding.dtype
        self.embedding = embedding
        self.kernels = embedding.kernels
        self.head: dict[str, Any] = {
            "norm1": BatchNorm(embedding.dim, rectified=True, dtype=dtype, backend=self.kernels),
            "dense1": Dense(embedding.dim, hidden, rng=rng, dtype=dtype),
            "norm2": BatchNorm(hidden, rectified=True, dtype=dtype, backend=self.kernels),
            "dense2": Dense(hidden, n_classes, rng=rng, dtype=dtype),
        }
        super().__init__({"embedding": embedding, **self.head})
        self.move(embedding.kernels)

    def forward(self, ids: Integers, train: bool = True) -> Array:
        """Logits of a batch of texts.

        Parameters
        ----------
        ids : (b, t) integers, 0 where a text has ended
        train : bool

        Returns
        -------
        (b, n_classes)
        """
        return self._head(self.embedding.forward(ids, train, mask=ids != PADDING), train)

    def backward(self, d_logits: Array) -> None:
        """Fill `grads` from the gradient of the logits, (b, n_classes)."""
        d = d_logits
        for layer in reversed(self.head.values()):
            d = layer.backward(d)
        self.embedding.backward(d)

    def loss_and_gradients(self, batch: tuple[Integers, Integers]) -> Any:
        """Cross-entropy of a batch, ids (b, t) and labels (b,), in training mode; fills `grads`."""
        ids, labels = batch
        loss, d_logits = softmax_cross_entropy(self.forward(ids), labels)
        self.backward(d_logits)
        return loss

    def _head(self, x: Array, train: bool) -> Array:
        for layer in self.head.values():
            x = layer.forward(x, train)
        return x

    def table(self) -> Array:
        """Vectors of all words in evaluation, (vocab_size, dim)."""
        return self.embedding.forward(np.arange(self.embedding.vocab_size), train=False)

    def predict(
        self, documents: Documents, *, table: Array | None = None, max_tokens: int | None = None
    ) -> Integers:
        """Classes of texts.

        Parameters
        ----------
        documents : Documents
        table : (vocab_size, dim), optional
            Word vectors to use in place of the embedding's, a reconstructed table say.
        max_tokens : int, optional
            Of each text at most.

        Returns
        -------
        (len(documents),) integers, on the host
        """
        table = self.table() if table is None else table
        predicted, asarray = [], self.kernels.xp.asarray
        table = asarray(table)
        for start in range(0, len(documents), EVALUATION_BATCH):
            ids = documents.pad(np.arange(start, min(start + EVALUATION_BATCH, len(documents))), max_tokens)
            pooled = self.kernels.mean_pool(table, asarray(ids), asarray(ids != PADDING))
            predicted.append(to_numpy(self._head(pooled, False).argmax(axis=1)))
        return np.concatenate(predicted) if predicted else np.zeros(0, np.int64)


EVALUATION_BATCH = 256
NORMS_KEPT = 50  # at the first step, and then about so often in a training


@dataclass(frozen=True)
class Plan:
    """How to train.

    Attributes
    ----------
    steps : int
    batch_size : int
    learning_rate : float
    evaluate_every : int, steps between evaluations
    max_tokens : int or None, tokens kept of each text
    """

    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-3
    evaluate_every: int = 100
    max_tokens: int | None = None


@dataclass
class Outcome:
    """What a training came to.

    Attributes
    ----------
    evaluations : list of dict
        step, loss (mean since the last one; none at step 0), validation and test accuracy in percent; of a
        DPQ embedding also `metrics.code_changes` since the last evaluation or the start.
    best_step : int
        Of the highest validation accuracy, the earliest of several.
    accuracy, accuracy_validation : float
        At that step: the protocol "best validation step".
    accuracy_best_test : float
        The highest of all test accuracies: the protocol of the released code, optimistic.
    snapshot : Any
        What `keep` returned at the best step.
    train_seconds : float
        Forward, backward and update, evaluations apart.
    gradient_norms : dict of list of float
        "step", and at these steps the norm of the gradient of each parameter, on the batch of the step.
    codes : (vocab_size, D) integers or None
        Of a DPQ embedding at the last evaluation or the start.
    """

    evaluations: list[dict[str, float]] = field(default_factory=list)
    best_step: int = 0
    accuracy: float = 0.0
    accuracy_validation: float = -1.0
    accuracy_best_test: float = 0.0
    snapshot: Any = None
    train_seconds: float = 0.0
    gradient_norms: dict[str, list[float]] = field(default_factory=dict)
    codes: Integers | None = None


def batches(n: int, size: int, rng: np.random.Generator):
    """Rows of batches without end: every epoch a new order, a last short batch dropped."""
    size = min(size, n)
    while True:
        order = rng.permutation(n)
        for start in range(0, n - size + 1, size):
            yield order[start : start + size]


def train(
    model: TextClassifier,
    data: TextDataset,
    plan: Plan,
    *,
    rng: int | np.random.Generator = 0,
    schedule: Callable[[int], float] | None = None,
    evaluate_start: bool = False,
    keep: Callable[[TextClassifier], Any] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Outcome:
    """Train a classifier and judge it by the protocol "best validation step".

    Parameters
    ----------
    model : TextClassifier
    data : TextDataset
    plan : Plan
    rng : int or numpy.random.Generator
        Shuffles the texts.
    schedule : callable, optional
        Step, counted from 1 -> learning rate, in place of the plan's.
    evaluate_start : bool
        Evaluate before the first step, too, and let that be the best step if none is better: for a model that
        has been trained before.
    keep : callable, optional
        Called with the model at each new best step; what it returns ends up as `Outcome.snapshot`.
    on_step : callable, optional
        Called with the number of each finished step.

    Returns
    -------
    Outcome

    Raises
    ------
    FloatingPointError
        If the loss or a gradient is NaN or infinite; it names step and parameter.
    """
    outcome, documents = Outcome(), data.train
    rows = batches(len(documents), plan.batch_size, np.random.default_rng(rng))
    if isinstance(model.embedding, DPQEmbedding):
        outcome.codes = model.embedding.all_codes()
    if evaluate_start:
        _evaluate(model, data, plan, 0, None, outcome, keep)
    every = max(1, plan.steps // NORMS_KEPT)

    def after(step: int) -> None:
        if step == 1 or step % every == 0:
            for name, value in {"step": step, **gradient_norms(model.grads, backend=model.kernels)}.items():
                outcome.gradient_norms.setdefault(name, []).append(value)
        if on_step:
            on_step(step)

    history = trainer.train(
        model,
        ((documents.pad(batch, plan.max_tokens), documents.labels[batch]) for batch in rows),
        Adam(model.params, plan.learning_rate, backend=model.kernels),
        steps=plan.steps,
        schedule=schedule,
        evaluate_every=plan.evaluate_every,
        evaluate=lambda step, loss: _evaluate(model, data, plan, step, loss, outcome, keep),
        on_step=after,
    )
    outcome.train_seconds = history.seconds
    return outcome


PROTOCOL = (
    "test_accuracy: at the step of the highest validation accuracy, the earliest of several; "
    "test_accuracy_best: the highest of all evaluations, as released, which is optimistic."
)


def fit(
    folder: str | os.PathLike,
    data: TextDataset,
    model: TextClassifier,
    plan: Plan,
    *,
    config: dict[str, Any],
    seed: int = 0,
    **options: Any,
) -> dict[str, Any] | None:
    """Train a classifier in a folder, or go on there; see `dpq_ref.job`.

    Parameters
    ----------
    folder : path
        What it gets is said in `dpq_ref.job`.
    data : TextDataset
    model : TextClassifier
        As it starts.
    plan : Plan
    config : dict
        JSON-able; what `model` was made from.
    seed : int
        Shuffles the texts.
    **options
        patience, max_minutes, on_start and on_step of `dpq_ref.job.fit`.

    Returns
    -------
    dict or None
        What is in result.json; None if time was up before.

    Raises
    ------
    ValueError, FloatingPointError
        As in `dpq_ref.job.fit`.
    """
    documents = data.train

    def stream(start: int) -> Iterator[Any]:
        rows = batches(len(documents), plan.batch_size, np.random.default_rng([seed, 2]))
        for batch in islice(rows, start, None):
            yield documents.pad(batch, plan.max_tokens), documents.labels[batch]

    progress = job.fit(
        folder,
        model,
        Adam(model.params, plan.learning_rate, backend=model.kernels),
        stream,
        config=config | {"plan": asdict(plan), "data_sha256": data.sha256},
        steps=plan.steps,
        evaluate=lambda: _accuracies(model, data, plan),
        metric="validation_accuracy",
        evaluate_every=plan.evaluate_every,
        **options,
    )
    if progress.result or not progress.done:
        return progress.result
    model.load_state(job.best(folder))
    table = model.embedding.export()
    rows = table.on(model.kernels).reconstruct()
    found = {
        "test_accuracy": _accuracies(model, data, plan, rows)["test_accuracy"],
        "test_accuracy_best": max(e["test_accuracy"] for e in progress.evaluations),
        "validation_accuracy": progress.best["validation_accuracy"],
        "protocol": PROTOCOL,
    }
    return job.finish(folder, progress, found, table, data.provenance, config.get("backend"))


def _accuracies(
    model: TextClassifier, data: TextDataset, plan: Plan, table: Array | None = None
) -> dict[str, float]:
    """Accuracy on validation and test, in percent."""
    table = model.table() if table is None else table
    return {
        f"{name}_accuracy": accuracy(
            model.predict(data.split(name), table=table, max_tokens=plan.max_tokens), data.split(name).labels
        )
        for name in ("validation", "test")
    }


def _evaluate(
    model: TextClassifier,
    data: TextDataset,
    plan: Plan,
    step: int,
    loss: float | None,
    outcome: Outcome,
    keep: Callable[[TextClassifier], Any] | None,
) -> None:
    validation, test = _accuracies(model, data, plan).values()
    train_loss = {} if loss is None else {"loss": loss}
    evaluation = {"step": step, **train_loss, "validation": validation, "test": test}
    if outcome.codes is not None:
        codes = model.embedding.all_codes()
        evaluation |= code_changes(codes, outcome.codes, model.embedding.n_codes)
        outcome.codes = codes
    outcome.evaluations.append(evaluation)
    outcome.accuracy_best_test = max(outcome.accuracy_best_test, test)
    if validation > outcome.accuracy_validation:
        outcome.best_step, outcome.accuracy_validation, outcome.accuracy = step, validation, test
        outcome.snapshot = keep(model) if keep else None
