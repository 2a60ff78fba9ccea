"""Expand a YAML study into runs: extends, arms, grid, replicates, exclude. Every error has its file and line.

The dialect is YAML without its traps: `2e-4` is a number, bare `no` and `on` are refused, and so are duplicate keys,
anchors, tags and merge keys. There are no loops and no interpolation; a study that needs logic is written in Python
(python_studies.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from harness.errors import SpecError
from harness.spec.base import SpecModel
from harness.spec.evaluation import PARTS, Evaluation
from harness.spec.metrics import metric_kind, outputs
from harness.spec.parts import active
from harness.spec.plugins import located_in
from harness.spec.presentation import Presentation
from harness.spec.protocols import ProtocolError
from harness.spec.protocols import expand as expand_protocol
from harness.spec.resources import Records, Resources
from harness.spec.run import RunSpec
from harness.study.axes import RUN_PARTS, SIDE_PARTS, Exclusion, read_exclusions, read_variants
from harness.study.document import (
    DOTTED_PATH,
    MAX_MISTAKES,
    Document,
    Keys,
    Mistakes,
    SourceLocation,
    integer,
    parse_yaml,
    resolve_extends,
    set_in,
    spec_error,
)
from harness.study.model import Override, Run, Study, Variant
from harness.study.plugins import load_plugins
from harness.study.presentation import KEYS as PRESENTATION_KEYS
from harness.study.presentation import read_presentation, require_metric
from harness.study.python_studies import load_python_study
from harness.study.rungs import KEYS as RUNG_KEYS
from harness.study.rungs import read_rungs
from harness.study.validate import validate, validated_part
from harness.text import did_you_mean

STUDY_PARTS = (
    "study",
    "extends",
    "plugins",
    "arms",
    "grid",
    "replicates",
    "exclude",
    "evaluate",
    "data_root",
    "budget_gpu_hours",
    *RUNG_KEYS,
    *PRESENTATION_KEYS,
)


def load_study(path: str | Path, *, sets: Sequence[str] = (), inception: bool = False) -> Study:
    """Read, expand and validate a study.

    Args:
        path: the YAML file, or a Python file with a function `study()`.
        sets: overrides `path=value`, as on the command line; they take precedence over the file.
        inception: whether Inception's weights are available (decides what `extractor: auto` means).

    Raises:
        SpecError: one line per mistake: `file:line: path: what is wrong; the choices`.
    """
    if Path(path).suffix == ".py":
        late = tuple(map(_parse_set, sets))
        return replace(load_python_study(Path(path), late, inception, expand), sets=tuple(sets))
    document, late = read_document(path, sets)
    if "search" in document.value:
        raise document.fail(("search",), "this file is a search: run it by `harness search FILE`")
    return replace(expand(document, Path(path), late, inception), sets=tuple(sets))


def read_document(path: str | Path, sets: Sequence[str] = ()) -> tuple[Document, tuple[Override, ...]]:
    """Read a file with all files that it extends; return also the `sets` that apply to each run."""
    document = resolve_extends(Path(path))
    late: list[Override] = []
    for text in sets:
        override = _parse_set(text)
        head = override.path.split(".")[0]
        if head == "plugins":
            raise SpecError(f"{override.mark}: plugins can only be set in the study's file")
        if head in (*STUDY_PARTS, "search"):
            document.value = set_in(document.value, override.keys, override.value, override.mark)
            kept = {keys: mark for keys, mark in document.marks.items() if keys[: len(override.keys)] != override.keys}
            document.marks = {**kept, override.keys: override.mark}
        else:
            late.append(override)
    return document, tuple(late)


def is_search(path: str | Path) -> bool:
    """Return whether a file is a search; False if it cannot be read."""
    if Path(path).suffix == ".py":
        return False
    try:
        return "search" in read_document(path)[0].value
    except SpecError:
        return False


def name_of_study(path: Path) -> str:
    """Return the name that a study's file gives it; empty for a file in Python or one that cannot be read."""
    if path.suffix == ".py":
        return ""
    try:
        return str(read_document(path)[0].value.get("study"))
    except SpecError:
        return ""


def _parse_set(text: str) -> Override:
    path, equals, value = text.partition("=")
    mark = SourceLocation(f"--set {text}", 0)
    if not equals or not value.strip() or not DOTTED_PATH.fullmatch(path):
        raise SpecError(f"{mark}: write --set path=value, as in --set train.steps=100")
    return Override(path, parse_yaml(value, str(mark))[0], mark)


def expand(document: Document, path: Path, late: tuple[Override, ...], inception: bool) -> Study:
    """Return the validated runs of a document."""
    plugins = load_plugins(document)
    with active(plugins), located_in(plugins):
        return _expand(document, path, late, inception)


def _unknown_key(key: str, known: Sequence[str]) -> str:
    head, *fields = key.split(".")
    if fields and head in known:
        nested = "{" + ": {".join(fields) + ": ..." + "}" * len(fields)
        return f"dotted paths are for arms, grid and --set; write {head}: {nested} here"
    return f"unknown key; {did_you_mean(key, known)}"


def _expand(document: Document, path: Path, late: tuple[Override, ...], inception: bool) -> Study:
    mistakes = Mistakes()
    known = (*STUDY_PARTS, *RUN_PARTS, *SIDE_PARTS)
    for key in document.value:
        if key not in known:
            mistakes.add(document.fail((key,), _unknown_key(str(key), known)))
    name = mistakes.attempt(lambda: _study_name(document), "")
    replicates = mistakes.attempt(lambda: _num_replicates(document), 1)
    budget = mistakes.attempt(lambda: _budget_gpu_hours(document), None)
    data_root = mistakes.attempt(lambda: _data_root(document), None)
    excluded = mistakes.attempt(lambda: read_exclusions(document), list[Exclusion]())
    base = {key: document.value[key] for key in (*RUN_PARTS, *SIDE_PARTS) if key in document.value}
    variants = mistakes.attempt(lambda: read_variants(document, base, replicates), None)
    arms = None if variants is None else {variant.arm for variant in variants}
    entries = _evaluation_entries(document, arms, replicates, mistakes)
    presented = mistakes.attempt(lambda: read_presentation(document, path, arms), Presentation())
    expansion = _Expansion(document, name, base, late, replicates, data_root, entries, excluded, inception)
    runs: list[Run] = []
    num_wrong = 0
    for variant in variants or [Variant("base", ())]:
        made = mistakes.attempt(partial(expansion.runs_of, variant), None)
        runs += made or []
        num_wrong += made is None
        if num_wrong == MAX_MISTAKES:
            break
    with mistakes.collect():
        require_metric(document, presented.compare, [e for run in runs for e in run.evaluations])
    mistakes.raise_any()
    rungs = read_rungs(document, runs, presented.compare.metric)
    for rule in excluded:
        if not rule.hits:
            raise spec_error(
                rule.mark, "exclude", f"rule {rule.conditions} matches no run; remove it or fix its values"
            )
    if not runs:
        raise spec_error(document.mark(("exclude",)), "exclude", "every run is excluded")
    return Study(name, path, tuple(runs), budget, presented, rungs)


def _study_name(document: Document) -> str:
    name = document.value.get("study")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or ".." in name:
        raise document.fail(
            ("study",),
            "a study's name has letters, digits, '.', '_' and '-' (at most 100, a letter or digit first, no '..'), "
            f"not {name!r}",
        )
    return name


def _num_replicates(document: Document) -> int:
    replicates = integer(document.value.get("replicates", 1))
    if type(replicates) is not int or not 1 <= replicates <= 10_000:
        raise document.fail(("replicates",), f"a number of runs from 1 to 10000, not {replicates!r}")
    return replicates


def _budget_gpu_hours(document: Document) -> float | None:
    budget = document.value.get("budget_gpu_hours")
    if budget is not None and (type(budget) not in (int, float) or budget < 0):
        raise document.fail(("budget_gpu_hours",), f"hours, 0 or more, not {budget!r}")
    return budget


def _data_root(document: Document) -> str | None:
    data_root = document.value.get("data_root")
    if data_root is not None and not isinstance(data_root, str):
        raise document.fail(("data_root",), f"a folder's path, not {data_root!r}")
    return data_root


@dataclass
class _Expansion:
    """What the runs of all variants share."""

    document: Document
    study: str
    base: dict[str, Any]
    late: tuple[Override, ...]
    num_replicates: int
    data_root: str | None
    entries: Sequence[_EvaluationEntry]
    excluded: Sequence[Exclusion]
    inception: bool
    owner: dict[str, Run] = field(default_factory=dict)  # run_key -> the run that has it
    resolved: dict[tuple[int | str, ...], Evaluation] = field(default_factory=dict)
    known: _Known = field(default_factory=dict)

    def runs_of(self, variant: Variant) -> list[Run]:
        """Return the replicates of a variant; none if it is excluded."""
        overrides = (*variant.overrides, *self.late)
        assembled = self.base
        for override in overrides:
            assembled = set_in(assembled, override.keys, override.value, override.mark)
        first, resources, records = _validate_run(assembled, self.document, overrides, self.known)
        # A list, not a generator: every rule is evaluated, so that none counts as unused after a match.
        if any([rule.matches(variant.arm, first) for rule in self.excluded]):
            return []
        if first.seed + self.num_replicates > 2**31:
            raise self.document.fail(("seed",), f"{first.seed} plus {self.num_replicates} replicates exceeds 2**31 - 1")
        changed = {override.path: override.value for override in overrides}
        best = _location_of(self.document, overrides, ("records", "best"))
        runs = []
        resolved: dict[int, Evaluation] = {}
        for replicate in range(self.num_replicates):
            # Replicates differ only in the seed, so only the first is validated.
            spec = first if replicate == 0 else first.replicate(first.seed + replicate)
            entries = [entry for entry in self.entries if entry.applies(variant.arm, replicate)]
            for entry in entries:
                if entry.evaluation.plugins or entry.index not in resolved:  # plugins may check the seed, too
                    resolved[entry.index] = self._resolve(entry, spec)
            evaluations = tuple(resolved[entry.index] for entry in entries)
            _require_best(records, evaluations, spec, best)
            for entry in entries if records.best is None else ():
                if entry.evaluation.checkpoint == "best":
                    raise spec_error(
                        entry.mark,
                        f"evaluate.{entry.index}.checkpoint",
                        "no checkpoint is the best: let records.best name a metric of an evaluation with every",
                    )
            run = Run(
                self.study, variant.arm, replicate, spec, changed, evaluations, resources, records, self.data_root
            )
            twin = self.owner.setdefault(run.run_key, run)
            if twin is not run:
                raise spec_error(
                    variant.overrides[-1].mark if variant.overrides else self.document.mark(("arms",)),
                    "",
                    f"arms {twin.arm!r} (replicate {twin.replicate}) and {run.arm!r} (replicate {replicate}) are "
                    "the same run: they differ in nothing that the weights depend on; remove or exclude one",
                )
            runs.append(run)
        return runs

    def _resolve(self, entry: _EvaluationEntry, spec: RunSpec) -> Evaluation:
        # A resolved evaluation depends only on these parts of the spec, of which a thousand runs have a few variants.
        parts = [spec.data.as_json, spec.method.as_json, spec.model.as_json]
        parts += [spec.diffusion.var_type, str(spec.diffusion.num_timesteps)]
        parts += [spec.train.as_json] if entry.evaluation.ema is not None else []
        if entry.evaluation.plugins:  # they may check the whole spec
            parts = [spec.run_key]
        key: tuple[int | str, ...] = (entry.index, *parts)
        if key not in self.resolved:
            try:
                self.resolved[key] = entry.evaluation.resolve(spec, inception=self.inception)
            except ValueError as error:
                raise spec_error(entry.mark, f"evaluate.{entry.index}", str(error)) from None
        return self.resolved[key]


def _require_best(records: Records, evaluations: Sequence[Evaluation], spec: RunSpec, mark: SourceLocation) -> None:
    """Refuse a metric for the best checkpoint that no evaluation measures during training, or whose best is not low."""
    if records.best is None:
        return
    repeated = [evaluation for evaluation in evaluations if evaluation.every]
    measured = [name for evaluation in repeated for name in outputs(evaluation, spec).during_training]
    given = [name for name in measured if metric_kind(name).direction == "minimize"]
    if records.best in given:
        return
    if records.best in measured:
        problem = (
            f"the best checkpoint has the lowest value of a metric, but low values of {records.best!r} are not better"
        )
    else:
        problem = f"no evaluation measures {records.best!r} during training"
    known = did_you_mean(records.best, given) if given else "no evaluation has `every` and an nll or a fidelity"
    raise spec_error(mark, "records.best", f"{problem}; {known}")


@dataclass(frozen=True)
class _EvaluationEntry:
    evaluation: Evaluation
    arms: tuple[str, ...] | None
    replicates: tuple[int, ...] | None
    mark: SourceLocation
    index: int

    def applies(self, arm: str, replicate: int) -> bool:
        return (self.arms is None or arm in self.arms) and (self.replicates is None or replicate in self.replicates)


def _evaluation_entries(
    document: Document, arm_names: set[str] | None, num_replicates: int, mistakes: Mistakes
) -> list[_EvaluationEntry]:
    """Read the protocols; `arm_names` are None if the arms are wrong."""
    protocols = document.value.get("evaluate", [])
    if not isinstance(protocols, list) or not all(isinstance(protocol, dict) for protocol in protocols):
        mistakes.add(document.fail(("evaluate",), "a list of protocols: - {name: eval, nll: {}}"))
        return []
    entries: list[_EvaluationEntry] = []
    for index in range(len(protocols)):
        entry = mistakes.attempt(partial(_evaluation_entry, document, index, arm_names, num_replicates), None)
        if entry is None:
            continue
        evaluation = entry.evaluation
        taken = {part for item in entries if item.evaluation.name == evaluation.name for part in item.evaluation.parts}
        twice = [part for part in evaluation.parts if part in taken]
        if twice:
            mistakes.add(
                document.fail(
                    ("evaluate", index, "name"),
                    f"two evaluations named {evaluation.name!r} measure {' and '.join(twice)}; the name is the prefix "
                    "of their metrics, so rename one of them",
                )
            )
        entries.append(entry)
    return entries


def _evaluation_entry(
    document: Document, index: int, arm_names: set[str] | None, num_replicates: int
) -> _EvaluationEntry:
    keys: Keys = ("evaluate", index)
    entry = document.value["evaluate"][index]
    protocol = {key: value for key, value in entry.items() if key not in ("arms", "replicates")}
    arms, replicates = entry.get("arms"), entry.get("replicates")
    for key, values, kind in (("arms", arms, str), ("replicates", replicates, int)):
        if values is not None and not (isinstance(values, list) and all(type(item) is kind for item in values)):
            raise document.fail((*keys, key), f"a list, not {values!r}")
    for arm in arms or ():
        if arm_names is not None and arm not in arm_names:
            raise document.fail((*keys, "arms"), f"no arm {arm!r}; {did_you_mean(arm, sorted(arm_names))}")
    for replicate in replicates or ():
        if not 0 <= replicate < num_replicates:
            raise document.fail((*keys, "replicates"), f"no replicate {replicate}; choices: 0 to {num_replicates - 1}")
    for part in PARTS:
        if part in protocol and protocol[part] is None:
            value = 64 if part == "grid" else "[...]" if part == "metrics" else "{}"
            raise document.fail(
                (*keys, part), f"is null, so nothing would be measured: write `{part}: {value}`, or remove it"
            )
    try:
        protocol = expand_protocol(protocol)
    except ProtocolError as error:
        raise document.fail((*keys, *error.path), str(error)) from None
    evaluation = validate(Evaluation, protocol, document.locator(keys), keys)
    return _EvaluationEntry(
        evaluation,
        None if arms is None else tuple(arms),
        None if replicates is None else tuple(replicates),
        document.mark(keys),
        index,
    )


def _location_of(document: Document, overrides: Sequence[Override], keys: Keys) -> SourceLocation:
    """Return the location of a run's value: in its arm, in --set, or in the base."""
    for override in reversed(overrides):
        if override.keys == tuple(map(str, keys[: len(override.keys)])):
            return override.mark
    return document.mark(keys)


_Known = dict[str, tuple[Any, Any]]
"""Parts of a run as they were validated last, beside their plain values: most variants share them."""

_LEFT_OPEN: dict[str, Any] = {}


def _shared_part(name: str, plain: Any, known: _Known) -> Any:
    """Return a part of a run, validated if it is that of the variant before; else its plain values.

    Only where a second variant has the very same values is it worth validating a part alone.
    """
    if name not in known or known[name][0] is not plain:
        known[name] = plain, None
        return plain
    if known[name][1] is None:
        known[name] = plain, validated_part(RunSpec, name, plain)
    return known[name][1]


def _validate_run(
    value: dict, document: Document, overrides: Sequence[Override], known: _Known
) -> tuple[RunSpec, Resources, Records]:
    def locate(keys: Keys, culprit: Keys) -> SourceLocation:
        is_override = any(override.keys == tuple(map(str, culprit[: len(override.keys)])) for override in overrides)
        return (
            overrides[-1].mark
            if overrides and not keys and not is_override
            else _location_of(document, overrides, culprit)
        )

    def side(kind: type[SpecModel], part: str) -> Any:
        plain = value.get(part, _LEFT_OPEN)
        if part not in known or known[part][0] is not plain:
            known[part] = plain, validate(kind, plain, lambda keys, _: locate((part, *keys), (part, *keys)), (part,))
        return known[part][1]

    own = {key: value[key] for key in RUN_PARTS if key in value}
    try:
        spec = validate(RunSpec, {name: _shared_part(name, plain, known) for name, plain in own.items()}, locate)
    except SpecError:  # its message is about plain values
        spec = validate(RunSpec, own, locate)
    resources, records = side(Resources, "resources"), side(Records, "records")
    try:
        spec.method.check_resources(spec, resources)
    except ValueError as error:
        raise spec_error(_location_of(document, overrides, ("resources",)), "resources", str(error)) from None
    return spec, resources, records
