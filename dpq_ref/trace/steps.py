"""A trace is a list of steps: an array, the formula that made it, and what must hold of it."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from dpq_ref.gradcheck import Loss, directional
from dpq_ref.kernels.reference import Array, Integers

T = TypeVar("T")
Steps = Generator["Step", None, T]  # a function that yields steps, and then returns T

SLOPES = 1e-6  # largest error of a gradient beside finite differences; usual are 1e-9 and less
ROUNDING = 1e-9  # slopes this small, beside loss over x, are rounding


@dataclass(frozen=True)
class Claim:
    """What must hold of a step.

    Attributes
    ----------
    text : str
    value, bound : float
        It holds if the value is at most the bound.

    Examples
    --------
    >>> Claim("two is at most three", 2, 3).holds, Claim("nor is NaN", float("nan"), 3).holds
    (True, False)
    """

    text: str
    value: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether it does; NaN never does."""
        return bool(self.value <= self.bound)


@dataclass(frozen=True, eq=False)
class Step:
    """One array of a trace.

    Attributes
    ----------
    name : str
        By which the formulas of later steps call it.
    formula : str
        In plain Unicode; empty for what is given.
    array : array
        All of it, in float64 or integers.
    note : str
    axes : str
        A letter for each axis: t tokens, i rows, j groups, k codes, c and l coordinates, p blocks.
    labels : tuple of str
        Names along axis t or i.
    checks : tuple of Claim
    phase : str
        "forward" and "backward", or the part of a step of a classical method.
    picked : integers or None
        Which entry to mark along the last axis, in the shape of the others.
    connects, cuts : str
        What the straight-through step lets gradients pass between, and what it does not.
    """

    name: str
    formula: str
    array: Array | Integers
    note: str = ""
    axes: str = ""
    labels: tuple[str, ...] = ()
    checks: tuple[Claim, ...] = ()
    phase: str = "forward"
    picked: Integers | None = None
    connects: str = ""
    cuts: str = ""


def during(phase: str, steps: Steps[T]) -> Steps[T]:
    """Give steps a phase, and return what their function returns.

    Examples
    --------
    >>> [step.phase for step in during("update", (Step(name, "", np.zeros(1)) for name in "ab"))]
    ['update', 'update']
    """
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            return end.value
        yield replace(step, phase=phase)


def slope(loss: Loss, x: Array, gradient: Array, rng: np.random.Generator) -> Claim:
    """Claim that a gradient is that of its loss, by finite differences along a random direction.

    Parameters
    ----------
    loss : callable
        Array like x -> float.
    x, gradient : arrays of one shape, float64
    rng : numpy.random.Generator

    Examples
    --------
    >>> x, rng = np.array([1.0, 2.0]), np.random.default_rng(0)
    >>> slope(lambda x: float((x**2).sum()), x, 2 * x, rng).holds
    True
    >>> slope(lambda x: float((x**2).sum()), x, 3 * x, rng).holds
    False
    """
    check = directional(loss, x, gradient, rng)
    unit = float(np.sqrt(np.mean(x**2))) or 1.0
    scale = max(abs(loss(x)), abs(loss(2 * x)))
    small = max(abs(check.analytic), abs(check.numeric)) * unit <= ROUNDING * scale
    error = 0.0 if small else check.error
    said = f"slope {check.analytic:z.6g}, by finite differences {check.numeric:z.6g}, error {error:.0e}"
    if small:
        said = "slope 0 but for rounding, by finite differences, too"
    return Claim(said, error, SLOPES)


def no_higher(after: float, before: float, name: str, scale: float) -> Claim:
    """Claim that an objective has not risen, but for the rounding of numbers of a scale.

    Examples
    --------
    >>> no_higher(2.0, 3.0, "error", 9.0).holds, no_higher(3.1, 3.0, "error", 9.0).holds
    (True, False)
    """
    return Claim(f"not above {name}: {after:.6g} after {before:.6g}", after - before, 1e-12 * scale)


def orthogonal(matrix: Array, name: str) -> Claim:
    """Claim that the rows of a matrix are orthonormal.

    Examples
    --------
    >>> orthogonal(np.array([[0.6, 0.8]]), "V").holds, orthogonal(np.array([[1.0, 1.0]]), "V").holds
    (True, False)
    """
    error = abs(matrix @ matrix.T - np.eye(len(matrix))).max(initial=0.0)
    return Claim(f"{name} {name}ᵀ = 1", float(error), 1e-12)


def rotations(d: int, rng: np.random.Generator) -> list[Array]:
    """Rotations of finite angles: in the plane of each two axes, small and large, and some of all.

    Examples
    --------
    >>> len(rotations(3, np.random.default_rng(0)))  # 3 planes, 8 angles, and 20 of all
    44
    """
    found = []
    for a in range(d):
        for b in range(a):
            for angle in (0.001, 0.03, 0.5, 1.5):
                for signed in (angle, -angle):
                    Q = np.eye(d)
                    Q[[a, a, b, b], [a, b, a, b]] = (
                        np.cos(signed),
                        -np.sin(signed),
                        np.sin(signed),
                        np.cos(signed),
                    )
                    found.append(Q)
    return found + [np.linalg.qr(rng.standard_normal((d, d)))[0] for _ in range(20)]


def unbeaten(loss: Loss, x: Array, others: Sequence[Array], what: str) -> Claim:
    """Claim that none of some other arrays has a smaller loss, but for rounding.

    Examples
    --------
    >>> others = [np.array(-1.0), np.array(0.5)]
    >>> unbeaten(lambda x: float(x**2), np.array(0.0), others, "numbers").text
    'the error of 2 other numbers is higher by 0.25 or more'
    """
    own, losses = loss(x), list(map(loss, others))
    rise = min(losses) - own
    said = f"the error of {len(losses)} other {what} is higher by {rise:.2g} or more"
    return Claim(said, -rise, 1e-12 * max(losses))
