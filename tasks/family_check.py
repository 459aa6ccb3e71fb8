"""Does a family keep what `TaskFamily` promises? The first breach raises, or all are collected.

`check_family` is one look before any work: it plays a few of the tasks for at most `MOST_STEPS`
steps. What takes longer to show is noticed where it happens: an endless episode by whoever plays
it, a reward that is no number likewise. `tasks.family_findings` looks longer, with the same checks.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from base.errors import UserError
from base.findings import Finding, Status
from tasks.family import FamilyError, Task, TaskFamily

MOST_STEPS = 200
MOST_TASKS = 10**6
N_PLAYED = 3
SEE = "; see TaskFamily in tasks/family.py for what is expected."


@dataclass
class Findings:
    """What was found of a family, in the order in which it was looked at.

    Attributes:
        raises: Whether a failure is raised rather than kept.
        tell: Called with every finding at once.
        found: All of them; of one subject the first failure alone.
    """

    raises: bool = False
    tell: Callable[[Finding], None] = lambda finding: None
    found: list[Finding] = field(default_factory=list)

    @contextlib.contextmanager
    def of(self, subject: str) -> Iterator[None]:
        """Take what a check raises as a failure of its subject; what follows goes on."""
        try:
            yield
        except UserError as error:
            if self.raises:
                raise
            text = str(error).removesuffix(SEE).removesuffix(".")
            if text.startswith("family ") and ": " in text:
                text = text.partition(": ")[2]
            self._add("failure", subject, text)

    def ok(self, subject: str, text: str) -> None:
        """Keep that a subject is as it should be, unless it has failed."""
        self._add("ok", subject, text)

    def warn(self, subject: str, text: str) -> None:
        """Keep what may be meant, but probably is not."""
        self._add("warning", subject, text)

    def failed(self, *subjects: str) -> bool:
        """Whether one of the subjects, or without any whatever was looked at, has failed."""
        return any(
            finding.status == "failure" and (not subjects or finding.subject in subjects)
            for finding in self.found
        )

    def _add(self, status: Status, subject: str, text: str) -> None:
        if not self.failed(subject):
            self.found.append(Finding(status, subject, text))
            self.tell(self.found[-1])


def check_family(family: TaskFamily) -> None:
    """Refuse a family that does not keep the contract of `TaskFamily`.

    Raises:
        FamilyError: Naming class and member, what was expected and what came.
    """
    checked = Contract(family, Findings(raises=True))
    checked.facts()
    tasks = checked.tasks()
    some = some_of(tasks, N_PLAYED)
    checked.bits()
    checked.references(some)
    checked.play(some)


def some_of(tasks: Sequence[Task], n: int) -> list[Task]:
    """At most n of the tasks, evenly spread, the first and the last among them."""
    return [tasks[i] for i in sorted(set(np.linspace(0, len(tasks) - 1, n).astype(int).tolist()))]


class Contract:
    """A family whose members are called one after the other; a failure names the member."""

    def __init__(self, family: TaskFamily, findings: Findings) -> None:
        """Check nothing yet; failures go to `findings`, which keeps or raises them."""
        self.family, self.findings, self.of = family, findings, findings.of

    def fail(self, member: str, expected: str, got: Any) -> FamilyError:
        """What is raised of a member that is not as expected."""
        shown = " ".join(repr(got).split())
        shown = shown if len(shown) < 80 else type(got).__name__
        return FamilyError(
            f"family {type(self.family).__name__}: {member} must be {expected}, got {shown}{SEE}"
        )

    def call(self, member: str, *arguments: Any) -> Any:
        """What a member returns; what it raises besides a FamilyError names it."""
        try:
            return getattr(self.family, member)(*arguments)
        except (FamilyError, MemoryError):
            raise
        except Exception as error:
            raise self._raised(member, error) from error

    def _raised(self, member: str, error: Exception) -> FamilyError:
        return FamilyError(
            f"family {type(self.family).__name__}: {member} raised {type(error).__name__}: {error}"
        )

    def facts(self) -> None:
        """Check name and episode length; spaces are checked by who encodes them."""
        name, length = self.family.name, self.family.episode_len
        with self.of("family"):
            if not (isinstance(name, str) and name):
                raise self.fail("name", "a word", name)
            if not _is_whole(length) or length < 1:
                raise self.fail("episode_len", "a whole number of at least 1", length)

    def tasks(self) -> Sequence[Task]:
        """Check that there are tasks, told apart by their parameters and numbered in order.

        Returns:
            The tasks; none where they have failed.
        """
        with self.of("tasks"):
            return self._tasks()
        return []

    def _tasks(self) -> Sequence[Task]:
        tasks = self.call("tasks")
        if not (isinstance(tasks, Sequence) and len(tasks)):
            raise self.fail("tasks()", "a list of tasks, not empty", tasks)
        if len(tasks) > MOST_TASKS:
            raise self.fail("tasks()", f"at most {MOST_TASKS} tasks", len(tasks))
        for index, task in enumerate(tasks):
            if not isinstance(task, Task):
                raise self.fail(f"tasks()[{index}]", "a Task", task)
            if task.index != index:
                raise self.fail(f"tasks()[{index}].index", str(index), task.index)
        for task in tasks:
            try:
                json.dumps(task.params, allow_nan=False)
            except (TypeError, ValueError):
                member = f"tasks()[{task.index}].params"
                raise self.fail(member, "JSON values by name", task.params) from None
        return tasks

    def references(self, tasks: Sequence[Task]) -> None:
        """Check that references are finite numbers."""
        for task in tasks:
            with self.of("random"):
                random = self.call("random_return", task)
                if not _is_finite(random):
                    raise self.fail("random_return", "a finite number", random)
            with self.of("optimal"):
                best = self.call("optimal_return", task)
                if best is not None and not _is_finite(best):
                    raise self.fail("optimal_return", "a finite number or None", best)

    def bits(self) -> None:
        """Check that the bits which name a task are a number of them, if the family states it."""
        with self.of("bits"):
            stated = getattr(self.family, "information_bits", None)
            if stated is not None and not (_is_finite(stated) and stated >= 0):
                raise self.fail("information_bits", "a finite number from 0", stated)

    def play(self, tasks: Sequence[Task]) -> None:
        """Check the vector environment by playing it at random."""
        with self.of("vector env"):
            env = self.made(tasks)
            try:
                self._play(env, tasks)
            except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
                raise self._raised("make_vector_env(tasks)", error) from error
            finally:
                env.close()

    def made(self, tasks: Sequence[Task]) -> Any:
        """The vector environment of the tasks; raises FamilyError where it is none."""
        env = self.call("make_vector_env", list(tasks))
        if any(not hasattr(env, name) for name in ("reset", "step", "close")):
            raise self.fail("make_vector_env(tasks)", "a VectorEnv", env)
        return env

    def _play(self, env: Any, tasks: Sequence[Task]) -> None:
        where, n = "make_vector_env(tasks)", len(tasks)
        if getattr(env, "num_envs", None) != n:
            raise self.fail(f"{where}.num_envs", str(n), getattr(env, "num_envs", None))
        mode = (getattr(env, "metadata", None) or {}).get("autoreset_mode")
        with self.of("autoreset"):
            if mode != AutoresetMode.SAME_STEP:
                expected = "AutoresetMode.SAME_STEP"
                raise self.fail(f"{where}.metadata['autoreset_mode']", expected, mode)
        rng = np.random.default_rng(0)
        observations, _ = env.reset(seed=0)
        elapsed = np.zeros(n, dtype=np.int64)
        with self.of("observations"):
            self._observations("reset", observations, n)
        if not self.findings.failed("observations"):
            with self.of("optimal"):
                self._optimal_actions(tasks, observations)
        for _ in range(min(self.family.episode_len + 1, MOST_STEPS)):
            actions = sample(self.family.action_space, n, rng)
            observations, rewards, terminated, truncated, infos = env.step(actions)
            elapsed += 1
            with self.of("observations"):
                self._observations("step", observations, n)
            with self.of("rewards"):
                self._rewards(rewards, n)
            with self.of("ends"):
                self._ends(terminated, truncated, n)
            if self.findings.failed("ends"):
                return
            ended = np.asarray(terminated) | np.asarray(truncated)
            if ended.any() and not self.findings.failed("autoreset"):
                with self.of("terminal obs"):
                    self._final(infos, ended)
            with self.of("episode bound"):
                if (elapsed > self.family.episode_len).any():
                    raise FamilyError(too_long(self.family))
            elapsed[ended] = 0

    def _observations(self, call: str, observations: Any, n: int) -> None:
        space = self.family.observation_space
        shape = (n, *(space.shape or ()))
        member = f"make_vector_env(tasks).{call}"
        if not isinstance(observations, np.ndarray) or observations.shape != shape:
            found = getattr(observations, "shape", observations)
            raise self.fail(member, f"observations of shape {shape}", found)
        for observation in observations:
            if not _holds(space, observation):
                raise self.fail(member, f"observations of {space}", observation)

    def _rewards(self, rewards: Any, n: int) -> None:
        if np.shape(rewards) != (n,) or not np.isfinite(np.asarray(rewards, np.float64)).all():
            member = "make_vector_env(tasks).step"
            raise self.fail(member, f"rewards of shape {(n,)}, finite", rewards)

    def _ends(self, terminated: Any, truncated: Any, n: int) -> None:
        for name, flags in (("terminated", terminated), ("truncated", truncated)):
            if np.shape(flags) != (n,) or np.asarray(flags).dtype != bool:
                member = "make_vector_env(tasks).step"
                raise self.fail(member, f"{name} of shape {(n,)}, bool", flags)

    def _final(self, infos: Any, ended: np.ndarray) -> None:
        marked = infos.get("_final_obs") if isinstance(infos, Mapping) else None
        member = "make_vector_env(tasks).step"
        if marked is None or not np.array_equal(np.asarray(marked, dtype=bool), ended):
            expected = "infos with final_obs, and _final_obs where an episode ended"
            raise self.fail(member, expected, marked)
        for stream in np.flatnonzero(ended):
            final = np.asarray(infos["final_obs"][stream])
            if not _holds(self.family.observation_space, final):
                raise self.fail(f"{member}: final_obs", str(self.family.observation_space), final)

    def _optimal_actions(self, tasks: Sequence[Task], observations: np.ndarray) -> None:
        space, n = self.family.action_space, len(tasks)
        try:
            actions = self.call("optimal_actions", list(tasks), observations)
        except FamilyError as error:
            if isinstance(error.__cause__, Exception):  # not that it knows none
                raise
            return
        shape = (n, *(space.shape or ()))
        if np.shape(actions) != shape or not all(_holds(space, action) for action in actions):
            raise self.fail("optimal_actions", f"{shape} of {space}", actions)


def too_long(family: TaskFamily) -> str:
    """What is said of an episode that goes on beyond its family's `episode_len`."""
    return (
        f"family {type(family).__name__}: an episode has gone on for more than episode_len = "
        f"{family.episode_len} steps; truncate it there, or state the true episode_len."
    )


def sample(space: Any, n: int, rng: np.random.Generator) -> np.ndarray:
    """Random actions `(n, ...)` of a space."""
    space.seed(int(rng.integers(2**31)))
    return np.stack([np.asarray(space.sample()) for _ in range(n)])


def _holds(space: Any, value: Any) -> bool:
    """Whether a space holds a value, up to its dtype; bounds of real numbers are kept loosely."""
    value = np.asarray(value)
    if value.shape != tuple(space.shape or ()) or value.dtype.kind not in "biuf":
        return False
    if np.issubdtype(space.dtype, np.floating):
        return bool(np.isfinite(value).all())
    return value.dtype.kind != "f" and bool(space.contains(value.astype(space.dtype)))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    kinds = int | float | np.integer | np.floating
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
