"""One family made of several whose spaces are equal, so that one student learns them all.

Every task stays what it is in the family it is from: its environments, references, optimal actions
and searches are that family's. What needs the tasks of its streams, such as a source of histories,
is handed those of one family at a time by `members_of`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from base.seeding import derive
from tasks.family import (
    Expert,
    FamilyError,
    Task,
    TaskFamily,
    expert_of,
    information_bits,
    load_family,
    optimal_actions_at,
)
from tasks.vector import final_observations

KEYS = {"target", "kwargs", "name"}


@dataclass(frozen=True)
class Member:
    """The streams or tasks of one family of a mixture.

    Attributes:
        family: It.
        tasks: `(k,)` tasks of its own numbering.
        places: `(k,)` int64, where they stand among those that were asked about.
        offset: Index of its first task in the mixture.
    """

    family: TaskFamily
    tasks: tuple[Task, ...]
    places: np.ndarray
    offset: int = 0

    def own(self, indices: Sequence[int]) -> tuple[int, ...]:
        """Those of the mixture's task indices that are the member's, in its own numbering."""
        n = len(self.family.tasks())
        return tuple(i - self.offset for i in indices if 0 <= i - self.offset < n)


def members_of(family: TaskFamily, tasks: Sequence[Task]) -> list[Member]:
    """The families that `tasks` are from; of any but a mixture, itself and all of them."""
    if isinstance(family, MixtureFamily):
        return family.members(tasks)
    return [Member(family, tuple(tasks), np.arange(len(tasks)))]


class MixtureFamily:
    """The tasks of several families, one family after the other."""

    def __init__(self, families: Sequence[Mapping[str, Any]], name: str = "mixture") -> None:
        """Put families together.

        Args:
            families: Of each `target`, its `kwargs` and, to tell two of one kind apart, a `name`.
            name: Of the whole.

        Raises:
            FamilyError: One cannot be made, their spaces differ, or two have one name.
        """
        if isinstance(families, str | Mapping) or len(families) < 2:
            raise FamilyError(
                "a mixture needs a list of at least two families, such as "
                "[{target: 'module:Class', kwargs: {...}}, ...], got " + repr(families)
            )
        self.name = name
        self.families = [_loaded(entry) for entry in families]
        names = [
            str(entry.get("name") or family.name)
            for entry, family in zip(families, self.families, strict=True)
        ]
        if repeated := [each for each in names if names.count(each) > 1]:
            raise FamilyError(
                f"two families of the mixture are called {repeated[0]!r}; give each a name of its "
                "own: {target: ..., name: ...}"
            )
        first = self.families[0]
        self.observation_space, self.action_space = first.observation_space, first.action_space
        for own, family in zip(names, self.families, strict=True):
            for which in ("observation_space", "action_space"):
                expected, found = getattr(first, which), getattr(family, which)
                if not _equal(expected, found):
                    raise FamilyError(
                        f"families of a mixture must have equal spaces, but the {which} of "
                        f"{names[0]!r} is {expected} and that of {own!r} {found}; choose sizes "
                        "that agree, or wrap the environments"
                    )
        self.episode_len = max(family.episode_len for family in self.families)
        sizes = [len(family.tasks()) for family in self.families]
        self._offsets = np.concatenate([[0], np.cumsum(sizes)])
        self._tasks = tuple(
            Task(int(offset) + task.index, f"{own}: {task.name}", task.params, own)
            for own, family, offset in zip(names, self.families, self._offsets, strict=False)
            for task in family.tasks()
        )

    @property
    def information_bits(self) -> float:
        """Bits that say which family, every task as likely, and then which of its tasks."""
        sizes = np.diff(self._offsets)
        shares = sizes / sizes.sum()
        bits = [information_bits(family) for family in self.families]
        return float(shares @ (np.array(bits) - np.log2(shares)))

    def tasks(self) -> Sequence[Task]:
        """All tasks; `group` is the name of the family they are from."""
        return self._tasks

    def members(self, tasks: Sequence[Task]) -> list[Member]:
        """The families that `tasks` are from, with those tasks as they number them."""
        indices = np.array([task.index for task in tasks], dtype=np.int64)
        return [
            Member(
                family, tuple(family.tasks()[i - offset] for i in indices[places]), places, offset
            )
            for family, offset, places in self._parts(indices)
        ]

    def _parts(self, indices: np.ndarray) -> list[tuple[TaskFamily, int, np.ndarray]]:
        """Families of the tasks at `indices` `(n,)`, their offsets, and which tasks those are."""
        whose = np.searchsorted(self._offsets, indices, side="right") - 1
        return [
            (self.families[k], int(self._offsets[k]), np.flatnonzero(whose == k))
            for k in np.unique(whose)
        ]

    def _own(self, task: Task) -> tuple[TaskFamily, Task]:
        (member,) = self.members([task])
        return member.family, member.tasks[0]

    def make_env(self, task: Task, render_mode: str | None = None) -> gymnasium.Env:
        """One environment of the task's family."""
        family, own = self._own(task)
        return family.make_env(own, render_mode)

    def make_vector_env(self, tasks: Sequence[Task]) -> VectorEnv:
        """The vector environments of the families side by side, one copy per entry."""
        return MixtureVectorEnv(self.members(tasks), self.observation_space, self.action_space)

    def random_return(self, task: Task) -> float:
        """As the task's family says."""
        family, own = self._own(task)
        return family.random_return(own)

    def optimal_return(self, task: Task) -> float | None:
        """As the task's family says."""
        family, own = self._own(task)
        return family.optimal_return(own)

    def optimal_actions(
        self,
        tasks: Sequence[Task],
        observations: np.ndarray,
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        """As the tasks' families say; raises FamilyError where one of them knows none."""
        indices = np.array([task.index for task in tasks], dtype=np.int64)
        return self.optimal_actions_by_index(indices, observations, rng)

    def optimal_actions_by_index(
        self, indices: np.ndarray, observations: np.ndarray, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """As `optimal_actions`, of the tasks at `indices` `(n,)`."""
        parts = self._parts(indices)
        found = [
            optimal_actions_at(family, indices[places] - offset, observations[places], rng)
            for family, offset, places in parts
        ]
        return joined([places for _, _, places in parts], found)

    def expert(self, tasks: Sequence[Task]) -> Expert:
        """Every family's own expert in its streams."""
        return by_member(self, tasks, lambda member: expert_of(member.family, member.tasks))


class MixtureVectorEnv(VectorEnv):
    """Vector environments of several families, each in its places; autoreset SAME_STEP."""

    metadata: ClassVar[dict[str, Any]] = {
        "render_modes": [],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        members: Sequence[Member],
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
    ) -> None:
        """Make the members' environments, of these spaces."""
        self.num_envs = sum(len(member.places) for member in members)
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space = batch_space(observation_space, self.num_envs)
        self.action_space = batch_space(action_space, self.num_envs)
        self._places = [member.places for member in members]
        self._envs = [member.family.make_vector_env(member.tasks) for member in members]

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode everywhere; a seed is a different one for every member."""
        observations = []
        for k, (env, places) in enumerate(zip(self._envs, self._places, strict=True)):
            own: Any = seed
            if isinstance(seed, list):
                own = [seed[place] for place in places]
            elif seed is not None:
                own = derive(int(seed), "member", k)
            observations.append(env.reset(seed=own, options=options)[0])
        return joined(self._places, observations), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step every member; see `TaskFamily.make_vector_env` for the ends."""
        actions = np.asarray(actions)
        results = [
            env.step(actions[places]) for env, places in zip(self._envs, self._places, strict=True)
        ]
        observations, rewards, terminated, truncated = (
            joined(self._places, [np.asarray(result[i]) for result in results]) for i in range(4)
        )
        ended, infos = terminated | truncated, {}
        if ended.any():
            true_next = [final_observations(result[0], result[4]) for result in results]
            infos = {"final_obs": joined(self._places, true_next), "_final_obs": ended}
        return observations, rewards, terminated, truncated, infos

    def close(self, **kwargs: Any) -> None:
        """Close every member's."""
        for env in self._envs:
            env.close(**kwargs)


class ByMember:
    """Whoever acts in the streams of one family each, as one who acts in all of them.

    Policies, experts and labellers alike: what is given per stream is shared out, what comes back
    is put together.
    """

    def __init__(self, members: Sequence[Member], actors: Sequence[Any]) -> None:
        """Let `actors` act in the places of `members`."""
        self.members, self.actors = list(members), list(actors)

    def reset(self, n: int | None = None, seed: int = 0) -> None:
        """Begin: an expert without arguments, a policy with its number of streams and a seed."""
        for k, (member, actor) in enumerate(zip(self.members, self.actors, strict=True)):
            if n is None:
                actor.reset()
            else:
                actor.reset(len(member.places), derive(seed, "member", k))

    def act(self, observations: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Actions `(n, ...)`; only experts take a generator."""
        return self._asked("act", observations, *([] if rng is None else [rng]))

    def probabilities(self, observations: np.ndarray) -> np.ndarray:
        """Probabilities `(n, P)`, of labellers."""
        return self._asked("probabilities", observations)

    def observe(self, *fields: np.ndarray) -> None:
        """Take in a step, of policies and experts."""
        self._told("observe", fields)

    def update(self, *fields: np.ndarray, **named: np.ndarray) -> None:
        """Take in a step, of labellers."""
        self._told("update", fields, named)

    def _asked(self, what: str, observations: np.ndarray, *rest: Any) -> np.ndarray:
        pairs = zip(self.members, self.actors, strict=True)
        answers = [getattr(actor, what)(observations[m.places], *rest) for m, actor in pairs]
        return joined([member.places for member in self.members], answers)

    def _told(
        self,
        what: str,
        fields: Sequence[np.ndarray],
        named: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        for member, actor in zip(self.members, self.actors, strict=True):
            own = {key: field[member.places] for key, field in (named or {}).items()}
            getattr(actor, what)(*(field[member.places] for field in fields), **own)


def by_member(family: TaskFamily, tasks: Sequence[Task], make: Callable[[Member], Any]) -> Any:
    """What `make` makes of every family that `tasks` are from, as one; itself where it is one."""
    members = members_of(family, tasks)
    actors = [make(member) for member in members]
    if len(actors) == 1 and not isinstance(family, MixtureFamily):
        return actors[0]
    return ByMember(members, actors)


def joined(places: Sequence[np.ndarray], parts: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of `parts` `(k, ...)` put where `places` `(k,)` say, `(n, ...)`."""
    arrays = [np.asarray(part) for part in parts]
    size = sum(len(own) for own in places)
    whole = np.empty((size, *arrays[0].shape[1:]), np.result_type(*arrays))
    for own, part in zip(places, arrays, strict=True):
        whole[own] = part
    return whole


def _loaded(entry: Any) -> TaskFamily:
    if not (isinstance(entry, Mapping) and "target" in entry and set(entry) <= KEYS):
        raise FamilyError(
            "a family of a mixture must be {target: 'module:Class', kwargs: {...}, name: ...}, got "
            f"{entry!r}"
        )
    return load_family(str(entry["target"]), entry.get("kwargs"))


def _equal(one: Any, other: Any) -> bool:
    """Whether two spaces are, part by part where they are packed."""
    return one == other and getattr(one, "parts", None) == getattr(other, "parts", None)
