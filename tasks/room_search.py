"""Searching a square room with an unseen goal: shortest moves, what is still possible, a sweep.

Cells are `(x, y)` or, as one number, `x * size + y`; actions are those of `tasks.darkroom`.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

STAY = 4


def seen_cells(observations: np.ndarray) -> np.ndarray:
    """Cells `(n, 2)` int64 of observations: cells as they are, or images `(n, size, size, 1)`."""
    observations = np.asarray(observations)
    if observations.ndim == 2:
        return observations.astype(np.int64, copy=False)
    size = observations.shape[1]
    return np.stack(np.divmod(observations.reshape(len(observations), -1).argmax(-1), size), -1)


def room_images(cells: np.ndarray, size: int) -> np.ndarray:
    """Images `(n, size, size, 1)` uint8 of rooms, 255 where the agent is, at `[x, y]`."""
    images = np.zeros((len(cells), size, size, 1), dtype=np.uint8)
    images[np.arange(len(cells)), cells[:, 0], cells[:, 1]] = 255
    return images


def shortest_moves(
    positions: np.ndarray, goals: np.ndarray, rng: np.random.Generator | None = None
) -> np.ndarray:
    """A move `(n,)` int64 on a shortest path from cells `(n, 2)` to `(n, 2)`, stay at the goal.

    Where both axes are left to go, `rng` picks one evenly; without it x goes first.
    """
    ahead = goals - seen_cells(positions)  # (n, 2)
    x, y = ahead[:, 0], ahead[:, 1]
    prefer_x = rng.random(len(ahead)) < 0.5 if rng is not None else np.ones(len(ahead), bool)
    use_x = (x != 0) & (prefer_x | (y == 0))
    actions = np.where(use_x, np.where(x > 0, 0, 1), np.where(y > 0, 2, 3))
    return np.where((x == 0) & (y == 0), STAY, actions)


@lru_cache(maxsize=8)
def move_probabilities(size: int) -> np.ndarray:
    """How likely `shortest_moves` draws each move, `(size² cells, size² goals, 5)`."""
    cells = np.stack(np.divmod(np.arange(size**2), size), -1)
    ahead = cells[None] - cells[:, None]  # (S, S, 2)
    x, y = ahead[..., 0], ahead[..., 1]
    moves = np.stack([x > 0, x < 0, y > 0, y < 0, (x == 0) & (y == 0)], -1)  # (S, S, 5)
    return moves / moves.sum(-1, keepdims=True)


class RoomPosterior:
    """Goals that n streams may still have; a draw is a cell's number.

    A step that ends on a cell without pay rules the cell out; one that is paid leaves that cell
    alone, be it in the prior or not: the prior says where a stream may walk on purpose, and what is
    seen is seen. Nothing is learned after that, so that a goal which pays once an episode stays.
    """

    def __init__(self, goals: np.ndarray, size: int, n_streams: int) -> None:
        """Begin with the cells `goals` `(K, 2)` possible in every stream."""
        self.size = size
        self.cells = np.zeros((n_streams, size * size), dtype=bool)  # (n, size²)
        self.cells[:, goals[:, 0] * size + goals[:, 1]] = True
        self.found = np.zeros(n_streams, dtype=bool)
        self._streams = np.arange(n_streams)

    def sample(self, rng: np.random.Generator, streams: np.ndarray) -> np.ndarray:
        """One of the possible cells `(k,)` of each selected stream, evenly drawn."""
        cells = self.cells[streams]
        return (cells * rng.random(cells.shape, dtype=np.float32)).argmax(-1)

    def update(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        next_observations: np.ndarray,
        ended: np.ndarray,
    ) -> None:
        """Look at the cells that the steps ended on."""
        reached = seen_cells(next_observations)
        reached = reached[:, 0] * self.size + reached[:, 1]  # (n,)
        self.cells[self._streams, reached] &= self.found
        new = np.flatnonzero((rewards > 0) & ~self.found)
        self.cells[new] = False
        self.cells[new, reached[new]] = True
        self.found[new] = True

    def possible(self, drawn: np.ndarray) -> np.ndarray:
        """Whether the goal can be there."""
        return self.cells[self._streams, drawn]

    def weights(self) -> np.ndarray:
        """Which cells `(n, size²)` may be the goal."""
        return self.cells

    def action_table(self, observations: np.ndarray) -> np.ndarray:
        """How likely each move is, `(n, size², A)`, were the goal at each cell."""
        places = np.asarray(observations, dtype=np.int64)
        return move_probabilities(self.size)[places[:, 0] * self.size + places[:, 1]]

    def actions(
        self, drawn: np.ndarray, observations: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Moves towards the drawn cells."""
        return shortest_moves(observations, np.stack(np.divmod(drawn, self.size), -1), rng)


class CoveragePolicy:
    """Goes to the nearest cell not yet seen, at random among equals, and stays once it is paid.

    A bound for search without knowledge of where goals lie: no cell is looked at twice on purpose.
    """

    def __init__(self, make_posterior: Callable[[int], Any], size: int) -> None:
        """Sweep a room.

        Args:
            make_posterior: Of a number of streams n; a posterior whose `cells` `(n, size²)` tell
                where the goal may be that is to be found now.
            size: Cells along one side.
        """
        self.make_posterior, self.size = make_posterior, size

    def reset(self, n: int, seed: int) -> None:
        """Begin n streams that have seen nothing."""
        self.rng = np.random.default_rng(seed)
        self.posterior = self.make_posterior(n)
        self._fields: tuple[np.ndarray, np.ndarray]

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Moves `(n,)`; stays where no cell is left."""
        observations = seen_cells(observations)
        cells = np.stack(np.divmod(np.arange(self.size**2), self.size), -1)
        away = np.abs(observations[:, None] - cells).sum(-1)  # (n, size²)
        left = self.posterior.cells
        away = np.where(left, away + self.rng.random(away.shape), np.inf)
        nearest = np.where(left.any(-1, keepdims=True), cells[away.argmin(-1)], observations)
        actions = shortest_moves(observations, nearest, self.rng)
        self._fields = (observations, actions)
        return actions

    def observe(
        self,
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        next_observations: np.ndarray,
    ) -> None:
        """See the cells reached."""
        ended = terminated | truncated
        self.posterior.update(*self._fields, rewards, next_observations, ended)
