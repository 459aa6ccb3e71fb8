"""What acting costs after a history of a given length: context bytes and time per action.

Costs depend on sizes, not on weights or on what is observed: untrained models and random
observations give them. What is measured are the policies that evaluation acts with.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch

from ad.policy import ContextPolicy
from nets.regions import Regions
from tasks.family import TaskFamily

N_WARM_UP = 4
N_ACTIONS = 40


@dataclass(frozen=True)
class Cost:
    """Of one policy after one history.

    Attributes:
        context_bytes: Bytes of context state of one stream.
        ms_per_action: Median milliseconds of one `act` and `observe`, all streams together;
            processor time on a CPU, wall-clock time on an accelerator. The steps that turn a
            completed region into context are not among them.
        ms_per_region: Milliseconds of turning the last completed region into context and
            beginning the next, once per region.
        n_streams: Streams that acted at once.
    """

    context_bytes: int
    ms_per_action: float
    ms_per_region: float
    n_streams: int


def acting_cost(
    policy: ContextPolicy,
    family: TaskFamily,
    *,
    history_regions: int,
    n_streams: int,
    n_actions: int = N_ACTIONS,
    seed: int = 0,
) -> Cost:
    """Measure a policy at the beginning of a region, `history_regions` completed ones behind it.

    Args:
        policy: Student or raw context; its whole context is full if the history is long enough.
        family: Whose observations and actions are drawn at random.
        history_regions: Completed regions, at least 1; their contents are alike.
        n_streams: Streams that act at once.
        n_actions: Timed at most; the region's length is the limit.
        seed: Of the observations.
    """
    family.observation_space.seed(seed)
    family.action_space.seed(seed)
    policy.reset(n_streams, seed)
    region = _random_region(family, n_streams, policy.model.region_len, policy.device)
    policy.take([region] * (history_regions - 1))
    began = _now(policy.device)
    policy.resume([region])
    seconds_per_region = _now(policy.device) - began
    # Short of the region's end, whose step is no ordinary one.
    n_steps = min(N_WARM_UP + n_actions, policy.model.region_len - 1)
    times = [_step(policy, family, n_streams) for _ in range(n_steps)]
    timed = times[min(N_WARM_UP, n_steps - 1) :]
    return Cost(
        context_bytes=policy.context_bytes,
        ms_per_action=1000 * statistics.median(timed),
        ms_per_region=1000 * seconds_per_region,
        n_streams=n_streams,
    )


def _step(policy: ContextPolicy, family: TaskFamily, n: int) -> float:
    """Act and observe once in n streams; return the seconds it took."""
    observations, following = (_draw(family.observation_space, n) for _ in range(2))
    nothing = np.zeros(n, dtype=bool)
    began = _now(policy.device)
    policy.act(observations)
    policy.observe(np.zeros(n, dtype=np.float32), nothing, nothing, following)
    return _now(policy.device) - began


def _now(device: torch.device) -> float:
    """Seconds of the clock that costs are measured with."""
    if device.type == "cpu":
        return time.process_time()  # other programs on the machine do not count
    torch.accelerator.synchronize()
    return time.perf_counter()


def _random_region(family: TaskFamily, n: int, region_len: int, device: torch.device) -> Regions:
    def draw(space: object) -> torch.Tensor:
        values = _draw(space, n * region_len)
        return torch.as_tensor(values, device=device).unflatten(0, (n, region_len))

    flags = torch.zeros(n, region_len, dtype=torch.bool, device=device)
    return Regions(
        observations=draw(family.observation_space),
        actions=draw(family.action_space),
        rewards=torch.zeros(n, region_len, device=device),
        next_observations=draw(family.observation_space),
        terminated=flags,
        truncated=flags,
        mask=~flags,
    )


def _draw(space, n: int) -> np.ndarray:
    return np.stack([space.sample() for _ in range(n)])
