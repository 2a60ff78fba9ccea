"""The answers to the reproducibility checklists of NeurIPS and ICML for one study, from its records.

What is not recorded is said to be not recorded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, NamedTuple

from harness.analysis.runs import RunRecord, by_arm
from harness.analysis.settings import brief, settings_of
from harness.analysis.tables.latex import comments, escape
from harness.data.facts import DATASET_FACTS, EXTRACTOR_LICENCES
from harness.errors import RecordError
from harness.records.attempts import AttemptSpan, attempt_spans
from harness.records.directory import RunDirectory
from harness.spec.base import canonical_json
from harness.spec.protocols import protocol_id
from harness.text import count, device_time
from harness.text import markdown as markdown_text

TITLE = "Reproducibility"
NOT_RECORDED = "not recorded"


class Table(NamedTuple):
    """A table: heads and rows, all text."""

    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass
class Answer:
    """A question of a checklist, its answer in sentences, and a table where it needs one."""

    question: str
    sentences: list[str]
    table: Table | None = None


@dataclass
class _Used:
    """What attempts took."""

    attempts: int = 0
    device_seconds: float = 0.0

    def add(self, span: AttemptSpan, processes: int) -> None:
        self.attempts += 1
        self.device_seconds += span.seconds * processes

    @property
    def text(self) -> str:
        return f"{count(self.attempts, 'attempt')}, {device_time(self.device_seconds / 3600)}"


@dataclass
class _Compute:
    """Attempts of a study's runs, by how they ended, and of each run."""

    by_ending: dict[str, _Used] = field(default_factory=dict)
    by_run: dict[str, _Used] = field(default_factory=dict)

    @property
    def total(self) -> _Used:
        used = self.by_run.values()
        return _Used(sum(u.attempts for u in used), sum(u.device_seconds for u in used))


def answers(
    study: str, runs: Sequence[RunRecord], earlier: Sequence[RunDirectory] = (), *, question: str = "", file: str = ""
) -> list[Answer]:
    """Answer the checklists for a study.

    Args:
        earlier: runs that the study no longer asks for: they took compute, too.
        question: the study's.
        file: the study's, as it is in its manifest.
    """
    return [
        *([Answer("What was asked?", [question])] if question else []),
        _seeds(runs),
        _error_bars(),
        _measurements(runs),
        _compute(runs, earlier),
        _hardware(runs),
        _versions(runs),
        _data(runs),
        _shared(runs),
        _differing(runs),
        _rerun(study, file),
    ]


def _seeds(runs: Sequence[RunRecord]) -> Answer:
    rows = []
    for arm, members in by_arm(runs).items():
        seeds = ", ".join(str(run.spec["seed"]) for run in members)
        done = sum(run.state == "done" for run in members)
        states = [f"r{run.replicate} {run.state}" for run in members if run.state != "done"]
        rows.append((arm, seeds, f"{done} of {len(members)}", ", ".join(states) or "none"))
    sentence = (
        "A replicate is a training with a seed of its own; the seed decides initial weights, order of the data, "
        "timesteps and noise. Replicates of one number share all of these between arms, so arms are compared in pairs."
    )
    return Answer("How many seeds?", [sentence], Table(("arm", "seeds", "done", "not done"), rows))


def _error_bars() -> Answer:
    return Answer(
        "What do error bars mean?",
        [
            "In tables ± is half of the 95 % t-interval of the mean over replicates, from three on; two replicates are "
            "shown as both values. It covers the variation between trainings. Where ± (features) or (seeds) stands, it "
            "covers the draw of the samples alone.",
            "Differences are paired by seed, with a 95 % t-interval; p of the paired t-test, corrected by Holm over "
            "the contrasts of a metric. They are assumed to be normal. Below four pairs nothing is called better or "
            "worse.",
            "Bands of learning curves and of the terms of the bound are the range over replicates; bars are the "
            "interval.",
        ],
    )


def _measurements(runs: Sequence[RunRecord]) -> Answer:
    seen: dict[tuple[str, ...], None] = {}
    for run in runs:
        for measurement in run.measurements:
            evaluation = measurement.evaluation
            identity = (
                protocol_id(evaluation, run.spec["diffusion"]["num_timesteps"]) if evaluation["fidelity"] else "–"
            )
            row = (measurement.name, evaluation["split"], str(evaluation["seed"]), identity, _samples(run, evaluation))
            seen[row] = None
    sentence = "Every value is measured on the split that is named here, under the protocol that is named here."
    rows = [tuple(row) for row in seen]
    if not rows:
        return Answer("On what was it measured?", ["No measurement has ended yet."])
    return Answer(
        "On what was it measured?", [sentence], Table(("evaluation", "split", "seed", "protocol", "samples"), rows)
    )


def _samples(run: RunRecord, evaluation: Mapping[str, Any]) -> str:
    texts = []
    if part := evaluation.get("nll"):
        texts.append(f"NLL on {part['num_images'] or 'all'} images")
    if part := evaluation.get("fidelity"):
        texts.append(f"{part['num_samples']} samples, {part['num_steps']} steps, {run.extractor(part)}")
    if part := evaluation.get("sweep"):
        texts.append(f"{part['num_samples']} samples at each number of steps, {run.extractor(part)}")
    return "; ".join(texts) or "–"


def _compute(runs: Sequence[RunRecord], earlier: Sequence[RunDirectory]) -> Answer:
    compute = _used([RunDirectory(run.folder) for run in runs])
    before = _used(earlier)
    rows = [
        (run.arm, f"r{run.replicate}", run.run_key, run.state, str(used.attempts), _device_time(used))
        for run in runs
        for used in [compute.by_run.get(run.run_key, _Used())]
    ]
    total = compute.total
    by_ending = "; ".join(f"{ending}: {used.text}" for ending, used in compute.by_ending.items())
    sentences = [
        f"In total {total.text}: wall-clock time from the first to the last line of an attempt's journal, times its "
        f"processes; trainings and evaluations. By how attempts ended: {by_ending or 'none'}.",
        "What an attempt did after its last line before it was killed, and the time in queues, are not recorded.",
    ]
    if earlier:
        sentences.append(
            f"Besides, {count(len(earlier), 'run')} that this study no longer asks for: {before.total.text}."
        )
    sentences.append("Preliminary runs of other studies are not in it; energy and emissions are not recorded.")
    heads = ("arm", "replicate", "run", "state", "attempts", "device time")
    return Answer("How much compute?", sentences, Table(heads, rows))


def _used(directories: Iterable[RunDirectory]) -> _Compute:
    compute = _Compute()
    for directory in directories:
        try:
            processes = {entry["attempt"]: entry.get("num_processes") for entry in directory.environments()}
            spans = attempt_spans(directory)
        except (RecordError, OSError):
            continue
        for span in spans:
            number = processes.get(span.number)
            number = number if isinstance(number, int) else 1
            compute.by_run.setdefault(directory.key, _Used()).add(span, number)
            ending = span.ending or "ended without a word (killed), or still running"
            compute.by_ending.setdefault(ending, _Used()).add(span, number)
    return compute


def _device_time(used: _Used) -> str:
    return device_time(used.device_seconds / 3600) if used.attempts else NOT_RECORDED


def _environments(runs: Sequence[RunRecord]) -> Iterator[dict[str, Any]]:
    """Iterate over the environments of all attempts at all runs."""
    for run in runs:
        try:
            yield from RunDirectory(run.folder).environments()
        except RecordError:
            continue


def _values(environments: Sequence[Mapping[str, Any]], name: str) -> str:
    """Return the values of a field over all attempts, with how often each occurs if there are several."""
    values = [str(entry[name]) if entry.get(name) is not None else NOT_RECORDED for entry in environments]
    counts = {value: values.count(value) for value in dict.fromkeys(values)}
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{value} ({count(number, 'attempt')})" for value, number in counts.items()) or NOT_RECORDED


def _hardware(runs: Sequence[RunRecord]) -> Answer:
    environments = list(_environments(runs))
    names = {
        "device": "device",
        "cpu_capability": "instructions of the CPU",
        "num_processes": "processes (devices) of a run",
        "threads": "threads of a process",
    }
    rows = [(text, _values(environments, name)) for name, text in names.items()]
    rows += [("model of the CPU, memory", NOT_RECORDED)]
    return Answer("On what hardware?", [], Table(("what", "value"), rows))


def _versions(runs: Sequence[RunRecord]) -> Answer:
    environments = list(_environments(runs))
    names = {
        "code_version": "code (version and commit; dirty: with changes that are in no commit)",
        "code_snapshot": "snapshot of the code, kept with the runs",
        "harness": "diffusion-harness",
        "python": "Python",
        "torch": "PyTorch",
        "deterministic": "deterministic algorithms",
    }
    rows = [(text, _values(environments, name)) for name, text in names.items()]
    rows += [("NumPy, SciPy and others", f"{NOT_RECORDED} with the runs; constraints.txt of the commit pins them")]
    return Answer("Which code and libraries?", [], Table(("what", "version"), rows))


def _data(runs: Sequence[RunRecord]) -> Answer:
    rows: dict[tuple[str, ...], None] = {}
    for run in runs:
        name, environment = run.spec["data"]["name"], run.environment
        facts, account = DATASET_FACTS.get(name), environment.get("data_account")
        splits = account if isinstance(account, dict) else {}
        sizes = ", ".join(f"{splits[split]} {split}" for split in ("train", "test") if split in splits)
        digest = str(environment.get("data_digest") or NOT_RECORDED)[:16]
        licence = (facts.licence if facts else "") or "not known to the harness"
        rows[f"data {name}", sizes or NOT_RECORDED, digest, licence] = None
        for measurement in run.measurements:
            if part := measurement.evaluation.get("fidelity"):
                kind = _extractor_kind(str(part["extractor"]), run)
                known = measurement.protocol.get("extractor")
                weights = known.get("weights_sha256") if isinstance(known, dict) else None
                licence = EXTRACTOR_LICENCES.get(kind, "not known to the harness")
                rows[f"features {run.extractor(part)}", "", str(weights or NOT_RECORDED)[:16], licence] = None
    return Answer(
        "Which data and pretrained networks, under which licences?",
        ["Licences as their publishers state them; check them before publication."],
        Table(("what", "examples", "sha256", "licence"), list(rows)),
    )


def _extractor_kind(extractor: str, run: RunRecord) -> str:
    name = extractor if extractor != "auto" else run.extractor({"extractor": extractor})
    return "classifier" if name not in EXTRACTOR_LICENCES and "net" in name else name


def _split_settings(runs: Sequence[RunRecord]) -> tuple[dict[str, Any], list[str]]:
    """Return the settings that all runs share, and the paths of those in which arms differ."""
    all_settings = [settings_of(run) for run in runs]
    paths = dict.fromkeys(path for settings in all_settings for path in settings)
    values = {path: {canonical_json(settings.get(path)) for settings in all_settings} for path in paths}
    shared = {path: all_settings[0].get(path) for path in paths if len(values[path]) == 1}
    return shared, [path for path in paths if len(values[path]) > 1]


def _shared(runs: Sequence[RunRecord]) -> Answer:
    shared, _ = _split_settings(runs)
    listed = "; ".join(f"{path} = {brief(value)}" for path, value in shared.items())
    return Answer("Which hyperparameters do all arms share?", [f"{listed}."])


def _differing(runs: Sequence[RunRecord]) -> Answer:
    _, paths = _split_settings(runs)
    rows = []
    for arm, members in by_arm(runs).items():
        settings = settings_of(members[0])
        rows.append((arm, "; ".join(f"{path} = {brief(settings.get(path))}" for path in paths)))
    how = "How they were chosen is not recorded here: a search has a study of its own."
    if not paths:
        return Answer("In which do they differ?", ["In none.", how])
    return Answer("In which do they differ?", [how], Table(("arm", "settings"), rows))


def _rerun(study: str, file: str) -> Answer:
    parts = PurePath(file).parts
    shown = "/".join(parts[parts.index("experiments") :] if "experiments" in parts else parts[-1:])  # of no machine
    commands = f"harness submit {shown or study}, then harness figures {study}"
    return Answer(
        "How is it run again?",
        [
            f"At the commit above: {commands}. The same commit, libraries, kind of device, processes and threads give "
            "the same weights, bit for bit, where the algorithms are deterministic.",
        ],
    )


# -- as text


def markdown(study: str, answered: Sequence[Answer]) -> str:
    """Return the appendix as Markdown."""
    lines = [f"# {TITLE}: {markdown_text(study)}", ""]
    for answer in answered:
        lines += [f"## {answer.question}", "", *(f"{markdown_text(sentence)}\n" for sentence in answer.sentences)]
        if answer.table:
            lines += [f"| {' | '.join(answer.table.heads)} |", "|---" * len(answer.table.heads) + "|"]
            lines += [f"| {' | '.join(map(markdown_text, row))} |" for row in answer.table.rows]
            lines.append("")
    return "\n".join(lines)


def latex(study: str, answered: Sequence[Answer], comment: str = "") -> str:
    """Return the appendix as a section for a paper; it may run over several pages.

    Args:
        comment: what made it, for the first lines.
    """
    lines = [rf"\section{{{TITLE}: {escape(study)}}}", r"\begingroup\sloppy", ""]
    for answer in answered:
        lines += [rf"\paragraph{{{escape(answer.question)}}}", *map(_breakable, answer.sentences), ""]
        if answer.table:
            lines += [*_latex_table(answer.table), ""]
    return comments(f"needs \\usepackage{{array, booktabs, longtable}}\n{comment}") + "\n".join(
        [*lines, r"\endgroup", ""]
    )


def _breakable(text: str) -> str:
    """Escape a text for LaTeX, with places where long names may be broken."""
    return re.sub(r"(?<=[a-z])\.(?=[a-z])|\\_|,(?=\w)|\+", r"\g<0>\\allowbreak{}", escape(text))


def _latex_table(table: Table) -> Iterator[str]:
    """Iterate over the lines of a table that may run over pages, with line breaks in its last column."""
    first, last = {2: (0.35, 0.6), 4: (0.2, 0.35)}.get(len(table.heads), (0.2, 0.22))
    of_text = r">{{\raggedright\arraybackslash}}p{{{}\linewidth}}"
    alignment = of_text.format(first) + "l" * (len(table.heads) - 2) + of_text.format(last)
    yield r"\begingroup\footnotesize\setlength{\tabcolsep}{4pt}"
    yield rf"\begin{{longtable}}{{@{{}}{alignment}@{{}}}}"
    yield rf"\toprule {' & '.join(map(escape, table.heads))} \\ \midrule \endhead"
    yield from (" & ".join(map(_breakable, row)) + r" \\" for row in table.rows)
    yield r"\bottomrule"
    yield r"\end{longtable}\endgroup"
