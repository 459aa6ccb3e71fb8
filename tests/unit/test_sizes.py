"""What needs more memory than there is, is refused by every key that makes it so large."""

import re
from pathlib import Path

import pytest

from pipelines import sizes
from pipelines.common import open_run
from pipelines.config import RunConfig
from pipelines.stages import StageError
from training.config import load_config

ROOT = Path(__file__).parents[2]
MEMORY = 2**30


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("distill.optim.batch_size=1000000", "distill.optim.batch_size 1000000"),
        ("evaluate.n_offline=1000000", "evaluate.n_offline 1000000"),
        ("evaluate.n_seeds=1000000", "evaluate.n_seeds 1000000"),
        ("validation.n_seeds=1000000", "validation.n_seeds 1000000"),
    ],
)
def test_all_keys_are_named(
    override: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sizes, "memory_bytes", lambda: MEMORY)
    overrides = [f"run_dir={tmp_path}", override, "distill.optim.accumulation_steps=1"]
    config = load_config(RunConfig, ROOT / "configs/smoke.yaml", overrides)
    said = rf"{re.escape(named)}.* of region_len {config.region_len}, model.d_model \d+ would need"
    with pytest.raises(StageError, match=said):
        open_run(config, "distill")
