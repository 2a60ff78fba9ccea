"""Which parameters a search's metrics depend on."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.records.files import replace_file
from harness.search.optuna_backend import complete_trials, fanova_shares, open_study, quiet_optuna
from harness.search.space import Search

if TYPE_CHECKING:
    import optuna

LEAST_TRIALS = 4
NUM_RESAMPLES = 20


def importances(search: Search, study: optuna.Study) -> dict[str, Any]:
    """Return each parameter's share of the variance of each metric by fANOVA, with an uncertainty.

    Only parameters that are used in every trial can be compared. `low` and `high` are the 10 % and 90 % quantiles over
    bootstrap samples of the trials, since shares are uncertain with few trials.

    Raises:
        ValueError: fewer than four complete trials.
    """
    from numpy.random import default_rng

    trials = complete_trials(study)
    if len(trials) < LEAST_TRIALS:
        raise ValueError(f"importances need at least {LEAST_TRIALS} complete trials")
    random, seed = default_rng(search.settings.seed), search.settings.seed
    metrics = {}
    for index, metric in enumerate(search.metrics):
        shares = fanova_shares(study, trials, index, num_trees=64, seed=seed)
        resampled = []
        for _ in range(NUM_RESAMPLES):
            sample = [trials[row] for row in random.integers(0, len(trials), len(trials))]
            with contextlib.suppress(ValueError, RuntimeError):
                resampled.append(fanova_shares(study, sample, index, num_trees=16, seed=seed))
        rows = {}
        for path, share in shares.items():
            drawn = sorted(shares_of_sample.get(path, 0.0) for shares_of_sample in resampled)
            low, high = (drawn[len(drawn) // 10], drawn[-1 - len(drawn) // 10]) if drawn else (share, share)
            rows[path] = {"share": share, "low": low, "high": high}
        metrics[metric.name] = rows
    return {"num_trials": len(trials), "metrics": metrics}


def write_importances(search: Search, folder: Path) -> None:
    """Write importances.json for the figures, unless there are too few trials or all values are equal."""
    quiet_optuna()
    with contextlib.suppress(ValueError, RuntimeError):
        text = json.dumps(importances(search, open_study(search, folder)), indent=2)
        replace_file(folder / "importances.json", text, durable=False)
