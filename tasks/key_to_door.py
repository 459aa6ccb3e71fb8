"""Key-to-Door (Laskin et al. 2022), for any number of goals: cells to be visited in order.

A Dark Room whose K unseen goals pay 1 each, once an episode, and in their order only: a step that
ENDS on the first goal not yet got pays and makes the next one due. One step pays for one goal, so
that equal goals in a row take two steps. The agent sees its cell `(x, y)` only: how many goals it
has got in this episode it remembers. K = 2 and horizon 50 is Dark Key-to-Door; K = 1 is a Dark
Room that pays once.

What is optimal depends on that count, therefore the family has an `expert`, which counts what its
streams were paid (`tasks.family.Expert`), and no `optimal_actions`. The posterior counts likewise.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from tasks.darkroom import MOVES, room_params, tabular_room
from tasks.drawing import room_picture
from tasks.draws import check_counts, distinct_rows
from tasks.family import FamilyError, Task
from tasks.references import TabularMDP
from tasks.room_search import CoveragePolicy, move_probabilities, shortest_moves
from tasks.vector import OnlyEnv

NO_CELL = -1  # due once all goals are got: it is never reached


class KeyToDoorVectorEnv(VectorEnv):
    """Many rooms of one size stepped as arrays; autoreset SAME_STEP. Observation: the cell."""

    metadata: ClassVar[dict[str, Any]] = {
        "render_modes": [],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(self, goals: np.ndarray, size: int, horizon: int, start: Sequence[int]) -> None:
        """Make n rooms with the goals `(n, K, 2)`, visited in that order."""
        self.num_envs = len(goals)
        self.single_observation_space = MultiDiscrete([size, size])
        self.single_action_space = Discrete(len(MOVES))
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._goals = np.pad(goals, ((0, 0), (0, 1), (0, 0)), constant_values=NO_CELL)
        self._size, self._horizon, self._start = size, horizon, np.array(start, dtype=np.int64)
        self._streams = np.arange(self.num_envs)
        self._begin()

    def _begin(self) -> None:
        self._positions = np.tile(self._start, (self.num_envs, 1))  # (n, 2)
        self._got = np.zeros(self.num_envs, dtype=np.int64)
        self._elapsed = 0  # the same everywhere: episodes are equally long

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Every room back to its start. Returns observations `(n, 2)` int64 and empty infos."""
        self._begin()
        return self._positions.copy(), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Move by actions `(n,)`; see `TaskFamily.make_vector_env` for the ends."""
        self._positions = np.clip(self._positions + MOVES[actions], 0, self._size - 1)
        paid = (self._positions == self._goals[self._streams, self._got]).all(-1)
        self._got += paid
        self._elapsed += 1
        ended = np.full(self.num_envs, self._elapsed == self._horizon)
        infos: dict[str, Any] = {}
        if self._elapsed == self._horizon:
            infos = {"final_obs": self._positions, "_final_obs": ended.copy()}
            self._begin()
        terminated = np.zeros(self.num_envs, dtype=bool)
        return self._positions.copy(), paid.astype(np.float64), terminated, ended, infos


class KeyToDoorFamily:
    """Rooms of K goals drawn independently and evenly: K · log2(size²) bits a task."""

    def __init__(
        self,
        n_goals: int = 2,
        size: int = 9,
        horizon: int = 50,
        start: Sequence[int] | None = None,
        n_tasks: int | None = None,
        seed: int = 0,
    ) -> None:
        """Draw the tasks.

        Args:
            n_goals: K.
            size: Cells along one side.
            horizon: Steps in an episode.
            start: First cell `(x, y)`; None for the centre.
            n_tasks: Number of tasks, all different; None for 1000, or all there are.
            seed: Of their goals.

        Raises:
            FamilyError: A number is out of range, or more tasks are asked for than can differ.
        """
        check_counts(n_goals=n_goals)
        room = room_params(size, horizon, start, (0, 0), "once")
        self._room = {name: room[name] for name in ("size", "horizon", "start")}
        self.name = "key_to_door"
        self.observation_space = MultiDiscrete([size, size])
        self.action_space = Discrete(len(MOVES))
        self.episode_len, self._n_goals = horizon, n_goals
        cells = distinct_rows(n_tasks, [size**2] * n_goals, seed)
        goals = np.stack(np.divmod(cells, size), -1).tolist()  # (N, K, 2)
        self._tasks = tuple(
            Task(
                index,
                "goals=" + "".join(f"({x},{y})" for x, y in own),
                {"env": "KeyToDoor", **self._room, "goals": own},
            )
            for index, own in enumerate(goals)
        )

    @property
    def information_bits(self) -> float:
        """Bits of a task: of K independent cells."""
        return self._n_goals * math.log2(self._room["size"] ** 2)

    def tasks(self) -> Sequence[Task]:
        """All tasks, in the order they were drawn."""
        return self._tasks

    def make_env(self, task: Task, render_mode: str | None = None) -> gymnasium.Env:
        """One room; it draws pictures, with all its goals."""
        return OnlyEnv(self.make_vector_env([task]), partial(self._drawn, task), render_mode)

    def _drawn(self, task: Task, observation: np.ndarray) -> np.ndarray:
        return room_picture(self._room["size"], observation.tolist(), task.params["goals"])

    def make_vector_env(self, tasks: Sequence[Task]) -> KeyToDoorVectorEnv:
        """One room per entry of `tasks`."""
        return KeyToDoorVectorEnv(self._goals(tasks), **self._room)

    def random_return(self, task: Task) -> float:
        """Exact: times between goals add up, so their distributions are convolved."""
        size, horizon = self._room["size"], self.episode_len
        firsts = _first_passages(size, horizon)
        path = [cell[0] * size + cell[1] for cell in (task.params["start"], *task.params["goals"])]
        reached = np.eye(1, horizon + 1)[0]  # the start, at time 0
        total = 0.0
        for source, target in itertools.pairwise(path):
            reached = np.convolve(reached, firsts[:, source, target])[: horizon + 1]
            total += reached.sum()
        return total

    def optimal_return(self, task: Task) -> float:
        """Exact: how many goals the shortest way through them reaches; each takes a step."""
        path = np.array([task.params["start"], *task.params["goals"]])
        needed = np.maximum(np.abs(np.diff(path, axis=0)).sum(-1), 1).cumsum()
        return float((needed <= self.episode_len).sum())

    def optimal_actions(
        self,
        tasks: Sequence[Task],
        observations: np.ndarray,
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        """Raise FamilyError: cells alone do not tell which goal is due."""
        raise FamilyError(
            f"family {self.name!r} has no optimal actions by observations alone: they depend on "
            "the goals got in the open episode; use tasks.family.expert_of"
        )

    def expert(self, tasks: Sequence[Task]) -> "KeyToDoorExpert":
        """Goes to the goal that is due; see `tasks.family.expert_of`."""
        return KeyToDoorExpert(self._goals(tasks))

    def tabular(self, task: Task) -> TabularMDP:
        """See `tabular_key_to_door`."""
        return tabular_key_to_door(task.params)

    def posterior(self, prior_tasks: Sequence[Task], n_streams: int) -> "GoalsPosterior":
        """Each goal by itself, over the cells it has in `prior_tasks`."""
        return GoalsPosterior(self._goals(prior_tasks), self._room["size"], n_streams)

    def search_policies(
        self, prior_tasks: Sequence[Task]
    ) -> dict[str, Callable[[], CoveragePolicy]]:
        """The coverage sweep for the goal that is due."""
        size = self._room["size"]
        return {"coverage": lambda: CoveragePolicy(partial(self.posterior, prior_tasks), size)}

    def _goals(self, tasks: Sequence[Task]) -> np.ndarray:
        goals = [task.params["goals"] for task in tasks]
        return np.array(goals, dtype=np.int64).reshape(-1, self._n_goals, 2)


class KeyToDoorExpert:
    """Shortest ways to the goals `(n, K, 2)` of n streams, in order; stays once all are got."""

    def __init__(self, goals: np.ndarray) -> None:
        self.goals = goals
        self.reset()

    def reset(self) -> None:
        """No goal is got yet."""
        self.got = np.zeros(len(self.goals), dtype=np.int64)

    def act(self, observations: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Moves `(n,)` as `shortest_moves` chooses them."""
        return _moves_to_due(self.goals, self.got, observations, rng)

    def observe(
        self,
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        next_observations: np.ndarray,
    ) -> None:
        """Count the goals."""
        self.got = np.where(terminated | truncated, 0, self.got + (rewards > 0))


class GoalsPosterior:
    """Where each of K goals may still be, in n streams; a draw is a cell's number per goal.

    Goals are independent, so each has cells of its own: those of the prior, without those on which
    a step ended unpaid while the goal was due; one that paid stands alone, be it in the prior or
    not, as in `RoomPosterior`.
    """

    def __init__(self, goals: np.ndarray, size: int, n_streams: int) -> None:
        """Begin with the cells of goals `(P, K, 2)`, goal by goal, possible in every stream."""
        self.size, self.n_goals = size, goals.shape[1]
        # The last entry stands for "all are got": nothing is learned of it.
        prior = np.zeros((self.n_goals + 1, size * size), dtype=bool)
        prior[np.arange(self.n_goals), goals[..., 0] * size + goals[..., 1]] = True
        self.masks = np.tile(prior, (n_streams, 1, 1))  # (n, K + 1, size²)
        self.found = np.zeros((n_streams, self.n_goals + 1), dtype=bool)
        self.found[:, -1] = True
        self.got = np.zeros(n_streams, dtype=np.int64)
        self.redrawn = np.zeros(n_streams, dtype=bool)
        self._streams = np.arange(n_streams)

    @property
    def cells(self) -> np.ndarray:
        """Cells `(n, size²)` where the goal that is due may be; none once all are got."""
        return self.masks[self._streams, self.got]

    def sample(self, rng: np.random.Generator, streams: np.ndarray) -> np.ndarray:
        """A possible cell of each goal, evenly drawn, `(k, K)`."""
        masks = self.masks[streams, :-1]
        return (masks * rng.random(masks.shape, dtype=np.float32)).argmax(-1)

    def update(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        next_observations: np.ndarray,
        ended: np.ndarray,
    ) -> None:
        """Look at the cells that the steps ended on."""
        reached = np.asarray(next_observations, dtype=np.int64)
        reached = reached[:, 0] * self.size + reached[:, 1]  # (n,)
        due = (self._streams, self.got)
        self.masks[(*due, reached)] &= self.found[due]
        new = np.flatnonzero((rewards > 0) & ~self.found[due])
        self.masks[new, self.got[new]] = False
        self.masks[new, self.got[new], reached[new]] = True
        self.found[new, self.got[new]] = True
        self.redrawn = np.array(rewards > 0)  # nothing done so far tells of the next goal's draw
        self.got = np.where(ended, 0, self.got + self.redrawn)

    def weights(self) -> np.ndarray:
        """Which cells `(n, size²)` may be the goal that is due; any, once all are got."""
        return self.cells | (self.got == self.n_goals)[:, None]

    def action_table(self, observations: np.ndarray) -> np.ndarray:
        """How likely each move is, `(n, size², A)`, were the due goal at each cell."""
        places = np.asarray(observations, dtype=np.int64)
        places = places[:, 0] * self.size + places[:, 1]
        moves = move_probabilities(self.size)
        done = (self.got == self.n_goals)[:, None, None]
        return np.where(done, moves[places, places][:, None], moves[places])

    def possible(self, drawn: np.ndarray) -> np.ndarray:
        """Whether every goal can be where it was drawn."""
        held = np.take_along_axis(self.masks[:, :-1], drawn[..., None], -1)  # (n, K, 1)
        return np.asarray(held.all((1, 2)))

    def actions(
        self, drawn: np.ndarray, observations: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Moves towards the drawn cell of the goal that is due."""
        goals = np.stack(np.divmod(drawn, self.size), -1)  # (n, K, 2)
        return _moves_to_due(goals, self.got, observations, rng)


def tabular_key_to_door(params: dict[str, Any]) -> TabularMDP:
    """The room as a tabular MDP; state `got * size² + x * size + y`."""
    base = tabular_room({**params, "goal": params["start"], "reward": "every_step"})
    size, n_cells = params["size"], params["size"] ** 2
    moved = base.transitions.argmax(-1)  # (size², 5)
    next_states, rewards = [], []
    for got, goal in enumerate([*params["goals"], None]):
        paid = moved == (NO_CELL if goal is None else goal[0] * size + goal[1])
        next_states.append(moved + n_cells * (got + paid))
        rewards.append(paid.astype(np.float64))
    start = params["start"][0] * size + params["start"][1]
    return TabularMDP.deterministic(
        np.concatenate(next_states), np.concatenate(rewards), start, params["horizon"]
    )


@lru_cache(maxsize=8)
def _first_passages(size: int, horizon: int) -> np.ndarray:
    """Probability that random play, t >= 1 steps after a cell, is on another for the first time.

    Returns:
        `(H + 1, size², size²)`: time, from, to; nothing at time 0.
    """
    room = room_params(size, horizon, None, (0, 0), "every_step")
    walk = tabular_room(room).transitions.mean(1)  # (size², size²)
    firsts = np.zeros((horizon + 1, *walk.shape))
    firsts[1] = walk
    elsewhere = 1.0 - np.eye(len(walk))
    for time in range(2, horizon + 1):
        firsts[time] = walk @ (firsts[time - 1] * elsewhere)
    return firsts


def _moves_to_due(
    goals: np.ndarray,
    got: np.ndarray,
    observations: np.ndarray,
    rng: np.random.Generator | None,
) -> np.ndarray:
    """Moves `(n,)` towards goal `got` `(n,)` of goals `(n, K, 2)`; stay once all are got."""
    n_goals = goals.shape[1]
    due = goals[np.arange(len(goals)), np.minimum(got, n_goals - 1)]  # (n, 2)
    return shortest_moves(observations, np.where((got < n_goals)[:, None], due, observations), rng)
