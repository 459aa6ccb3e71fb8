"""Small collections for the tests of histories; top level, so that processes can be sent them."""

import os
import signal

import numpy as np

from histories.collection import CollectSettings, CollectSummary, collect
from histories.schema import History
from histories.sources import Source, SourceJob
from tasks.darkroom import DarkRoomFamily
from tasks.splits import make_split
from teacher.playing import play

SETTINGS = CollectSettings(
    styles=("walk",), n_streams=3, n_regions=4, region_len=10, episodes_per_region=2
)


def small_family() -> DarkRoomFamily:
    return DarkRoomFamily(size=3, horizon=5)


def small_split(seed: int = 0):
    return make_split(small_family().tasks(), seed=seed, n_validation=2, n_test=2)


def walk(job: SourceJob, steps: tuple[int, ...] = (0, 2, 1, 3)) -> list[History]:
    """Walk round in circles; cheap, seeded, and needs no learner."""
    return play(job, _Walker(steps, job.source_seed), {"steps": list(steps)})


class _Walker:
    def __init__(self, steps, source_seed):
        self.steps, self.time = steps, source_seed

    def reset(self, n, seed):
        self.streams = np.arange(n)

    def act(self, observations):
        self.time += 1
        return np.array(self.steps)[(self.time + self.streams) % 4]

    def observe(self, *transition):
        pass


def walk_and_say_where(job, folder):
    (folder / f"{job.tasks[0].index}-{os.getpid()}").touch()
    return walk(job)


def walk_or_die(job, folder):
    if job.tasks[0].index == 4 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return walk(job)


WALK = Source(walk)


def collect_small(out_dir, settings: CollectSettings = SETTINGS, **kwargs) -> CollectSummary:
    sources = kwargs.pop("sources", {"walk": WALK})
    split = kwargs.pop("split", small_split())
    return collect(small_family(), split, settings, out_dir, sources, progress=False, **kwargs)
