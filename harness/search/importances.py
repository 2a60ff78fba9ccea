"""Which parameters a search's metric hangs on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.records.files import replace_file
from harness.search.optuna_backend import open_study, quiet_optuna
from harness.search.space import Search

if TYPE_CHECKING:
    import optuna


NUM_RESAMPLES = 20


def importances(search: Search, study: optuna.Study) -> dict[str, Any]:
    """Return each parameter's share of the variance of each metric by fANOVA (Hutter et al. 2014), with its doubt.

    Only parameters that take part in every trial can be compared. `low` and `high` are the 10 % and 90 % quantiles over
    bootstrap samples of the trials: with few trials the shares are soft, and this says how soft.

    Raises:
        ValueError: fewer than four complete trials.
    """
    import optuna
    from numpy.random import default_rng

    complete = [one for one in study.get_trials(deepcopy=False) if one.state == optuna.trial.TrialState.COMPLETE]
    if len(complete) < 4:
        raise ValueError("importances need four complete trials at least")
    random = default_rng(search.settings.seed)

    def of(trials: Sequence[optuna.trial.FrozenTrial], index: int, num_trees: int) -> dict[str, float]:
        sample = optuna.create_study(directions=study.directions)
        sample.add_trials(trials)
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=num_trees, seed=search.settings.seed)
        return optuna.importance.get_param_importances(
            sample, evaluator=evaluator, target=lambda trial: trial.values[index]
        )

    found: dict[str, Any] = {"num_trials": len(complete), "metrics": {}}
    for index, metric in enumerate(search.metrics):
        shares = of(complete, index, 64)
        resampled = []
        for _ in range(NUM_RESAMPLES):
            picked = [complete[row] for row in random.integers(0, len(complete), len(complete))]
            with contextlib.suppress(ValueError, RuntimeError):
                resampled.append(of(picked, index, 16))
        rows = {}
        for path, share in shares.items():
            drawn = sorted(one.get(path, 0.0) for one in resampled)
            low, high = (drawn[len(drawn) // 10], drawn[-1 - len(drawn) // 10]) if drawn else (share, share)
            rows[path] = {"share": share, "low": low, "high": high}
        found["metrics"][metric.name] = rows
    return found


def write_importances(search: Search, folder: Path) -> None:
    """Leave the importances where the figures find them; where there are too few trials, or all are alike, none."""
    quiet_optuna()
    with contextlib.suppress(ValueError, RuntimeError):
        found = importances(search, open_study(search, folder))
        replace_file(folder / "importances.json", json.dumps(found, indent=2), durable=False)
