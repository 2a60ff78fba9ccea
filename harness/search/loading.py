"""Read a search's file, and check its space against RunSpec at its corners before anything runs."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from harness.errors import SpecError
from harness.search.space import (
    LEARNS_AT_RUNGS,
    RUNG_SETTINGS,
    Metric,
    Parameter,
    Search,
    Settings,
    format_value,
    space_keys,
)
from harness.spec.metrics import part_outputs
from harness.study.axes import labels
from harness.study.document import Document, Keys, integer
from harness.study.expand import read_document
from harness.study.presentation import read_presentation
from harness.study.rungs import KEYS as RUNG_KEYS
from harness.study.rungs import check_every, check_steps
from harness.study.validate import validate
from harness.text import did_you_mean, harness_command

MAX_CORNERS = 256


STEP_PRUNERS = ("median", "hyperband", "asha")
NOT_LEARNING = ("random", "qmc", "grid")  # samplers that suggest a trial without the results of others
LEARNS_WRONGLY = {  # at rungs
    "gp": "learns from complete trials alone, so trials that were dropped would teach it nothing",
    "nsga2": "learns from complete trials alone, so trials that were dropped would teach it nothing",
    "cmaes": "compares the last values of trials, whatever the step at which they were measured",
}


LEAST_REPLICATES = 3  # of Wilcoxon's test


def load_search(path: str | Path, *, sets: Sequence[str] = (), inception: bool = False) -> Search:
    """Read a search and run all checks that could fail later.

    Args:
        path: the YAML file.
        sets: overrides `path=value`, such as search.trials=4.
        inception: whether Inception's weights are available.

    Raises:
        SpecError: one line per mistake: `file:line: path: what is wrong; the choices`.
    """
    document, run_overrides = read_document(path, sets)
    for part in ("arms", "grid", "exclude", "replicates", *RUNG_KEYS):
        if part in document.value:
            is_setting = part in Settings.model_fields
            alternative = f"search.{part}" if is_setting else "search.space, as choices: [...]"
            raise document.fail((part,), f"not allowed in a search; use {alternative}")
    if "compare" in document.value:
        raise document.fail(("compare",), "not allowed in a search, whose figures compare its trials")
    if "search" not in document.value:
        raise SpecError(f"{path}: has no `search`; to run a study: `{harness_command('submit', path)}`")
    settings = validate(Settings, document.value["search"], document.locator(("search",)), ("search",))
    space = tuple(_parameter(document, path, entry) for path, entry in document.value["search"]["space"].items())
    for override in run_overrides:
        if override.path in {parameter.path for parameter in space}:
            raise SpecError(f"{override.mark}: {override.path} is part of search.space; narrow it there")
    metrics = tuple(_metrics(document))
    name = str(document.value.get("study"))
    presentation = read_presentation(document, Path(path))
    search = Search(name, Path(path), settings, space, metrics, document, run_overrides, inception, presentation)
    _check_optuna_limits(search)
    _try_corners(search)
    return search


def _parameter(document: Document, path: str, entry: Any) -> Parameter:
    keys = space_keys(path)
    kinds = [kind for kind in ("float", "int", "choices") if isinstance(entry, dict) and kind in entry]
    if len(kinds) != 1:
        raise document.fail(keys, "give one of float: [low, high], int: [low, high] and choices: [...]")
    (kind,) = kinds
    known = (kind, "when") if kind == "choices" else (kind, "log", "step", "when")
    for key in entry:
        if key not in known:
            raise document.fail((*keys, key), f"unknown key; {did_you_mean(key, known)}")
    when = {}
    if not isinstance(entry.get("when", {}), dict):
        raise document.fail((*keys, "when"), "a mapping of paths to values: {objective.name: hybrid}")
    for other_path, values in entry.get("when", {}).items():
        when[other_path] = tuple(values) if isinstance(values, list) else (values,)
    if kind == "choices":
        return Parameter(path, kind, choices=_choices(document, path, entry["choices"]), when=when)
    numbers = (int,) if kind == "int" else (int, float)
    bounds, log, step = entry[kind], entry.get("log", False), entry.get("step")
    if kind == "int" and isinstance(bounds, list):
        bounds, step = [integer(bound) for bound in bounds], integer(step)
    if not isinstance(bounds, list) or len(bounds) != 2 or any(type(bound) not in numbers for bound in bounds):
        raise document.fail((*keys, kind), f"two numbers, [low, high]{' without a point' if kind == 'int' else ''}")
    low, high = map(float if kind == "float" else int, bounds)
    if low >= high:
        raise document.fail((*keys, kind), f"low {low:g} must be less than high {high:g}")
    if type(log) is not bool:
        raise document.fail((*keys, "log"), f"true or false, not {log!r}")
    if log and low <= 0:
        raise document.fail((*keys, kind), f"a logarithmic range starts above 0, not at {low:g}")
    if step is not None and (type(step) not in numbers or not 0 < step <= high - low):
        raise document.fail((*keys, "step"), f"a number above 0 and at most {high - low:g}, not {step!r}")
    if log and step is not None:
        raise document.fail((*keys, "step"), "Optuna allows no step on a logarithmic range; remove one of them")
    if step is not None:
        _require_end(document, keys, low, high, step)
    return Parameter(path, kind, low, high, log, step, when=when)


def _require_end(document: Document, keys: Keys, low: float, high: float, step: float) -> None:
    """Refuse a range whose end no step reaches: Optuna would end it earlier."""
    decimal_low, decimal_step = Decimal(str(low)), Decimal(str(step))
    num_steps = int((Decimal(str(high)) - decimal_low) / decimal_step)
    last, following = (decimal_low + count * decimal_step for count in (num_steps, num_steps + 1))
    if last != Decimal(str(high)):
        raise document.fail(
            (*keys, "step"), f"steps of {step:g} from {low:g} do not reach {high:g}; end at {last:g} or {following:g}"
        )


def _choices(document: Document, path: str, values: Any) -> dict[Any, Any]:
    """Map Optuna's name of each choice to the choice: itself if it is a plain value, else a short label."""
    keys: Keys = (*space_keys(path), "choices")
    if not isinstance(values, list) or not values:
        raise document.fail(keys, f"a list of values, not {values!r}")
    plain = all(value is None or isinstance(value, (bool, int, float, str)) for value in values)
    names = values if plain else labels([path], [[value] for value in values])
    if len(set(map(str, names))) < len(names):
        raise document.fail(keys, "a value is listed twice")
    for first, second in itertools.combinations(names, 2):
        if first == second:  # 1 and true, 1 and 1.0: one key in Python
            raise document.fail(keys, f"{first!r} and {second!r} are the same value; remove one")
    return dict(zip(names, values, strict=True))


def _metrics(document: Document) -> Iterator[Metric]:
    seen = set()
    for index, entry in enumerate(document.value["search"]["metrics"]):
        keys: Keys = ("search", "metrics", index)
        if len(entry) != 1:
            raise document.fail(keys, "one metric per entry: - {eval/nll_bpd: minimize}")
        for name, direction in entry.items():
            if name in seen:
                raise document.fail(keys, f"{name} is listed twice")
            seen.add(name)
            yield Metric(name, direction)


def _check_optuna_limits(search: Search) -> None:
    settings, fail = search.settings, search.document.fail
    several = len(search.metrics) > 1
    sampler: Keys = ("search", "sampler")
    pruner: Keys = ("search", "pruner")
    if several and settings.pruner != "none":
        raise fail(pruner, "Optuna prunes by one objective only, and there are several metrics; use pruner: none")
    if several and settings.sampler == "cmaes":
        raise fail(sampler, "cmaes supports one objective only, and there are several metrics; use nsga2 or tpe")
    if settings.sampler == "cmaes":
        if any(parameter.kind == "choices" or parameter.when for parameter in search.space):
            raise fail(sampler, "cmaes supports only unconditional numbers; Optuna would draw the others at random")
        if len(search.space) < 2:
            raise fail(sampler, "cmaes needs at least two parameters; use tpe or gp")
    if settings.sampler == "grid":
        num_points = 1
        for parameter in search.space:
            points = parameter.points()
            if points is None:
                raise fail(space_keys(parameter.path), "a grid needs finitely many values: give a step, or choices")
            if parameter.when:
                raise fail(space_keys(parameter.path), "Optuna's grid does not support conditions; use another sampler")
            num_points *= len(points)
        if settings.trials > num_points:
            raise fail(("search", "trials"), f"the grid has {num_points} points, fewer than {settings.trials} trials")
    _check_rungs(search, several)
    if settings.pruner == "wilcoxon" and settings.replicates < LEAST_REPLICATES:
        raise fail(
            pruner,
            "wilcoxon compares trials replicate by replicate: set search.replicates to "
            f"{LEAST_REPLICATES} or more, or use median, hyperband or asha with an evaluation that has `every`",
        )


def _check_rungs(search: Search, several_metrics: bool) -> None:
    settings, fail, rungs = search.settings, search.document.fail, ("search", "rungs")
    if settings.rungs is None:
        for name in RUNG_SETTINGS[1:]:
            if getattr(settings, name) is not None:
                raise fail(("search", name), "is of rungs, and there are none: rungs: [1000, 4000, 16000]")
        return
    if several_metrics:
        raise fail(rungs, "one metric decides who goes on, and there are several")
    if settings.pruner != "none":
        raise fail(rungs, "rungs decide who goes on, and so does a pruner: remove one of them")
    if settings.sampler not in (*NOT_LEARNING, LEARNS_AT_RUNGS):
        raise fail(
            rungs,
            f"sampler {settings.sampler} {LEARNS_WRONGLY[settings.sampler]}; choose sampler: {LEARNS_AT_RUNGS}, which "
            f"ranks trials by the rung that they reached, or one that does not learn: {' | '.join(NOT_LEARNING)}",
        )
    if settings.bracket is None:
        if settings.bracket_size is not None:
            raise fail(
                ("search", "bracket_size"),
                f"is of a sampler that learns; the trials of {settings.sampler} are one bracket of `trials`",
            )
    elif settings.trials % settings.bracket:
        fewer = settings.trials // settings.bracket * settings.bracket
        choices = " or ".join(str(number) for number in (fewer, fewer + settings.bracket) if number)
        raise fail(
            ("search", "trials"),
            f"{settings.trials} trials are not whole brackets of {settings.bracket}, in which trials are suggested and "
            f"compared: choose {choices}, or another bracket_size",
        )


def _try_corners(search: Search) -> None:
    """Check corners of the space and a point within against the spec, and the metrics against the evaluations."""
    ends = {parameter.path: parameter.corners() for parameter in search.space}
    whole = math.prod(map(len, ends.values())) <= MAX_CORNERS
    if whole:
        corners: Iterable[dict[str, Any]] = (
            dict(zip(ends, corner, strict=True)) for corner in itertools.product(*ends.values())
        )
    else:
        first = {path: values[0] for path, values in ends.items()}
        corners = [first, *({**first, path: value} for path, values in ends.items() for value in values[1:])]
    inner = {parameter.path: parameter.inner() for parameter in search.space}
    reached, tried = set(), set()
    points: dict[str, dict[str, Any]] = {}
    for corner in itertools.chain(corners, [inner]):
        point = search.choose(lambda parameter: corner[parameter.path])  # noqa: B023 (called at once)
        key = json.dumps(point)
        if key in tried:
            continue
        tried.add(key)
        reached |= set(point)
        run = search.trial(0, point).runs[0]
        _require_another_run(search, points.setdefault(run.run_key, point), point)
        for index, metric in enumerate(search.metrics):
            keys: Keys = ("search", "metrics", index)
            try:
                evaluation, stem = metric.find(run)
            except ValueError as error:
                raise search.document.fail(keys, str(error)) from None
            during_training = [
                name for part in part_outputs(evaluation, run.spec).values() for name in part.during_training
            ]
            rungs, pruner = search.settings.rungs, search.settings.pruner
            by_step = "a rung" if rungs else pruner if pruner in STEP_PRUNERS else ""
            if by_step and not (evaluation.every and stem in during_training):
                names = ", ".join(f"{evaluation.name}/{name}" for name in during_training)
                raise search.document.fail(
                    ("search", "rungs" if rungs else "pruner"),
                    f"{by_step} needs {metric.name} during training: give the evaluation `every: STEPS` "
                    f"and use one of {names or 'the metrics of an nll'}",
                )
            if rungs:
                check_steps(search.document, ("search", "rungs"), rungs, [run])
                check_every(search.document, ("search", "rungs"), rungs, evaluation)
    for parameter in search.space:
        if whole and parameter.path not in reached:
            raise search.document.fail(
                (*space_keys(parameter.path), "when"),
                "is never true; it may refer to parameters above it, and to values in the file",
            )


def _require_another_run(search: Search, first: dict[str, Any], second: dict[str, Any]) -> None:
    """Refuse two points that give the same run: choices that differ only in how they are written."""
    differing = [path for path in second if path not in first or first[path] != second[path]]
    if differing:
        path = differing[0]
        raise search.document.fail(
            space_keys(path),
            f"{format_value(first.get(path))} and {format_value(second[path])} give the same run: they differ in "
            "nothing that the weights depend on; remove one",
        )
