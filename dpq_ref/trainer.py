"""The one training loop: batch, loss, gradients, rate, clip, step; now and then an evaluation.

A model is anything with `loss_and_gradients(batch) -> float`, which fills `grads` (arrays or `RowSparse` by
the names of `params`). What a batch is, only the model and the stream of batches know.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from dpq_ref import checks
from dpq_ref.layers.embedding import RowSparse
from dpq_ref.optim import Optimizer, clip_global_norm


class Model(Protocol):
    """What can be trained."""

    @property
    def grads(self) -> dict[str, Any]:
        """Gradients of the last batch, by name of the parameter."""

    def loss_and_gradients(self, batch: Any) -> float:
        """Loss of a batch in training mode; fills `grads`."""


@dataclass
class History:
    """What a training left behind, beside the parameters.

    Attributes
    ----------
    losses : list of float, one a step
    seconds : float
        Batches, gradients and updates; evaluations and callbacks apart.
    """

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


def train(
    model: Model,
    batches: Iterator[Any],
    optimizer: Optimizer,
    *,
    steps: int,
    schedule: Callable[[int], float] | None = None,
    clip_norm: float | None = None,
    evaluate_every: int | None = None,
    evaluate: Callable[[int, float], None] | None = None,
    on_step: Callable[[int], bool | None] | None = None,
    history: History | None = None,
) -> History:
    """Train a model up to a number of steps, counted from 1.

    Parameters
    ----------
    model : Model
    batches : iterator of batches
        Must not end before the last step.
    optimizer : Optimizer
        Of the model's parameters.
    steps : int
        In all, those of `history` included.
    schedule : callable, optional
        Step -> learning rate; by default that of the optimizer stays.
    clip_norm : float, optional
        Largest norm of all gradients together.
    evaluate_every : int, optional
        Steps between evaluations; by default there is one, after the last step, as there is in any case.
    evaluate : callable, optional
        Called with the step and the mean loss since the last evaluation.
    on_step : callable, optional
        Called with the number of each finished step; if it returns True, that was the last one.
    history : History, optional
        Of the steps done before, to go on from; model, optimizer and batches must be at that point.

    Returns
    -------
    History
        `history`, if given.

    Raises
    ------
    FloatingPointError
        If the loss or a gradient is NaN or infinite, before any parameter moves; it names step and parameter.

    Examples
    --------
    >>> from dpq_ref import SGD
    >>> class Square:
    ...     params = {"x": np.array([[4.0]])}
    ...
    ...     def loss_and_gradients(self, batch):
    ...         self.grads = {"x": 2 * (self.params["x"] - batch)}
    ...         return float(((self.params["x"] - batch) ** 2).sum())
    >>> train(Square(), iter([1.0, 1.0]), SGD(Square.params, 0.25), steps=2).losses
    [9.0, 2.25]
    """
    checks.positive("steps", steps, least=0)
    every = checks.positive("evaluate_every", steps or 1 if evaluate_every is None else evaluate_every)
    history = History() if history is None else history
    done = len(history.losses)
    since = done - done % every
    for step in range(done + 1, steps + 1):
        start = time.perf_counter()
        if schedule:
            optimizer.learning_rate = schedule(step)
        loss = model.loss_and_gradients(next(batches))
        grads = model.grads
        norm = clip_global_norm(grads, np.inf if clip_norm is None else clip_norm)
        if not np.isfinite(loss + norm):
            raise FloatingPointError(f"step {step}: the loss is {loss}{_not_finite(grads)}")
        optimizer.step(grads)
        history.losses.append(loss)
        history.seconds += time.perf_counter() - start
        if evaluate and (step % every == 0 or step == steps):
            evaluate(step, float(np.mean(history.losses[since:])))
            since = step
        if on_step and on_step(step):
            break
    return history


def _not_finite(grads: dict[str, Any]) -> str:
    values = {name: g.values if isinstance(g, RowSparse) else g for name, g in grads.items()}
    bad = next((name for name, array in values.items() if not np.isfinite(array).all()), None)
    return "" if bad is None else f", the gradient of {bad!r} is not finite"
