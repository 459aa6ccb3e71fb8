"""Compare the evaluated methods of a run: a table in the terminal, and files for a paper.

Reads <run_dir>/seed_*/evaluate/ and <run_dir>/references/, and writes <run_dir>/comparison/:
table.csv, table.md, table.tex, report.html, and figures as PDF and PNG with their data as CSV.
Given a sweep file it writes the report of the sweep's finished cells anew.
"""

from __future__ import annotations

if __name__ == "__main__":  # above the imports, so that --help waits for none of them
    from pipelines.cli import run_or_sweep, run_stage

    run_stage("compare", config_class=run_or_sweep)

from pathlib import Path

from rich.console import Console

from pipelines.ablate import report
from pipelines.config import RunConfig
from pipelines.stage import StageError
from pipelines.stages import results_name
from pipelines.sweep import SweepConfig, lay_out
from reports.comparison import ReportOptions, write_comparison


def main(config: RunConfig | SweepConfig, file: str = "") -> None:
    """Run the stage."""
    if isinstance(config, SweepConfig):
        report(lay_out(config, file))
    else:
        compare(config)


def compare(config: RunConfig) -> None:
    """Compare the methods and training seeds of a run, and those of `compare.also`."""
    root = Path(config.run_dir)
    if not config.run_dir or not root.is_dir():
        raise StageError(
            f"run_dir {config.run_dir!r} is no directory; give that of a finished run."
        )
    name = config.evaluate.name
    out = root / (f"comparison_{name}" if name else "comparison")
    resolved = root / "config.yaml"
    options = ReportOptions(
        folder=results_name(config),
        solved_threshold=config.compare.solved_threshold,
        commands=[f"accelerate launch -m pipelines.run --config {resolved}"],
        config_text=resolved.read_text() if resolved.exists() else "",
        console=Console(),
    )
    write_comparison([root, *config.compare.also], out, options=options)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(f"table and figures: {out}")
