"""Histories of whoever acts: the streams of all tasks of a job are played together."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from histories.regions import RegionCounter
from histories.schema import FIELDS, History, field_dtypes, field_shapes
from histories.sources import SourceJob
from tasks.vector import take_step

if TYPE_CHECKING:  # it brings torch, which those who only play do without
    from ad.policy import Policy


def play(job: SourceJob, actor: "Policy", settings: Mapping[str, Any]) -> list[History]:
    """Let `actor` act in `n_streams` streams of every task, in the order of `job.tasks`.

    Args:
        job: What to make.
        actor: Who acts; it is reset with the job's seed.
        settings: Of the actor, JSON values, kept with each history.

    Returns:
        One history per task.
    """
    streams = [task for task in job.tasks for _ in range(job.n_streams)]
    env = job.family.make_vector_env(streams)
    counter = RegionCounter(len(streams), job.marker_rule)
    spaces = (job.family.observation_space, job.family.action_space)
    dtypes, shapes = field_dtypes(*spaces), field_shapes(*spaces)
    size = (job.n_transitions, len(streams))  # time first: a step is written in one piece
    arrays = {name: np.empty(size + shapes[name], dtypes[name]) for name in FIELDS}
    observations, _ = env.reset(seed=job.seed)
    actor.reset(len(streams), job.seed)
    for time in range(job.n_transitions):
        actions = actor.act(observations)
        next_observations, rewards, true_next, terminated, truncated = take_step(env, actions)
        actor.observe(rewards, terminated, truncated, true_next)
        markers = counter.step(terminated | truncated)
        values = (observations, actions, rewards, true_next, terminated, truncated, markers)
        for name, value in zip(FIELDS, values, strict=True):
            arrays[name][time] = value
        observations = next_observations
    env.close()
    labels = {"style": job.style, "source_seed": job.source_seed, "settings": dict(settings)}
    histories = []
    for first in range(0, len(streams), job.n_streams):
        rows = slice(first, first + job.n_streams)
        own = {
            name: np.ascontiguousarray(array[:, rows].swapaxes(0, 1))  # (T, S) -> (S, T)
            for name, array in arrays.items()
        }
        histories.append(History(**own, **labels))
    return histories
