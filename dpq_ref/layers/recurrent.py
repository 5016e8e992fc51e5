"""Long short-term memory (Hochreiter, Schmidhuber 1997; cell of Zaremba et al. 2014), one way and both ways.

A layer takes a batch of sequences and the state before them and leaves the state after them. To carry the
state over to the next batch is truncated back-propagation: the gradient ends where the batch begins.
"""

from typing import Any

import numpy as np

from dpq_ref import backend as backends
from dpq_ref import checks
from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.network import Network

State = tuple[Array, Array]  # hidden and cell, (b, h) each


class LSTM:
    """Recurrent layer of long short-term memory cells.

    Parameters
    ----------
    n_inputs, n_hidden : int
    forget_bias : float
        First bias of the forget gates; the others are 0.
    init : float
        The weights start uniform in (-init, init).
    rng : int or numpy.random.Generator
    dtype : float32 or float64
    backend : {"numba", "numpy", "cupy"} or kernel set, optional

    Attributes
    ----------
    params, grads : {"input_weight": (n_inputs, 4h), "hidden_weight": (h, 4h), "bias": (4h,)}
        Gates in the order input, forget, candidate, output.
    state : (hidden, cell), (b, h) each
        After the last step of the last batch.
    d_state : (d_hidden, d_cell), (b, h) each
        Gradient of the state before the last batch, after `backward`.

    Examples
    --------
    >>> layer = LSTM(3, 5)
    >>> x = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
    >>> layer.forward(x).shape, layer.state[0].shape
    ((2, 4, 5), (2, 5))
    """

    def __init__(
        self,
        n_inputs: int,
        n_hidden: int,
        *,
        forget_bias: float = 0.0,
        init: float = 0.1,
        rng: int | np.random.Generator = 0,
        dtype: Any = np.float32,
        backend: Any = None,
    ):
        self.n_inputs = checks.positive("n_inputs", n_inputs)
        self.n_hidden = h = checks.positive("n_hidden", n_hidden)
        self.dtype = checks.as_real(dtype)
        self.kernels = backends.get(backend)
        rng = np.random.default_rng(rng)
        bias = np.zeros(4 * h, self.dtype)
        bias[h : 2 * h] = forget_bias
        host = {
            "input_weight": rng.uniform(-init, init, (n_inputs, 4 * h)).astype(self.dtype),
            "hidden_weight": rng.uniform(-init, init, (h, 4 * h)).astype(self.dtype),
            "bias": bias,
        }
        self.params: dict[str, Array] = {name: self.kernels.xp.asarray(host[name]) for name in host}
        self.grads: dict[str, Array] = {}
        self.state: State | None = None
        self.d_state: State | None = None
        self._tape: Any = None

    def forward(
        self, x: Array, train: bool = True, *, state: State | None = None, lengths: Integers | None = None
    ) -> Array:
        """Run over a batch of sequences.

        Parameters
        ----------
        x : (b, t, n_inputs)
        train : bool
            Keep what `backward` needs.
        state : (hidden, cell), (b, h) each, optional
            Before the first step; by default zeros.
        lengths : (b,) integers in [0, t], optional
            From there on the output of a sequence is 0 and its state stays.

        Returns
        -------
        (b, t, h)
        """
        b, t, _ = x.shape
        if x.shape[2] != self.n_inputs:
            raise ValueError(f"x must have shape (b, t, {self.n_inputs}), got {x.shape}")
        xp = self.kernels.xp
        steps = xp.ascontiguousarray(x.swapaxes(0, 1)).reshape(t * b, self.n_inputs)
        gates = steps @ self.params["input_weight"]
        gates += self.params["bias"]
        alive = xp.asarray(
            np.arange(t)[:, None] < (np.full(b, t) if lengths is None else np.asarray(lengths))
        )
        activations, hiddens, cells = self.kernels.lstm(
            gates.reshape(t, b, 4 * self.n_hidden),
            self.params["hidden_weight"],
            *(self._zeros(b) if state is None else state),
            alive,
        )
        self.state = hiddens[-1], cells[-1]
        self._tape = (steps, activations, hiddens, cells, alive) if train else None
        output = xp.ascontiguousarray(hiddens[1:].swapaxes(0, 1))
        if lengths is not None:
            output *= alive.T[:, :, None]
        return output

    def backward(self, d_output: Array, *, d_state: State | None = None) -> Array:
        """Fill `grads` and `d_state`; return the gradient of the input.

        Parameters
        ----------
        d_output : (b, t, h)
        d_state : (d_hidden, d_cell), (b, h) each, optional
            Gradient of the state after the last step, by default zeros.

        Returns
        -------
        (b, t, n_inputs)
        """
        if self._tape is None:
            raise RuntimeError("backward() needs a forward(x, train=True) before it")
        steps, activations, hiddens, cells, alive = self._tape
        b, t, h = d_output.shape
        d_gates, *d_before = self.kernels.lstm_backward(
            d_output.swapaxes(0, 1),
            *(self._zeros(b) if d_state is None else d_state),
            activations,
            cells,
            self.params["hidden_weight"],
            alive,
        )
        self.d_state = d_before[0], d_before[1]
        flat, before = d_gates.reshape(t * b, 4 * h), hiddens[:-1].reshape(t * b, h)
        self.grads = {
            "input_weight": steps.T @ flat,
            "hidden_weight": before.T @ flat,
            "bias": flat.sum(axis=0),
        }
        return (flat @ self.params["input_weight"].T).reshape(t, b, self.n_inputs).swapaxes(0, 1)

    def _zeros(self, b: int) -> State:
        zeros = self.kernels.xp.zeros
        return zeros((b, self.n_hidden), self.dtype), zeros((b, self.n_hidden), self.dtype)


class BidirectionalLSTM(Network):
    """Two LSTMs, one from the first step to the last and one from the last to the first, side by side.

    M. Schuster, K. Paliwal, *Bidirectional Recurrent Neural Networks*, 1997.

    Parameters
    ----------
    n_inputs, n_hidden : int
        Each way has `n_hidden` cells.
    forget_bias, init, rng, dtype, backend
        As in `LSTM`.

    Attributes
    ----------
    params, grads : dict
        Those of both, as "forward.name" and "backward.name".
    """

    def __init__(
        self,
        n_inputs: int,
        n_hidden: int,
        *,
        rng: int | np.random.Generator = 0,
        **parameters: Any,
    ):
        rng = np.random.default_rng(rng)
        ways = ("forward", "backward")
        super().__init__({way: LSTM(n_inputs, n_hidden, rng=rng, **parameters) for way in ways})
        self.n_hidden = n_hidden

    @property
    def states(self) -> tuple[State, State]:
        """State after the last step, of the way forward and the way back."""
        one, other = (layer.state for layer in self.layers.values())
        assert one is not None
        assert other is not None
        return one, other

    def forward(self, x: Array, train: bool = True, *, lengths: Integers | None = None) -> Array:
        """Run over a batch of sequences, (b, t, n_inputs) -> (b, t, 2h), 0 beyond `lengths` (b,)."""
        b, t, _ = x.shape
        order = reversed_steps(np.full(b, t) if lengths is None else np.asarray(lengths), t)
        self._order = backends.array_module(x).asarray(order)
        forward = self.layers["forward"].forward(x, train, lengths=lengths)
        backward = self.layers["backward"].forward(self._turn(x), train, lengths=lengths)
        return backends.array_module(x).concatenate([forward, self._turn(backward)], axis=2)

    def backward(
        self, d_output: Array, *, d_states: tuple[State | None, State | None] = (None, None)
    ) -> Array:
        """Fill `grads`; return the gradient of the input. `d_states`: of `states`, by default zeros."""
        h = self.n_hidden
        d_forward = self.layers["forward"].backward(d_output[:, :, :h], d_state=d_states[0])
        d_backward = self.layers["backward"].backward(self._turn(d_output[:, :, h:]), d_state=d_states[1])
        return d_forward + self._turn(d_backward)

    def _turn(self, x: Array) -> Array:
        return backends.array_module(x).take_along_axis(x, self._order[:, :, None], axis=1)


def reversed_steps(lengths: Integers, n_steps: int) -> Integers:
    """Order of steps, (b, t), that turns round the first `lengths` (b,) of them and leaves the padding.

    Examples
    --------
    >>> reversed_steps(np.array([3, 1]), 4)
    array([[2, 1, 0, 3],
           [0, 1, 2, 3]])
    """
    steps = np.arange(n_steps)
    return np.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)
