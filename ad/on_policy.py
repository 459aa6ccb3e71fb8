"""Batches of a model's own making: it acts in context on tasks, and what it lived is a batch.

Whoever learns from them (`ad.policy_gradient`, distillation on the student's own rollouts) is given
the regions as they were acted in, with the contexts that were had. Shapes: S streams, K regions of
each, L region length, R previous regions of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn

from ad.model import InContextModel, Shared, Triple
from ad.policy import ContextPolicy
from base.errors import UserError
from base.ranges import Above, AtLeast
from base.seeding import derive
from nets.regions import Regions, blanked, stack_regions
from tasks.family import Task, TaskFamily
from tasks.vector import take_step
from training.optim import OptimConfig


class OnPolicyError(UserError):
    """Rollouts that cannot be made or shared out as asked."""


@dataclass(frozen=True)
class RolloutsConfig:
    """In-context rollouts on training tasks, from an empty context on.

    Attributes:
        n_tasks: Tasks drawn for a rollout.
        n_streams: Streams of each.
        n_regions: K, regions that every stream lives through; each is a row of the batch.
        n_epochs: Times that a rollout is gone through before the next is made.
        temperature: Of the sampled actions.
    """

    n_tasks: Annotated[int, AtLeast(1)] = 6
    n_streams: Annotated[int, AtLeast(1)] = 8
    n_regions: Annotated[int, AtLeast(1)] = 4
    n_epochs: Annotated[int, AtLeast(1)] = 1
    temperature: Annotated[float, Above(0)] = 1.0

    @property
    def n_rows(self) -> int:
        """Rows of a rollout."""
        return self.n_tasks * self.n_streams * self.n_regions

    def n_updates(self, optim: OptimConfig) -> int:
        """Return the updates that are made of one rollout.

        Raises:
            ValueError: Batches or checkpoints would cut streams or rollouts apart.
        """
        shares = self.n_regions * optim.accumulation_steps
        if self.n_rows % optim.batch_size or optim.batch_size % shares:
            raise ValueError(
                f"optim.batch_size is {optim.batch_size}, but a rollout has {self.n_rows} rows "
                "(rollouts.n_tasks x n_streams x n_regions), those of a stream together; give a "
                f"divisor of {self.n_rows} that is a multiple of {shares}"
            )
        updates = self.n_epochs * self.n_rows // optim.batch_size
        if optim.checkpoint_every % updates:
            raise ValueError(
                f"optim.checkpoint_every is {optim.checkpoint_every}, but {updates} updates are "
                f"made of a rollout of {self.n_rows} rows (rollouts.n_tasks x n_streams x "
                f"n_regions, n_epochs times), which no checkpoint holds; give a multiple of "
                f"{updates}"
            )
        return updates


@dataclass
class Lived:
    """What streams lived through.

    Attributes:
        regions: Fields (S, K, L, ...).
        log_probs: (S, K, L) of the actions, as they were drawn.
        tasks: Of the streams.
    """

    regions: Regions
    log_probs: Tensor
    tasks: Sequence[Task]


Signals = Callable[[Lived], dict[str, Tensor]]
"""What an objective wants to be told of every step, (S, K, L, ...) by name."""


class RecordingPolicy(ContextPolicy):
    """Acts as a `ContextPolicy`, and keeps every completed region and how likely its actions were.

    Attributes:
        regions: Completed ones (n, L, ...).
        log_probs: (n,) of every step.
    """

    def reset(self, n: int, seed: int) -> None:
        """Begin n streams, nothing being kept yet."""
        self.regions: list[Regions] = []
        self.log_probs: list[Tensor] = []
        super().reset(n, seed)

    @torch.inference_mode()
    def act(self, observations: np.ndarray) -> np.ndarray:
        """Sample one action per stream."""
        time = self.t
        actions = super().act(observations)
        drawn = self.buffer["actions"][:, time, None]
        cooled = self.model.actions.cooled(self._parameters[:, None], self.temperature)
        self.log_probs.append(-self.model.actions.nll(cooled, drawn)[:, 0])
        return actions

    def parameters(self, observations: np.ndarray) -> Tensor:
        """As of a `ContextPolicy`."""
        self._parameters = super().parameters(observations)
        return self._parameters

    def _full(self, region: Regions) -> None:
        self.regions.append(region)
        super()._full(region)


def live(
    policy: RecordingPolicy, family: TaskFamily, tasks: Sequence[Task], *, n_regions: int, seed: int
) -> Lived:
    """Let a model act for `n_regions` regions in one stream per entry of `tasks`."""
    env = family.make_vector_env(tasks)
    observations, _ = env.reset(seed=seed)
    policy.reset(len(tasks), seed)
    for _ in range(n_regions * policy.model.region_len):
        actions = policy.act(observations)
        observations, rewards, true_next, terminated, truncated = take_step(env, actions)
        policy.observe(rewards, terminated, truncated, true_next)
    env.close()
    # Clones, for what is made in inference mode cannot be trained on.
    regions = stack_regions(policy.regions).map(torch.clone)
    log_probs = torch.stack(policy.log_probs, dim=1).clone()
    return Lived(regions, log_probs.view(regions.mask.shape), tasks)


def triple_of(regions: Regions, n_context_regions: int, extra: dict[str, Tensor]) -> Triple:
    """Return every region (S, K, L, ...) as a current one, with the context it was acted in.

    Args:
        regions: Of streams, from their first on.
        n_context_regions: R.
        extra: (S, K, L, ...) by name.

    Returns:
        S K rows, those of a stream together.
    """
    n, k = regions.mask.shape[:2]
    flat = regions.map(lambda field: field.flatten(0, 1))
    rows = torch.arange(n * k, device=flat.mask.device)[:, None]
    back = torch.arange(n_context_regions, 0, -1, device=rows.device)
    present = back <= rows % k  # (S K, R)
    places = torch.where(present, rows - back, 0)
    context = flat.map(lambda field: blanked(field[places], present))
    told = {name: field.flatten(0, 1) for name, field in extra.items()}
    return Triple(context, present, flat, Shared(flat, places), told)


class Rollouts:
    """Batches for `training.loop.fit`: rollouts of the weights as they are, cut into updates.

    A batch is a function of (weights, seed, step), as long as checkpoints fall between rollouts.
    Every process makes the whole rollout and takes its share of the streams.

    Args:
        objective: What is trained; says by `n_context_regions` how many a row must bring.
        model: What acts.
        family: Makes the environments.
        tasks: Training tasks.
        config: Sizes and temperature.
        optim: Batch size and accumulation steps.
        signals: What the objective is told of every step.
        seed: Of tasks, environments and actions.
        device: Where the model acts.
        rank: This process.
        world_size: All processes.

    Raises:
        OnPolicyError: There are too few tasks, or the streams of an update cannot be shared out.
    """

    def __init__(
        self,
        objective: nn.Module,
        model: InContextModel,
        family: TaskFamily,
        tasks: Sequence[Task],
        config: RolloutsConfig,
        optim: OptimConfig,
        signals: Signals,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if config.n_tasks > len(tasks):
            raise OnPolicyError(
                f"rollouts.n_tasks is {config.n_tasks}, but there are {len(tasks)} training tasks; "
                "make it smaller."
            )
        self.n_updates = config.n_updates(optim)
        self.n_shares = optim.accumulation_steps * world_size
        streams = optim.batch_size // config.n_regions
        if streams % self.n_shares:
            raise OnPolicyError(
                f"the {streams} streams of an update cannot be shared out between {world_size} "
                f"processes x {optim.accumulation_steps} accumulation steps; change "
                "optim.batch_size."
            )
        self.objective, self.model, self.family, self.tasks = objective, model, family, tasks
        self.config, self.signals, self.seed = config, signals, seed
        self.device, self.rank = device, rank
        self.accumulation_steps = optim.accumulation_steps
        self.n_context_regions = int(objective.n_context_regions)  # pyright: ignore
        self._lived: tuple[int, Lived, dict[str, Tensor], np.ndarray] | None = None

    def lived(self, number: int) -> Lived:
        """Make rollout `number` by the weights as they are now."""
        config, seed = self.config, derive(self.seed, "rollout", number)
        rng = np.random.default_rng(seed)
        chosen = rng.choice(len(self.tasks), config.n_tasks, replace=False)
        streams = [self.tasks[i] for i in chosen for _ in range(config.n_streams)]
        policy = RecordingPolicy(self.model, temperature=config.temperature, device=self.device)
        lived = live(policy, self.family, streams, n_regions=config.n_regions, seed=seed)
        self.objective.train()  # a policy puts its model into evaluation mode
        return lived

    def __call__(self, step: int, micro: int = 0) -> Triple:
        """Return this process' share of micro-batch `micro` of update `step`."""
        number, part = divmod(step, self.n_updates)
        if self._lived is None or self._lived[0] != number:
            lived = self.lived(number)
            rng = np.random.default_rng(derive(self.seed, "order", number))
            every = [rng.permutation(len(lived.tasks)) for _ in range(self.config.n_epochs)]
            self._lived = number, lived, self.signals(lived), np.concatenate(every)
        _, lived, signals, order = self._lived
        of_update = np.array_split(order, self.n_updates)[part]
        share = of_update[self.rank * self.accumulation_steps + micro :: self.n_shares]
        index = torch.from_numpy(share).to(lived.log_probs.device)
        extra = {"log_probs": lived.log_probs[index]}
        extra |= {name: signal[index] for name, signal in signals.items()}
        regions = lived.regions.map(lambda field: field[index])
        return triple_of(regions, self.n_context_regions, extra)
