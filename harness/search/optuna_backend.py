"""Optuna: its storage, samplers and pruners."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import RecordError
from harness.search.space import Search

if TYPE_CHECKING:
    import optuna


def quiet_optuna() -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def open_study(search: Search, folder: Path | None) -> optuna.Study:
    """Open the search's record in Optuna, or make it; in memory when there is no folder.

    Raises:
        RecordError: the storage cannot be opened.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    url, storage = search.settings.storage, None
    if folder and url is None:
        path = folder / "journal.log"
        mend_journal(path)
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)  # of a coordinator that died: there is one at most
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))
    try:
        return optuna.create_study(
            storage=storage or (url if folder else None),
            study_name=search.name,
            directions=[metric.direction for metric in search.metrics],
            pruner=_pruner(search),
            load_if_exists=True,
        )
    except Exception as error:
        if url is None:
            raise
        raise RecordError(f"Optuna's storage {re.sub('//[^/@]*@', '//***@', url)}: {str(error)[:300]}") from error


def mend_journal(path: Path) -> int:
    """Cut off what a killed writer left of a last line, on which Optuna would raise; return its bytes."""
    if not path.exists():
        return 0
    with path.open("r+b") as file:
        content = file.read()
        end = len(content)
        while end:
            start = content.rfind(b"\n", 0, end - 1) + 1
            try:
                if content[end - 1 : end] == b"\n" and isinstance(json.loads(content[start:end]), dict):
                    break
            except ValueError:
                pass
            end = start
        file.truncate(end)
        os.fsync(file.fileno())
    return len(content) - end


def suggest(search: Search, study: optuna.Study, under_way: set[int]) -> tuple[int, dict[str, Any], optuna.Trial]:
    """Return the next trial: its number, its point, and Optuna's view of it.

    A trial that runs in Optuna's record and is not under way was asked for by a coordinator that died before it could
    write the point down. The sampler, seeded by its number, gives the same point once more.
    """
    import optuna

    trials = study.get_trials(deepcopy=False)
    lost = [one for one in trials if not one.state.is_finished() and one.number not in under_way]
    number = lost[0].number if lost else len(trials)
    study.sampler = _sampler(search, number)
    trial = optuna.Trial(study, lost[0]._trial_id) if lost else study.ask()
    point = search.choose(lambda parameter: parameter.suggest(trial))
    return number, point, trial


def _sampler(search: Search, number: int) -> optuna.samplers.BaseSampler:
    """Return a sampler whose draws are a function of the search's seed and the trial's number."""
    from optuna import samplers

    settings = search.settings
    seed = int.from_bytes(hashlib.sha256(f"{settings.seed} {number}".encode()).digest()[:4], "big")
    match settings.sampler:
        case "tpe":
            # Trials that run side by side are kept apart by supposing that they turn out badly.
            return samplers.TPESampler(seed=seed, constant_liar=True)
        case "gp":
            return samplers.GPSampler(seed=seed)
        case "cmaes":
            return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        case "nsga2":
            return samplers.NSGAIISampler(seed=seed)
        case "qmc":  # one sequence for all trials; Optuna counts how far it has come
            independent = samplers.RandomSampler(seed=seed)
            return samplers.QMCSampler(
                scramble=True, seed=settings.seed, independent_sampler=independent, warn_independent_sampling=False
            )
        case "grid":  # one order for all trials, and Optuna takes the trial's number as the place in it
            points = {parameter.path: parameter.points() or [] for parameter in search.space}
            return samplers.GridSampler(points, seed=settings.seed)
    return samplers.RandomSampler(seed=seed)


def grid_size(search: Search) -> int:
    return math.prod(len(parameter.points() or []) for parameter in search.space)


def _pruner(search: Search) -> optuna.pruners.BasePruner:
    from optuna import pruners

    if search.settings.pruner == "none":
        return pruners.NopPruner()
    if search.settings.pruner == "wilcoxon":
        return pruners.WilcoxonPruner()
    point = search.choose(lambda parameter: parameter.corners()[0])
    run = search.trial(0, point).runs[0]
    every = search.metrics[0].find(run)[0].every or 1
    if search.settings.pruner == "hyperband":
        return pruners.HyperbandPruner(min_resource=every, max_resource=run.spec.train.steps)
    if search.settings.pruner == "asha":
        return pruners.SuccessiveHalvingPruner(min_resource=every)
    return pruners.MedianPruner()


def first_suggestions(search: Search, count: int) -> list[dict[str, Any]]:
    """Return the points that would be asked for before any trial has ended."""
    quiet_optuna()
    study = open_study(search, None)
    under_way: set[int] = set()
    points = []
    for _ in range(count):
        number, point, _ = suggest(search, study, under_way)
        under_way.add(number)
        points.append(point)
    return points
