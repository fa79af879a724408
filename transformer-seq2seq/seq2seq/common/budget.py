"""How long a run trains, and which of its weights are kept."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """The limits of a run; it ends when it reaches the first of them."""

    max_steps: float = math.inf
    max_seconds: float = math.inf

    @classmethod
    def of(cls, epochs: int | None, max_steps: int | None, max_minutes: float | None, steps_per_epoch: int) -> "Budget":
        """Return the budget that a configuration asks for. None means no limit."""
        steps = min(max_steps or math.inf, (epochs or math.inf) * steps_per_epoch)
        return cls(steps, 60 * (max_minutes or math.inf))

    def fraction(self, steps: int, seconds: float) -> float:
        """Return the part of the budget that is used up, 1 or more at its end."""
        return max(steps / self.max_steps, seconds / self.max_seconds)


def not_significantly_worse(accuracy: float, best: float, count: int) -> bool:
    """Return True if `accuracy` is not significantly below `best`: within one standard error of the difference
    (with continuity correction) over `count` tokens."""
    mean = (accuracy + best) / 2
    return best - accuracy <= math.sqrt(2 * mean * (1 - mean) / count) + 1 / count
