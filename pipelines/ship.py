"""Ship a run's student: copy the model that was evaluated to models/<name>/, with a card.

Needs the comparison of the run. Writes config.json, model.safetensors, README.md (what it is, how
good on which held-out tasks, how to load it), config.yaml, the configuration that trained it, and
checksums.json, by which whoever loads it notices a damaged file.
`python -m pipelines.demo --model <folder>` then needs nothing of the run.
"""

from __future__ import annotations

if __name__ == "__main__":  # above the imports, so that --help waits for none of them
    from pipelines.cli import run_stage

    run_stage("ship")

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ad.student import CADStudent
from base.errors import UserError
from base.files import atomic_dir
from base.hashes import check_checksums, write_checksums
from pipelines.common import Run, split_settings
from pipelines.config import RunConfig
from pipelines.methods import through
from pipelines.models import load_student
from pipelines.opening import open_run
from pipelines.stage import StageError
from pipelines.stages import check_method
from tasks.family import Task

LOADED = ("config.json", "model.safetensors")
COLUMNS = {
    "mean": "normalised return (mean)",
    "interval_low": "95 % from",
    "interval_high": "to",
    "interval_kind": "interval",
    "iqm": "IQM",
    "tasks_solved": "tasks solved",
    "worst_task": "worst task",
    "seeds": "training seeds",
    "gap_recovered": "gap recovered",
    "context_tokens": "context tokens",
    "compression_ratio": "compression",
    "train_updates": "updates",
    "n_parameters": "parameters",
}
"""Of the comparison table, with the names the card gives them."""


def main(config: RunConfig) -> None:
    """Run the stage."""
    check_method(config, "ship", through("distill"))
    run = open_run(config, "ship")
    if not run.accelerator.is_main_process:
        return
    student, stage_dir = load_student(run)
    compared = _comparison_row(run)
    metrics, returns = _evaluation(run)
    target = Path(config.ship.folder) / (config.ship.name or f"{run.root.name}-{config.method}")
    student.cpu()
    student.config.provenance = {
        **student.config.provenance,
        "stage": stage_dir.name,
        "split_settings": split_settings(config),
        "test_tasks": [task.params for task in run.tasks("test")],
        "temperature": config.evaluate.temperature,
    }
    with atomic_dir(target) as folder:
        student.save_pretrained(str(folder))
        (folder / "config.yaml").write_text((run.root / "config.yaml").read_text())
        card = model_card(run, student, target, compared, metrics, returns)
        (folder / "README.md").write_text(card, encoding="utf-8")
        write_checksums(folder, LOADED)
    run.say(f"shipped {stage_dir / 'model'} to {target}")


def _comparison_row(run: Run) -> dict[str, str]:
    path = run.root / "comparison" / "table.csv"
    again = "`accelerate launch -m pipelines.compare --config ...` with the same run_dir"
    try:
        check_checksums(path.parent)
    except UserError as error:
        raise StageError(f"{error} Or run {again}, which writes it anew.") from None
    rows = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get("method") == run.config.method]
    except (OSError, UnicodeDecodeError, csv.Error):
        pass
    if not rows:
        raise StageError(
            f"{path} has no row of method={run.config.method}, and the card needs it; run {again} "
            "first."
        )
    return rows[0]


def _evaluation(run: Run) -> tuple[dict[str, Any], np.ndarray]:
    """Return metrics.json and the returns (tasks, seeds, episodes) of this seed."""
    run.require("evaluate")
    folder = run.folder("evaluate")
    returns = np.load(folder / "eval_result.npy", allow_pickle=False)
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8")), returns


def model_card(
    run: Run,
    student: CADStudent,
    target: Path,
    compared: Mapping[str, str],
    metrics: Mapping[str, Any],
    returns: np.ndarray,
) -> str:
    """Return the card (README.md) of a shipped student.

    Args:
        run: It was trained in.
        student: With the provenance it is shipped with.
        target: Folder it is shipped to.
        compared: Its row of the comparison table, all training seeds together.
        metrics: `metrics.json` of this training seed.
        returns: (tasks, seeds, episodes) of the same evaluation.
    """
    provenance = student.config.provenance
    kwargs = str(run.config.family.kwargs).replace("'", '"')  # as formatters of Markdown want it
    test = run.tasks(metrics["part"])
    latents, length = student.compressor.n_latents, student.region_len
    git = f" (code {provenance['git_sha'][:12]})" if provenance.get("git_sha") else ""
    return f"""---
library_name: transformers
license: mit
tags: [in-context-reinforcement-learning, algorithm-distillation]
---

# {target.name}

Compressed-Context Algorithm Distillation on `{run.config.family.target}` {kwargs}. With its
weights frozen this student improves from episode to episode on tasks it has not seen: every
{length} steps it compresses what it has just lived through into {latents} latents, drops the raw
steps, and acts on.

- Model of stage `{provenance["stage"]}`, method `{run.config.method}`, training seed
  {run.config.seed}, {_number(sum(p.numel() for p in student.parameters()))} parameters{git}.
- Trained by `accelerate launch -m pipelines.run --config {target}/config.yaml`; with another
  `run_dir` that command makes it anew.
- Split `{run.split.name}` (identity {run.split.identity[:12]}): {len(run.split.train)} tasks to
  train on, {len(run.split.validation)} to choose the checkpoint by, {len(run.split.test)} held out.

## Results

All training seeds, from the comparison table of the run; held-out tasks, last
{metrics["final_episodes"]} of {metrics["n_episodes"]} in-context episodes:

{_comparison(compared)}

This model alone, {metrics["n_evaluation_seeds"]} evaluation seeds, actions
{f"sampled at temperature {metrics['temperature']:g}" if metrics["sampled"] else "the likeliest"}:

{_task_table(run, test, returns, metrics["final_episodes"])}

## Use

```bash
python -m pipelines.demo --model {target}
```

```python
from ad.policy import ContextPolicy
from ad.rollout import rollout
from ad.student import CADStudent
from tasks.family import load_family

student = CADStudent.from_pretrained("{target}")
family = load_family("{run.config.family.target}", {kwargs})
task = family.tasks()[{test[0].index}]  # {test[0].name}, held out
policy = ContextPolicy(student, temperature={metrics["temperature"]:g})
print(rollout(policy, family, [task], n_episodes=40, seed=0).returns)
```

## Limits

Acts in this family's observation and action spaces and with regions of {length} steps only, and was
tried on no other family. Good returns on the held-out tasks above say nothing of tasks of another
kind. In the first region it knows nothing, and single streams may never find the goal.
"""


def _comparison(row: Mapping[str, str]) -> str:
    shown = {title: row[name] for name, title in COLUMNS.items() if row.get(name)}
    lines = [list(shown), ["---"] * len(shown), [_number(value) for value in shown.values()]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _task_table(run: Run, tasks: Sequence[Task], returns: np.ndarray, n_final: int) -> str:
    score = run.normalized(returns, tasks)
    lines = [
        "| held-out task | first episode | last episodes | normalised | random | optimal |",
        "|---|---|---|---|---|---|",
    ]
    for task, raw, normal in zip(tasks, returns, score, strict=True):
        best = run.family.optimal_return(task)
        cells = [raw[:, 0].mean(), raw[:, -n_final:].mean(), normal[:, -n_final:].mean()]
        cells += [run.family.random_return(task)]
        numbers = " | ".join(f"{value:.2f}" for value in cells)
        lines.append(f"| {task.name} | {numbers} | {'' if best is None else f'{best:g}'} |")
    mean = f"{score[..., -n_final:].mean():.3f}"
    return "\n".join([*lines, f"| mean | | | {mean} | | |"])


def _number(value: str | int | float) -> str:
    try:
        number = float(value)
    except ValueError:  # the kind of interval
        return str(value)
    return f"{number:,.0f}" if number == round(number) else f"{number:.3f}"
