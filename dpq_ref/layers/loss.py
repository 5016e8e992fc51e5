"""Losses: each returns its value and the gradient of what it was given."""

import numpy as np

from dpq_ref.kernels.reference import Array, Integers


def softmax_cross_entropy(logits: Array, labels: Integers) -> tuple[float, Array]:
    """Mean over the batch of -log softmax(logits)[label].

    Parameters
    ----------
    logits : (b, C)
    labels : (b,) integers in [0, C)

    Returns
    -------
    loss : float
    d_logits : (b, C), (softmax - one-hot) / b

    Examples
    --------
    >>> loss, d_logits = softmax_cross_entropy(np.zeros((1, 2)), np.array([0]))
    >>> round(loss, 4), d_logits
    (0.6931, array([[-0.5,  0.5]]))
    """
    rows = np.arange(len(logits))
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    total = exponentials.sum(axis=1, keepdims=True)
    loss = float((np.log(total[:, 0]) - shifted[rows, labels]).mean())
    d_logits = exponentials / total
    d_logits[rows, labels] -= 1
    return loss, d_logits / logits.dtype.type(len(logits))
