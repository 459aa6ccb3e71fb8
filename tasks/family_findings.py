"""A longer look at a family, before hours are spent on it: everything found, not the first breach.

What a family promises is checked by `tasks.family_check`. Here episodes are played besides: equal
seeds, references against what is really earned, tasks that differ in nothing, speed.
"""

import contextlib
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.family import FamilyError, Task, TaskFamily, expert_of, information_bits
from tasks.family_check import MOST_STEPS, Contract, Findings, sample, some_of, too_long
from tasks.posterior import has_posterior
from tasks.splits import FEW_TASKS, Split, few_tasks
from tasks.vector import take_step

N_TASKS, N_STREAMS = 8, 64
"""Of what is played: tasks, and streams of all of them together."""
SECONDS = 5.0
"""At most, of each of the measurements that play episodes."""
STEPS_ALIKE = 1000
"""Steps in which tasks must differ somewhere."""
DOUBTFUL = 5.0
"""Standard errors between a reference and what was earned."""
UNSEEN_AT_RANDOM, UNSEEN_BY_EXPERT = 0.08, 0.02
"""Of the span from random to optimal: what rare rewards may have made, unseen in these episodes."""


@dataclass
class Look:
    """What the longer look at a family gave besides its findings.

    Attributes:
        tasks: All tasks; none where they cannot be listed.
        steps_per_s: Environment steps a second with random actions; nan where it was not measured.
    """

    tasks: Sequence[Task]
    steps_per_s: float = float("nan")


def look_at(family: TaskFamily, findings: Findings, *, by_source: bool = False) -> Look:
    """Check all that a family promises and all that a training would stumble over.

    Args:
        family: Any.
        findings: What is found goes there.
        by_source: Whether returns are to be normalised by what sources reach.
    """
    contract = Contract(family, findings)
    contract.facts()
    tasks = contract.tasks()
    look = Look(tasks)
    if findings.failed("family", "tasks"):
        return look
    findings.ok("family", f"{family.name}, episodes of at most {family.episode_len} steps")
    findings.ok("tasks", f"{len(tasks)}, numbered in order, parameters are JSON")
    contract.bits()
    if not findings.failed("bits"):
        findings.ok("bits", f"{information_bits(family):.3g} name a task")
    some = some_of(tasks, N_TASKS)
    contract.references(some)
    contract.play(some_of(tasks, 3))
    if findings.failed("vector env", "observations", "rewards", "ends", "optimal", "random"):
        return look
    played = _Played(contract, some, by_source=by_source)
    played.same_again()
    played.alike()
    if not findings.failed("autoreset", "terminal obs", "episode bound"):
        look.steps_per_s = played.at_random()
        played.optimally()
    return look


def look_at_split(tasks: Sequence[Task], split: Split, findings: Findings) -> None:
    """Tell sizes of a split, and whether there are enough tasks to learn from."""
    sizes = len(split.train), len(split.validation), len(split.test)
    findings.ok("split", "{} train, {} validation, {} test".format(*sizes))
    if told := few_tasks(split):
        findings.warn("train tasks", told)
    else:
        findings.ok("train tasks", f"{len(split.train)}, at least {FEW_TASKS}")


def look_at_params(tasks: Sequence[Task], findings: Findings) -> None:
    """Tell tasks of equal parameters: they are one task, and leak where a split parts them."""
    seen: dict[str, Task] = {}
    pairs = [(seen.setdefault(task.key(), task), task) for task in tasks]
    equal = [(first, task) for first, task in pairs if first is not task]
    if not equal:
        findings.ok("parameters", "no two tasks have the same")
        return
    first, task = equal[0]
    with findings.of("parameters"):
        raise FamilyError(
            f"{len(equal)} of {len(tasks)} tasks repeat the parameters of another, such as "
            f"tasks {first.index} and {task.index} ({task.name}), which are one task and would "
            "be trained and tested on; list every value once"
        )


def has_no_expert(family: TaskFamily, tasks: Sequence[Task]) -> bool:
    """Whether histories can only come from who learns: no optimum, controller or posterior."""
    known = any(family.optimal_return(task) is not None for task in tasks)
    return not (known or hasattr(family, "controller") or has_posterior(family))


class _Played:
    """Episodes of a few tasks, and what they tell."""

    def __init__(self, contract: Contract, tasks: Sequence[Task], *, by_source: bool) -> None:
        self.by_source = by_source
        self.contract, self.family, self.findings = contract, contract.family, contract.findings
        self.tasks = list(tasks)
        copies = max(1, N_STREAMS // len(self.tasks))
        self.streams = [task for task in self.tasks for _ in range(copies)]

    def same_again(self) -> None:
        """Equal seeds must give equal episodes."""
        with self.findings.of("determinism"):
            first, again = (self._recorded() for _ in range(2))
            for step, pair in enumerate(zip(first, again, strict=True)):
                names = ("observations", "rewards", "terminated", "truncated")
                for name, one, other in zip(names, *pair, strict=True):
                    if not np.array_equal(one, other, equal_nan=True):
                        raise FamilyError(
                            f"{name} of step {step} differ between two runs of one seed: draw "
                            "from self.np_random, which reset(seed=...) seeds, and from nothing "
                            "else"
                        )
        self.findings.ok("determinism", "equal seeds and actions give equal episodes")

    def _recorded(self) -> list[tuple[Any, ...]]:
        rng, n = np.random.default_rng(1), len(self.tasks)
        nothing = np.zeros(n)
        with contextlib.closing(self.contract.made(self.tasks)) as env:
            observations, _ = env.reset(seed=1)
            steps: list[tuple[Any, ...]] = [(observations.copy(), nothing, nothing, nothing)]
            for _ in range(MOST_STEPS):
                result = env.step(sample(self.family.action_space, n, rng))
                steps.append(tuple(np.array(values) for values in result[:4]))
        return steps

    def alike(self) -> None:
        """Warn where the same actions and seed lead to the same in every task."""
        if len(self.tasks) == 1:
            return
        with self.findings.of("differences"):
            streams = zip(*(self._alone(task) for task in self.tasks), strict=True)
            for step, results in enumerate(itertools.islice(streams, STEPS_ALIKE)):
                if any(not _equal(results[0], other) for other in results[1:]):
                    text = f"tasks part within {step + 1} equal actions at the latest"
                    self.findings.ok("differences", text)
                    return
            self.findings.warn(
                "differences",
                f"{len(self.tasks)} tasks answered {STEPS_ALIKE} equal actions alike; does the "
                "environment use what is varied, or do random actions never meet it?",
            )

    def _alone(self, task: Task) -> Any:
        env = self.contract.call("make_env", task)
        rng, ended = np.random.default_rng(2), True
        while True:
            if ended:
                observation, _ = env.reset(seed=int(rng.integers(2**31)))
                yield np.array(observation), 0.0, False
            action = sample(self.family.action_space, 1, rng)[0]
            observation, reward, terminated, truncated, _ = env.step(action)
            ended = bool(terminated or truncated)
            yield np.array(observation), float(reward), ended

    def at_random(self) -> float:
        """Play the first episode of every stream at random; return environment steps a second."""
        rng, space = np.random.default_rng(3), self.family.action_space
        episodes = self._first_episodes(lambda _: sample(space, len(self.streams), rng))
        if episodes is None:
            return float("nan")
        self._told_ends(episodes)
        if episodes.over.all():
            self._against("random", episodes, self._best())
            if np.ptp(episodes.returns) == 0 and has_no_expert(self.family, self.tasks):
                self.findings.warn(
                    "learnable",
                    f"all {len(self.streams)} episodes of random actions earned "
                    f"{episodes.returns[0]:.3g}: whoever learns from nothing, such as PPO, learns "
                    "nothing of these; longer episodes, a denser reward or easier starts may help",
                )
        return episodes.steps_per_s

    def _best(self) -> list[float | None]:
        return [self.family.optimal_return(task) for task in self.tasks]

    def optimally(self) -> None:
        """Play the first episode of every stream by the expert, where there is one."""
        best = self._best()
        self._ordered(best)
        expert, rng = expert_of(self.family, self.streams), np.random.default_rng(4)
        try:
            expert.reset()
            episodes = self._first_episodes(lambda seen: expert.act(seen, rng), expert)
        except FamilyError as error:
            with self.findings.of("expert"):
                if isinstance(error.__cause__, Exception):
                    raise
            self.findings.ok("expert", "none: no row optimal, no style noise_expert")
            return
        if episodes is not None and episodes.over.all() and None not in best:
            self._against("expert", episodes, best)

    def _ordered(self, best: Sequence[float | None]) -> None:
        """Check that whoever acts optimally earns more than at random."""
        pairs = zip(self.tasks, best, strict=True)
        known = [(task, value) for task, value in pairs if value is not None]
        if not known and self.by_source:
            self.findings.ok("optimal", "not known; returns are normalised by the best source")
        elif not known:
            self.findings.warn("optimal", "not known; evaluate.normalise=source normalises tables")
        if not known:
            return
        with self.findings.of("optimal"):
            for task, value in known:
                if not (random := self.family.random_return(task)) < value:
                    raise FamilyError(
                        f"optimal_return of {task.name} is {value:.4g}, no more than its "
                        f"random_return {random:.4g}: nothing could be normalised by it"
                    )
        low, high = (f(value for _, value in known) for f in (min, max))
        self.findings.ok("optimal", f"return {_range(low, high)}, above random in every task")

    def _told_ends(self, episodes: "_Episodes") -> None:
        longest, most = int(episodes.lengths.max()), self.family.episode_len
        findings = self.findings
        findings.ok("autoreset", "SAME_STEP")
        findings.ok("observations", "in the observation space")
        findings.ok("rewards", f"finite, {_range(*episodes.rewards)} a step at random")
        if episodes.over.all():
            findings.ok("episode bound", f"longest of {len(self.streams)}: {longest} of {most}")
        if episodes.finals_are_resets and episodes.varied:
            told = "every final_obs is the reset observation, not what the last step led to"
            findings.warn("terminal obs", told)
        else:
            findings.ok("terminal obs", "final_obs where an episode ended")

    def _against(self, subject: str, episodes: "_Episodes", best: Sequence[float | None]) -> None:
        """Compare what was earned with what the family states, over all streams."""
        copies = len(self.streams) // len(self.tasks)
        low = np.array([self.family.random_return(task) for task in self.tasks])
        high = np.array([np.nan if value is None else value for value in best])
        member, slack, stated = {
            "random": ("random_return", UNSEEN_AT_RANDOM, low),
            "expert": ("optimal_return", UNSEEN_BY_EXPERT, high),
        }[subject]
        by_task = episodes.returns.reshape(-1, copies)
        error = float(by_task.std(axis=1).mean() / np.sqrt(by_task.size))
        span = float((high - low).mean())
        mean, told = float(by_task.mean()), float(stated.mean())
        earned = f"earned {mean:.3g} ± {error:.2g} in {by_task.size} episodes"
        with self.findings.of(subject):
            allowed = DOUBTFUL * error + slack * span + 1e-4 * abs(told)
            if np.isnan(span):
                allowed = DOUBTFUL * error or np.inf
            if abs(mean - told) > allowed:
                raise FamilyError(f"{earned}, but {member} says {told:.3g}")
        self.findings.ok(subject, f"{earned}, stated {told:.3g}")

    def _first_episodes(self, act: Any, expert: Any = None) -> "_Episodes | None":
        """Play until every stream has ended once; None, told of, where that takes too long."""
        what = "random_return" if expert is None else "optimal_return"
        with contextlib.closing(self.contract.made(self.streams)) as env:
            observations, _ = env.reset(seed=5)
            episodes = _Episodes(len(self.streams))
            while not episodes.over.all():
                actions = act(observations)
                began = time.perf_counter()
                following, rewards, true_next, terminated, truncated = take_step(env, actions)
                episodes.seconds += time.perf_counter() - began
                if expert is not None:
                    expert.observe(rewards, terminated, truncated, true_next)
                episodes.add(rewards, terminated | truncated, following, true_next)
                observations = following
                if episodes.n_steps > self.family.episode_len:
                    with self.findings.of("episode bound"):
                        raise FamilyError(too_long(self.family))
                    return None
                if episodes.seconds > SECONDS and not episodes.over.all():
                    self.findings.warn(
                        "slow",
                        f"{episodes.steps_per_s:.0f} env steps/s: episodes were not played to "
                        f"their end, so that {what} stays unchecked",
                    )
                    break
        return episodes


class _Episodes:
    """The first episode of each of n streams."""

    def __init__(self, n: int) -> None:
        self.returns, self.lengths = np.zeros(n), np.zeros(n, dtype=np.int64)
        self.over = np.zeros(n, dtype=bool)
        self.n_steps, self.seconds = 0, 0.0
        self.rewards = (np.inf, -np.inf)  # lowest and highest
        self.finals_are_resets, self.varied = True, False

    @property
    def steps_per_s(self) -> float:
        return self.n_steps * len(self.over) / max(self.seconds, 1e-9)

    def add(self, rewards: Any, ended: np.ndarray, following: Any, true_next: Any) -> None:
        self.n_steps += 1
        self.returns += np.where(self.over, 0.0, rewards)
        self.lengths += ~self.over
        self.rewards = min(self.rewards[0], rewards.min()), max(self.rewards[1], rewards.max())
        if ended.any() and not np.array_equal(following[ended], true_next[ended]):
            self.finals_are_resets = False
        self.varied |= len(np.unique(np.asarray(true_next), axis=0)) > 1
        self.over |= ended


def _equal(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one, other, strict=True))


def _range(low: float, high: float) -> str:
    return f"{low:.4g}" if low == high else f"{low:.4g} ... {high:.4g}"
