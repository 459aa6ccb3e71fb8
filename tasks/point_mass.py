"""A point in a square that has to find an unseen goal: continuous observations and actions.

The agent sees its position in [-1, 1]² only, begins every episode in the middle, and moves by
`step` times its action. A step pays minus the distance to the goal that it ends at (`dense`), or 1
within `radius` of it (`sparse`). An episode lasts `horizon` steps and is then truncated.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from tasks.drawing import plane_picture
from tasks.draws import check_counts
from tasks.family import FamilyError, Task
from tasks.vector import OnlyEnv

REWARDS = ("dense", "sparse")
N_WALKS = 4096
"""Random walks behind random returns: one sample for all goals, for goals change no walk."""


class PointMassVectorEnv(VectorEnv):
    """Many points stepped as arrays; autoreset SAME_STEP. Observation `(2,)`, action `(2,)`."""

    metadata: ClassVar[dict[str, Any]] = {
        "render_modes": [],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self, goals: np.ndarray, horizon: int, step: float, reward: str, radius: float
    ) -> None:
        """Make n points with goals `(n, 2)`; the rest as in `PointMassFamily`."""
        self.num_envs = len(goals)
        self.single_observation_space, self.single_action_space = _spaces()
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._goals, self._horizon, self._step = goals, horizon, step
        self._reward, self._radius = reward, radius
        self._positions, self._elapsed = np.zeros((self.num_envs, 2)), 0

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Every point back to the middle; nothing is random."""
        self._positions, self._elapsed = np.zeros((self.num_envs, 2)), 0
        return self._positions.astype(np.float32), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Move by actions `(n, 2)`, cut to -1 ... 1; all streams are in step."""
        self._positions = moved(self._positions, np.asarray(actions), self._step)
        self._elapsed += 1
        rewards = paid(self._positions, self._goals, self._reward, self._radius)
        truncated = np.full(self.num_envs, self._elapsed >= self._horizon)
        infos: dict[str, Any] = {}
        if truncated.all():
            final = self._positions.astype(np.float32)
            infos = {"final_obs": final, "_final_obs": truncated.copy()}
            self.reset()
        terminated = np.zeros(self.num_envs, dtype=bool)
        return self._positions.astype(np.float32), rewards, terminated, truncated, infos


class PointMassFamily:
    """Goals drawn evenly from a disc.

    Optimal is to go straight ahead in each coordinate, as fast as possible: that brings both as
    near as they can be at every step.
    """

    def __init__(
        self,
        horizon: int = 20,
        step: float = 0.2,
        reward: str = "dense",
        radius: float = 0.2,
        disc: float = 0.9,
        n_tasks: int = 1000,
        seed: int = 0,
    ) -> None:
        """Draw the tasks.

        Args:
            horizon: Steps in an episode.
            step: Length of a step in each coordinate at an action of 1.
            reward: `dense` or `sparse`.
            radius: Of the goal, where rewards are sparse.
            disc: Radius of the disc that goals are drawn from, at most 1.
            n_tasks: Number of tasks.
            seed: Of their goals, rounded to three digits.

        Raises:
            FamilyError: A number is out of range, or more tasks are asked for than can differ.
        """
        check_counts(horizon=horizon, n_tasks=n_tasks)
        for name, value, most in (
            ("step", step, 1.0),
            ("radius", radius, 2.0),
            ("disc", disc, 1.0),
        ):
            if not 0 < value <= most:
                raise FamilyError(f"{name} must be above 0 and at most {most}, got {value}")
        if reward not in REWARDS:
            raise FamilyError(f"reward must be one of {', '.join(REWARDS)}, got {reward!r}")
        self.name, self.episode_len, self._disc = "point_mass", horizon, disc
        self.observation_space, self.action_space = _spaces()
        self._room = {"horizon": horizon, "step": step, "reward": reward, "radius": radius}
        params = {"env": "PointMass", **self._room}
        rng = np.random.default_rng(seed)
        angles, squares = rng.random((n_tasks, 2)).T
        far = disc * np.sqrt(squares)
        goals = np.stack([far * np.cos(2 * np.pi * angles), far * np.sin(2 * np.pi * angles)], -1)
        self._goals = goals.round(3) + 0.0
        if len(np.unique(self._goals, axis=0)) < n_tasks:
            raise FamilyError(
                f"{n_tasks} goals of three digits are not all different; ask for fewer"
            )
        self._tasks = tuple(
            Task(index, f"goal=({goal[0]},{goal[1]})", {**params, "goal": goal})
            for index, goal in enumerate(self._goals.tolist())
        )
        self._walks: np.ndarray | None = None

    @property
    def information_bits(self) -> float:
        """Bits of a goal: thousandths in a disc."""
        return math.log2(math.pi * (1000 * self._disc) ** 2)

    def tasks(self) -> Sequence[Task]:
        """All tasks, in the order they were drawn."""
        return self._tasks

    def make_env(self, task: Task, render_mode: str | None = None) -> gymnasium.Env:
        """One point; it draws pictures."""
        return OnlyEnv(self.make_vector_env([task]), partial(self._drawn, task), render_mode)

    def _drawn(self, task: Task, observation: np.ndarray) -> np.ndarray:
        radius = self._room["radius"] if self._room["reward"] == "sparse" else 0.0
        return plane_picture(1.0, observation.tolist(), task.params["goal"], goal_radius=radius)

    def make_vector_env(self, tasks: Sequence[Task]) -> PointMassVectorEnv:
        """One point per entry of `tasks`."""
        return PointMassVectorEnv(_goals_of(tasks), **self._room)

    def random_return(self, task: Task) -> float:
        """Mean over 4,096 random walks, the same for all goals and at every call."""
        if self._walks is None:
            actions = np.random.default_rng(0).uniform(-1, 1, (self.episode_len, N_WALKS, 2))
            positions, walks = np.zeros((N_WALKS, 2)), []
            for one in actions:
                positions = moved(positions, one, self._room["step"])
                walks.append(positions)
            self._walks = np.stack(walks)  # (H, N, 2)
        return float(self._paid(self._walks, task).sum(0).mean())

    def optimal_return(self, task: Task) -> float:
        """Exact: every coordinate is as near as it can be after each step."""
        goal = np.array(task.params["goal"])
        reach = self._room["step"] * np.arange(1, self.episode_len + 1)[:, None]  # (H, 1)
        return float(self._paid(np.clip(goal, -reach, reach), task).sum())

    def _paid(self, positions: np.ndarray, task: Task) -> np.ndarray:
        goal = np.array(task.params["goal"])
        return paid(positions, goal, self._room["reward"], self._room["radius"])

    def optimal_actions(
        self,
        tasks: Sequence[Task],
        observations: np.ndarray,
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        """Straight towards the goal in each coordinate, `(n, 2)` float32."""
        return self._towards(_goals_of(tasks), observations)

    def optimal_actions_by_index(
        self, indices: np.ndarray, observations: np.ndarray, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """As `optimal_actions`, of the tasks at `indices` `(n,)`."""
        return self._towards(self._goals[indices], observations)

    def _towards(self, goals: np.ndarray, observations: np.ndarray) -> np.ndarray:
        return np.clip((goals - observations) / self._room["step"], -1, 1).astype(np.float32)


def moved(positions: np.ndarray, actions: np.ndarray, step: float) -> np.ndarray:
    """Positions `(..., 2)` after actions `(..., 2)`."""
    return np.clip(positions + step * np.clip(actions, -1, 1), -1, 1)


def paid(positions: np.ndarray, goals: np.ndarray, reward: str, radius: float) -> np.ndarray:
    """Rewards `(...)` of steps that end at positions `(..., 2)`."""
    distance = np.linalg.norm(positions - goals, axis=-1)
    return (distance <= radius).astype(np.float64) if reward == "sparse" else -distance


def _spaces() -> tuple[Box, Box]:
    return Box(-1.0, 1.0, (2,), np.float32), Box(-1.0, 1.0, (2,), np.float32)


def _goals_of(tasks: Sequence[Task]) -> np.ndarray:
    return np.array([task.params["goal"] for task in tasks], dtype=np.float64).reshape(-1, 2)
