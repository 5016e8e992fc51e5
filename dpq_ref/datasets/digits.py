"""The compiled part of reading numbers in text."""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from dpq_ref.kernels import loops

POWERS = 10.0 ** np.arange(23)  # all exact
EXACT = 1 << 53  # integers below it are exact in float64, and so one operation rounds but once

NEWLINE, RETURN, SPACE, PLUS, MINUS, POINT, ZERO, LOWER_E, UPPER_E = b"\n\r +-.0eE"


def read_lines(
    text: NDArray[np.uint8], starts: NDArray[np.int64], out: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Read the numbers at the end of lines.

    Parameters
    ----------
    text : (bytes,) uint8
    starts : (n + 1,) int64
        Where lines start, and the end of the last.
    out : (n, d) float32
        Where the numbers go.

    Returns
    -------
    (n,) int64, where the word of each line ends; -1 if the line is not plain: numbers too long for one exact
    operation, too few fields, or anything else
    """
    ends = np.empty(len(out), np.int64)
    _read_lines(text, starts, POWERS, out, ends)
    return ends


@loops.parallel
def _read_lines(text, starts, powers, out, ends):
    dim = out.shape[1]
    for i in prange(len(out)):
        start, stop = starts[i], starts[i + 1]
        while stop > start and (
            text[stop - 1] == NEWLINE or text[stop - 1] == RETURN or text[stop - 1] == SPACE
        ):
            stop -= 1
        spaces = 0
        for at in range(start, stop):
            spaces += text[at] == SPACE
        at = start
        skip = spaces - dim  # spaces in the word
        while at < stop and (text[at] != SPACE or skip > 0):
            skip -= text[at] == SPACE
            at += 1
        ends[i] = at if spaces >= dim else -1
        for c in range(dim):
            if ends[i] < 0:
                break
            at, value = _number(text, at + 1, stop, powers)
            out[i, c] = value
            if at < 0:
                ends[i] = -1


@loops.serial
def _number(text, at, stop, powers):
    """End of a number and its value, or -1: the digits as an integer, times a power of ten."""
    negative = at < stop and text[at] == MINUS
    if at < stop and (negative or text[at] == PLUS):
        at += 1
    mantissa = 0
    first = at
    while at < stop and np.uint8(text[at] - ZERO) < 10:
        mantissa = mantissa * 10 + (text[at] - ZERO)
        at += 1
    digits = at - first
    exponent = 0
    if at < stop and text[at] == POINT:
        at += 1
        first = at
        while at < stop and np.uint8(text[at] - ZERO) < 10:
            mantissa = mantissa * 10 + (text[at] - ZERO)
            at += 1
        exponent = first - at
        digits -= exponent
    if at < stop and (text[at] == LOWER_E or text[at] == UPPER_E):
        at += 1
        down = at < stop and text[at] == MINUS
        if at < stop and (down or text[at] == PLUS):
            at += 1
        first = at
        shift = 0
        while at < stop and np.uint8(text[at] - ZERO) < 10 and at - first < 4:
            shift = shift * 10 + (text[at] - ZERO)
            at += 1
        if at == first:
            return -1, 0.0
        exponent += -shift if down else shift
    plain = 0 < digits <= 18 and mantissa <= EXACT and -22 <= exponent <= 22
    if not plain or (at < stop and text[at] != SPACE):
        return -1, 0.0
    value = mantissa / powers[-exponent] if exponent < 0 else mantissa * powers[exponent]
    return at, -value if negative else value
