"""Studies in Python: a file whose function `study()` returns runs, for what YAML cannot say.

    import harness

    def study():
        widths = [32, 64, 128]
        return harness.python_study(
            "widths",
            [
                harness.run(
                    arm=f"width-{width}",
                    spec={"data": "digits", "model": {"channels": width}, "train": {"steps": 100}},
                    evaluate=[{"name": "eval", "nll": {}}],
                )
                for width in widths
            ],
        )

A run has the same fields as in a YAML study and is validated by the same rules; errors have the line of its
`harness.run`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.errors import SpecError
from harness.spec.plugins import execute, located
from harness.spec.presentation import Presentation
from harness.study.document import Document, Keys, SourceLocation, plugin_sources, spec_error
from harness.study.model import Override, Run, Study
from harness.study.presentation import KEYS as PRESENTATION_KEYS
from harness.study.presentation import read_presentation, require_metric
from harness.study.rungs import KEYS as RUNG_KEYS
from harness.study.rungs import read_rungs

Expand = Callable[[Document, Path, tuple[Override, ...], bool], Study]


@dataclass(frozen=True)
class PythonRun:
    """One arm of a study, and its location."""

    arm: str
    parts: Mapping[str, Any]
    replicates: int
    evaluate: Sequence[Mapping[str, Any]]
    location: SourceLocation


@dataclass(frozen=True)
class PythonStudy:
    name: str
    runs: Sequence[PythonRun]
    options: Mapping[str, Any]
    location: SourceLocation


def run(
    *, arm: str, spec: Mapping[str, Any], replicates: int = 1, evaluate: Sequence[Mapping[str, Any]] = ()
) -> PythonRun:
    """Describe one arm of a study.

    Args:
        spec: the parts of a run as in a YAML study: data, model, train, ..., resources and records.
        replicates: number of seeds.
        evaluate: protocols, as in a YAML study.
    """
    return PythonRun(arm, dict(spec), replicates, tuple(evaluate), _caller())


def python_study(
    name: str,
    runs: Sequence[PythonRun],
    *,
    plugins: Sequence[str] = (),
    data_root: str | None = None,
    budget_gpu_hours: float | None = None,
    question: str = "",
    compare: Mapping[str, Any] | None = None,
    figures: Mapping[str, Any] | None = None,
    rungs: Sequence[int] | None = None,
    reduction_factor: int | None = None,
) -> PythonStudy:
    """Combine runs into a study; the return value of `study()`.

    Args:
        question: what the study asks; by default the first line of the file's docstring.
        compare, figures: as in a YAML study.
        rungs: steps at which all runs pause, and from which only the best arms by compare's metric go on.
        reduction_factor: of so many arms at a rung, one goes on; 4 by default.
    """
    options: dict[str, Any] = {"plugins": list(plugins), "data_root": data_root, "budget_gpu_hours": budget_gpu_hours}
    options |= {"question": question, "compare": compare, "figures": figures}
    options |= {"rungs": rungs, "reduction_factor": reduction_factor}
    return PythonStudy(name, tuple(runs), options, _caller())


def load_python_study(path: Path, late: tuple[Override, ...], inception: bool, expand: Expand) -> Study:
    """Execute a study's file and expand what its `study()` returns.

    Raises:
        SpecError: `file:line: message`, of the file that fails or of the run that is invalid.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror or error}") from None
    module = execute(f"harness_study_{hashlib.sha256(content).hexdigest()[:16]}", content, path)
    function = getattr(module, "study", None)
    if not callable(function):
        raise SpecError(f"{path}:1: a study in Python needs a function study() that returns harness.python_study(...)")
    with located(path):
        study = function()
    if not isinstance(study, PythonStudy) or not all(isinstance(entry, PythonRun) for entry in study.runs):
        line = function.__code__.co_firstlineno if hasattr(function, "__code__") else 1
        raise SpecError(f"{path}:{line}: study() must return harness.python_study(name, [harness.run(...), ...])")
    expanded = _expand(study, path, late, inception, expand)
    presentation = _presentation(study, path, module.__doc__ or "", expanded.runs)
    given = {key: study.options[key] for key in RUNG_KEYS if study.options[key] is not None}
    if isinstance(given.get("rungs"), Sequence):
        given["rungs"] = list(given["rungs"])  # perhaps a tuple, or a range
    rungs = read_rungs(Document(given, {(): study.location}), expanded.runs, presentation.compare.metric)
    return replace(expanded, presentation=presentation, rungs=rungs)


def _presentation(study: PythonStudy, path: Path, docstring: str, runs: Sequence[Run]) -> Presentation:
    value = {key: study.options[key] for key in PRESENTATION_KEYS if study.options[key]}
    first_line = docstring.strip().partition("\n")[0]
    document = Document({"question": first_line, **value}, {(): study.location})
    presentation = read_presentation(document, path, {entry.arm for entry in study.runs})
    require_metric(document, presentation.compare, [e for run in runs for e in run.evaluations])
    return presentation


def _expand(study: PythonStudy, path: Path, late: tuple[Override, ...], inception: bool, expand: Expand) -> Study:
    if not study.runs:
        raise spec_error(study.location, "", "a study needs at least one run")
    plugins = plugin_sources(study.options["plugins"], path, lambda index: study.location)
    common = {key: value for key, value in study.runs[0].parts.items() if _same_in_all(key, value, study.runs)}
    runs: list[Run] = []
    arms: dict[str, PythonRun] = {}
    keys: dict[str, Run] = {}
    budget = None
    for entry in study.runs:
        if entry.arm in arms:
            raise spec_error(
                entry.location, "arm", f"{entry.arm!r} is already defined at line {arms[entry.arm].location.line}"
            )
        arms[entry.arm] = entry
        value = {
            "study": study.name,
            **{key: study.options[key] for key in ("data_root", "budget_gpu_hours") if study.options[key] is not None},
            **common,
            "arms": {entry.arm: {key: part for key, part in entry.parts.items() if key not in common}},
            "replicates": entry.replicates,
            "evaluate": [dict(protocol) for protocol in entry.evaluate],
        }
        marks: dict[Keys, SourceLocation] = {(): entry.location, ("study",): study.location}
        expanded = expand(Document(value, marks, plugins), path, late, inception)
        for made in expanded.runs:
            if made.run_key in keys:
                twin = keys[made.run_key]
                raise spec_error(entry.location, "", f"arms {twin.arm!r} and {made.arm!r} are the same run; remove one")
            keys[made.run_key] = made
        runs += expanded.runs
        budget = expanded.budget_gpu_hours
    return replace(expanded, runs=tuple(runs), budget_gpu_hours=budget)


def _same_in_all(key: str, value: Any, runs: Sequence[PythonRun]) -> bool:
    return all(key in entry.parts and entry.parts[key] == value for entry in runs)


def _caller() -> SourceLocation:
    frame = sys._getframe(2)
    return SourceLocation(frame.f_code.co_filename, frame.f_lineno)
