"""Look inside a trained student: what its latents hold, what they attend to, what they steer.

Reads a finished run and its recorded regions. Writes <run_dir>/seed_<n>/probe/<method>/:
probe.json, figures as PDF and PNG with their data as CSV, and a film of student and teacher.
Looking again overwrites. docs/probing.md says what each number means.
"""

from __future__ import annotations

if __name__ == "__main__":  # above the imports, so that --help waits for none of them
    from pipelines.cli import run_stage

    run_stage("probe")

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from ad.policy import Policy
from ad.student import CADStudent
from base.files import write_json
from base.seeding import derive
from pipelines.common import Run, source
from pipelines.config import RunConfig
from pipelines.methods import METHODS, through
from pipelines.models import load_student, load_teacher, policy_of
from pipelines.opening import open_run
from pipelines.stages import check_method
from probes.latents import (
    attention_on_rewards,
    cosines,
    effective_rank,
    example_region,
    latents_of,
    pooling_attention,
)
from probes.probing import FEATURES, Sample, draw_sample, run_probes, untrained
from probes.swap import Swap, draw_pairs, furthest_pair, swap_latents
from probes.traces import draws_pictures, goal_cells, play, shown_episodes
from reports.files import write_csv
from reports.film import captioned, write_gif
from reports.probe_figures import (
    draw_attention,
    draw_cosine,
    draw_probes,
    draw_strip,
    draw_swap,
    draw_swap_rooms,
    probe_name,
)
from training.run_dir import git_sha, now, read_meta

FORMAT_VERSION = 1
SHORT = {"untrained": "un-\ntrained", "raw": "raw\nflat", "raw_pooled": "raw\npooled"}


def main(config: RunConfig) -> None:
    """Run the stage."""
    speaking = tuple(name for name in through("distill") if METHODS[name].informed)
    check_method(config, "probe", speaking)
    run = open_run(config, "probe")
    if not run.accelerator.is_main_process:
        return
    student, stage_dir = load_student(run)
    out = run.seed_dir / "probe" / config.method
    out.mkdir(parents=True, exist_ok=True)
    samples = {
        part: draw_sample(source(run, part, 1, 1), config.probe.n_regions, _seed(run, part))
        for part in ("train", "validation", "test")
    }
    run.say("linear probes")
    with threadpool_limits(config.threads):  # scikit-learn's, which torch's number is not
        probes = run_probes(
            student,
            samples,
            run.family.tasks(),
            run.observation,
            run.action,
            _seed(run, "untrained"),
        )
    draw_probes(probes, out)
    run.say("ranks and attention")
    latents = _latents(run, student, samples["test"], out)
    run.say("exchange of latents")
    swap = _swap(run, student, out)
    run.say("pictures of episodes")
    strip = _strip(run, student, out)
    header = {
        "format_version": FORMAT_VERSION,
        "method": config.method,
        "training_seed": config.seed,
        "model": str(stage_dir / "model"),
        "split_identity": run.split.identity,
        "n_regions": {part: len(sample.task) for part, sample in samples.items()},
        "n_rewarded_regions": {part: int(s.rewarded.sum()) for part, s in samples.items()},
        "git_sha": git_sha(),
        "created": now(),
    }
    write_json(
        out / "probe.json", {**header, "probes": probes, **latents, "swap": swap, "strip": strip}
    )
    _tell(Console(), probes, latents, swap)
    Console(highlight=False, soft_wrap=True, markup=False).print(f"numbers and figures: {out}")


def _seed(run: Run, purpose: str) -> int:
    return derive(run.config.probe.seed, "probe", purpose)


def _latents(run: Run, student: CADStudent, sample: Sample, out: Path) -> dict[str, Any]:
    """Rank, cosines and attention on regions of test tasks."""
    z = latents_of(student, sample.regions)
    fresh = latents_of(untrained(student, _seed(run, "untrained")), sample.regions)
    n, m, width = z.shape
    ranks = [
        ("all", m * width, effective_rank(z.reshape(n, -1)), effective_rank(fresh.reshape(n, -1)))
    ]
    ranks += [
        (str(i + 1), width, effective_rank(z[:, i]), effective_rank(fresh[:, i])) for i in range(m)
    ]
    header = ("latent", "dimensions", "effective_rank", "effective_rank_untrained")
    write_csv(out / "rank.csv", header, ranks)
    plain, centred = cosines(z, centred=False), cosines(z, centred=True)
    draw_cosine(plain, centred, out)
    others = ~np.eye(m, dtype=bool)
    attention = pooling_attention(student, sample.regions)
    if attention is not None:
        shown = example_region(sample.rewards)
        ended = (sample.regions.ended & sample.regions.mask)[shown].cpu().numpy()
        draw_attention(attention.mean(0), attention[shown], sample.rewards[shown], ended, out)
    return {
        "ranks": [dict(zip(header, row, strict=True)) for row in ranks],
        "mean_cosine": float(plain[others].mean()) if m > 1 else None,
        "mean_cosine_centred": float(centred[others].mean()) if m > 1 else None,
        "attention": None if attention is None else attention_on_rewards(attention, sample.rewards),
    }


def _swap(run: Run, student: CADStudent, out: Path) -> dict[str, Any] | None:
    """Exchange latents between test tasks; None where there are not two of them."""
    settings = run.config.probe
    pairs = draw_pairs(run.tasks("test"), settings.n_pairs, _seed(run, "pairs"))
    if not pairs:
        return None
    swap = swap_latents(
        student,
        run.family,
        pairs,
        run.observation,
        n_seeds=settings.n_seeds,
        after=settings.swap_after,
        n_regions_after=settings.n_regions_after,
        temperature=settings.temperature,
        seed=_seed(run, "swap"),
        device=run.accelerator.device,
    )
    by_region, by_pair = swap.by_region(), swap.by_pair()
    if swap.own_goal is not None:
        draw_swap(swap.by_episode(), out)
        write_csv(out / "swap_pairs.csv", list(by_pair[0]), (list(p.values()) for p in by_pair))
        _swap_rooms(run, swap, out)
    return {
        "n_streams": 2 * len(pairs) * settings.n_seeds,
        "by_region": [row for row in by_region if row["block"] >= -1],
        "by_pair": by_pair,
    }


def _swap_rooms(run: Run, swap: Swap, out: Path) -> None:
    goals = goal_cells(run.family.tasks(), run.observation)
    if goals is None or len(run.observation.n_classes) != 2:
        return
    shown = furthest_pair(swap.pairs, run.observation, goals)
    a, b = swap.pairs[shown]
    visits = {
        f"{'own' if kind == 'own' else 'the other task’s'} latents": swap.occupancy(kind, shown)
        for kind in swap.traces
    }
    marks = {
        name: [int(axis) for axis in np.unravel_index(goals[task.index], run.observation.n_classes)]
        for name, task in (("own", a), ("other", b))
    }
    title = f"agents on {a.name}, latents of {b.name}: the {swap.region_len} steps after"
    draw_swap_rooms({k: v for k, v in visits.items() if v is not None}, marks, title, out)


def _strip(run: Run, student: CADStudent, out: Path) -> dict[str, Any] | None:
    """Draw episodes of student and teacher on the first test task; None without pictures."""
    if not draws_pictures(run.family):
        return None
    settings, task = run.config.probe, run.tasks("test")[0]
    agents: dict[str, Policy] = {run.config.method: policy_of(student, run, settings.temperature)}
    if read_meta(run.of("teacher").folder("train_teacher")) is not None:
        agents["teacher"] = policy_of(load_teacher(run), run, settings.temperature)
    numbers = shown_episodes(settings.n_episodes)
    played = {
        name: list(
            play(
                policy,
                run.family,
                task,
                n_episodes=settings.n_episodes,
                seed=_seed(run, "strip"),
                shown=numbers,
            )
        )
        for name, policy in agents.items()
    }
    shown = {name: [e for e in episodes if e.frames] for name, episodes in played.items()}
    films = {name: [(e.number, e.total, e.frames) for e in es] for name, es in shown.items()}
    draw_strip(films, out, f"{task.name}, not seen in training")
    write_gif(out / "strip.gif", _film(films))
    return {
        "task": task.name,
        "returns": {name: [e.total for e in episodes] for name, episodes in played.items()},
    }


def _film(films: Mapping[str, Sequence[tuple[int, float, Sequence[np.ndarray]]]]) -> list[Any]:
    """Frames of all agents side by side, episode after episode; who ends first waits."""
    frames = []
    for together in zip(*films.values(), strict=True):
        for step in range(max(len(film) for _, _, film in together)):
            panels = [
                (f"{name}, episode {number}", film[min(step, len(film) - 1)])
                for name, (number, _, film) in zip(films, together, strict=True)
            ]
            frames.append(captioned(panels))
        frames += [frames[-1]] * 4
    return frames


def _tell(
    console: Console,
    probes: Sequence[Mapping[str, Any]],
    latents: Mapping[str, Any],
    swap: Mapping[str, Any] | None,
) -> None:
    """Print the scores on held-out tasks, and what else fits into a few lines."""
    table = Table(
        title="linear probes, held-out tasks", title_justify="left", box=None, pad_edge=False
    )
    table.add_column("probe", no_wrap=True)
    for name in ("chance", *FEATURES):
        table.add_column(SHORT.get(name, name), justify="right", style="bold" * (name == "latents"))
    for row in probes:
        if row["tested_on"] == "held-out tasks":
            cells = [row[name] for name in ("chance", *FEATURES)]
            table.add_row(probe_name(row), *("" if v is None else f"{v:.2f}" for v in cells))
    console.print(table)
    whole, attention = latents["ranks"][0], latents["attention"]
    console.print(
        f"\neffective rank {whole['effective_rank']:.1f} of {whole['dimensions']} dimensions, "
        f"untrained {whole['effective_rank_untrained']:.1f}",
        highlight=False,
    )
    if attention is not None:
        console.print(
            f"attention on rewarded steps {attention['attention_share']:.0%}, by the latent that "
            f"looks most {attention['strongest_latent_share']:.0%};\n"
            f"of the steps {attention['step_share']:.0%} are rewarded",
            highlight=False,
        )
    first = [row for row in swap["by_region"] if row["block"] == 0] if swap else []
    if first and first[0]["at_own_goal"] is not None:
        console.print(_swap_table(first))


def _swap_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, title_justify="left", title="\nafter the exchange")
    table.add_column("latents")
    columns = {
        "at_own_goal": "steps at\nown goal",
        "at_other_goal": "steps at\nother goal",
        "reached_own_goal": "streams that\nreach own",
        "reached_other_goal": "streams that\nreach other",
    }
    for title in columns.values():
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(row["latents"], *(f"{row[column]:.0%}" for column in columns))
    return table
