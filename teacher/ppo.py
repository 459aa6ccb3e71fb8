"""PPO of stable-baselines3 learning each task from scratch, recorded while it does."""

from dataclasses import asdict, replace

from stable_baselines3 import PPO

from histories.schema import History
from histories.sources import SourceJob
from teacher.ppo_config import SourceConfig
from teacher.sb3 import record


def ppo(job: SourceJob, config: SourceConfig | None = None) -> list[History]:
    """PPO learns each task from scratch; one shared policy acts in all streams of a task.

    One update per region. Seeds the global generators of Python, numpy and torch, as SB3 does.
    Equal jobs give equal histories on one machine.
    """
    settings = asdict(config or SourceConfig())
    kwargs = dict(settings)
    kwargs["policy_kwargs"] = {"net_arch": list(kwargs.pop("net_arch"))}
    return [record(replace(job, tasks=(task,)), PPO, kwargs, settings) for task in job.tasks]
