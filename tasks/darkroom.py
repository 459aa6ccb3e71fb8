"""Dark Room (Laskin et al. 2022): a square room with an unseen goal, alone, batched, as a family.

The agent sees its own cell `(x, y)` only. Actions, in this order, here and everywhere:
0 = +x, 1 = -x, 2 = +y, 3 = -y, 4 = stay. A move into a wall stays. A step that ENDS on the goal
pays 1 (`reward="every_step"`), or pays 1 only the first time (`reward="once"`). An episode lasts
exactly `horizon` steps and is then truncated; it never terminates.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from tasks.drawing import room_picture
from tasks.draws import check_counts
from tasks.family import FamilyError, Task
from tasks.references import TabularMDP, random_return
from tasks.return_bounds import ReturnBound, shared_dynamics_bound
from tasks.room_search import (
    CoveragePolicy,
    RoomPosterior,
    room_images,
    seen_cells,
    shortest_moves,
)
from tasks.vector import OnlyEnv

MOVES = np.array([[1, 0], [-1, 0], [0, 1], [0, -1], [0, 0]], dtype=np.int64)  # (5, 2)
ACTION_NAMES = ("+x", "-x", "+y", "-y", "stay")
MOST_TABLE = 2**32  # bytes
REWARDS = ("every_step", "once")
OBSERVATIONS = ("cell", "image")


def _moved(positions: np.ndarray, actions: np.ndarray, size: int) -> np.ndarray:
    return np.clip(positions + MOVES[actions], 0, size - 1)


class DarkRoomEnv(gymnasium.Env[np.ndarray, np.integer]):
    """One dark room. Observation `(2,)` int64, the cell `(x, y)`; action int in 0..4."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 8}

    def __init__(
        self,
        size: int = 9,
        horizon: int = 20,
        start: Sequence[int] | None = None,
        goal: Sequence[int] = (4, 2),
        reward: str = "every_step",
        render_mode: str | None = None,
    ) -> None:
        """Make the room.

        Args:
            size: Cells along one side.
            horizon: Steps in an episode.
            start: First cell `(x, y)`; None for the centre.
            goal: Rewarded cell `(x, y)`; it may be the start.
            reward: `"every_step"` or `"once"`.
            render_mode: None, `"ansi"` or `"rgb_array"`.

        Raises:
            FamilyError: A parameter is out of range.
        """
        params = room_params(size, horizon, start, goal, reward)
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise FamilyError(f"render_mode must be ansi or rgb_array, got {render_mode!r}")
        self.size, self.horizon, self.reward = size, horizon, reward
        self.start = np.array(params["start"], dtype=np.int64)
        self.goal = np.array(params["goal"], dtype=np.int64)
        self.render_mode = render_mode
        self.observation_space = MultiDiscrete([size, size])
        self.action_space = Discrete(len(MOVES))
        self._position = self.start.copy()
        self._elapsed = 0
        self._reached = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Back to the start; nothing is random."""
        super().reset(seed=seed)
        self._position = self.start.copy()
        self._elapsed = 0
        self._reached = False
        return self._position.copy(), {}

    def step(self, action: np.integer) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One move. Returns `(observation, reward, terminated, truncated, info)`."""
        self._position = _moved(self._position, np.asarray(action), self.size)
        self._elapsed += 1
        at_goal = bool((self._position == self.goal).all())
        paid = at_goal and not (self.reward == "once" and self._reached)
        self._reached = self._reached or at_goal
        return self._position.copy(), float(paid), False, self._elapsed >= self.horizon, {}

    def render(self) -> Any:
        """The room as text lines (`ansi`) or as `(16 size, 16 size, 3)` uint8; y grows upwards."""
        if self.render_mode == "ansi":
            cells = np.full((self.size, self.size), ".")
            cells[tuple(self.goal)] = "G"
            cells[tuple(self._position)] = "A"
            return "\n".join("".join(row) for row in cells.T[::-1]) + "\n"
        if self.render_mode == "rgb_array":
            return room_picture(self.size, self._position.tolist(), [self.goal.tolist()])
        return None


class DarkRoomVectorEnv(VectorEnv):
    """Many dark rooms of one size stepped as arrays; autoreset SAME_STEP."""

    metadata: ClassVar[dict[str, Any]] = {
        "render_modes": [],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        goals: np.ndarray,
        size: int = 9,
        horizon: int = 20,
        start: Sequence[int] | None = None,
        reward: str = "every_step",
        observation: str = "cell",
    ) -> None:
        """Make `n` rooms that differ in their goals `(n, 2)`; the rest as in `DarkRoomEnv`.

        An observation is the `cell`, or an `image` of the room as of `room_images`.
        """
        self._goals = np.asarray(goals, dtype=np.int64).reshape(-1, 2)
        for goal in np.unique(self._goals, axis=0):
            room_params(size, horizon, start, goal.tolist(), reward)
        self.num_envs = len(self._goals)
        self._images = observation == "image"
        self.single_observation_space = room_space(size, observation)
        self.single_action_space = Discrete(len(MOVES))
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._size, self._horizon, self._reward = size, horizon, reward
        self._start = np.array(_start_cell(size, start), dtype=np.int64)
        self._positions = np.tile(self._start, (self.num_envs, 1))  # (n, 2)
        self._elapsed = np.zeros(self.num_envs, dtype=np.int64)
        self._reached = np.zeros(self.num_envs, dtype=bool)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Every room back to its start. Returns observations `(n, 2)` int64 and empty infos."""
        self._positions[:] = self._start
        self._elapsed[:] = 0
        self._reached[:] = False
        return self._shown(self._positions), {}

    def _shown(self, positions: np.ndarray) -> np.ndarray:
        """What is observed at positions `(n, 2)`."""
        return room_images(positions, self._size) if self._images else positions.copy()

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Move every room by actions `(n,)`; see `TaskFamily.make_vector_env` for the ends."""
        positions = _moved(self._positions, np.asarray(actions), self._size)
        self._elapsed += 1
        at_goal = (positions == self._goals).all(-1)
        paid = at_goal & ~self._reached if self._reward == "once" else at_goal
        self._reached |= at_goal
        truncated = self._elapsed >= self._horizon
        infos: dict[str, Any] = {}
        self._positions = positions
        if truncated.any():
            infos = {"final_obs": self._shown(positions), "_final_obs": truncated.copy()}
            self._positions[truncated] = self._start
            self._elapsed[truncated] = 0
            self._reached[truncated] = False
        terminated = np.zeros(self.num_envs, dtype=bool)
        shown = self._shown(self._positions)
        return shown, paid.astype(np.float64), terminated, truncated, infos


class DarkRoomFamily:
    """All goals of one room: `size * size` tasks, task `i` has the goal `(i // size, i % size)`."""

    def __init__(
        self,
        size: int = 9,
        horizon: int = 20,
        start: Sequence[int] | None = None,
        reward: str = "every_step",
        observation: str = "cell",
    ) -> None:
        """See `DarkRoomVectorEnv` for the arguments.

        Raises:
            FamilyError: One is out of range.
        """
        self._room = room_params(size, horizon, start, (0, 0), reward)
        self.name = "darkroom"
        self.observation_space = room_space(size, observation)
        if observation != "cell":
            self._room["observation"] = observation
        self.action_space = Discrete(len(MOVES))
        self.episode_len = horizon
        self._tasks = tuple(
            Task(x * size + y, f"goal=({x},{y})", {**self._room, "goal": [x, y]})
            for x in range(size)
            for y in range(size)
        )
        self._all_goals = _goals(self._tasks)

    def tasks(self) -> Sequence[Task]:
        """One task per goal."""
        return self._tasks

    def make_env(self, task: Task, render_mode: str | None = None) -> gymnasium.Env:
        """One room; one seen as an image draws pictures, but prints nothing."""
        if "observation" in task.params:
            return OnlyEnv(self.make_vector_env([task]), partial(self._drawn, task), render_mode)
        return DarkRoomEnv(**_env_kwargs(task), render_mode=render_mode)

    def _drawn(self, task: Task, observation: np.ndarray) -> np.ndarray:
        (cell,) = seen_cells(observation[None]).tolist()
        return room_picture(self._room["size"], cell, [task.params["goal"]])

    def make_vector_env(self, tasks: Sequence[Task]) -> DarkRoomVectorEnv:
        """One room per entry of `tasks`."""
        room = _env_kwargs(tasks[0]) if tasks else {}
        room.pop("goal", None)
        return DarkRoomVectorEnv(_goals(tasks), **room)

    def random_return(self, task: Task) -> float:
        """Exact, by dynamic programming."""
        return random_return(tabular_room(task.params))

    def optimal_return(self, task: Task) -> float:
        """Exact, in closed form: a goal `d` moves away pays from step `max(d, 1)` on."""
        params = task.params
        distance = sum(abs(a - b) for a, b in zip(params["start"], params["goal"], strict=True))
        paid_steps = min(max(params["horizon"] + 1 - distance, 0), params["horizon"])
        return float(min(paid_steps, 1) if params["reward"] == "once" else paid_steps)

    def optimal_actions(
        self,
        tasks: Sequence[Task],
        observations: np.ndarray,
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        """A shortest-path move `(n,)` int64 from what is observed, stay at the goal.

        Where both axes are left to go, `rng` picks one evenly; without it x goes first.
        """
        return shortest_moves(observations, _goals(tasks), rng)

    def optimal_actions_by_index(
        self, indices: np.ndarray, observations: np.ndarray, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """As `optimal_actions`, of the tasks at `indices` `(n,)`."""
        return shortest_moves(observations, self._all_goals[indices], rng)

    def tabular(self, task: Task) -> TabularMDP:
        """See `tabular_room`."""
        return tabular_room(task.params)

    def return_bound(self, bits: np.ndarray) -> ReturnBound | None:
        """See `shared_dynamics_bound`; None of a room that pays once, where getting it is seen."""
        return shared_dynamics_bound(bits, [self.tabular(task) for task in self._tasks])

    def posterior(self, prior_tasks: Sequence[Task], n_streams: int) -> RoomPosterior:
        """Where the goal may still be, before anything is seen: the goals of `prior_tasks`."""
        return RoomPosterior(_goals(prior_tasks), self._room["size"], n_streams)

    def search_policies(
        self, prior_tasks: Sequence[Task]
    ) -> dict[str, Callable[[], CoveragePolicy]]:
        """The coverage sweep of the goals of `prior_tasks`."""
        size = self._room["size"]
        return {"coverage": lambda: CoveragePolicy(partial(self.posterior, prior_tasks), size)}


def room_space(size: int, observation: str) -> gymnasium.Space:
    """The observation space of a room; raises FamilyError for another kind of observation."""
    if observation not in OBSERVATIONS:
        raise FamilyError(
            f"observation must be one of {', '.join(OBSERVATIONS)}, got {observation!r}"
        )
    if observation == "image":
        return Box(0, 255, (size, size, 1), np.uint8)
    return MultiDiscrete([size, size])


def room_params(
    size: int, horizon: int, start: Sequence[int] | None, goal: Sequence[int], reward: str
) -> dict[str, Any]:
    """All parameters of one room as JSON values; raises FamilyError where one is out of range."""
    check_counts(size=size, horizon=horizon)
    if (needed := 5 * 8 * size**4) > MOST_TABLE:
        raise FamilyError(
            f"size is {size}: its {size**2} goals and the table of its moves would need "
            f"{needed / 2**30:.1f} GiB, at most {MOST_TABLE / 2**30:.0f} are possible; take a "
            "smaller one"
        )
    if reward not in REWARDS:
        raise FamilyError(f"reward must be one of {', '.join(REWARDS)}, got {reward!r}")
    cells = {"start": _start_cell(size, start), "goal": [int(value) for value in goal]}
    for name, cell in cells.items():
        if len(cell) != 2 or not all(0 <= value < size for value in cell):
            raise FamilyError(f"{name} must be a cell (x, y) within 0..{size - 1}, got {cell}")
    return {
        "env": "DarkRoom-v0",
        "size": int(size),
        "horizon": int(horizon),
        "start": cells["start"],
        "reward": reward,
        "goal": cells["goal"],
    }


def tabular_room(params: Mapping[str, Any]) -> TabularMDP:
    """The room as a tabular MDP; state `s = x * size + y`, plus `size ** 2` once it was paid."""
    size, n_cells = params["size"], params["size"] ** 2
    cells = np.stack(np.divmod(np.arange(n_cells), size), -1)  # (S, 2)
    moved = np.clip(cells[:, None] + MOVES, 0, size - 1)  # (S, A, 2)
    next_states = moved[..., 0] * size + moved[..., 1]  # (S, A)
    goal = params["goal"][0] * size + params["goal"][1]
    start = params["start"][0] * size + params["start"][1]
    rewards = (next_states == goal).astype(np.float64)
    if params["reward"] == "once":
        paid_states = next_states + n_cells
        next_states = np.concatenate([np.where(rewards > 0, paid_states, next_states), paid_states])
        rewards = np.concatenate([rewards, np.zeros_like(rewards)])
    return TabularMDP.deterministic(next_states, rewards, start, params["horizon"])


def _start_cell(size: int, start: Sequence[int] | None) -> list[int]:
    return [size // 2, size // 2] if start is None else [int(value) for value in start]


def _env_kwargs(task: Task) -> dict[str, Any]:
    return {name: value for name, value in task.params.items() if name != "env"}


def _goals(tasks: Sequence[Task]) -> np.ndarray:
    return np.array([task.params["goal"] for task in tasks], dtype=np.int64).reshape(-1, 2)


if "DarkRoom-v0" not in gymnasium.registry:
    gymnasium.register(id="DarkRoom-v0", entry_point="tasks.darkroom:DarkRoomEnv")
