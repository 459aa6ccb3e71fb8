"""Collection in processes: the same histories, quick sources without them, jobs that die."""

import os
from functools import partial

import pytest
from histories_data import WALK, collect_small, walk_and_say_where, walk_or_die

from histories.collection import CollectError
from histories.sources import Source
from histories.store import open_histories
from pipelines.collect import _run_jobs


def in_processes(folder):
    return partial(_run_jobs, n_workers=2, log_dir=folder / "logs")


@pytest.mark.slow
def test_processes_make_the_same_histories(tmp_path):
    one = collect_small(tmp_path / "one")
    source = Source(walk_and_say_where, {"folder": tmp_path})
    run = in_processes(tmp_path)
    two = collect_small(tmp_path / "two", sources={"walk": source}, run=run)
    assert two.n_env_steps == one.n_env_steps
    pids = {path.name.partition("-")[2] for path in tmp_path.glob("[0-8]-*")}
    assert len(pids) == 2
    assert str(os.getpid()) not in pids
    with open_histories(one.path) as first, open_histories(two.path) as second:
        for index in range(9):
            for name, array in first.arrays(index).items():
                assert (array == second.arrays(index)[name]).all()


def test_quick_sources_start_no_process(tmp_path):
    source = Source(walk_and_say_where, {"folder": tmp_path}, streams_per_job=6, quick=True)
    collect_small(tmp_path / "it", sources={"walk": source}, run=in_processes(tmp_path))
    found = sorted(path.name for path in tmp_path.glob("[0-8]-*"))
    assert found == [f"{index}-{os.getpid()}" for index in (0, 2, 4, 6, 8)]


@pytest.mark.slow
def test_slow_jobs_of_quick_sources_go_to_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.collect.START_SECONDS", 0.0)
    source = Source(walk_and_say_where, {"folder": tmp_path}, streams_per_job=6, quick=True)
    collect_small(tmp_path / "it", sources={"walk": source}, run=in_processes(tmp_path))
    here = [path.name for path in tmp_path.glob(f"[0-8]-{os.getpid()}")]
    assert here == [f"0-{os.getpid()}"]
    assert len(list(tmp_path.glob("[0-8]-*"))) == 5


@pytest.mark.slow
def test_a_killed_worker_costs_its_own_history_alone(tmp_path):
    sources = {"walk": Source(walk_or_die, {"folder": tmp_path})}
    with pytest.raises(CollectError, match=r"1 of 9 .* walk-0-00004.* exit code -9"):
        collect_small(tmp_path / "it", sources=sources, run=in_processes(tmp_path))
    again = collect_small(tmp_path / "it", sources=sources, run=in_processes(tmp_path))
    assert (again.n_done_before, again.n_env_steps) == (8, 3 * 40)


def test_one_worker_is_this_process(tmp_path):
    run = partial(_run_jobs, n_workers=1, log_dir=tmp_path / "logs")
    assert collect_small(tmp_path, sources={"walk": WALK}, run=run).n_env_steps == 9 * 3 * 40
    assert not (tmp_path / "logs").exists()
