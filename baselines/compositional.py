"""Codes from an encoder: deep compositional codes, and KD codes. Their models are in `baselines.coders`.

R. Shu, H. Nakayama, *Compressing Word Embeddings via Deep Compositional Code Learning*, ICLR 2018; T. Chen,
M. R. Min, Y. Sun, *Learning K-way D-dimensional Discrete Codes for Compact Embedding Representations*, ICML
2018.

Only codes and codebooks are stored. The encoder is kept for `transform`.
"""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from sklearn.utils.validation import check_is_fitted

from baselines.coders import Coder, GumbelCoder, KDCoder, initial
from baselines.reconstruction import LearnedCodes, above_zero, squared_error
from dpq_ref import backend, checks
from dpq_ref.compressed import Compressed
from dpq_ref.kernels.reference import Array, Integers


class EncodedCodes(LearnedCodes):
    """What both methods share: sizes, an encoder that is kept for `transform`, and the refit.

    Attributes
    ----------
    parameters_ : dict of arrays
        Those of the encoder, for rows divided by `scale_`, and what codes are decoded with.
    """

    temperature: float
    refit: bool
    coder: ClassVar[type[Coder]]

    @abstractmethod
    def _shapes(self, d: int, n_groups: int, n_codes: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters."""

    @property
    def codebooks_(self) -> Array:
        """Codebooks, (M, K, w)."""
        return backend.to_numpy(self._coder(self.parameters_).books)

    def transform(self, X: Any) -> Integers:
        """Codes of rows, from the encoder, (n, d) -> (n, M) int32."""
        check_is_fitted(self)
        X = self._rows(X).astype(self.codebooks_.dtype, copy=False)
        model = self._coder(self.parameters_)
        return backend.to_numpy(model.codes(model.kernels.xp.asarray(X / X.dtype.type(self.scale_))))

    def _coder(self, params: dict[str, Array], rows: Any = None, rng: Any = None) -> Coder:
        above_zero("temperature", self.temperature)
        return self.coder(
            params,
            rows,
            n_groups=self._n_groups,
            temperature=self.temperature,
            kernels=backend.get(self.backend),
            rng=rng,
        )

    def _model(
        self, rows: Array, weights: Array, n_groups: int, n_codes: int, rng: np.random.Generator
    ) -> Coder:
        self._n_groups = n_groups
        shapes = self._shapes(rows.shape[1], n_groups, n_codes)
        params = {name: initial(rng, shape, rows.dtype) for name, shape in shapes.items()}
        return self._coder(params, rows, rng)

    def _finish(self, model: Coder, rows: Array, weights: Array) -> None:
        self.codes_ = backend.to_numpy(model.codes(model.rows))
        if self.refit:
            model.refit(self.codes_, weights)
            error = squared_error(rows, model.table(self.codes_), weights)
            self.objective_ = np.append(self.objective_, error)
        model.params[model.last] *= rows.dtype.type(self.scale_)
        self.parameters_ = {name: backend.to_numpy(array) for name, array in model.params.items()}

    def _artefact(self, codes: Integers, dtype: Any) -> Compressed:
        return self._coder({k: v.astype(dtype, copy=False) for k, v in self.parameters_.items()}).table(codes)

    def _sizes(self, n: int, d: int, budget: int) -> Iterable[dict[str, int]]:
        def bits(n_groups: int, n_codes: int) -> int:
            return self._bits(n, d, n_groups=n_groups, n_codes=n_codes)

        if self.n_groups is not None:
            yield from ({"n_groups": self.n_groups, "n_codes": 1 << b} for b in range(1, 5))
            return
        n_codes = self.n_codes or 2
        while self.n_codes is None and 2 * n_codes <= 16:
            each = bits(2, 2 * n_codes) - bits(1, 2 * n_codes)  # of one group
            if each > 2 * n * (2 * n_codes - 1).bit_length():
                break
            n_codes *= 2
        each = bits(2, n_codes) - bits(1, n_codes)
        most = max(1, (budget - bits(1, n_codes)) // each + 1)
        yield {"n_groups": most, "n_codes": n_codes}


class CompositionalCodes(EncodedCodes):
    """Deep compositional codes (Shu, Nakayama, ICLR 2018): a row is the sum of M codebook rows.

    Trained as in the paper: hidden layer of integer width M K / 2 with tanh, logits log(softplus(z) + 1e-8),
    Gumbel-softmax, half the squared error of a row, Adam, gradients clipped to a tiny norm. Other than in the
    paper, which took 200 epochs of 50,000 words at the rate 1e-4:

    * fewer steps at a higher rate, which falls linearly to 0, from Glorot uniform parameters instead of
      uniform ones within 0.01;
    * parameters are chosen by the hard error on the whole table. The released code samples codes in
      evaluation, too, and validates on words that it trains on.

    It stores n M ceil(log2 K) bits of codes and 32 M K d of codebooks.

    Parameters
    ----------
    n_groups : int, optional
        M.
    n_codes : int, optional
        K, from 2 to 65,536.
    bits, ratio : int, float, optional
        A budget in place of either or both. K is then the largest power of two up to 16 whose codebooks take
        no more than half of it, or 2.
    hidden : int, optional
        Width of the hidden layer, M K // 2 by default.
    temperature : float
        Of the softmax. A lower one brings the mixtures nearer to codes.
    refit : bool
        At last move the codebooks to the least squares for the codes. Not in the paper; the error only falls.
    steps, batch_size : int
    learning_rate : float
        Of the first step.
    clip_norm : float, optional
        Largest norm of all gradients together; as released it is so small that each step has it.
    random_state : int, numpy.random.Generator or None
    backend : {"numpy", "numba", "cupy"} or None
        Kernels to run on; None means "numba".

    Attributes
    ----------
    codebooks_ : (M, K, d)
    codes_ : (n, M) int32
    objective_ : (evaluations,) float64
    scale_ : float
        See `LearnedCodes`. A refit adds its error at the end of `objective_`.
    parameters_ : dict of arrays
        Of the encoder and the codebooks.

    Examples
    --------
    >>> import numpy as np
    >>> from baselines import CompositionalCodes
    >>> table = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
    >>> model = CompositionalCodes(n_groups=4, n_codes=8, steps=200, random_state=0).fit(table)
    >>> model.transform(table[:2]).shape
    (2, 4)
    >>> model.compress().bits()
    {'codes': 6000, 'codebooks': 8192}
    """

    coder = GumbelCoder

    def __init__(
        self,
        n_groups: int | None = None,
        n_codes: int | None = None,
        *,
        bits: int | None = None,
        ratio: float | None = None,
        hidden: int | None = None,
        temperature: float = 1.0,
        refit: bool = False,
        steps: int = 16_000,
        batch_size: int = 64,
        learning_rate: float = 0.02,
        clip_norm: float | None = 0.001,
        random_state: Any = None,
        backend: str | None = None,
    ):
        self.n_groups = n_groups
        self.n_codes = n_codes
        self.bits = bits
        self.ratio = ratio
        self.hidden = hidden
        self.temperature = temperature
        self.refit = refit
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.clip_norm = clip_norm
        self.random_state = random_state
        self.backend = backend

    def _shapes(self, d: int, n_groups: int, n_codes: int) -> dict[str, tuple[int, ...]]:
        outputs = n_groups * n_codes
        hidden = outputs // 2 if self.hidden is None else checks.positive("hidden", self.hidden)
        return {
            "hidden": (d, hidden),
            "hidden_bias": (hidden,),
            "logits": (hidden, outputs),
            "logits_bias": (outputs,),
            "codebooks": (outputs, d),
        }

    def _bits(self, n: int, d: int, *, n_groups: int, n_codes: int) -> int:
        return n_groups * (n * (n_codes - 1).bit_length() + 32 * n_codes * d)


class KDCodes(EncodedCodes):
    """KD codes (Chen, Min, Sun, ICML 2018) in linear form: the mean of M code embeddings, mapped linearly.

    Logits are linear in the row. Forward takes the codes, backward the softmax (straight-through). The
    paper's embeddings learn with a task, here they reconstruct the table; its feed-forward, convolutional
    and recurrent compositions are not there.

    It stores n M ceil(log2 K) bits of codes, and 32 (M K w + w d) of embeddings of width w and their map. By
    default the map is taken into the embeddings, which are then as wide as a row: 32 M K d. That is as
    general as any map with w of at least d, and smaller.

    Parameters
    ----------
    n_groups : int, optional
        M, the paper's D.
    n_codes : int, optional
        K, from 2 to 65,536.
    bits, ratio : int, float, optional
        A budget in place of either or both. K is then the largest power of two up to 16 whose embeddings
        take no more than half of what a group takes, or 2.
    code_width : int, optional
        w; None means no map. The paper has 300.
    temperature : float
        Of the softmax in the backward.
    refit : bool
        At last move the map, or without one the embeddings, to the least squares for the codes.
    steps, batch_size : int
    learning_rate : float
        Of the first step; it falls linearly to 0.
    clip_norm : float, optional
        Largest norm of all gradients together.
    random_state : int, numpy.random.Generator or None
    backend : {"numpy", "numba", "cupy"} or None
        Kernels to run on; None means "numba".

    Attributes
    ----------
    codebooks_ : (M, K, w)
    codes_ : (n, M) int32
    objective_ : (evaluations,) float64
    scale_ : float
        See `LearnedCodes`. A refit adds its error at the end of `objective_`.
    parameters_ : dict of arrays
        Of the encoder, the embeddings, and their map.

    Examples
    --------
    >>> import numpy as np
    >>> from baselines import KDCodes
    >>> table = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
    >>> model = KDCodes(n_groups=8, n_codes=4, code_width=3, steps=200, random_state=0).fit(table)
    >>> model.compress().bits()
    {'codes': 8000, 'codebooks': 3072, 'basis': 768}
    """

    coder = KDCoder

    def __init__(
        self,
        n_groups: int | None = None,
        n_codes: int | None = None,
        *,
        bits: int | None = None,
        ratio: float | None = None,
        code_width: int | None = None,
        temperature: float = 1.0,
        refit: bool = False,
        steps: int = 16_000,
        batch_size: int = 64,
        learning_rate: float = 0.03,
        clip_norm: float | None = None,
        random_state: Any = None,
        backend: str | None = None,
    ):
        self.n_groups = n_groups
        self.n_codes = n_codes
        self.bits = bits
        self.ratio = ratio
        self.code_width = code_width
        self.temperature = temperature
        self.refit = refit
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.clip_norm = clip_norm
        self.random_state = random_state
        self.backend = backend

    def _shapes(self, d: int, n_groups: int, n_codes: int) -> dict[str, tuple[int, ...]]:
        outputs, width = n_groups * n_codes, self._width(d)
        shapes: dict[str, tuple[int, ...]] = {
            "logits": (d, outputs),
            "logits_bias": (outputs,),
            "codebooks": (outputs, width),
        }
        return shapes if self.code_width is None else shapes | {"basis": (width, d)}

    def _width(self, d: int) -> int:
        return d if self.code_width is None else checks.positive("code_width", self.code_width)

    def _bits(self, n: int, d: int, *, n_groups: int, n_codes: int) -> int:
        width = self._width(d)
        mapped = 0 if self.code_width is None else 32 * width * d
        return n_groups * (n * (n_codes - 1).bit_length() + 32 * n_codes * width) + mapped
