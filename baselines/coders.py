"""Encoders that learn codes: the models behind deep compositional codes and KD codes.

R. Shu, H. Nakayama, *Compressing Word Embeddings via Deep Compositional Code Learning*, ICLR 2018; T. Chen,
M. R. Min, Y. Sun, *Learning K-way D-dimensional Discrete Codes for Compact Embedding Representations*, ICML
2018.

An encoder gives each row K logits in each of M groups; the largest is the code, and a row is the sum (or the
mean) of what its M codes stand for. Choosing is not differentiable:

* **Compositional codes** train on mixtures. Gumbel noise and a softmax make of the logits weights that are
  near 1 for one code, drawn by its probability; everything is differentiable.
* **KD codes** train on the choice itself; backward pretends that it was the softmax.

Arrays: rows (b, d), scores and logits (b, M K), assignments (b, M, K), codebooks (M K, w).
"""

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from dpq_ref.backend import array_module, to_numpy
from dpq_ref.compressed import Compressed, FactoredTable, ProductTable
from dpq_ref.kernels.reference import BLOCK, Array, Integers
from dpq_ref.layers.initial import glorot

EPSILON = 1e-8  # of the logits, as released
Product = Callable[[Array, Array], Array]  # of matrices


class Coder(ABC):
    """Encoder and codebooks, trained together on the rows of a table.

    Parameters
    ----------
    params : dict of arrays, trained in place
        "codebooks" (M K, w) among them. They and the rows are moved to where the kernels are.
    rows : (n, d) or None
    n_groups : int
        M.
    temperature : float
    kernels : kernel set
    rng : numpy.random.Generator
        Of the noise.

    Attributes
    ----------
    grads : dict of arrays, after `backward`
    """

    def __init__(
        self,
        params: dict[str, Array],
        rows: Array,
        *,
        n_groups: int,
        temperature: float,
        kernels: Any,
        rng: np.random.Generator,
    ):
        xp = kernels.xp
        self.params, self.n_groups = {name: xp.asarray(array) for name, array in params.items()}, n_groups
        self.rows = rows if rows is None else xp.asarray(rows)
        self.temperature, self.kernels, self.rng = temperature, kernels, rng
        self.grads: dict[str, Array] = {}

    @abstractmethod
    def scores(self, x: Array, product: Product = operator.matmul) -> Array:
        """Scores that the code is the largest of, (b, d) -> (b, M K)."""

    @abstractmethod
    def forward(self, x: Array) -> Array:
        """Rows as they are decoded in training, (b, d) -> (b, d)."""

    @abstractmethod
    def backward(self, d_output: Array) -> None:
        """Fill `grads` from the gradient of the output, (b, d)."""

    @abstractmethod
    def reconstruct(self, x: Array) -> Array:
        """Rows decoded from their codes, (b, d) -> (b, d): those of `table`, but for rounding."""

    @abstractmethod
    def table(self, codes: Integers) -> Compressed:
        """Codes beside what decodes them."""

    @abstractmethod
    def inputs(self, codes: Integers) -> Any:
        """Coefficients of the last linear map, (n, p): rows are inputs @ params[last], but for rounding."""

    @property
    def last(self) -> str:
        """Name of the last linear map."""
        return "basis" if "basis" in self.params else "codebooks"

    @property
    def books(self) -> Array:
        """Codebooks group by group, (M, K, w)."""
        return self.params["codebooks"].reshape(self.n_groups, -1, self.params["codebooks"].shape[1])

    def refit(self, codes: Integers, weights: Array) -> None:
        """Move the last linear map to the least weighted squares for codes that stay as they are."""
        last = self.params[self.last]
        found = least_squares(self.inputs(codes), *map(to_numpy, (self.rows, weights, last)))
        last[:] = array_module(last).asarray(found)

    def loss_and_gradients(self, ids: Integers) -> Any:
        """Half the squared error of a row, mean over the batch."""
        x = self.rows[self.kernels.xp.asarray(ids)]
        error = self.forward(x) - x
        self.backward(error / error.dtype.type(len(x)))
        return self.kernels.xp.square(error, dtype=np.float64).sum() / (2 * len(x))

    def _sums(self, codes: Integers) -> ProductTable:
        """Store sums of codebook rows as what the table has, means, of M times those."""
        books = self.books * self.books.dtype.type(self.n_groups)
        return ProductTable.from_codes(codes, books, additive=True)

    def squared_error(self, weights: Array) -> float:
        """Weighted squared error of the hard table, by matrix products: many times faster than look-ups."""
        total = 0.0
        for block in self._blocks(self.rows):
            rows, subtract = self.rows[block], self.kernels.xp.subtract
            error = subtract(self.reconstruct(rows), rows, dtype=np.float64)
            total += float(weights[block] @ to_numpy((error * error).sum(axis=1)))
        return total

    def codes(self, x: Array) -> Integers:
        """Codes of rows, (b, d) -> (b, M) int32; the same in any batch, bit by bit."""
        scores = [self._grouped(self.scores(x[block], self.kernels.combine)) for block in self._blocks(x)]
        return self.kernels.xp.concatenate([self.kernels.argmax_code(block) for block in scores])

    def _blocks(self, x: Array) -> list[slice]:
        step = max(1, BLOCK // len(self.params["codebooks"]))
        return [slice(i, i + step) for i in range(0, len(x), step)]

    def _hard(self, scores: Array) -> Array:
        """Assign 1 to the largest score of each group, (b, M K) -> (b, M K)."""
        scores = self._grouped(scores)
        codes = self.kernels.argmax_code(scores)[:, :, None]
        hard = (codes == self.kernels.xp.arange(scores.shape[2])).astype(scores.dtype)
        return hard.reshape(len(hard), -1)

    def _grouped(self, x: Array) -> Array:
        """(b, M K) -> (b, M, K)."""
        return x.reshape(len(x), self.n_groups, -1)


class GumbelCoder(Coder):
    """Compositional codes: hidden layer, log(softplus(z) + 1e-8), Gumbel-softmax, sum of codebook rows.

    The logits rise with z, so codes are those of the largest z.

    Parameters
    ----------
    params : dict of arrays
        "hidden" (d, h), "hidden_bias" (h,), "logits" (h, M K), "logits_bias" (M K,), "codebooks" (M K, d).
    """

    def scores(self, x: Array, product: Product = operator.matmul) -> Array:
        """Return z = W' tanh(W x + b) + b', (b, d) -> (b, M K)."""
        return product(self._hidden(x, product), self.params["logits"]) + self.params["logits_bias"]

    def _hidden(self, x: Array, product: Product) -> Array:
        return self.kernels.xp.tanh(product(x, self.params["hidden"]) + self.params["hidden_bias"])

    def forward(self, x: Array, noise: Array | None = None) -> Array:
        """Mixture of codebook rows, weighted by softmax((logits + noise) / tau).

        Parameters
        ----------
        x : (b, d)
        noise : (b, M K), optional
            Gumbel noise; drawn by default.
        """
        xp = self.kernels.xp
        hidden = self._hidden(x, operator.matmul)
        z = hidden @ self.params["logits"] + self.params["logits_bias"]
        softplus = xp.maximum(z, 0) + xp.log1p(xp.exp(-xp.abs(z)))
        if noise is None:
            noise = xp.asarray(gumbel(self.rng, z.shape, z.dtype))
        logits = xp.log(softplus + z.dtype.type(EPSILON)) + noise
        assignment = self.kernels.softmax(self._grouped(logits), self.temperature)
        self._tape = x, hidden, z, softplus, assignment
        return assignment.reshape(z.shape) @ self.params["codebooks"]

    def backward(self, d_output: Array) -> None:
        """Fill `grads`; d softplus / dz is the logistic function, exp(z - softplus)."""
        x, hidden, z, softplus, assignment = self._tape
        d_assignment = self._grouped(d_output @ self.params["codebooks"].T)
        d_logits = self.kernels.softmax_backward(d_assignment, assignment, self.temperature).reshape(z.shape)
        d_z = d_logits * self.kernels.xp.exp(z - softplus) / (softplus + z.dtype.type(EPSILON))
        d_hidden = (d_z @ self.params["logits"].T) * (1 - hidden * hidden)
        self.grads = {
            "hidden": x.T @ d_hidden,
            "hidden_bias": d_hidden.sum(axis=0),
            "logits": hidden.T @ d_z,
            "logits_bias": d_z.sum(axis=0),
            "codebooks": assignment.reshape(z.shape).T @ d_output,
        }

    def reconstruct(self, x: Array) -> Array:
        """Sum of the codebook rows of the codes."""
        return self._hard(self.scores(x)) @ self.params["codebooks"]

    def table(self, codes: Integers) -> ProductTable:
        """Codes and codebooks."""
        return self._sums(codes)

    def inputs(self, codes: Integers) -> Any:
        """Codes as zeros and ones."""
        return one_hot(codes, self.books.shape[1])


class KDCoder(Coder):
    """KD codes in linear form: linear logits, the codes' embeddings, their mean, a linear map.

    The mean of M times the codebooks is their sum. It is trained on as a sum, or the learning rate of the
    codebooks would count a share of 1 / M.

    Parameters
    ----------
    params : dict of arrays
        "logits" (d, M K), "logits_bias" (M K,), "codebooks" (M K, w), "basis" (w, d); without a basis w = d.
    """

    def scores(self, x: Array, product: Product = operator.matmul) -> Array:
        """Logits W x + b, (b, d) -> (b, M K)."""
        return product(x, self.params["logits"]) + self.params["logits_bias"]

    def forward(self, x: Array) -> Array:
        """Rows decoded from codes, (b, d) -> (b, d)."""
        logits = self.scores(x)
        soft = self.kernels.softmax(self._grouped(logits), self.temperature)
        hard = self._hard(logits)
        total = hard @ self.params["codebooks"]
        self._tape = x, soft, hard, total
        return total @ self.params["basis"] if "basis" in self.params else total

    def backward(self, d_output: Array) -> None:
        """Fill `grads`: codebooks and basis through the hard codes, logits through the softmax."""
        x, soft, hard, total = self._tape
        self.grads = {}
        d_total = d_output
        if "basis" in self.params:
            self.grads["basis"] = total.T @ d_output
            d_total = d_output @ self.params["basis"].T
        self.grads["codebooks"] = hard.T @ d_total
        d_soft = self._grouped(d_total @ self.params["codebooks"].T)
        d_logits = self.kernels.softmax_backward(d_soft, soft, self.temperature).reshape(hard.shape)
        self.grads["logits"] = x.T @ d_logits
        self.grads["logits_bias"] = d_logits.sum(axis=0)

    def reconstruct(self, x: Array) -> Array:
        """Decode as in training."""
        return self.forward(x)

    def table(self, codes: Integers) -> Compressed:
        """Codes and their embeddings, and the map if there is one."""
        total = self._sums(codes)
        return FactoredTable(total, self.params["basis"]) if "basis" in self.params else total

    def inputs(self, codes: Integers) -> Any:
        """Codes as zeros and ones, or the sums of embeddings where a map follows."""
        hard = one_hot(codes, self.books.shape[1])
        return hard @ to_numpy(self.params["codebooks"]) if "basis" in self.params else hard


def gumbel(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    """Gumbel noise, -log of an exponential variable, which is kept above 0."""
    drawn = rng.standard_exponential(shape, dtype)
    return -np.log(np.maximum(drawn, np.finfo(dtype).tiny))


def one_hot(codes: Integers, n_codes: int) -> Any:
    """Sparse matrix of zeros and ones with a 1 for the code in each group, (n, M) -> (n, M K) float64."""
    from scipy import sparse

    n, M = codes.shape
    columns = (codes + n_codes * np.arange(M)).ravel()
    return sparse.csr_array((np.ones(n * M), columns, M * np.arange(n + 1)), shape=(n, M * n_codes))


def least_squares(inputs: Any, rows: Array, weights: Array, start: Array) -> Array:
    """Linear map C that makes sum_i w_i |x_i - a_i C|^2 least, near a start where many do.

    It solves for the difference to the start, with a ridge of 1e-8 of the largest normal entry: without one
    the normal equations of codes are singular, and with it the error still never rises.

    Parameters
    ----------
    inputs : (n, p), dense or sparse
    rows : (n, d)
    weights : (n,)
    start : (p, d)

    Returns
    -------
    (p, d) float64
    """
    from scipy import linalg, sparse

    weighted = sparse.diags_array(weights) @ inputs
    normal = weighted.T @ inputs
    normal = normal.toarray() if sparse.issparse(normal) else normal
    diagonal = np.diag_indices_from(normal)
    normal[diagonal] += 1e-8 * normal[diagonal].max() or 1.0
    residual = rows - inputs @ start.astype(np.float64)
    return start + linalg.solve(normal, weighted.T @ residual, assume_a="pos")


def initial(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    """Matrices Glorot uniform, biases 0."""
    return glorot(rng, shape, dtype) if len(shape) == 2 else np.zeros(shape, dtype)
