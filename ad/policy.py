"""One interface for whatever acts: student, teacher, baselines, random, optimal.

    policy.reset(n, seed)                      n streams begin with an empty context
    actions = policy.act(observations)         (n, ...) -> (n, ...)
    policy.observe(rewards, terminated, truncated, next_observations)    true ones at an end

An in-context policy fills a region step by step; when it is full, its model turns it into context
(latents, or raw tokens) and a new one begins. Shapes: n streams, L region length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ad.model import InContextModel
from base.seeding import derive
from histories.regions import MarkerRule, RegionCounter
from nets.regions import Regions, Steps
from tasks.family import Task, TaskFamily, expert_of


class Policy(Protocol):
    """Acts in n streams at once."""

    def reset(self, n: int, seed: int) -> None:
        """Begin n streams with nothing known."""
        ...

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Return one action per stream."""
        ...

    def observe(
        self,
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        next_observations: np.ndarray,
    ) -> None:
        """Take in what the actions led to; all (n, ...)."""
        ...


class FixedPolicy:
    """Common part of the policies that do not learn from what they see."""

    def observe(
        self,
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        next_observations: np.ndarray,
    ) -> None:
        """Learn nothing."""


class RandomPolicy(FixedPolicy):
    """Uniformly random actions of a family's action space."""

    def __init__(self, family: TaskFamily) -> None:
        self.space = family.action_space

    def reset(self, n: int, seed: int) -> None:
        """Seed the draws."""
        self.n = n
        self.space.seed(seed)

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Return random actions."""
        return np.stack([self.space.sample() for _ in range(self.n)])


class OptimalPolicy:
    """The family's own expert, which knows each stream's task."""

    def __init__(self, family: TaskFamily, tasks: Sequence[Task]) -> None:
        self.tasks = tasks
        self.expert = expert_of(family, tasks)
        self.act = self.expert.act
        self.observe = self.expert.observe

    def reset(self, n: int, seed: int) -> None:
        """Check that there is one task per stream, and begin."""
        if n != len(self.tasks):
            raise ValueError(f"{n} streams for {len(self.tasks)} tasks")
        self.expert.reset()


class ContextPolicy:
    """Acts with an in-context model: keeps the open region, samples, tells borders.

    Args:
        model: Student, baseline or raw-context model, or a control around one.
        temperature: Of the sampling; 0 takes the most likely action.
        device: Where the model runs.
        region_len: Transitions in a region, at most the model's `longest_region`; None for L.
    """

    def __init__(
        self,
        model: InContextModel,
        *,
        temperature: float = 1.0,
        device: torch.device | str = "cpu",
        region_len: int | None = None,
    ) -> None:
        self.region_len = region_len or model.region_len
        if self.region_len > model.longest_region:
            raise ValueError(
                f"regions of {self.region_len} transitions, but the model was built for at most "
                f"{model.longest_region}"
            )
        model.eval()
        self.model = model
        self.temperature = temperature
        self.device = torch.device(device)
        spec = model.actions.spec
        self._bounds = [
            torch.tensor(bound, device=self.device) for bound in (spec.low, spec.high) if bound
        ]
        # Made once: a tensor made anew for every action is a transfer each time.
        self._first = torch.tensor([[True], [False]], device=self.device)

    @torch.inference_mode()
    def reset(self, n: int, seed: int) -> None:
        """Begin n streams with an empty context and an empty region."""
        self.n = n
        self.seed = seed
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.counter = RegionCounter(n, MarkerRule("fixed", self.region_len))
        self.buffer: dict[str, Tensor] = {}
        spec = self.model.actions.spec
        kind = torch.long if spec.kind == "classes" else torch.float32
        self._start = torch.ones(n, 1, dtype=torch.bool, device=self.device)
        no_action = torch.zeros((n, 1, *spec.shape), dtype=kind, device=self.device)
        self._nothing = (None, no_action, torch.zeros(n, 1, device=self.device), self._start)
        self._pending: list[np.ndarray] = []
        self._begin()

    @property
    def t(self) -> int:
        """Steps in the open region; all streams are in step."""
        return int(self.counter.steps_in_compression[0])

    @torch.inference_mode()
    def parameters(self, observations: np.ndarray) -> Tensor:
        """Return the action parameters (n, P) at these observations; the state goes one step on."""
        (observed,) = self._transfer(np.asarray(observations))
        self._write("observations", observed)
        now = observed[:, None]
        previous, actions, rewards, starts = self._before
        first = self._first[0] if self.t == 0 else self._first[1]
        known = now if previous is None else previous
        steps = Steps(now, known, actions, rewards, starts, first)
        return self.model.step(steps, self.state)

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Sample one action per stream; `offered` holds the action parameters (n, P) it is of."""
        self.offered = parameters = self.parameters(observations)
        if self.temperature == 0:
            actions = self.model.actions.mode(parameters)
        else:
            actions = self.model.actions.sample(parameters, self.temperature, self.generator)
        if self._bounds:  # histories hold clipped actions too
            actions = actions.clamp(*self._bounds)
        self._write("actions", actions)
        return actions.cpu().numpy()

    def act_as(self, observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Go one step on with the actions (n, ...) of somebody else, and return them."""
        self.parameters(observations)
        self._write("actions", torch.from_numpy(np.asarray(actions)).to(self.device))
        return actions

    @torch.inference_mode()
    def observe(
        self,
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        next_observations: np.ndarray,
    ) -> None:
        """Take the transition in; at a region's end turn the region into context."""
        arrays = (rewards, terminated, truncated, next_observations)
        self._pending = [np.asarray(array) for array in arrays]
        self.counter.step(self._pending[1] | self._pending[2])
        if self.t == 0:
            self._transfer()
            self._full(self._so_far(self.region_len))
        elif self.model.part_len and self.t % self.model.part_len == 0:
            self._transfer()
            self._take_in(self._so_far(self.t), self.model.part, f"part {self.t}")

    def _so_far(self, n_steps: int) -> Regions:
        """Return the first steps of the open region."""
        mask = self._start.expand(-1, n_steps)
        fields = {name: field[:, :n_steps].clone() for name, field in self.buffer.items()}
        return Regions(**fields, mask=mask)

    def _transfer(self, *observations: np.ndarray) -> list[Tensor]:
        """Move what was observed since the last action, and these arrays, in one transfer."""
        arrays = [*self._pending, *observations]
        wide = np.float32 if self.device.type == "mps" else np.float64
        packed = np.concatenate([a.reshape(self.n, -1).astype(wide) for a in arrays], axis=1)
        parts = torch.from_numpy(packed).to(self.device).split([a[0].size for a in arrays], dim=1)
        kinds = [torch.from_numpy(np.empty(0, a.dtype)).dtype for a in arrays]
        moved = [
            part.reshape(self.n, *array.shape[1:]).to(kind)
            for part, array, kind in zip(parts, arrays, kinds, strict=True)
        ]
        if self._pending:
            names = ("rewards", "terminated", "truncated", "next_observations")
            rewards, terminated, truncated, following = moved[:4]
            time = (self.t - 1) % self.region_len
            values = (rewards.float(), terminated, truncated, following)
            for name, value in zip(names, values, strict=True):
                self._write(name, value, time)
            ended = (terminated | truncated)[:, None]
            acted = (self.buffer[name][:, time, None] for name in ("observations", "actions"))
            self._before = (*acted, rewards.float()[:, None], ended)
            self._pending = []
        return moved[len(moved) - len(observations) :]

    @torch.inference_mode()
    def resume(self, regions: Sequence[Regions]) -> None:
        """Go on after these completed regions (n, L, ...), oldest first, with an empty region.

        For measuring and debugging: acting is then as after living through them, without having to.
        """
        self.take(regions[:-1])
        for region in regions[-1:]:
            self._close(region, self.model.border)

    @torch.inference_mode()
    def take(self, regions: Sequence[Regions]) -> None:
        """Take in completed regions, oldest first; `resume` is to be given one more."""
        for region in regions:
            self._close(region, self.model.take)

    def _begin(self) -> None:
        self.n_closed = 0
        self._before = self._nothing
        self.state = self.model.start(self.n)

    def _full(self, region: Regions) -> None:
        self._close(region, self.model.border)

    def _take_in(self, region: Regions, take: Callable[[Regions, Any], Any], *what: str) -> None:
        # What a model draws at a border (a channel's noise) follows the seed of this rollout.
        with torch.random.fork_rng(devices=_devices(self.device)):
            torch.manual_seed(derive(self.seed, "border", self.n_closed, *what))
            self.state = take(region, self.state)

    def _close(self, region: Regions, close: Callable[[Regions, Any], Any]) -> None:
        self._take_in(region, close)
        self.n_closed += 1
        self._before = self._nothing

    def _write(self, name: str, values: Tensor, time: int | None = None) -> None:
        if name not in self.buffer:
            shape = (self.n, self.region_len, *values.shape[1:])
            self.buffer[name] = torch.zeros(shape, dtype=values.dtype, device=self.device)
        self.buffer[name][:, self.t if time is None else time] = values

    @property
    def context_tokens(self) -> int:
        """Most tokens a step attends to."""
        return self.model.context_tokens

    @property
    def context_bytes(self) -> int:
        """Bytes of context state per stream at full length, as the acting code really holds it."""
        return self.state.n_bytes // self.n


def _devices(device: torch.device) -> list[int]:
    return [device.index or 0] if device.type == "cuda" else []
