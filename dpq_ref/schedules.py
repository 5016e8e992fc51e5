"""Learning rates that change with the step: functions from the step, counted from 1, to the rate.

The cyclically annealed rate (CALR) is that of A. Acharya, R. Goel, A. Metallinou, I. Dhillon, *Online
Embedding Compression for Text Classification using Low Rank Matrix Factorization*, AAAI 2019, as released.
"""

import math
from dataclasses import dataclass

from dpq_ref import checks

RESTART_EPOCHS = 5  # between restarts, the floor is then decay**5 of the peak


@dataclass(frozen=True)
class CyclicallyAnnealedRate:
    """Triangles between a floor and a peak; the peak falls by a factor each epoch, and at the floor restarts.

    Epoch e of the first round peaks at high decay^e. Where that would not lie above low, a round of five
    epochs begins with a peak at high and a floor at high decay^5, and so on. The triangles count steps, the
    peaks epochs: with 2 half_period = steps_per_epoch each epoch is one triangle.

    Parameters
    ----------
    steps_per_epoch : int
    half_period : int
        Steps from floor to peak, s.
    high : float
        First peak.
    low : float
        First floor, above 0 and below high.
    decay : float
        Of the peak, above 0 and at most 1; 1 makes plain triangles.

    Examples
    --------
    >>> rate = CyclicallyAnnealedRate(steps_per_epoch=4, half_period=2, high=1.0, low=0.01, decay=0.1)
    >>> [round(rate(step), 6) for step in range(1, 13)]
    [0.505, 1.0, 0.505, 0.01, 0.055, 0.1, 0.055, 0.01, 0.500005, 1.0, 0.500005, 1e-05]
    """

    steps_per_epoch: int
    half_period: int
    high: float = 1e-3
    low: float = 1e-6
    decay: float = 0.1

    def __post_init__(self) -> None:  # noqa: D105
        checks.positive("steps_per_epoch", self.steps_per_epoch)
        checks.positive("half_period", self.half_period)
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(f"low={self.low}, high={self.high}; it takes 0 < low < high")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay={self.decay}; it takes a number above 0, at most 1")

    def __call__(self, step: int) -> float:
        """Rate of a step, counted from 1."""
        low, high = self.bounds((step - 1) // self.steps_per_epoch)
        position = step % (2 * self.half_period)
        return low + (high - low) * (1 - abs(position - self.half_period) / self.half_period)

    def bounds(self, epoch: int) -> tuple[float, float]:
        """Floor and peak of an epoch, counted from 0."""
        if self.decay == 1:
            return self.low, self.high
        # Epochs are counted, peaks not compared with the floor: rounding would put some restarts off by one.
        first = math.ceil(math.log(self.low / self.high) / math.log(self.decay) - 1e-9)
        if epoch < first:
            return self.low, self.high * self.decay**epoch
        age = (epoch - first) % RESTART_EPOCHS
        return self.high * self.decay**RESTART_EPOCHS, self.high * self.decay**age
