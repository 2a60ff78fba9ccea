"""Read what a study's file says about its question, its comparison and its figures."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from harness.errors import SpecError
from harness.spec.evaluation import Evaluation
from harness.spec.fidelity_metrics import FIDELITY_METRICS
from harness.spec.presentation import Compare, FigureStyle, Presentation
from harness.study.document import Document, Keys, Mistakes, read_file
from harness.study.validate import validate
from harness.text import did_you_mean

KEYS = ("question", "compare", "figures")


def read_presentation(document: Document, path: Path, arms: Collection[str] | None = None) -> Presentation:
    """Return the presentation of a document.

    Args:
        path: the study's file; its first line of comment is the question where the key is not there.
        arms: of the study, so that a name of none is refused; None: not checked.

    Raises:
        SpecError: one line per mistake.
    """
    mistakes = Mistakes()
    question = document.value.get("question", "")
    if not isinstance(question, str):
        mistakes.add(document.fail(("question",), f"a sentence, not {question!r}"))
    compare = mistakes.attempt(lambda: _read(Compare, document, "compare"), Compare())
    figures = mistakes.attempt(lambda: _read(FigureStyle, document, "figures"), FigureStyle())
    if arms is not None:
        for keys, name in _arms_named(compare, figures):
            if name not in arms:
                mistakes.add(document.fail(keys, f"no arm {name!r}; {did_you_mean(name, list(arms))}"))
    if compare.baseline and compare.pairs:
        mistakes.add(document.fail(("compare", "pairs"), "either a baseline or pairs"))
    mistakes.raise_any()
    return Presentation(question=question or question_of(path), compare=compare, figures=figures)


def read_figure_style(path: Path) -> tuple[FigureStyle, Document]:
    """Return what a file of its own says of figures, with the keys that `figures` has in a study's file.

    Raises:
        SpecError: one line per mistake.
    """
    document = read_file(path)
    return validate(FigureStyle, document.value, document.locator(())), document


def question_of(path: Path) -> str:
    """Return the first line of comment at the top of a study's file, which is its question; empty if there is none."""
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                text = line.strip().lstrip("#").strip()
                if not line.startswith("#"):
                    return ""
                if text and not text.startswith(("yaml-language-server:", "!")):  # what an editor or a shell reads
                    return text
    except (OSError, UnicodeDecodeError):
        pass
    return ""


def _read(kind: type, document: Document, key: str) -> Any:
    value = document.value.get(key)
    if value is None:
        return kind()
    if not isinstance(value, dict):
        raise document.fail((key,), f"a mapping is expected, not {value!r}")
    return validate(kind, value, document.locator((key,)), (key,))


def require_metric(document: Document, compare: Compare, evaluations: Iterable[Evaluation]) -> None:
    """Raise a SpecError if the metric that decides a study is measured by none of its evaluations."""
    if compare.metric is None:
        return
    measured = [(evaluation.name, name) for evaluation in evaluations for name in compared_metrics(evaluation)]
    known = [name for _, name in measured]
    known += [f"{evaluation}/{name}" for evaluation, name in measured] if "/" in compare.metric else []
    if compare.metric not in known:
        choices = did_you_mean(compare.metric, list(dict.fromkeys(known))) if known else "no evaluation measures any"
        raise document.fail(("compare", "metric"), f"no metric {compare.metric!r} is measured; {choices}")


def compared_metrics(evaluation: Evaluation) -> list[str]:
    """Return the metrics of an evaluation by the names that tables and comparisons have for them: nll, fid, ..."""
    of_features = evaluation.fidelity.metrics if evaluation.fidelity else ()
    return [
        *(["nll"] if evaluation.nll else []),
        *(kind for metric in of_features for kind in FIDELITY_METRICS[metric].outputs),
        *(name for metric in evaluation.metrics for name in metric.names),
    ]


def _arms_named(compare: Compare, figures: FigureStyle) -> list[tuple[Keys, str]]:
    """Return each arm that a presentation names, with its place."""
    named: list[tuple[Keys, str]] = []
    if compare.baseline:
        named.append((("compare", "baseline"), compare.baseline))
    if compare.pairs != "all":
        named += [
            (("compare", "pairs", index, side), name)
            for index, pair in enumerate(compare.pairs)
            for side, name in enumerate(pair)
        ]
    named += [(("figures", "labels", name), name) for name in figures.labels]
    return named + [(("figures", "arms", index), name) for index, name in enumerate(figures.arms)]


def presentation_of_file(path: Path, study: str) -> Presentation | None:
    """Return what a study's file says now; None if it is gone, cannot be read, or is another study's.

    Names of arms are not checked: the runs may be older than the file.
    """
    from harness.study.expand import read_document

    if path.suffix == ".py" or not path.is_file():
        return None
    try:
        document, _ = read_document(path)
        if document.value.get("study") != study:
            return None
        return read_presentation(document, path)
    except SpecError:
        return None
