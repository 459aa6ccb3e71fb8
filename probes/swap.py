"""Latent swap: give an agent on task A the latents of the agent on task B, and see where it goes.

The control `shuffled` of evaluation hands latents of other tasks on at every border; here it is
done once, at one border, between two known tasks, so that what the latents say can be followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch

from ad.controls import InterferedStudent
from ad.policy import ContextPolicy
from ad.student import CADStudent, StudentState
from nets.regions import Regions
from nets.spaces import FieldSpec
from probes.traces import Trace, cells_of, goal_cells, trace
from tasks.family import Task, TaskFamily

Pair = tuple[Task, Task]
KINDS = ("own", "swapped")


class LatentSwap(InterferedStudent):
    """A student whose streams exchange their latents once.

    Args:
        student: The student.
        partners: (n,) stream whose latents a stream is given.
        after: Regions after which that happens; 0 never.
    """

    def __init__(self, student: CADStudent, partners: np.ndarray, after: int) -> None:
        super().__init__(student)
        self.partners = torch.from_numpy(np.asarray(partners))
        self.after = after

    def start(self, n: int) -> StudentState:
        """Begin with no region closed."""
        self.closed = 0
        return self.student.start(n)

    def border(self, region: Regions, state: StudentState) -> StudentState:
        """Remember the region, or at the one border the partner's."""
        latents = self.student.compress(region)
        self.closed += 1
        if self.closed == self.after:
            values = latents.values[self.partners.to(latents.values.device)]
            latents = replace(latents, values=values)
        return self.student.remember(latents, state)


@dataclass
class Swap:
    """Two rollouts of the same streams and seeds, equal until the border of the exchange.

    Streams: first those on A of every pair (pairs x seeds), then those on B in the same order.
    Both directions of a pair are exchanged, so each stream has an own and another task.

    Attributes:
        pairs: The tasks A and B.
        n_seeds: Streams per task of a pair.
        after: Regions before the exchange.
        region_len: Steps in a region.
        episode_len: Longest episode.
        traces: By kind: `own` latents all along, `swapped` at the border.
        own_goal: (n,) cell of each stream's goal; None where tasks have no goal cell.
        other_goal: (n,) cell of the goal of the task whose latents it is given.
        spec: The observation field.
    """

    pairs: list[Pair]
    n_seeds: int
    after: int
    region_len: int
    episode_len: int
    traces: dict[str, Trace]
    own_goal: np.ndarray | None
    other_goal: np.ndarray | None
    spec: FieldSpec

    @property
    def at_step(self) -> int:
        """The step at which the exchanged latents are first used."""
        return self.after * self.region_len

    def at_goals(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Return (T, n) bool: at the own goal, at the other task's goal."""
        cells = cells_of(self.traces[kind].next_observations, self.spec)
        assert cells is not None
        return cells == self.own_goal, cells == self.other_goal

    def by_region(self) -> list[dict[str, Any]]:
        """Return what happened per region, before and after.

        Rows: latents; block, the region counted from the exchange (0 is the first after it); shares
        of steps at the own and the other goal; shares of streams that were there at least once;
        mean reward of a step.
        """
        return [{"latents": k, **row} for k in KINDS for row in self._blocks(k, self.region_len)]

    def by_episode(self) -> list[dict[str, Any]]:
        """The same per `episode_len` steps: episodes, where all have that length."""
        return [{"latents": k, **row} for k in KINDS for row in self._blocks(k, self.episode_len)]

    def by_pair(self) -> list[dict[str, Any]]:
        """Rows per pair: shares of steps at goals in the region after the exchange."""
        if self.own_goal is None:
            return []
        window = slice(self.at_step, self.at_step + self.region_len)
        rows = []
        for p, (a, b) in enumerate(self.pairs):
            row: dict[str, Any] = {"a": a.name, "b": b.name}
            for kind in KINDS:
                for place, at in zip(("own", "other"), self.at_goals(kind), strict=True):
                    row[f"{kind}_latents_at_{place}_goal"] = float(
                        at[window][:, self._of(p)].mean()
                    )
            rows.append(row)
        return rows

    def occupancy(self, kind: str, pair: int) -> np.ndarray | None:
        """Return how often each cell was visited on A of a pair in the region after the exchange.

        Shares of steps, in the shape of the observation's axes; None unless there are two.
        """
        if len(self.spec.n_classes) != 2:
            return None
        seen = self.traces[kind].next_observations[self.at_step : self.at_step + self.region_len]
        cells = cells_of(seen[:, self._of(pair)[: self.n_seeds]], self.spec)
        assert cells is not None
        counts = np.bincount(cells.ravel(), minlength=int(np.prod(self.spec.n_classes)))
        return counts.reshape(self.spec.n_classes) / counts.sum()

    def _of(self, pair: int) -> np.ndarray:
        on_a = np.arange(self.n_seeds) + pair * self.n_seeds
        return np.concatenate([on_a, on_a + len(self.pairs) * self.n_seeds])

    def _blocks(self, kind: str, length: int) -> list[dict[str, Any]]:
        rewards = self.traces[kind].rewards
        own, other = self.at_goals(kind) if self.own_goal is not None else (None, None)
        rows = []
        for start in range(self.at_step % length, len(rewards) - length + 1, length):
            steps = slice(start, start + length)
            rows.append(
                {
                    "block": (start - self.at_step) // length,
                    "at_own_goal": None if own is None else float(own[steps].mean()),
                    "at_other_goal": None if other is None else float(other[steps].mean()),
                    "reached_own_goal": None if own is None else float(own[steps].any(0).mean()),
                    "reached_other_goal": (
                        None if other is None else float(other[steps].any(0).mean())
                    ),
                    "reward": float(rewards[steps].mean()),
                }
            )
        return rows


def draw_pairs(tasks: Sequence[Task], n_pairs: int, seed: int) -> list[Pair]:
    """Return up to `n_pairs` different pairs of different tasks."""
    every = list(combinations(tasks, 2))
    order = np.random.default_rng(seed).permutation(len(every))[:n_pairs]
    return [every[i] for i in order]


def swap_latents(
    model: CADStudent,
    family: TaskFamily,
    pairs: Sequence[Pair],
    spec: FieldSpec,
    *,
    n_seeds: int,
    after: int,
    n_regions_after: int,
    temperature: float,
    seed: int,
    device: torch.device | str = "cpu",
) -> Swap:
    """Act on both tasks of every pair, once with own latents, once exchanged after some regions.

    Args:
        model: The student.
        family: Makes the environments.
        pairs: Tasks A and B.
        spec: The observation field.
        n_seeds: Streams per task of a pair.
        after: Regions before the exchange.
        n_regions_after: Regions acted on from there.
        temperature: Of the sampled actions.
        seed: Of environments and sampling; the same in both rollouts.
        device: Where the model runs.
    """
    ours = [a for a, _ in pairs for _ in range(n_seeds)]
    theirs = [b for _, b in pairs for _ in range(n_seeds)]
    streams = [*ours, *theirs]
    partners = np.roll(np.arange(len(streams)), len(ours))
    n_steps = (after + n_regions_after) * model.region_len
    traces = {}
    for kind, border in zip(KINDS, (0, after), strict=True):
        swapping: Any = LatentSwap(model, partners, border)
        policy = ContextPolicy(swapping, temperature=temperature, device=device)
        traces[kind] = trace(policy, family, streams, n_steps=n_steps, seed=seed)
    goals = goal_cells(family.tasks(), spec)
    own = None if goals is None else np.array([goals[task.index] for task in streams])
    other = None if own is None else own[partners]
    lengths = (after, model.region_len, family.episode_len)
    return Swap(list(pairs), n_seeds, *lengths, traces, own, other, spec)


def furthest_pair(pairs: Sequence[Pair], spec: FieldSpec, goals: dict[int, int]) -> int:
    """Return the number of the pair whose goals lie furthest apart, which is seen best."""
    cells = {index: np.array(np.unravel_index(c, spec.n_classes)) for index, c in goals.items()}
    distances = [np.abs(cells[a.index] - cells[b.index]).sum() for a, b in pairs]
    return int(np.argmax(distances))
