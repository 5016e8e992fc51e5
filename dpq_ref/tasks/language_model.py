"""Language model of the paper: a recurrent network over words (Zaremba, Sutskever, Vinyals 2014).

Embedding, dropout, LSTM, dropout, LSTM, ..., dropout, softmax over the vocabulary. The state is carried from
batch to batch. Loss of a batch: the cross-entropy, averaged over its rows and summed over its steps.
"""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

import numpy as np

from dpq_ref import checks, job
from dpq_ref.backend import to_numpy
from dpq_ref.datasets.language import LanguageDataset, unroll
from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.layers import LSTM, Dropout, SoftmaxOutput
from dpq_ref.network import Network
from dpq_ref.optim import SGD

CHUNK = 500  # steps at a time in evaluation; any number gives the same losses


@dataclass(frozen=True)
class Plan:
    """How large the model is, and how it is trained: by plain gradient descent, clipped.

    Attributes
    ----------
    n_hidden : int
        Cells of an LSTM, and width of the embedding.
    n_layers : int
    init : float
        All weights start uniform in (-init, init).
    keep : float
        Probability of an entry to be kept by the dropouts.
    batch_size, n_steps : int
        Rows side by side, and words of each in a batch.
    epochs : int
    learning_rate, decay : float
    constant_epochs : int
        The rate is constant for so many epochs, then falls by `decay` each.
    clip_norm : float
        Of all gradients together.
    """

    n_hidden: int = 200
    n_layers: int = 2
    init: float = 0.1
    keep: float = 1.0
    batch_size: int = 20
    n_steps: int = 20
    epochs: int = 15
    learning_rate: float = 1.0
    decay: float = 0.5
    constant_epochs: int = 4
    clip_norm: float = 3.0

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0.

        Examples
        --------
        >>> [Plan().rate(epoch) for epoch in range(6)]
        [1.0, 1.0, 1.0, 1.0, 0.5, 0.25]
        """
        return self.learning_rate * self.decay ** max(epoch + 1 - self.constant_epochs, 0)


SIZES = {  # of the released code, as its scripts call it
    "small": Plan(),
    "medium": Plan(
        n_hidden=650, init=0.05, keep=0.5, n_steps=35, epochs=35, decay=0.8, constant_epochs=6, clip_norm=5.0
    ),
    "large": Plan(
        n_hidden=1500, init=0.04, keep=0.35, n_steps=35, epochs=35, decay=1 / 1.15, constant_epochs=14,
        clip_norm=10.0,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """Part of a corpus, rows side by side.

    Attributes
    ----------
    inputs, targets : (b, t) integers
    fresh : bool
        Whether an epoch begins, and the state with it at 0.
    """

    inputs: Integers
    targets: Integers
    fresh: bool


def batches(ids: Integers, batch_size: int, n_steps: int, start: int = 0) -> Iterator[Batch]:
    """Batches of a corpus without end, epoch after epoch, from a step on (counted from 0).

    Examples
    --------
    >>> stream = batches(np.arange(11), batch_size=2, n_steps=2, start=1)
    >>> batch = next(stream)
    >>> batch.inputs.tolist(), batch.targets.tolist(), batch.fresh
    ([[2, 3], [7, 8]], [[3, 4], [8, 9]], False)
    >>> next(stream).fresh
    True
    """
    inputs, targets = unroll(ids, batch_size, n_steps)
    for step in count(start):
        i = step % len(inputs)
        yield Batch(inputs[i], targets[i], fresh=i == 0)


class LanguageModel(Network):
    """Recurrent language model.

    Parameters
    ----------
    embedding : layer
        From ids (b, t) to vectors (b, t, dim).
    plan : Plan
    table : layer, optional
        Whose vectors of all words are the matrix of the softmax: another embedding layer, or `embedding`
        itself, tied. By default the softmax has a matrix of its own.
    rng : int or numpy.random.Generator
        Draws the weights and the dropouts.

    Attributes
    ----------
    carried : list of (hidden, cell), (b, h) each
        State of each LSTM after the last training batch.
    """

    def __init__(self, embedding: Any, plan: Plan, *, table: Any = None, rng: int | np.random.Generator = 0):
        rng, h = np.random.default_rng(rng), plan.n_hidden
        checks.positive("n_layers", plan.n_layers)
        if table is not None and (table.vocab_size, table.dim) != (embedding.vocab_size, h):
            raise ValueError(
                f"table has {table.vocab_size} rows of {table.dim}; it takes {embedding.vocab_size} of {h}"
            )
        options = {"init": plan.init, "rng": rng, "dtype": embedding.dtype, "backend": embedding.kernels}
        self.embedding, self.table = embedding, table
        self.kernels = embedding.kernels
        self.batch_size = plan.batch_size
        self.recurrent = [LSTM(n, h, **options) for n in (embedding.dim, *[h] * (plan.n_layers - 1))]
        self.dropouts = [Dropout(plan.keep, rng=rng) for _ in range(plan.n_layers + 1)]
        self.output = SoftmaxOutput(embedding.vocab_size, h, own=table is None, **options)
        layers = {"embedding": embedding, "output": self.output}
        if not (table is None or self.tied):
            layers["table"] = table
        layers |= {f"lstm{i}": layer for i, layer in enumerate(self.recurrent, 1)}
        layers |= {f"dropout{i}": layer for i, layer in enumerate(self.dropouts)}
        super().__init__(layers)
        shape = (plan.batch_size, h)
        zeros = self.kernels.xp.zeros
        self.carried: list[Any] = [
            (zeros(shape, embedding.dtype), zeros(shape, embedding.dtype)) for _ in self.recurrent
        ]

    @property
    def tied(self) -> bool:
        """Whether the words of the input and of the output have the same vectors."""
        return self.table is self.embedding

    @property
    def buffers(self) -> dict[str, Any]:
        """Those of the layers, and the carried states."""
        carried = {
            f"carried{i}.{name}": array
            for i, state in enumerate(self.carried, 1)
            for name, array in zip(("hidden", "cell"), state, strict=True)
        }
        return super().buffers | carried

    def loss_and_gradients(self, batch: Batch) -> Any:
        """Loss of a batch in training mode, that of the codebooks included; fills `grads`."""
        (b, t), n, xp = batch.inputs.shape, self.embedding.vocab_size, self.kernels.xp
        if batch.fresh:
            self.carried = [(xp.zeros_like(h), xp.zeros_like(c)) for h, c in self.carried]
        weight = None if self.table is None else self.table.forward(np.arange(n))
        if self.tied:
            inputs = xp.asarray(checks.as_ids(batch.inputs.ravel(), n))
            x = self.kernels.gather(weight, inputs).reshape(b, t, -1)
        else:
            x = self.embedding.forward(batch.inputs)
        x = self._recur(x, self.carried, train=True)
        self.carried = [layer.state for layer in self.recurrent]
        weights = np.full(b * t, 1 / b, x.dtype)
        losses, d = self.output.loss(x.reshape(b * t, -1), batch.targets.ravel(), weights, weight)

        d = self.dropouts[-1].backward(d.reshape(b, t, -1))
        for dropout, layer in zip(self.dropouts[-2::-1], self.recurrent[::-1], strict=True):
            d = dropout.backward(layer.backward(d))
        d_weight = self.output.d_weight
        if self.tied:
            d_weight = d_weight + self.kernels.scatter_add(inputs, d.reshape(b * t, -1), n)
        else:
            self.embedding.backward(d)
        if self.table is not None:
            self.table.backward(d_weight)
        layers = {id(layer): layer for layer in (self.embedding, self.table)}.values()
        return losses.sum(dtype=np.float64) / b + sum(getattr(x, "codebook_loss", 0) for x in layers)

    def _recur(self, x: Array, states: list[Any], train: bool) -> Array:
        for dropout, layer, state in zip(self.dropouts[:-1], self.recurrent, states, strict=True):
            x = layer.forward(dropout.forward(x, train), train, state=state)
        return self.dropouts[-1].forward(x, train)

    def losses(
        self,
        ids: Integers,
        *,
        batch_size: int = 1,
        n_steps: int = 1,
        vectors: Array | None = None,
        weight: Array | None = None,
    ) -> Array:
        """Cross-entropy of each word, given the words before it, in evaluation.

        Parameters
        ----------
        ids : (n_tokens,) integers
        batch_size, n_steps : int
            The words are those of `unroll`; at 1 and 1 all but the first. `n_steps` has no other effect.
        vectors, weight : (vocab_size, dim), optional
            To use in place of the embedding and of the matrix of the softmax: reconstructed tables.

        Returns
        -------
        (batch_size, number of words of a row), on the host
        """
        xp = self.kernels.xp
        inputs, targets = (a.swapaxes(0, 1).reshape(batch_size, -1) for a in unroll(ids, batch_size, n_steps))
        words = np.arange(self.embedding.vocab_size)
        vectors = self.embedding.forward(words, train=False) if vectors is None else vectors
        if weight is None and self.table is not None:
            weight = vectors if self.tied else self.table.forward(words, train=False)
        vectors = xp.asarray(vectors)
        weight = None if weight is None else xp.asarray(weight)
        losses = xp.empty(inputs.shape, self.embedding.dtype)
        states: list[Any] = [None] * len(self.recurrent)
        for start in range(0, inputs.shape[1], CHUNK):
            part = (slice(None), slice(start, start + CHUNK))
            ids_now = inputs[part]
            x = self.kernels.gather(vectors, xp.asarray(ids_now.ravel())).reshape(*ids_now.shape, -1)
            x = self._recur(x, states, train=False)
            states = [layer.state for layer in self.recurrent]
            flat = self.output.losses(x.reshape(ids_now.size, -1), targets[part].ravel(), weight)
            losses[part] = flat.reshape(ids_now.shape)
        return to_numpy(losses)

    def perplexity(self, ids: Integers, **options: Any) -> float:
        """Perplexity exp(mean loss), with the options of `losses`."""
        return float(np.exp(self.losses(ids, **options).mean(dtype=np.float64)))


PROTOCOL = (
    "test_perplexity: at the epoch of the lowest validation perplexity; test_perplexity_last: after the last "
    "epoch, as released. Test: one row, all words but the first, state carried. Validation: rows and "
    "steps as in training."
)


def train(
    folder: str | os.PathLike,
    data: LanguageDataset,
    model: LanguageModel,
    plan: Plan,
    *,
    config: dict[str, Any],
    **options: Any,
) -> dict[str, Any] | None:
    """Train a language model in a folder by the paper's protocol, or go on there; see `dpq_ref.job`.

    Parameters
    ----------
    folder : path
        What it gets is said in `dpq_ref.job`.
    data : LanguageDataset
    model : LanguageModel
        As it starts.
    plan : Plan
    config : dict
        JSON-able; what `model` was made from, its seed included.
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
    per_epoch = len(unroll(data.train, plan.batch_size, plan.n_steps)[0])
    steps = plan.epochs * per_epoch

    def evaluate() -> dict[str, float]:
        found = model.perplexity(data.validation, batch_size=plan.batch_size, n_steps=plan.n_steps)
        return {"validation_perplexity": found}

    progress = job.fit(
        folder,
        model,
        SGD(model.params, plan.learning_rate, backend=model.kernels),
        lambda start: batches(data.train, plan.batch_size, plan.n_steps, start),
        config=config | {"plan": asdict(plan), "data_sha256": data.sha256},
        steps=steps,
        evaluate=evaluate,
        metric="validation_perplexity",
        evaluate_every=per_epoch,
        schedule=lambda step: plan.rate((step - 1) // per_epoch),
        clip_norm=plan.clip_norm,
        **options,
    )
    if progress.result or not progress.done:
        return progress.result
    last = model.perplexity(data.test)
    model.load_state(job.best(folder))
    table = model.embedding.export()
    found = {
        "test_perplexity": model.perplexity(data.test, vectors=table.on(model.kernels).reconstruct()),
        "test_perplexity_last": last,
        "validation_perplexity": progress.best["validation_perplexity"],
        "best_epoch": progress.best_step // per_epoch,
        "protocol": PROTOCOL,
    }
    return job.finish(folder, progress, found, table, data.provenance, config.get("backend"))
