"""Small collections for the tests of histories; top level, so that processes can be sent them."""

from histories.collection import CollectSettings, CollectSummary, collect
from histories.regions import MarkerRule, RegionCounter
from histories.schema import FIELDS, History
from tasks.darkroom import DarkRoomFamily
from tasks.family import Task, TaskFamily
from tasks.splits import make_split
from tasks.vector import final_observations

SETTINGS = CollectSettings(
    styles=("walk",), n_streams=3, n_regions=4, region_len=10, n_workers=1, episodes_per_region=2
)


def small_family() -> DarkRoomFamily:
    return DarkRoomFamily(size=3, horizon=5)


def small_split(seed: int = 0):
    return make_split(small_family().tasks(), seed=seed, n_validation=2, n_test=2)


def walk(
    family: TaskFamily,
    task: Task,
    *,
    n_streams: int,
    n_regions: int,
    region_len: int,
    source_seed: int,
    marker_rule: MarkerRule,
    steps: tuple[int, ...] = (0, 2, 1, 3),
) -> History:
    """Walk round in a circle; cheap, seeded, and needs no learner."""
    spaces = (family.observation_space, family.action_space)
    labels = {"style": "walk", "source_seed": source_seed, "settings": {"steps": list(steps)}}
    history = History.empty(*spaces, n_streams, n_regions * region_len, **labels)
    env = family.make_vector_env([task] * n_streams)
    counter = RegionCounter(n_streams, marker_rule)
    observations, _ = env.reset()
    for time in range(history.n_transitions):
        actions = [steps[(time + stream + source_seed) % 4] for stream in range(n_streams)]
        following, rewards, terminated, truncated, infos = env.step(actions)
        true_next = final_observations(following, infos)
        markers = counter.step(terminated | truncated)
        values = (observations, actions, rewards, true_next, terminated, truncated, markers)
        for name, value in zip(FIELDS, values, strict=True):
            getattr(history, name)[:, time] = value
        observations = following
    return history


def collect_small(out_dir, settings: CollectSettings = SETTINGS, **kwargs) -> CollectSummary:
    learners = kwargs.pop("learners", {"walk": walk})
    split = kwargs.pop("split", small_split())
    return collect(small_family(), split, settings, out_dir, learners, progress=False, **kwargs)
