"""Dark rooms in which the moves are permuted, block of cells by block of cells.

A Dark Room (`tasks.darkroom`) divided into G blocks. In each, the four moves answer to other
actions: action a makes the Dark Room's move `moves[g][a]` in a cell of block g; staying stays.
Goal and permutations are unseen. Blocks are rectangles in a grid of as many rows and columns as
make it most square: G = 4 is 2 x 2, G = 5 is a row of five.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np

from tasks.darkroom import MOVES, DarkRoomFamily, DarkRoomVectorEnv
from tasks.draws import check_counts, distinct_rows
from tasks.family import FamilyError, Task
from tasks.references import TabularMDP
from tasks.room_search import STAY, RoomPosterior
from tasks.vector import OnlyEnv

PERMUTATIONS = np.array([(*order, STAY) for order in itertools.permutations(range(STAY))])
"""`(24, 5)`: the Dark Room's move that each action makes, in every possible block."""
ACTIONS_FOR = PERMUTATIONS.argsort(-1)
"""`(24, 5)`: the other way round, the action that makes each move."""


class PermutedRoomVectorEnv(DarkRoomVectorEnv):
    """Many permuted rooms stepped as arrays."""

    def __init__(self, goals: np.ndarray, moves: np.ndarray, blocks: np.ndarray, **room: Any):
        """Make n rooms.

        Args:
            goals: `(n, 2)`.
            moves: `(n, G, 5)`, the Dark Room's move of each action in each block.
            blocks: `(size, size)`, the block of each cell.
            room: As in `DarkRoomEnv`.
        """
        super().__init__(goals, **room)
        self._moves, self._blocks = moves, blocks
        self._streams = np.arange(self.num_envs)

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Make the moves that the actions `(n,)` stand for where the streams are."""
        block = self._blocks[tuple(self._positions.T)]
        return super().step(self._moves[self._streams, block, actions])


class PermutedRoomFamily(DarkRoomFamily):
    """Permutations and goal drawn independently and evenly: G · log2(24) + log2(size²) bits.

    References are the Dark Room's: shortest paths have equal lengths, and random play does not
    change when actions change their names.
    """

    def __init__(
        self,
        n_blocks: int = 4,
        size: int = 9,
        horizon: int = 20,
        start: Sequence[int] | None = None,
        reward: str = "every_step",
        n_tasks: int | None = None,
        seed: int = 0,
    ) -> None:
        """Draw the tasks.

        Args:
            n_blocks: G; the grid that holds them must fit into the room.
            size: Cells along one side.
            horizon: Steps in an episode.
            start: First cell `(x, y)`; None for the centre.
            reward: As in `DarkRoomEnv`.
            n_tasks: Number of tasks, all different; None for 1000, or all there are.
            seed: Of their permutations and goals.

        Raises:
            FamilyError: A number is out of range, or more tasks are asked for than can differ.
        """
        super().__init__(size, horizon, start, reward)
        check_counts(n_blocks=n_blocks)
        self.name = "permuted_room"
        self.blocks = room_blocks(size, n_blocks)
        rows = distinct_rows(n_tasks, [len(PERMUTATIONS)] * n_blocks + [size**2], seed)
        self._permutations = rows[:, :-1]  # (N, G)
        self._all_goals = np.stack(np.divmod(rows[:, -1], size), -1)  # (N, 2)
        moves = PERMUTATIONS[self._permutations, :STAY].tolist()
        self._tasks = tuple(
            Task(
                index,
                f"room_{index},goal=({goal[0]},{goal[1]})",
                {**self._room, "env": "PermutedRoom", "goal": goal, "moves": own},
            )
            for index, (own, goal) in enumerate(zip(moves, self._all_goals.tolist(), strict=True))
        )

    @property
    def information_bits(self) -> float:
        """Bits of a task."""
        n_blocks = self._permutations.shape[1]
        return n_blocks * math.log2(len(PERMUTATIONS)) + math.log2(self.blocks.size)

    def make_env(self, task: Task, render_mode: str | None = None) -> gymnasium.Env:
        """One room; it draws pictures."""
        return OnlyEnv(self.make_vector_env([task]), partial(self._drawn, task), render_mode)

    def make_vector_env(self, tasks: Sequence[Task]) -> PermutedRoomVectorEnv:
        """One room per entry of `tasks`."""
        goals = np.array([task.params["goal"] for task in tasks]).reshape(-1, 2)
        room = {name: self._room[name] for name in ("size", "horizon", "start", "reward")}
        return PermutedRoomVectorEnv(goals, _moves(tasks), self.blocks, **room)

    def optimal_actions(
        self,
        tasks: Sequence[Task],
        observations: np.ndarray,
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        """The action `(n,)` of a shortest-path move from cells `(n, 2)`, see `DarkRoomFamily`."""
        wanted = super().optimal_actions(tasks, observations, rng)
        block = self.blocks[tuple(np.asarray(observations).T)]
        moves = _moves(tasks)[np.arange(len(tasks)), block]  # (n, 5)
        return (moves == wanted[:, None]).argmax(-1)

    def optimal_actions_by_index(
        self, indices: np.ndarray, observations: np.ndarray, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """As `optimal_actions`, of the tasks at `indices` `(n,)`."""
        wanted = super().optimal_actions_by_index(indices, observations, rng)
        block = self.blocks[tuple(np.asarray(observations).T)]
        return ACTIONS_FOR[self._permutations[indices, block], wanted]

    def tabular(self, task: Task) -> TabularMDP:
        """The room as a tabular MDP, with the states of `tasks.darkroom.tabular_room`."""
        room = super().tabular(task)
        states = np.arange(len(room.start))[:, None]
        moves = _moves([task])[0, np.resize(self.blocks, len(states))]  # (S, 5)
        return TabularMDP(
            room.transitions[states, moves], room.rewards[states, moves], room.start, room.horizon
        )

    def posterior(self, prior_tasks: Sequence[Task], n_streams: int) -> "PermutedRoomPosterior":
        """Goals of `prior_tasks`; of the permutations every one is possible."""
        goal = super().posterior(prior_tasks, n_streams)
        return PermutedRoomPosterior(goal, self.blocks, n_streams)

    def search_policies(self, prior_tasks: Sequence[Task]) -> dict[str, Callable[[], Any]]:
        """None: a sweep of the cells needs moves that are known."""
        return {}


class PermutedRoomPosterior:
    """Which goal and which permutation of each block n streams may have.

    All of them are independent: a draw `(n, 1 + G)` is the goal's cell and a permutation per block.
    Redrawn within an episode, those parts are kept that are not ruled out: what was drawn evenly
    from a set is drawn evenly from what is left of it.
    """

    def __init__(self, goal: RoomPosterior, blocks: np.ndarray, n_streams: int) -> None:
        """Begin with a posterior of the goal, and all permutations of the `blocks` possible."""
        self.goal, self.blocks = goal, blocks
        size, n_blocks = len(blocks), int(blocks.max()) + 1
        self.permutations = np.ones((n_streams, n_blocks, len(PERMUTATIONS)), dtype=bool)
        cells = np.stack(np.divmod(np.arange(size**2), size), -1)
        moved = np.clip(cells[:, None] + MOVES, 0, size - 1)  # (size², 5, 2)
        reached = (moved @ [size, 1])[:, PERMUTATIONS]  # (size², 24, 5)
        self._reached = reached.swapaxes(1, 2)  # cell, action, permutation
        self._drawn = np.zeros((n_streams, 1 + n_blocks), dtype=np.int64)
        self._fresh = np.ones(n_streams, dtype=bool)
        self._streams = np.arange(n_streams)

    def sample(self, rng: np.random.Generator, streams: np.ndarray) -> np.ndarray:
        """One of the possible goals and permutations `(k, 1 + G)`, evenly drawn."""
        permutations = self.permutations[streams]
        drawn = (permutations * rng.random(permutations.shape, dtype=np.float32)).argmax(-1)
        drawn = np.concatenate([self.goal.sample(rng, streams)[:, None], drawn], -1)
        kept = self._parts_possible(self._drawn)[streams] & ~self._fresh[streams, None]
        self._drawn[streams] = np.where(kept, self._drawn[streams], drawn)
        self._fresh[streams] = False
        return self._drawn[streams]

    def update(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        next_observations: np.ndarray,
        ended: np.ndarray,
    ) -> None:
        """Keep the permutations by which the actions led where they did; look for the goal."""
        size = len(self.blocks)
        cells, following = (
            np.asarray(seen, dtype=np.int64) @ np.array([size, 1])
            for seen in (observations, next_observations)
        )
        agree = self._reached[cells, actions] == following[:, None]  # (n, 24)
        self.permutations[self._streams, self.blocks.reshape(-1)[cells]] &= agree
        self.goal.update(observations, actions, rewards, next_observations, ended)
        self._fresh |= ended

    def possible(self, drawn: np.ndarray) -> np.ndarray:
        """Whether goal and every permutation can be as drawn."""
        return np.asarray(self._parts_possible(drawn).all(-1))

    def actions(
        self, drawn: np.ndarray, observations: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Towards the drawn goal, by the drawn permutations."""
        wanted = self.goal.actions(drawn[:, 0], observations, rng)
        block = self.blocks[tuple(np.asarray(observations).T)]
        return ACTIONS_FOR[drawn[self._streams, 1 + block], wanted]

    def _parts_possible(self, drawn: np.ndarray) -> np.ndarray:
        blocks = np.take_along_axis(self.permutations, drawn[:, 1:, None], -1)[..., 0]  # (n, G)
        return np.concatenate([self.goal.possible(drawn[:, 0])[:, None], blocks], -1)


def room_blocks(size: int, n_blocks: int) -> np.ndarray:
    """The block `(size, size)` of each cell `(x, y)`; raises FamilyError where they do not fit."""
    rows = max(n for n in range(1, math.isqrt(n_blocks) + 1) if n_blocks % n == 0)
    columns = n_blocks // rows
    if columns > size:
        raise FamilyError(
            f"n_blocks is {n_blocks}, a grid of {columns} x {rows}, which does not fit into a room "
            f"of size {size}; choose products of two numbers up to {size}"
        )
    column, row = (np.arange(size) * count // size for count in (columns, rows))
    return column[:, None] * rows + row


def _moves(tasks: Sequence[Task]) -> np.ndarray:
    """The Dark Room's move of each action in each block, `(n, G, 5)`."""
    moves = np.array([task.params["moves"] for task in tasks], dtype=np.int64)
    return np.concatenate([moves, np.full((*moves.shape[:-1], 1), STAY)], -1)
