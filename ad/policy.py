"""One interface for whatever acts: student, teacher, baselines, random, optimal.

    policy.reset(n, seed)                      n streams begin with an empty context
    actions = policy.act(observations)         (n, ...) -> (n, ...)
    policy.observe(rewards, terminated, truncated, next_observations)    true ones at an end

In-context policies fill a region step by step; when it is full they turn it into their context
(latents, or raw tokens) and start a new one. Shapes: n streams, L region length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ad.batches import REGION_FIELDS
from ad.decoder import DecoderState
from ad.student import CADStudent
from histories.regions import MarkerRule, RegionCounter
from nets.embeddings import Regions
from tasks.family import Task, TaskFamily, expert_of

Control = Literal["zeroed", "shuffled"]


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
    """Common part of the in-context policies: the region buffer, sampling, step tokens.

    Args:
        model: A student or teacher; see `StudentPolicy`, `TeacherPolicy`.
        temperature: Of the sampling; 0 takes the most likely action.
        device: Where the model runs.
    """

    def __init__(
        self, model: Any, *, temperature: float = 1.0, device: torch.device | str = "cpu"
    ) -> None:
        self.model = model.eval()
        self.temperature = temperature
        self.device = torch.device(device)
        self.state: DecoderState | None = None

    def reset(self, n: int, seed: int) -> None:
        """Begin n streams with an empty context and an empty region."""
        self.n = n
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.counter = RegionCounter(n, MarkerRule("fixed", self.model.region_len))
        self.buffer: dict[str, Tensor] = {}
        self.previous_action: Tensor | None = None
        self.previous_reward = torch.zeros(n, 1, device=self.device)
        self.starts = torch.ones(n, 1, dtype=torch.bool, device=self.device)
        self.context: list[Regions] = []
        self.state = None
        self._begin_region()

    @property
    def t(self) -> int:
        """Steps in the open region; all streams are in step."""
        return int(self.counter.steps_in_compression[0])

    @torch.inference_mode()
    def parameters(self, observations: np.ndarray) -> Tensor:
        """Return the action parameters (n, P) at these observations; the cache goes one step on."""
        observed = torch.as_tensor(observations, device=self.device)
        shape = self.model.actions.spec.shape
        kind = torch.long if self.model.actions.spec.kind == "classes" else torch.float32
        if self.previous_action is None:
            self.previous_action = torch.zeros((self.n, 1, *shape), dtype=kind, device=self.device)
        token = self.model.step_encoder.step(
            observed[:, None],
            self.previous_action,
            self.previous_reward if self.t else torch.zeros_like(self.previous_reward),
            self.starts if self.t else torch.ones_like(self.starts),
            first=torch.tensor([self.t == 0], device=self.device),
        )
        self._write("observations", observed)
        assert self.state is not None
        return self.model.step(token, self.state)

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Sample one action per stream."""
        parameters = self.parameters(observations)
        if self.temperature == 0:
            actions = self.model.actions.mode(parameters)
        else:
            actions = self.model.actions.sample(parameters, self.temperature, self.generator)
        spec = self.model.actions.spec
        if spec.low:  # histories hold clipped actions too
            low, high = (torch.tensor(bound, device=self.device) for bound in (spec.low, spec.high))
            actions = actions.clamp(low, high)
        self.record(actions)
        return actions.cpu().numpy()

    def record(self, actions: Tensor) -> None:
        """Take note of the actions (n, ...) really taken."""
        self._write("actions", actions)
        self.previous_action = actions[:, None]

    @torch.inference_mode()
    def observe(
        self,
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        next_observations: np.ndarray,
    ) -> None:
        """Write the transition; at a region's end turn the region into context."""
        ended = np.asarray(terminated) | np.asarray(truncated)
        reward = torch.as_tensor(rewards, dtype=torch.float32, device=self.device)
        self._write("rewards", reward)
        self._write("terminated", torch.as_tensor(terminated, device=self.device))
        self._write("truncated", torch.as_tensor(truncated, device=self.device))
        self._write("next_observations", torch.as_tensor(next_observations, device=self.device))
        self._write("mask", torch.ones(self.n, dtype=torch.bool, device=self.device))
        self.previous_reward = reward[:, None]
        self.starts = torch.as_tensor(ended, device=self.device)[:, None]
        self.counter.step(ended)
        if self.t == 0:
            self._close_region(Regions(**{k: self.buffer[k].clone() for k in REGION_FIELDS}))
            self._begin_region()

    @torch.inference_mode()
    def resume(self, regions: Sequence[Regions]) -> None:
        """Go on after these completed regions (n, L, ...), oldest first, with an empty region.

        For measuring and debugging: acting is then as after living through them, without having to.
        """
        for region in regions:
            self._close_region(region)
        self._begin_region()

    def _write(self, name: str, values: Tensor) -> None:
        if name not in self.buffer:
            shape = (self.n, self.model.region_len, *values.shape[1:])
            self.buffer[name] = torch.zeros(shape, dtype=values.dtype, device=self.device)
        self.buffer[name][:, self.t] = values

    def _close_region(self, region: Regions) -> None:
        raise NotImplementedError

    def _begin_region(self) -> None:
        raise NotImplementedError

    @property
    def context_tokens(self) -> int:
        """Most tokens a step attends to."""
        raise NotImplementedError

    @property
    def context_bytes(self) -> int:
        """Bytes of context state per stream at full length, as the acting code really holds it."""
        assert self.state is not None
        return self.state.n_bytes // self.n


class StudentPolicy(ContextPolicy):
    """Compresses each completed region to latents and drops the raw transitions.

    Args:
        model: The student.
        control: `zeroed` latents, or `shuffled` between streams of different tasks.
        tasks_of_streams: (n,) task of each stream, needed to shuffle between tasks.
        kwargs: As `ContextPolicy`.
    """

    def __init__(
        self,
        model: CADStudent,
        *,
        control: Control | None = None,
        tasks_of_streams: np.ndarray | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        self.control = control
        self.tasks_of_streams = tasks_of_streams

    def reset(self, n: int, seed: int) -> None:
        """Begin n streams with the learned "no context" latents."""
        self.shuffle = np.random.default_rng(seed)
        with torch.inference_mode():
            self.latents = self.model.empty_latents(n)
        super().reset(n, seed)

    def _close_region(self, region: Regions) -> None:
        self.latents = self.model.compress(region)
        if self.control == "zeroed":
            self.latents = torch.zeros_like(self.latents)
        elif self.control == "shuffled":
            self.latents = self.latents[torch.from_numpy(self._derangement()).to(self.device)]

    def _derangement(self) -> np.ndarray:
        """Return for each stream a stream of another task."""
        assert self.tasks_of_streams is not None
        tasks = np.asarray(self.tasks_of_streams)
        others = [np.flatnonzero(tasks != task) for task in tasks]
        return np.array([self.shuffle.choice(o) if len(o) else i for i, o in enumerate(others)])

    @torch.inference_mode()
    def _begin_region(self) -> None:
        self.state = self.model.start(self.latents, self.state)

    @property
    def context_tokens(self) -> int:
        """M + L."""
        return self.model.compressor.n_latents + self.model.region_len


class TeacherPolicy(ContextPolicy):
    """Keeps the last R raw regions."""

    def _close_region(self, region: Regions) -> None:
        self.context = [*self.context, region][-self.model.n_context_regions :]

    @torch.inference_mode()
    def _begin_region(self) -> None:
        wanted, known = self.model.n_context_regions, len(self.context)
        has = torch.arange(wanted, device=self.device) >= wanted - known  # (R,)
        if known == 0:
            empty = _empty_region(self.model, self.n, self.device)
            regions = [empty] * wanted
        else:
            regions = [self.context[0]] * (wanted - known) + self.context
        stacked = Regions(
            **{k: torch.stack([getattr(r, k) for r in regions], dim=1) for k in REGION_FIELDS}
        )
        self.state = self.model.start(stacked, has.expand(self.n, -1), self.state)

    @property
    def context_tokens(self) -> int:
        """R (L + 2) + 1 + L."""
        return self.model.sequence_len


def _empty_region(model: Any, n: int, device: torch.device) -> Regions:
    """Return placeholder fields (n, L, ...) for a context that is not there."""
    observation = model.transition_encoder.observation.spec.shape
    action = model.actions.spec.shape
    size = (n, model.region_len)
    flags = torch.zeros(size, dtype=torch.bool, device=device)
    observations = torch.zeros((*size, *observation), device=device)
    return Regions(
        observations=observations,
        actions=torch.zeros((*size, *action), device=device),
        rewards=torch.zeros(size, device=device),
        next_observations=observations,
        terminated=flags,
        truncated=flags,
        mask=flags,
    )
