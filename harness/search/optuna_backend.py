"""Optuna: its storage, samplers, pruners and importances. The only file that imports it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import RecordError
from harness.search.space import Parameter, Search

if TYPE_CHECKING:
    import optuna

_BEFORE_TRIAL = "quasi-random sequence before this trial"


def quiet_optuna() -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def open_study(search: Search, folder: Path | None) -> optuna.Study:
    """Open or create the search's Optuna study; in memory if there is no folder.

    Raises:
        RecordError: the storage cannot be opened.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    url, storage = search.settings.storage, None
    if folder and url is None:
        path = folder / "journal.log"
        repair_journal(path)
        path.with_name(f"{path.name}.lock").unlink(
            missing_ok=True
        )  # left by a killed coordinator, since we hold the lock
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


def repair_journal(path: Path) -> int:
    """Remove an incomplete last line of a killed writer, on which Optuna would raise; return its number of bytes."""
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


def suggest(search: Search, study: optuna.Study, running: set[int]) -> tuple[int, dict[str, Any], optuna.Trial]:
    """Return the next trial: its number, its point, and Optuna's object for it.

    A trial that is running in Optuna's storage but not here was suggested to a coordinator that was killed before it
    recorded the point, perhaps between two parameters. The sampler, seeded by the trial's number, suggests the same
    point again.

    Args:
        running: numbers of the trials that are running.
    """
    import optuna

    trials = study.get_trials(deepcopy=False)
    lost = [trial for trial in trials if not trial.state.is_finished() and trial.number not in running]
    number = lost[0].number if lost else len(trials)
    study.sampler = _sampler(search, number)
    optuna_trial = optuna.Trial(study, lost[0]._trial_id) if lost else study.ask()
    if search.settings.sampler == "qmc":
        _rewind_sequence(search, study, optuna_trial)
    stored = lost[0] if lost else None
    point = search.choose(lambda parameter: _suggest_value(parameter, optuna_trial, stored))
    return number, point, optuna_trial


def _rewind_sequence(search: Search, study: optuna.Study, trial: optuna.Trial) -> None:
    """Let a trial that is suggested again take the place in the quasi-random sequence that it took at first.

    Optuna counts the places in the study's attributes, and takes the sequence's dimensions from a trial's stored
    parameters, even from those of the first trial itself, whose parameters it draws one by one. So each trial remembers
    the count and the dimensions as they were before it.
    """
    import optuna

    attributes = study._storage.get_study_system_attrs(study._study_id)
    places = {key: value for key, value in attributes.items() if key.startswith("qmc:")}
    before = trial.user_attrs.get(_BEFORE_TRIAL)
    if before is None:
        space = study.sampler.infer_relative_search_space(study, study.get_trials(deepcopy=False)[trial.number])
        trial.set_user_attr(_BEFORE_TRIAL, {"places": places, "dimensions": len(space)})
        return
    for key in places:
        study._storage.set_study_system_attr(study._study_id, key, before["places"].get(key, -1))
    if not before["dimensions"]:
        study.sampler = optuna.samplers.RandomSampler(seed=_seed(search, trial.number))


def _suggest_value(parameter: Parameter, trial: optuna.Trial, stored: optuna.trial.FrozenTrial | None) -> Any:
    """Return the trial's value of a parameter.

    Args:
        stored: the trial as its killed coordinator left it. A value in it comes without a draw, so the draw is made
            for nothing, and the next parameter gets the random numbers that it would have got.
    """
    if stored and parameter.path in stored.params and parameter.path not in trial.relative_params:
        trial.study.sampler.sample_independent(
            trial.study, stored, parameter.path, stored.distributions[parameter.path]
        )
    if parameter.kind == "choices":
        return trial.suggest_categorical(parameter.path, list(parameter.choices))
    if parameter.kind == "int":
        low, high, step = int(parameter.low), int(parameter.high), int(parameter.step or 1)
        return trial.suggest_int(parameter.path, low, high, step=step, log=parameter.log)
    return trial.suggest_float(parameter.path, parameter.low, parameter.high, step=parameter.step, log=parameter.log)


def resume_trial(study: optuna.Study, trial_id: int) -> optuna.Trial:
    """Return Optuna's object for a trial that was suggested before."""
    import optuna

    study.sampler = optuna.samplers.RandomSampler()  # a new object calls its sampler; this one then does nothing
    return optuna.Trial(study, trial_id)


def report_end(study: optuna.Study, number: int, state: str, values: Sequence[float] | None) -> None:
    """Report a trial's result to Optuna.

    Args:
        state: complete, pruned or failed.
        values: one per metric, only for complete trials.
    """
    import optuna

    states = optuna.trial.TrialState
    optuna_state = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[state]
    # Only the grid sampler acts after a trial: it stops `optimize`, which is not used here.
    study.sampler = optuna.samplers.RandomSampler()
    study.tell(number, values=values, state=optuna_state)


def _sampler(search: Search, number: int) -> optuna.samplers.BaseSampler:
    """Return a sampler whose draws are a function of the search's seed and the trial's number."""
    from optuna import samplers

    settings, seed = search.settings, _seed(search, number)
    match settings.sampler:
        case "tpe":
            # constant_liar assumes bad values for running trials, so that parallel trials differ.
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


def _seed(search: Search, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{search.settings.seed} {number}".encode()).digest()[:4], "big")


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
    """Return the points that would be suggested before any trial has ended."""
    quiet_optuna()
    study = open_study(search, None)
    running: set[int] = set()
    points = []
    for _ in range(count):
        number, point, _ = suggest(search, study, running)
        running.add(number)
        points.append(point)
    return points


def complete_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]


def fanova_shares(
    study: optuna.Study, trials: Sequence[optuna.trial.FrozenTrial], index: int, *, num_trees: int, seed: int
) -> dict[str, float]:
    """Return each parameter's share of the variance of one metric, by fANOVA (Hutter et al. 2014).

    Args:
        trials: complete ones of the study, or a bootstrap sample of them.
        index: of the metric.
    """
    import optuna

    sample = optuna.create_study(directions=study.directions)
    sample.add_trials(trials)
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=num_trees, seed=seed)
    return optuna.importance.get_param_importances(
        sample, evaluator=evaluator, target=lambda trial: trial.values[index]
    )
