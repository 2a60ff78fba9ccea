"""What MLflow is told of a search: its progress, and the runs of the trials that have ended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.records.directory import RunDirectory
from harness.search.space import Search
from harness.search.trials import best_so_far, num_counted, pareto_front, read_trials
from harness.tracking.experiment import sync_experiments
from harness.tracking.searches import sync_search
from harness.tracking.sync import is_synced, sync_run


def upload(search: Search, runs_folder: Path, state: str, run_keys: Sequence[str], *, tracking_uri: str | None) -> None:
    """Upload the search, and those of some runs that are not in MLflow as they are now.

    Args:
        state: running, interrupted or done.

    Raises:
        TrackingError: the store cannot be reached or refuses.
    """
    folder = search.folder(runs_folder)
    trials = read_trials(folder)
    best = pareto_front(trials, search.metrics)
    tags = {
        "finished": f"{num_counted(trials, search.settings)} of {search.settings.trials}",
        "best_trial": ", ".join(trial.arm for trial in best[:20]),
        "best_run": best[0].run_keys[0] if best else "",
    }
    rows = best_so_far(trials, search.metrics)
    params = search.params()
    sync_search(folder, params=params, tags=tags, best_so_far=rows, state=state, tracking_uri=tracking_uri)
    for directory in (RunDirectory(runs_folder / key) for key in run_keys):
        if not is_synced(directory, tracking_uri):
            sync_run(directory, tracking_uri=tracking_uri)
    computed = [RunDirectory(runs_folder / key) for trial in trials for key in trial.run_keys]
    sync_experiments(computed[:1], tracking_uri=tracking_uri, training=state == "running")
