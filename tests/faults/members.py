"""Members of families, compressors, bottlenecks, memories x wrong shape, range, type, exception."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode

import pipelines.common
import pipelines.opening
from ad.policy import RandomPolicy
from ad.rollout import rollout
from compression.bottleneck import Bottleneck
from compression.compressor import Compressor
from compression.latents import Latents
from compression.memory import OneShot
from pipelines.config import RunConfig
from tasks.darkroom import DarkRoomFamily
from tasks.family import Task
from tests.faults.configs import TINY
from tests.faults.corpus import Case
from training.config import load_config

N_STEPS = 40


class Hostile(DarkRoomFamily):
    """A family that is wrong in one way, named by `how`."""

    def __init__(self, how: str = "") -> None:
        super().__init__(size=3, horizon=5)
        self.how = how
        change = FAMILIES.get(how)
        if change is not None:
            change(self)


class HostileEnv:
    """A vector environment whose answers are changed on their way out."""

    def __init__(self, env: Any, reset: Callable = lambda o: o, step: Callable = lambda *r: r):
        self.env, self.change_reset, self.change_step = env, reset, step
        self.metadata = dict(env.metadata)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def reset(self, **kwargs: Any) -> Any:
        observations, infos = self.env.reset(**kwargs)
        return self.change_reset(observations), infos

    def step(self, actions: Any) -> Any:
        return self.change_step(*self.env.step(actions))


def attribute(name: str, value: Any) -> Callable[[Any], None]:
    return lambda family: setattr(family, name, value)


def answer(name: str, value: Any) -> Callable[[Any], None]:
    return lambda family: setattr(family, name, lambda *_, **__: value)


def failing(name: str) -> Callable[[Any], None]:
    def fail(*_: Any, **__: Any) -> Any:
        raise KeyError("not there")

    return lambda family: setattr(family, name, fail)


def env(reset: Callable = lambda o: o, step: Callable = lambda *r: r, **facts: Any) -> Callable:
    def change(family: Any) -> None:
        make = family.make_vector_env

        def hostile(tasks: Any) -> Any:
            made = HostileEnv(make(tasks), reset, step)
            made.metadata |= facts.get("metadata", {})
            if "num_envs" in facts:
                made.num_envs = facts["num_envs"]
            return made

        family.make_vector_env = hostile

    return change


def step_with(place: int, changed: Callable[[Any], Any]) -> Callable:
    def step(*results: Any) -> Any:
        every = list(results)
        every[place] = changed(every[place])
        return tuple(every)

    return step


def tasks_with(**changed: Any) -> Callable[[Any], None]:
    return lambda family: setattr(
        family, "_tasks", tuple(replace(task, **changed) for task in family._tasks)
    )


def endless(family: Any) -> None:
    env(step=step_with(3, np.zeros_like))(family)


FAMILIES: dict[str, Callable[[Any], None]] = {
    **{f"episode_len {v!r}": attribute("episode_len", v) for v in (0, -1, 2.5, "5", None, True)},
    "episode_len too short": attribute("episode_len", 3),
    **{f"name {v!r}": attribute("name", v) for v in ("", None, 3)},
    **{f"tasks {v!r}": answer("tasks", v) for v in ([], None, [1, 2], 5)},
    "tasks fails": failing("tasks"),
    "tasks has one index": tasks_with(index=0),
    "tasks has negative indices": tasks_with(index=-1),
    "tasks has one params": tasks_with(params={"goal": [1, 1]}),
    "tasks has params that are no JSON": tasks_with(params={"goal": {1, 2}}),
    "tasks has nan in params": tasks_with(params={"goal": float("nan")}),
    "tasks has no params": tasks_with(params=None),
    **{
        f"{name} {v!r}": answer(name, v)
        for name in ("random_return", "optimal_return")
        for v in (float("nan"), float("inf"), "x", [1.0])
    },
    **{
        f"information_bits {v!r}": attribute("information_bits", v)
        for v in (float("nan"), float("inf"), -1.0, "x", [1.0])
    },
    "random_return None": answer("random_return", None),
    "random_return fails": failing("random_return"),
    "optimal_return fails": failing("optimal_return"),
    **{
        f"optimal_actions {name}": answer("optimal_actions", v)
        for name, v in (
            ("of another shape", np.zeros((2, 2), dtype=np.int64)),
            ("one alone", 0),
            ("out of range", np.full(3, 17)),
            ("negative", np.full(3, -1)),
            ("real", np.full(3, 0.5)),
            ("None", None),
        )
    },
    "optimal_actions fails": failing("optimal_actions"),
    "observation_space Text": attribute("observation_space", gymnasium.spaces.Text(3)),
    "observation_space None": attribute("observation_space", None),
    "observation_space too small": attribute(
        "observation_space", gymnasium.spaces.MultiDiscrete([2, 2])
    ),
    "observation_space of another shape": attribute(
        "observation_space", gymnasium.spaces.MultiDiscrete([3, 3, 3])
    ),
    "action_space Dict": attribute("action_space", gymnasium.spaces.Dict({})),
    "action_space None": attribute("action_space", None),
    "make_vector_env fails": failing("make_vector_env"),
    "make_vector_env None": answer("make_vector_env", None),
    "make_vector_env NEXT_STEP": env(metadata={"autoreset_mode": AutoresetMode.NEXT_STEP}),
    "make_vector_env DISABLED": env(metadata={"autoreset_mode": AutoresetMode.DISABLED}),
    "make_vector_env without a mode": env(metadata={"autoreset_mode": None}),
    "make_vector_env of another number": env(num_envs=7),
    "make_vector_env endless": endless,
    "reset out of range": env(reset=lambda o: o + 7),
    "reset negative": env(reset=lambda o: o - 7),
    "reset real": env(reset=lambda o: o + 0.5),
    "reset of another shape": env(reset=lambda o: o[..., None]),
    "reset of fewer": env(reset=lambda o: o[:1]),
    "reset a list": env(reset=lambda o: o.tolist()),
    "reset None": env(reset=lambda o: None),
    "step out of range": env(step=step_with(0, lambda o: o + 7)),
    "step of another shape": env(step=step_with(0, lambda o: o[:, :1])),
    "step nan rewards": env(step=step_with(1, lambda r: r * float("nan"))),
    "step infinite rewards": env(step=step_with(1, lambda r: r + float("inf"))),
    "step one reward": env(step=step_with(1, lambda r: 0.0)),
    "step rewards of words": env(step=step_with(1, lambda r: ["x"] * len(r))),
    "step terminated of numbers": env(step=step_with(2, lambda t: t.astype(float))),
    "step truncated of another shape": env(step=step_with(3, lambda t: t[:1])),
    "step without final_obs": env(step=step_with(4, lambda infos: {})),
    "step infos None": env(step=step_with(4, lambda infos: None)),
    "step of four": env(step=lambda *r: r[:4]),
}


class HostileCompressor(Compressor):
    """A compressor that is wrong in one way."""

    how = ""

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> Any:
        values = tokens[:, : self.n_latents]
        return COMPRESSORS[self.how](values, self)


def _fail(values: torch.Tensor, _: Any) -> Any:
    raise KeyError("not there")


COMPRESSORS: dict[str, Callable[[torch.Tensor, Any], Any]] = {
    "none": lambda v, _: None,
    "a tensor": lambda v, _: v,
    "a tuple": lambda v, _: (v, None),
    "fewer latents": lambda v, _: Latents(v[:, :1]),
    "more latents": lambda v, _: Latents(torch.cat([v, v], 1)),
    "narrower": lambda v, _: Latents(v[..., :-1]),
    "fewer rows": lambda v, _: Latents(v[:1]),
    "rows and latents exchanged": lambda v, _: Latents(v.transpose(0, 1)),
    "flat": lambda v, _: Latents(v.flatten(1)),
    "whole numbers": lambda v, _: Latents(v.long()),
    "numpy": lambda v, _: Latents(v.detach().numpy()),  # type: ignore
    "nan": lambda v, _: Latents(v * float("nan")),
    "infinite": lambda v, _: Latents(v + float("inf")),
    "a mask of numbers": lambda v, _: Latents(v, torch.ones(v.shape[:2])),
    "a mask of another shape": lambda v, _: Latents(v, torch.ones(v.shape[0], 1).bool()),
    "an exception": _fail,
}


class HostileBottleneck(Bottleneck):
    """A bottleneck that is wrong in one way."""

    how = ""

    def forward(self, latents: Latents) -> Any:
        return COMPRESSORS[self.how](latents.values, self)


class HostileMemory(OneShot):
    """A memory whose reading is wrong in one way."""

    how = ""

    def read(self, state: Any) -> Any:
        return COMPRESSORS[self.how](super().read(state).values, self)


KINDS = {
    "compressor.kind": HostileCompressor,
    "compressor.bottleneck": HostileBottleneck,
    "memory.kind": HostileMemory,
}


def class_of(how: str, base: type) -> str:
    return base.__name__ + "".join(word.capitalize() for word in how.split())


for _base in KINDS.values():
    for _name in COMPRESSORS:
        _class = class_of(_name, _base)
        globals()[_class] = type(_class, (_base,), {"how": _name, "__module__": __name__})


def cases(work: Path, seed: int) -> list[Case]:
    """All cases; the seed chooses tasks and streams that are played."""
    rng = random.Random(seed)
    file = work / "members.yaml"
    file.write_text(TINY.format(run_dir=work / "run"))
    found = []
    for how in FAMILIES:
        play = rng.randrange(10**6)
        found.append(
            Case(
                f"family: {how}",
                lambda how=how, play=play: use_family(file, how, play),
                ("Hostile",),
            )
        )
    for key, base in KINDS.items():
        for how in COMPRESSORS:
            name = class_of(how, base)

            def use(key: str = key, name: str = name) -> str | None:
                return use_part(file, key, name)

            found.append(Case(f"{key}: {how}", use, (name,)))
    return [replace(case, seconds=20, apart=False) for case in found]


def use_family(file: Path, how: str, seed: int) -> str | None:
    target = [f'family.target="{__name__}:Hostile"', f"family.kwargs={{how: {how!r}}}"]
    config = load_config(RunConfig, file, target)
    family, split = pipelines.opening.open_tasks(config)
    tasks: list[Task] = [family.tasks()[i] for i in split.validation]
    rollout(RandomPolicy(family), family, tasks, n_episodes=2, seed=seed)
    return f"silent: a family with {how} is played"


def use_part(file: Path, key: str, name: str) -> str | None:
    config = load_config(RunConfig, file, [f'{key}="{__name__}:{name}"'])
    family, split = pipelines.opening.open_tasks(config)
    run = pipelines.common.Run(config, file.parent, family, split, None)  # type: ignore
    pipelines.opening.check_models(run, ["student"])
    return f"silent: {name} is taken"
