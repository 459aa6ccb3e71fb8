"""Wrappers that hide something, so that environments with nothing to vary become families."""

import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete

from tasks.family import FamilyError


def permutation(order: int, n: int) -> list[int]:
    """The `order`-th of the n! orders of 0 … n - 1, as a dictionary sorts them.

    Raises:
        FamilyError: There are not so many.
    """
    if not (isinstance(order, int) and 0 <= order < math.factorial(n)):
        raise FamilyError(
            f"order is {order!r}, expected a whole number of 0 ... {math.factorial(n) - 1}: "
            f"{n} actions can be ordered in {math.factorial(n)} ways"
        )
    left, chosen = list(range(n)), []
    for size in range(n, 0, -1):
        place, order = divmod(order, math.factorial(size - 1))
        chosen.append(left.pop(place))
    return chosen


class PermutedActions(gymnasium.ActionWrapper):
    """Discrete actions under other names, which are to be found out."""

    def __init__(self, env: gymnasium.Env, order: int) -> None:
        """Rename the actions.

        Args:
            env: Of Discrete actions.
            order: Of `permutation`: action a does what the a-th of them did; 0 changes nothing.

        Raises:
            FamilyError: Actions are not Discrete, or there is no such order.
        """
        super().__init__(env)
        space = env.action_space
        if not isinstance(space, Discrete):
            raise FamilyError(f"PermutedActions needs Discrete actions, got {space}")
        self.does = int(space.start) + np.array(permutation(order, int(space.n)))
        self.first = int(space.start)

    def action(self, action: Any) -> Any:
        """What an action stands for."""
        return self.does[int(action) - self.first]
