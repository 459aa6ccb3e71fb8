"""Settings of PPO as a source, apart from stable-baselines3, which takes seconds to import."""

from dataclasses import dataclass
from typing import Annotated

from base.ranges import Above, AtLeast, Between


@dataclass(frozen=True)
class SourceConfig:
    """PPO's settings; one rollout of `region_len` steps per update.

    Attributes:
        learning_rate: Of Adam.
        batch_size: Transitions in a minibatch. Small ones cost nearly all the time.
        n_epochs: Passes over a rollout.
        gamma: Discount of PPO's own targets.
        gae_lambda: Of generalised advantage estimation.
        ent_coef: Weight of the entropy bonus.
        clip_range: Of PPO's probability ratio; small, it spreads learning over the whole history.
        net_arch: Hidden widths of policy and value network.
    """

    learning_rate: Annotated[float, Above(0)] = 6e-4
    batch_size: Annotated[int, AtLeast(2)] = 512
    n_epochs: Annotated[int, AtLeast(1)] = 10
    gamma: Annotated[float, Between(0, 1)] = 0.99
    gae_lambda: Annotated[float, Between(0, 1)] = 0.95
    ent_coef: Annotated[float, AtLeast(0)] = 0.01
    clip_range: Annotated[float, Above(0)] = 0.15
    net_arch: tuple[Annotated[int, Between(1, 65536)], ...] = (64, 64)
