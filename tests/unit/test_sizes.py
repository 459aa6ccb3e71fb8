"""What needs more memory than there is, is refused by every key that makes it so large."""

from pathlib import Path

import pytest

from pipelines import sizes
from pipelines.config import RunConfig
from pipelines.opening import open_run
from pipelines.stage import StageError
from training.config import load_config

ROOT = Path(__file__).parents[2]
MEMORY = 2**30


@pytest.mark.parametrize(
    ("method", "override", "said"),
    [
        ("student", "distill.optim.batch_size=1000000", "batch_size 1000000{row}, {seen} 1 "),
        ("student", "evaluate.n_offline=1000000", "evaluate.n_offline 1000000{row}, {seen} 1 "),
        ("student", "evaluate.n_seeds=1000000", "evaluate.n_seeds 1000000 .*{row}"),
        ("student", "validation.n_seeds=1000000", "validation.n_seeds 1000000 .*{row}"),
        ("student", "model.d_model=4096", "parameters of method student{row}, {seen} 1 .model"),
        ("teacher", "teacher.n_context_regions=100000", "n_offline .*{row}, {seen} 100000 "),
    ],
)
def test_all_keys_are_named(
    method: str, override: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sizes, "memory_bytes", lambda: MEMORY)
    overrides = [f"run_dir={tmp_path}", "distill.optim.accumulation_steps=1", override]
    overrides.append(f"method={method}")
    config = load_config(RunConfig, ROOT / "configs/smoke.yaml", overrides)
    row = rf" of region_len {config.region_len}, model.d_model \d+"
    stage, seen = {
        "student": ("distill", "memory.n_regions"),
        "teacher": ("train_teacher", "teacher.n_context_regions"),
    }[method]
    with pytest.raises(StageError, match=said.format(row=row, seen=seen)):
        open_run(config, stage)
