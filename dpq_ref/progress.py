"""How far a long computation is, told to whoever listens: `dpq-ref compress` draws it as a bar.

Where nobody listens, nothing is told. Results never depend on it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Step = TypeVar("Step")
Listener = Callable[[str, int, int], None]

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Let a function hear of each step: what is done, how many steps are behind, how many there are.

    Examples
    --------
    >>> with listening(lambda what, done, steps: print(f"{what}: {done} of {steps}")):
    ...     print(sum(told("squares", [1, 4])))
    squares: 1 of 2
    squares: 2 of 2
    5
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def told(what: str, steps: Sequence[Step]) -> Iterator[Step]:
    """Go through the steps, telling after each."""
    for done, step in enumerate(steps, 1):
        yield step
        if (listener := _listener.get()) is not None:
            listener(what, done, len(steps))
