"""How long a run trains, and which of its weights are kept."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

LIMITS = "epochs", "max_steps", "max_minutes"  # settings of a run


def limits_of(config: Any, last_part: Mapping[str, Any] | None, default_epochs: int) -> dict[str, Any]:
    """Return the limits that a configuration sets or, if it sets none, those of the part of a run that is to be
    continued, which Progress.begin_part has noted; without either, default_epochs."""
    limits = {name: getattr(config, name) for name in LIMITS}
    if any(limits.values()):
        return limits
    return {name: last_part[name] for name in LIMITS} if last_part else limits | {"epochs": default_epochs}


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


def significantly_worse(right: Tensor, best: Tensor) -> bool:
    """Return True if significantly fewer tokens are right, (N,) bool, than in `best`, of the same tokens (McNemar's
    test for paired samples, with continuity correction, one-sided at 5 %). It is a rule of thumb: tokens of a sentence
    are not independent, and `best` is the best of many evaluations."""
    lost, won = int((best & ~right).sum()), int((right & ~best).sum())
    return lost - won - 1 > 1.645 * math.sqrt(lost + won)
