"""Iterative quantization, as it is and isotropic: principal components rotated towards their signs.

Y. Gong, S. Lazebnik, *Iterative Quantization: A Procrustean Approach to Learning Binary Codes*, CVPR 2011;
S. Liao, J. Chen, Y. Wang, Q. Qiu, B. Yuan, *Embedding Compression with Isotropic Iterative Quantization*,
AAAI 2020.
"""

from typing import Any, Self

import numpy as np

from baselines.binary import BinaryCoder, Bits, Float64, random_frame, sides, weighted_mean
from baselines.low_rank import right_vectors
from baselines.rows import Rows, blocks, sample
from dpq_ref import backend, checks
from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.progress import told
from dpq_ref.resume import kept

PRODUCT_ROWS = 512  # that the kernel takes at a time: where blocks of them end, too, no product is another


class ITQ(BinaryCoder):
    """Iterative quantization (Gong, Lazebnik 2011): principal components, rotated towards their signs.

    V holds the first c principal components of the centred table. From a random rotation R on, two steps
    take turns, neither of which raises |B - V R|^2: R is the best for B (orthogonal Procrustes), then
    B = sign(V R) the best for R. With frequencies q, mean, components and both steps minimise sums of q_i
    times the square of row i.

    Parameters
    ----------
    n_bits : int, optional
        c, at most d.
    bits, ratio : int, float, optional
        A budget in place of `n_bits`: the largest c that it allows.
    max_iter : int
        Iterations at most; they stop early once no bit changes.
    n_init : int
        Random rotations to start from; the best counts. The loss has local minima: for rows that are vertices
        of a rotated cube, loss 0, every second start ends in one.
    max_train_rows : int, optional
        Learn the rotation from a sample of so many rows, at least d; mean, components and decoder are of all
        rows. By default the rotation is, too, for which the table is held once more, in c columns.
    random_state : int, numpy.random.Generator or None
        Of the rotations, and of the sample.

    Attributes
    ----------
    mean_ : (d,)
    components_ : (c, d)
        Orthonormal; zero where there are fewer directions than bits.
    rotation_ : (c, c) float64
        R, orthogonal: V @ rotation_ are the rotated components.
    objective_ : (n_iter_,) float64
        |B - V R|^2 after each iteration of the best start, B recomputed for the R beside it; of the sample,
        where there is one.
    n_iter_ : int
    n_train_rows_ : int
        Rows that the rotation was learned from.
    codes_, decoder_, offset_ : as in `BinaryCoder`

    Notes
    -----
    The released code returns the B from before the last update of R; here B belongs to R. The paper does not
    decode. A decoder that turns signs back, mean + s B R^T components with the best s, has the same size as
    that of least squares, and no smaller error.

    Examples
    --------
    >>> import numpy as np
    >>> from baselines import ITQ
    >>> table = np.random.default_rng(0).standard_normal((1000, 8)).astype(np.float32)
    >>> coder = ITQ(n_bits=4, random_state=0).fit(table)
    >>> coder.transform(table[:2]).shape
    (2, 4)
    >>> bool((np.diff(coder.objective_) <= 0).all())
    True
    """

    def __init__(
        self,
        n_bits: int | None = None,
        *,
        bits: int | None = None,
        ratio: float | None = None,
        max_iter: int = 50,
        n_init: int = 1,
        max_train_rows: int | None = None,
        random_state: Any = None,
    ):
        self.n_bits = n_bits
        self.bits = bits
        self.ratio = ratio
        self.max_iter = max_iter
        self.n_init = n_init
        self.max_train_rows = max_train_rows
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Find mean, components and rotation, and fit the decoder.

        Parameters
        ----------
        X : (n, d) array_like
        y : ignored
        sample_weight : (n,) array_like, optional
            Frequencies of the words.

        Raises
        ------
        ValueError
            If not exactly one of n_bits and a budget is given, n_bits is above d, max_train_rows is below d,
            or an entry is NaN or infinite.
        """
        from threadpoolctl import threadpool_limits

        X = self._table(X)
        weights = self._weights(sample_weight, len(X))
        n_bits = self._number_of_bits(*X.shape)
        max_iter = checks.positive("max_iter", self.max_iter)
        n_init = checks.positive("n_init", self.n_init)
        removed = self._number_removed(*X.shape)
        rng = np.random.default_rng(self.random_state)
        some = self._sample(X.shape[1], weights, rng)

        def learn() -> dict[str, Any]:
            mean = weighted_mean(X, weights).astype(X.dtype)
            vectors = right_vectors(Rows(X, centre=mean), weights, removed + n_bits)[1]
            components = np.zeros((n_bits, X.shape[1]), X.dtype)
            components[: len(vectors) - removed] = vectors[removed : removed + n_bits]
            with threadpool_limits(1, "blas"):
                V = projected(Rows(X, some, mean), components)
                q = weights if some is None else weights[some]
                starts = (random_frame(n_bits, n_bits, rng) for _ in range(n_init))
                runs = (itq_rotation(V, q, start, max_iter) for start in starts)
                rotation, objective = min(runs, key=lambda run: run[1][-1])
            return {"mean": mean, "components": components, "rotation": rotation, "objective": objective}

        for name, array in kept("rotation", learn).items():
            setattr(self, f"{name}_", array)
        self.n_iter_, self.n_train_rows_ = len(self.objective_), len(X) if some is None else len(some)
        self._planes = (self.components_.T @ self.rotation_).astype(X.dtype)
        self._decode_by_least_squares(X, weights)
        return self

    def _sample(self, d: int, weights: Float64, rng: np.random.Generator) -> Integers | None:
        """Rows to learn the rotation from; None for all."""
        if self.max_train_rows is None:
            return None
        return sample(weights, checks.positive("max_train_rows", self.max_train_rows, least=d), d, rng)

    def _code(self, X: Array) -> Bits:
        return sides(X, self._planes, self.mean_)

    def _most(self, d: int) -> int:
        return d

    def _number_removed(self, n: int, d: int) -> int:
        """Leading directions that V does not have."""
        return 0


class IIQ(ITQ):
    """Isotropic iterative quantization (Liao et al. 2020): ITQ without the m strongest directions.

    The centred table loses its projection on the m directions of largest singular value; the rest is as in
    `ITQ`, which is m = 0. If fewer than c directions remain, the rotation spreads them over the c bits.

    The m of the paper is not known, and m is what the method is: report more than one (0, 1, 2, 3, 5, 10).
    Bits no longer tell what was removed, so judge the codes by their Hamming distances; the decoder puts back
    what least squares can, mostly the mean.

    Parameters
    ----------
    n_bits : int, optional
        c, at most d.
    bits, ratio : int, float, optional
        A budget in place of `n_bits`.
    n_removed : int, optional
        m, from 0 and below min(n, d). By default d / 100, rounded, the rule of all-but-the-top (Mu,
        Viswanath 2018).
    max_iter, n_init, max_train_rows, random_state
        As in `ITQ`.

    Attributes
    ----------
    n_removed_ : int
        m.
    mean_, components_, rotation_, objective_, n_iter_, n_train_rows_, codes_, decoder_, offset_ : as in `ITQ`

    Examples
    --------
    >>> import numpy as np
    >>> from baselines import IIQ
    >>> table = np.random.default_rng(0).standard_normal((1000, 8)).astype(np.float32)
    >>> IIQ(n_bits=4, n_removed=2, random_state=0).fit(table).compress().bits()
    {'codes': 4000, 'basis': 1024, 'offset': 256}
    """

    def __init__(
        self,
        n_bits: int | None = None,
        *,
        bits: int | None = None,
        ratio: float | None = None,
        n_removed: int | None = None,
        max_iter: int = 50,
        n_init: int = 1,
        max_train_rows: int | None = None,
        random_state: Any = None,
    ):
        super().__init__(
            n_bits,
            bits=bits,
            ratio=ratio,
            max_iter=max_iter,
            n_init=n_init,
            max_train_rows=max_train_rows,
            random_state=random_state,
        )
        self.n_removed = n_removed

    def _number_removed(self, n: int, d: int) -> int:
        most = min(n, d) - 1
        m = min(round(d / 100), most) if self.n_removed is None else self.n_removed
        if checks.positive("n_removed", m, least=0) > most:
            raise ValueError(f"n_removed={m}; a table of {n} x {d} takes at most {most}")
        self.n_removed_ = int(m)
        return self.n_removed_


# --- Rotations ------------------------------------------------------------------------------------------


def projected(rows: Rows, components: Array) -> Array:
    """Components of rows, V, (n, d), (c, d) -> (n, c)."""
    V = np.empty((len(rows), len(components)), rows.dtype)
    for block in told("components", blocks(*rows.shape, PRODUCT_ROWS)):
        V[block] = backend.get().multiply(rows[block], components.T)
    return V


def procrustes(product: Float64) -> Float64:
    """Orthogonal R of the smallest |B - V R|^2, given V^T B, (c, c) -> (c, c) (Schonemann 1966)."""
    from scipy import linalg

    U, _, W = linalg.svd(product)
    return U @ W


def itq_rotation(V: Array, weights: Float64, rotation: Float64, max_iter: int) -> tuple[Float64, Float64]:
    """Take turns between B = sign(V R) and the best R for B, from a rotation on.

    Parameters
    ----------
    V : (n, c)
    weights : (n,), not all 0
    rotation : (c, c) orthogonal
    max_iter : int

    Returns
    -------
    rotation : (c, c)
    objective : (iterations,)
        sum_i q_i |b_i - v_i R|^2 of each R and its B.
    """
    sign_products, largest = backend.get().sign_products, weights.max()
    shares, below = (weights / largest).astype(V.dtype), np.empty((len(V), rotation.shape[1]), np.bool_)
    product = sign_products(V, rotation.astype(V.dtype), shares, below)[0]
    objective = []
    for _ in told("rotation", range(max_iter)):
        rotation = procrustes(product)
        before = product
        product, loss = sign_products(V, rotation.astype(V.dtype), shares, below, before)
        objective.append(loss * largest)
        if np.array_equal(product, before):
            break
    return rotation, np.array(objective)
