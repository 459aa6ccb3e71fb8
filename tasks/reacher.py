"""MuJoCo's Reacher with an unseen target: a two-jointed arm that is paid for how near its tip is.

Needs mujoco (`pip install '.[mujoco]'`). A task is a target. Observation: cosines and sines of the
two joints' angles, their speeds, and where the tip is, `(8,)`; action: two torques from -1 to 1. A
step pays minus the tip's distance from the target, in metres. Episodes last 50 steps.
"""

import math
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import DependencyNotInstalled
from gymnasium.spaces import Box

from tasks.drawing import plane_picture
from tasks.draws import check_counts
from tasks.family import FamilyError, Task
from tasks.gymnasium_family import GymnasiumFamily

try:
    from gymnasium.envs.mujoco.reacher_v5 import ReacherEnv
except DependencyNotInstalled as absent:
    raise FamilyError(
        "tasks.reacher needs mujoco, which is not installed; pip install '.[mujoco]'"
    ) from absent

DISC = 0.2  # metres around the shoulder, where targets lie
UPPER, LOWER = 0.1, 0.11  # lengths of the arm
MOST_BENT = 2.95  # of the elbow, which stops at 3
REACH = 0.23  # metres shown to every side
STIFFNESS, DAMPING = 1.0, 0.1
N_WALKS = 64


class HiddenReacherEnv(ReacherEnv):
    """Reacher-v5 with a target that stays and is not observed; torques cost nothing."""

    def __init__(self, target: Sequence[float], **kwargs: Any) -> None:
        """Put the target at `(x, y)`, in metres; other arguments are Reacher-v5's."""
        self.target = np.array(target, dtype=np.float64)
        super().__init__(reward_control_weight=0, **kwargs)
        self.observation_space = Box(-np.inf, np.inf, (8,), np.float64)

    def reset_model(self) -> np.ndarray:
        """The arm nearly straight and at rest, the target where it always is."""
        super().reset_model()
        position, velocity = self.data.qpos.copy(), self.data.qvel.copy()
        position[2:] = self.target
        self.set_state(position, velocity)
        return self._get_obs()

    def render(self) -> Any:
        """The arm in its plane as `(192, 192, 3)` uint8, drawn without OpenGL; or as Reacher-v5."""
        if self.render_mode != "rgb_array":
            return super().render()
        elbow, tip = (self.get_body_com(name)[:2].tolist() for name in ("body1", "fingertip"))
        return plane_picture(REACH, tip, self.target.tolist(), arm=[(0, 0), elbow, tip])

    def _get_obs(self) -> np.ndarray:
        angles, speeds = self.data.qpos[:2], self.data.qvel[:2]
        tip = self.get_body_com("fingertip")[:2]
        return np.concatenate([np.cos(angles), np.sin(angles), speeds, tip])


class ReacherFamily(GymnasiumFamily):
    """Targets drawn evenly from the disc that the arm can reach. No optimum is known."""

    def __init__(self, n_tasks: int = 300, seed: int = 0) -> None:
        """Draw the tasks.

        Args:
            n_tasks: Number of tasks.
            seed: Of their targets, rounded to millimetres.

        Raises:
            FamilyError: mujoco is missing, or a number is out of range.
        """
        check_counts(n_tasks=n_tasks)
        rng = np.random.default_rng(seed)
        targets: dict[tuple[float, ...], None] = {}
        while len(targets) < n_tasks:
            x, y = (DISC * rng.uniform(-1, 1, 2)).round(3).tolist()
            if math.hypot(x, y) <= DISC:
                targets[x + 0.0, y + 0.0] = None
            if len(targets) > 100_000:
                raise FamilyError(f"n_tasks is {n_tasks}, but at most 100,000 targets are drawn")
        self._walks: np.ndarray | None = None
        grid = {"target": [list(target) for target in targets]}
        super().__init__("tasks.reacher:HiddenReacher-v0", grid)
        self.name = "reacher"

    @property
    def information_bits(self) -> float:
        """Bits of a target: square millimetres of the disc."""
        return math.log2(math.pi * (1000 * DISC) ** 2)

    def random_return(self, task: Task) -> float:
        """Mean over 64 episodes of random torques, the same for all targets and at every call."""
        if self._walks is None:
            self._walks = np.stack([self._walk(k) for k in range(N_WALKS)])  # (N, H, 2)
        away = np.linalg.norm(self._walks - np.array(task.params["target"]), axis=-1)
        return -float(away.sum(-1).mean())

    def _walk(self, k: int) -> np.ndarray:
        """Where the tip is after every step of an episode, `(H, 2)`."""
        env = self.make_env(self.tasks()[0])
        rng = np.random.default_rng([0, k])
        env.reset(seed=k)
        steps = [
            env.step(rng.uniform(-1, 1, 2).astype(np.float32))[0][6:]
            for _ in range(self.episode_len)
        ]
        env.close()
        return np.array(steps)

    def controller(self, tasks: Sequence[Task]) -> "ReacherController":
        """Brings the tips of n streams to their targets and holds them there."""
        return ReacherController(np.array([task.params["target"] for task in tasks]))


class ReacherController:
    """Turns each joint towards the angle at which the tip is on the target, damped.

    It is told of nothing: what it does follows from the observation.
    """

    def __init__(self, targets: np.ndarray) -> None:
        """Reach for `targets` `(n, 2)`; the angles by the law of cosines, the elbow bent left."""
        x, y = targets.T
        bent = (x**2 + y**2 - UPPER**2 - LOWER**2) / (2 * UPPER * LOWER)
        elbow = np.minimum(np.arccos(np.clip(bent, -1, 1)), MOST_BENT)
        ahead = np.arctan2(LOWER * np.sin(elbow), UPPER + LOWER * np.cos(elbow))
        self.angles = np.stack([np.arctan2(y, x) - ahead, elbow], -1)  # (n, 2)

    def reset(self) -> None:
        """Nothing is remembered."""

    def act(self, observations: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Torques `(n, 2)` float32 at observations `(n, 8)`."""
        cosines, sines, speeds = observations[:, :2], observations[:, 2:4], observations[:, 4:6]
        left = self.angles - np.arctan2(sines, cosines)
        left[:, 0] = (left[:, 0] + np.pi) % (2 * np.pi) - np.pi  # the shoulder turns all round
        return np.clip(STIFFNESS * left - DAMPING * speeds, -1, 1).astype(np.float32)

    def observe(
        self,
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        next_observations: np.ndarray,
    ) -> None:
        """Nothing is remembered."""


if "HiddenReacher-v0" not in gymnasium.registry:
    gymnasium.register(
        id="HiddenReacher-v0", entry_point="tasks.reacher:HiddenReacherEnv", max_episode_steps=50
    )
