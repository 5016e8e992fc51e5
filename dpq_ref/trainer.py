"""The one training loop: batch, loss, gradients, rate, clip, step; now and then an evaluation.

A model is anything with `loss_and_gradients(batch) -> scalar`, which fills `grads` (arrays or `RowSparse` by
the names of `params`). What a batch is, only the model and the stream of batches know.

On a device the host runs ahead: it gives out the work of many steps, and waits for none of them before it
looks at their losses, every LOOK steps and before an evaluation. Batches come from the host, which cuts them,
finds the distinct words and draws the random numbers; all else stays on the device.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from dpq_ref import backend as backends
from dpq_ref import checks
from dpq_ref.layers.embedding import RowSparse
from dpq_ref.optim import Optimizer, clip_global_norm

LOOK = 100  # steps between looks at the losses on a device; on the host each is seen at once


class Model(Protocol):
    """What can be trained."""

    @property
    def grads(self) -> dict[str, Any]:
        """Gradients of the last batch, by name of the parameter."""

    def loss_and_gradients(self, batch: Any) -> Any:
        """Loss of a batch in training mode, a scalar; fills `grads`."""


class History:
    """What a training left behind, beside the parameters.

    Parameters
    ----------
    losses : iterable of float, one a step
    seconds : float
        Batches, gradients and updates; evaluations and callbacks apart.
    """

    def __init__(self, losses: Iterable[float] = (), seconds: float = 0.0):
        self._losses, self.seconds = list(losses), seconds
        self._unseen: list[tuple[Any, Any]] = []
        self._grads: dict[str, Any] = {}

    def note(self, loss: Any, norm: Any, grads: dict[str, Any]) -> None:
        """Keep the loss of one more step and the norm of its gradients, without a look at them."""
        self._unseen.append((loss, norm))
        self._grads = grads

    @property
    def losses(self) -> list[float]:
        """All losses, seen by now.

        Raises
        ------
        FloatingPointError
            If a loss or a norm is not finite; it names the step and, if that is the last, the parameter.
        """
        while self._unseen:
            loss, norm = map(float, self._unseen.pop(0))
            if not np.isfinite(loss + norm):
                whose = "" if self._unseen else _not_finite(self._grads)
                raise FloatingPointError(f"step {len(self._losses) + 1}: the loss is {loss}{whose}")
            self._losses.append(loss)
        return self._losses


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
        On a device within LOOK steps, and it names the step.

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
    look = 1 if backends.on_host(optimizer.kernels) is optimizer.kernels else LOOK
    for step in range(done + 1, steps + 1):
        start = time.perf_counter()
        if schedule:
            optimizer.learning_rate = schedule(step)
        with backends.trusted_indices():  # of batches, which layers check on the host
            loss = model.loss_and_gradients(next(batches))
        grads = model.grads
        limit = np.inf if clip_norm is None else clip_norm
        history.note(loss, clip_global_norm(grads, limit, backend=optimizer.kernels), grads)
        if step % look == 0 or step % every == 0 or step == steps:
            assert len(history.losses) == step
        with backends.trusted_indices():
            optimizer.step(grads)
        history.seconds += time.perf_counter() - start
        if evaluate and (step % every == 0 or step == steps):
            evaluate(step, float(np.mean(history.losses[since:])))
            since = step
        if on_step and on_step(step):
            break
    return history


def _not_finite(grads: dict[str, Any]) -> str:
    values = {name: g.values if isinstance(g, RowSparse) else g for name, g in grads.items()}
    finite = {name: np.isfinite(backends.to_numpy(array)).all() for name, array in values.items()}
    bad = next((name for name in finite if not finite[name]), None)
    return "" if bad is None else f", the gradient of {bad!r} is not finite"
