"""What a task is and what a family of tasks offers; families are named by import path.

The environments themselves live beside this module, one file per family.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv

from base.errors import UserError
from base.imports import ImportPathError, import_object

FAMILIES = (
    "tasks.darkroom:DarkRoomFamily",
    "tasks.key_to_door:KeyToDoorFamily",
    "tasks.permuted_room:PermutedRoomFamily",
    "tasks.random_mdp:RandomMDPFamily",
    "tasks.bandits:BernoulliBanditFamily",
    "tasks.bandits:KeyedBanditFamily",
    "tasks.gaussian_bandits:GaussianBanditFamily",
    "tasks.gaussian_bandits:LinearBanditFamily",
    "tasks.point_mass:PointMassFamily",
    "tasks.supervised:SupervisedFamily",
    "tasks.gymnasium_family:GymnasiumFamily",
    "tasks.reacher:ReacherFamily",
    "tasks.mixture:MixtureFamily",
)
"""Those that are shipped: what a stranger's file may name."""
JSON = Any  # whatever json.dumps accepts


class FamilyError(UserError):
    """A family cannot be loaded, or does not offer what was asked of it."""


@dataclass(frozen=True)
class Task:
    """One MDP of a family.

    Attributes:
        index: Position in `family.tasks()`.
        name: Short, unique within the family, such as `"goal=(4,2)"`.
        params: ALL parameters of the MDP, as JSON values: they alone identify it.
        group: Of the family's tasks, where it has several kinds: splits share every kind out, and
            tables have a row for each. Empty where all are of one kind.
    """

    index: int
    name: str
    params: dict[str, JSON]
    group: str = ""

    def key(self) -> str:
        """The parameters as one canonical JSON line; equal keys mean the same MDP."""
        return json.dumps(self.params, sort_keys=True, separators=(",", ":"))


@runtime_checkable
class TaskFamily(Protocol):
    """A set of MDPs that share their spaces. Any class with these members is one.

    Attributes:
        name: Of the family, used in files and reports.
        observation_space: Of ONE environment.
        action_space: Of ONE environment.
        episode_len: Longest possible episode, in steps.
    """

    name: str
    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    episode_len: int

    def tasks(self) -> Sequence[Task]:
        """Every task, `tasks()[i].index == i`."""
        ...

    def make_env(self, task: Task, render_mode: str | None = None) -> gymnasium.Env:
        """One environment of `task`."""
        ...

    def make_vector_env(self, tasks: Sequence[Task]) -> VectorEnv:
        """One copy per entry, entries may repeat, autoreset SAME_STEP.

        `step()` returns the reset observation of an ended episode; the true last one stands in
        `infos["final_obs"]` `(n, ...)` where `infos["_final_obs"]` `(n,)` is True.
        """
        ...

    def random_return(self, task: Task) -> float:
        """Expected undiscounted return of one episode of uniformly random actions."""
        ...

    def optimal_return(self, task: Task) -> float | None:
        """Best expected undiscounted return of one episode; None where it is not known."""
        ...

    def optimal_actions(
        self,
        tasks: Sequence[Task],
        observations: np.ndarray,
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        """An optimal action `(n,)` for each of the observations `(n, ...)`.

        Several actions may be optimal: `rng` draws one of them uniformly, without it the choice
        is fixed. Raises FamilyError where the family knows no optimal actions.
        """
        ...


class Expert(Protocol):
    """Acts optimally in n streams whose tasks it knows; what `expert_of` returns.

    Observations alone do not always say what is optimal: it may depend on what was got earlier in
    the episode, or on the time that is left. A family of that kind offers `expert(tasks)` besides,
    which returns one of these for its streams, and lets `optimal_actions` raise FamilyError. An
    expert carries, per stream, what the open episode adds to the observation: it is told of every
    step, whoever chose the actions, as a policy is. Posteriors carry the same memory for draws.
    """

    def reset(self) -> None:
        """An episode begins in every stream."""
        ...

    def act(self, observations: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """An optimal action `(n,)` of this moment; `rng` breaks ties as in `optimal_actions`."""
        ...

    def observe(
        self,
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        next_observations: np.ndarray,
    ) -> None:
        """Take in a step of every stream; true next observations."""
        ...


def expert_of(family: TaskFamily, tasks: Sequence[Task]) -> Expert:
    """The expert of streams in `tasks`: `family.expert(tasks)` where offered.

    Else one made of `optimal_actions`, which raises FamilyError in `act` where there are none.
    """
    offered: Any = family
    if hasattr(family, "expert"):
        return offered.expert(tasks)
    return _MemorylessExpert(family, tasks)


def controller_of(family: TaskFamily, tasks: Sequence[Task]) -> Expert:
    """Who acts well, though not optimally, in streams of `tasks`: `family.controller(tasks)`.

    Raises:
        FamilyError: The family offers none.
    """
    if not hasattr(family, "controller"):
        raise FamilyError(
            f"family {family.name!r} has no controller(tasks), one who acts well where no optimal "
            "actions are known; give it one, or collect other styles"
        )
    offered: Any = family
    return offered.controller(tasks)


class _MemorylessExpert:
    def __init__(self, family: TaskFamily, tasks: Sequence[Task]) -> None:
        self.family = family
        self.indices = np.array([task.index for task in tasks], dtype=np.int64)

    def reset(self) -> None:
        pass

    def act(self, observations: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        return optimal_actions_at(self.family, self.indices, observations, rng)

    def observe(
        self,
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        next_observations: np.ndarray,
    ) -> None:
        pass


def information_bits(family: TaskFamily) -> float:
    """Bits that name one task: `family.information_bits`, else log2 of the number of tasks.

    A family that draws some of very many tasks offers the attribute, for its own tasks are but a
    sample: it is the entropy of what they are drawn from.
    """
    offered = getattr(family, "information_bits", None)
    return math.log2(len(family.tasks())) if offered is None else float(offered)


def optimal_actions_at(
    family: TaskFamily,
    indices: np.ndarray,
    observations: np.ndarray,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """As `family.optimal_actions`, of the tasks at `indices` `(n,)`.

    By arrays alone where the family offers `optimal_actions_by_index(indices, observations, rng)`.
    """
    by_index = getattr(family, "optimal_actions_by_index", None)
    if by_index is not None:
        return by_index(indices, observations, rng)
    tasks = family.tasks()
    return family.optimal_actions([tasks[index] for index in indices], observations, rng)


def load_family(target: str, kwargs: Mapping[str, Any] | None = None) -> TaskFamily:
    """Build the family that an import path names; Dict and Tuple observations are packed.

    Args:
        target: `"module:Class"`, for example `"tasks.darkroom:DarkRoomFamily"`.
        kwargs: Arguments of the class.

    Raises:
        FamilyError: The path has another form, leads nowhere, the class refuses the arguments, or
            what it builds lacks a member of `TaskFamily`.
    """
    from tasks.packed import packed  # which builds on this module

    cls = _import_class(target)
    try:
        family = cls(**(kwargs or {}))
    except UserError:
        raise
    except Exception as error:
        raise FamilyError(
            f"family {target!r} could not be built from {dict(kwargs or {})}: "
            f"{type(error).__name__}: {error}"
        ) from error
    missing = [name for name in _MEMBERS if not hasattr(family, name)]
    if missing:
        raise FamilyError(
            f"{target!r} is not a task family: it lacks {', '.join(missing)}; "
            "see TaskFamily in tasks/family.py for what is expected"
        )
    return packed(family)


_MEMBERS = (
    *("name", "observation_space", "action_space", "episode_len", "tasks", "make_env"),
    *("make_vector_env", "random_return", "optimal_return", "optimal_actions"),
)


def _import_class(target: str) -> Any:
    try:
        return import_object(target)
    except ImportPathError as error:
        raise FamilyError(
            f"family.target must be an import path such as 'tasks.darkroom:DarkRoomFamily': {error}"
        ) from error
