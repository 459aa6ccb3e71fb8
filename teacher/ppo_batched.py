"""PPO (Schulman et al. 2017) that learns several tasks at once, each with networks of its own.

The same algorithm, networks and settings as stable-baselines3's `MlpPolicy`, with the weights of K
tasks stacked, so that one matrix product serves them all. Tasks share no weight, no gradient and no
statistic. For Discrete actions.
"""

import itertools
from dataclasses import asdict
from typing import Any

import gymnasium
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.spaces import Discrete, MultiDiscrete
from torch import Tensor

from histories.schema import History
from histories.sources import SourceError, SourceJob
from tasks.packed import PackedSpace, one_hot
from teacher.playing import play
from teacher.ppo_config import SourceConfig

VALUE_WEIGHT, MAX_GRAD_NORM, ADAM_EPSILON = 0.5, 0.5, 1e-5  # as stable-baselines3's


def ppo_batched(job: SourceJob, config: SourceConfig | None = None) -> list[History]:
    """PPO learns each task from scratch; one shared policy acts in all streams of a task.

    One update per region. Leaves the global random generators alone.

    Raises:
        SourceError: Actions are not Discrete.
    """
    if not isinstance(job.family.action_space, Discrete):
        raise SourceError(
            f"style 'ppo_batched' needs Discrete actions, family {job.family.name!r} has "
            f"{job.family.action_space}; collect style 'ppo'"
        )
    config = config or SourceConfig()
    return play(job, _Learner(job, config), asdict(config))


class _Learner:
    """Acts as a policy does and updates itself whenever a rollout is full. K tasks, S streams."""

    def __init__(self, job: SourceJob, config: SourceConfig) -> None:
        self.config, self.rollout_len = config, job.region_len
        self.space, self.n_tasks = job.family.observation_space, len(job.tasks)
        actions: Any = job.family.action_space
        self.n_actions, self.first_action = int(actions.n), int(actions.start)

    def reset(self, n: int, seed: int) -> None:
        """Begin with new networks."""
        self.generator = torch.Generator().manual_seed(seed)
        n_features = _features(self.space, self.space.sample()[None]).shape[-1]
        sizes = [n_features, *self.config.net_arch]
        self.actor = self._tower([*sizes, self.n_actions], last_gain=0.01)
        self.critic = self._tower([*sizes, 1], last_gain=1.0)
        weights = [*self.actor, *self.critic]
        self.optimizer = torch.optim.Adam(
            weights, lr=self.config.learning_rate, eps=ADAM_EPSILON, foreach=True
        )
        self.weights, self.steps = weights, list[tuple[Tensor, ...]]()

    @torch.no_grad()
    def act(self, observations: np.ndarray) -> np.ndarray:
        """Sample actions `(K S,)`."""
        features = self._by_task(_features(self.space, observations))  # (K, S, F)
        log_probs = F.log_softmax(_forward(features, self.actor), -1)
        noise = torch.empty_like(log_probs).exponential_(generator=self.generator)
        actions = (log_probs - noise.log()).argmax(-1)  # (K, S), by the Gumbel trick
        chosen = log_probs.gather(-1, actions[..., None])[..., 0]
        self.acted = (features, actions, chosen)
        return actions.flatten().numpy() + self.first_action

    @torch.no_grad()
    def observe(
        self,
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        next_observations: np.ndarray,
    ) -> None:
        """Keep the step; learn at a rollout's end."""
        paid = self._by_task(torch.from_numpy(np.asarray(rewards, dtype=np.float32)))
        if truncated.any():  # what would have followed, as far as the critic knows
            following = self._value(next_observations)
            cut = self._by_task(torch.from_numpy(truncated))
            paid = paid + self.config.gamma * following * cut
        ended = self._by_task(torch.from_numpy(terminated | truncated))
        self.steps.append((*self.acted, paid, ended))
        if len(self.steps) == self.rollout_len:
            self._learn(self._value(next_observations))
            self.steps.clear()

    def _learn(self, last_value: Tensor) -> None:
        """PPO's update from a full rollout; `last_value` `(K, S)` of what comes after it."""
        features, actions, log_probs, paid, ended = (
            torch.stack(each, 2) for each in zip(*self.steps, strict=True)
        )  # (K, S, T, ...)
        values = _forward(features.flatten(1, 2), self.critic).view(paid.shape)  # (K, S, T)
        advantages = _advantages(paid, values, ended, last_value, self.config)
        fields = (features, actions, log_probs, advantages, advantages + values)
        rollout = [field.flatten(1, 2) for field in fields]  # (K, S T, ...)
        with torch.enable_grad():
            for _ in range(self.config.n_epochs):
                order = torch.randperm(rollout[1].shape[1], generator=self.generator)
                for rows in order.split(self.config.batch_size):
                    self._update(*(field[:, rows] for field in rollout))

    def _update(
        self, features: Tensor, actions: Tensor, old: Tensor, advantages: Tensor, returns: Tensor
    ) -> None:
        """One step of Adam on a minibatch `(K, B, ...)`."""
        config = self.config
        log_probs = F.log_softmax(_forward(features, self.actor), -1)  # (K, B, A)
        values = _forward(features, self.critic)[..., 0]  # (K, B)
        if advantages.shape[1] > 1:
            std, mean = torch.std_mean(advantages, 1, keepdim=True)
            advantages = (advantages - mean) / (std + 1e-8)
        ratio = (log_probs.gather(-1, actions[..., None])[..., 0] - old).exp()
        clipped = ratio.clamp(1 - config.clip_range, 1 + config.clip_range)
        gain = torch.minimum(advantages * ratio, advantages * clipped)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        value_error = (values - returns).square()
        losses = VALUE_WEIGHT * value_error - gain - config.ent_coef * entropy
        self.optimizer.zero_grad()
        losses.mean(1).sum().backward()  # the sum keeps the gradients of tasks apart
        self._clip_gradients()
        self.optimizer.step()

    @torch.no_grad()
    def _clip_gradients(self) -> None:
        """To a norm of its own for every task."""
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        norms = torch.stack([each.square().sum((1, 2)) for each in gradients]).sum(0).sqrt()  # (K,)
        scale = (MAX_GRAD_NORM / (norms + 1e-6)).clamp(max=1.0)[:, None, None]
        torch._foreach_mul_(gradients, [scale] * len(gradients))

    def _tower(self, sizes: list[int], last_gain: float) -> list[Tensor]:
        """Weights `(K, in, out)` and biases `(K, 1, out)` of each layer, orthogonal at first."""
        weights = []
        for place, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
            gain = last_gain if place == len(sizes) - 2 else 2**0.5
            stacked = torch.empty(self.n_tasks, n_out, n_in)
            for own in stacked:
                torch.nn.init.orthogonal_(own, gain, generator=self.generator)
            weights += [stacked.mT.contiguous(), torch.zeros(self.n_tasks, 1, n_out)]
        return [weight.requires_grad_() for weight in weights]

    def _value(self, observations: np.ndarray) -> Tensor:
        """What the critic expects, `(K, S)`."""
        return _forward(self._by_task(_features(self.space, observations)), self.critic)[..., 0]

    def _by_task(self, values: Tensor) -> Tensor:
        """`(K S, ...)` to `(K, S, ...)`."""
        return values.unflatten(0, (self.n_tasks, -1))


def _forward(x: Tensor, weights: list[Tensor]) -> Tensor:
    """Return `(K, B, out)` of a tower of layers from `(K, B, in)`."""
    for place in range(0, len(weights), 2):
        x = torch.baddbmm(weights[place + 1], torch.tanh(x) if place else x, weights[place])
    return x


def _advantages(
    paid: Tensor, values: Tensor, ended: Tensor, last_value: Tensor, config: SourceConfig
) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016) of rollouts `(K, S, T)`."""
    following = torch.cat([values[..., 1:], last_value[..., None]], -1)
    going_on = config.gamma * (~ended).float()
    errors = paid + going_on * following - values
    advantages, ahead = torch.empty_like(errors), torch.zeros_like(last_value)
    for time in reversed(range(errors.shape[-1])):
        ahead = errors[..., time] + config.gae_lambda * going_on[..., time] * ahead
        advantages[..., time] = ahead
    return advantages


def _features(space: gymnasium.Space, observations: np.ndarray) -> Tensor:
    """What networks are fed: classes one-hot, axis by axis, anything else as flat floats."""
    if isinstance(space, PackedSpace):
        return torch.from_numpy(space.one_hot(observations))
    if isinstance(space, Discrete | MultiDiscrete):
        return torch.from_numpy(one_hot(space, observations.reshape(len(observations), -1)))
    return torch.from_numpy(np.asarray(observations, dtype=np.float32)).flatten(1)
