"""Draw all figures from the records and collect them on one page: `harness figures [STUDY...]`.

    figures/index.html                       all figures, with the runs that they were drawn from
    figures/schedules/<name>.{png,pdf,csv}   figures that need no runs
    figures/<study>/<name>.{png,pdf,csv}     figures that a study has data for; results.{csv,md,tex}, claims.csv,
                                             contrasts.{csv,md,tex}, and of a mixture mixture_by_steps.{csv,md}

The same records give the same bytes, independent of time and machine.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

from harness.analysis import (
    claims,
    data_notes,
    fig_allocation,
    fig_alpha_bar,
    fig_beta_ratio,
    fig_forward_noising,
    fig_game,
    fig_L_t,
    fig_learning_curves,
    fig_mixture,
    fig_nearest,
    fig_samples,
    fig_sampling_steps,
    fig_scaling,
    fig_search,
    fig_trajectories,
    results,
    style,
    tab_contrasts,
    tab_mixture,
    tab_noise,
    tab_results,
)
from harness.analysis.contrasts import Contrast, contrasts_of
from harness.analysis.page import Section, Shown, render
from harness.analysis.presentation import presentation_of
from harness.analysis.runs import (
    RunRecord,
    count_earlier,
    count_states,
    load_records,
    require_study,
    study_names,
    unreadable_runs,
)
from harness.errors import HarnessError
from harness.records.files import replace_file
from harness.spec.presentation import Presentation
from harness.text import printable

logger = logging.getLogger(__name__)

WITHOUT_RUNS: dict[str, ModuleType] = {
    "beta_ratio": fig_beta_ratio,
    "alpha_bar": fig_alpha_bar,
    "forward_noising": fig_forward_noising,
}
OF_A_STUDY: dict[str, ModuleType] = {
    "samples": fig_samples,
    "nearest_training_images": fig_nearest,
    "learning_curves": fig_learning_curves,
    "L_t": fig_L_t,
    "sampling_steps": fig_sampling_steps,
    "scaling": fig_scaling,
    "allocation": fig_allocation,
    "mixture": fig_mixture,
    "game": fig_game,
    "trajectories": fig_trajectories,
}
Picture = ModuleType | fig_search.Picture


def report(runs_folder: Path, out: Path, studies: Sequence[str] = ()) -> Path:
    """Draw all figures and write the page; log a line for each figure without data.

    Other studies that earlier reports have drawn stay on the page, as long as they have runs. What cannot be read or
    drawn is named on the page and logged, and ends no other figure.

    Args:
        runs_folder: contains the run directories; if it is missing, only figures that need no runs are drawn.
        out: folder for the figures; files of an earlier report are replaced.
        studies: names; if empty, all studies that have runs.

    Returns:
        the page.

    Raises:
        RecordError: a study has no runs; the message lists the studies that have.
    """
    known = study_names(runs_folder)
    for name in studies:
        require_study(runs_folder, name)
    if not known:
        logger.info(f"{runs_folder}: no runs yet, so only the figures that need none are drawn")
    schedules = [_drawn(out, "schedules", name, module, [], module.data([])) for name, module in WITHOUT_RUNS.items()]
    sections = []
    for name in known:
        if not studies or name in studies:
            sections.append(_section(runs_folder, out, name))
        elif any((out / name).glob("*.png")):
            sections.append(_section(runs_folder, out, name, draw=False))
    out.mkdir(parents=True, exist_ok=True)
    page = out / "index.html"
    replace_file(page, render(sections, schedules), durable=False)
    return page


def _section(runs_folder: Path, out: Path, study: str, *, draw: bool = True) -> Section:
    """Draw the figures of a study, or only describe those that an earlier report has drawn."""
    presentation = presentation_of(runs_folder, study)
    runs, data, unusable = _read(load_records(runs_folder, study), presentation)
    shown = {run.run_key for run in runs}  # by its manifest a study may know a run whose membership is damaged
    unreadable = {name: why for name, why in unreadable_runs(runs_folder, study).items() if name not in shown}
    left_out = unreadable | unusable
    section = Section(study, runs, presentation, data_note=data_notes.data_sentence(runs), left_out=left_out)
    section.num_earlier = count_earlier(runs_folder, study)
    figures: dict[str, Picture] = {**OF_A_STUDY}
    if fig_search.is_search(runs):
        figures |= fig_search.FIGURES
        data |= _read_all({name: picture.data for name, picture in fig_search.FIGURES.items()}, runs)
    for name, module in figures.items():
        try:
            _add_figure(section, out, name, module, _result(data[name]), draw=draw)
        except Exception as error:  # of one figure: the others are drawn
            section.left_out[module.TITLE] = f"cannot be drawn: {_describe(error)}"
    try:
        _add_tables(section, out, _result(data[RESULTS]), _result(data[CLAIMS]), draw=draw)
        _add_contrasts(section, out / study, _result(data[CONTRASTS]), draw=draw)
        _add_mixture(section, out / study, _result(data[MIXTURE]), draw=draw)
        _add_noise(section, out / study, _result(data[NOISE]), draw=draw)
    except Exception as error:
        section.left_out[tab_results.TITLE] = f"cannot be shown: {_describe(error)}"
    for name, reason in section.left_out.items():
        logger.warning(printable(f"{study}: left out: {name}: {reason}"))
    return section


def _add_figure(section: Section, out: Path, name: str, module: Picture, frame: pd.DataFrame, *, draw: bool) -> None:
    if frame.empty:
        if draw:
            logger.info(f"{section.name}: no {name} figure: it needs {module.NEEDS}")
    elif draw:
        section.figures.append(_drawn(out, section.name, name, module, section.runs, frame))
    elif width := style.width_inches(out / section.name / f"{name}.png"):
        stem = f"{section.name}/{name}"
        section.figures.append(Shown(stem, module.TITLE, _caption(module, frame, section.runs), width))


def _add_tables(section: Section, out: Path, frame: pd.DataFrame, judged: list[claims.Claim], *, draw: bool) -> None:
    folder = out / section.name
    if draw and not len(frame):
        logger.info(f"{section.name}: no results table: it needs {tab_results.NEEDS}")
    if draw and len(frame):
        folder.mkdir(parents=True, exist_ok=True)
        style.write_csv(frame, folder / "results.csv")
        note = f"\n{section.data_note}\n" if section.data_note else ""
        (folder / "results.md").write_text(tab_results.markdown(frame) + note, encoding="utf-8")
        (folder / "results.tex").write_text(tab_results.latex(frame, _origin(section)), encoding="utf-8")
    if draw and judged:
        folder.mkdir(parents=True, exist_ok=True)
        style.write_csv(claims.table(judged), folder / "claims.csv")
    section.results = frame if (folder / "results.csv").is_file() and len(frame) else None
    section.claims = judged if (folder / "claims.csv").is_file() else []


def _origin(section: Section) -> str:
    """Say what a table was made of and how, for its first lines."""
    return f"runs: {' '.join(sorted(run.run_key for run in section.runs))}\nharness figures {section.name}"


def _add_contrasts(section: Section, folder: Path, compared: list[Contrast], *, draw: bool) -> None:
    """Write the differences between the arms, where the study has several."""
    if draw and compared:
        folder.mkdir(parents=True, exist_ok=True)
        style.write_csv(tab_contrasts.data(compared), folder / "contrasts.csv")
        (folder / "contrasts.md").write_text(tab_contrasts.markdown(compared), encoding="utf-8")
        (folder / "contrasts.tex").write_text(tab_contrasts.latex(compared, _origin(section)), encoding="utf-8")
    section.contrasts = compared if (folder / "contrasts.csv").is_file() else []


def _add_mixture(section: Section, folder: Path, frame: pd.DataFrame, *, draw: bool) -> None:
    """Write the table of a mixture by number of steps, where the study has one."""
    if draw and len(frame):
        folder.mkdir(parents=True, exist_ok=True)
        style.write_csv(frame, folder / "mixture_by_steps.csv")
        (folder / "mixture_by_steps.md").write_text(tab_mixture.markdown(frame), encoding="utf-8")
    section.mixture = frame if (folder / "mixture_by_steps.csv").is_file() and len(frame) else None


def _add_noise(section: Section, folder: Path, frame: pd.DataFrame, *, draw: bool) -> None:
    """Write the table of the two sources of variance, where an evaluation has several sampling seeds."""
    if draw and len(frame):
        folder.mkdir(parents=True, exist_ok=True)
        style.write_csv(frame, folder / "noise.csv")
        (folder / "noise.md").write_text(tab_noise.markdown(frame), encoding="utf-8")
    section.noise = frame if (folder / "noise.csv").is_file() and len(frame) else None


def _drawn(out: Path, folder: str, name: str, module: Picture, runs: list[RunRecord], frame: pd.DataFrame) -> Shown:
    command = f"harness figures{f' {folder}' if runs else ''}"
    versions = tuple(sorted({run.code_version for run in runs}))
    keys = tuple(run.run_key for run in runs)
    provenance = style.Provenance(module.TITLE, folder, keys, versions, command)
    figure = module.draw(frame)
    style.save(figure, frame, out / folder / name, provenance)
    return Shown(f"{folder}/{name}", module.TITLE, _caption(module, frame, runs), figure.get_figwidth())


def _caption(module: Picture, frame: pd.DataFrame, runs: list[RunRecord]) -> str:
    sentences = [f"The study has {count_states(runs)}.", data_notes.data_sentence(runs)] if runs else []
    return " ".join(filter(None, [module.caption(frame), *sentences]))


# --------------------------------------------------------------------------------------------------- what is readable

RESULTS, CLAIMS, CONTRASTS, MIXTURE, NOISE = "results", "claims", "contrasts", "mixture_by_steps", "noise"
_READERS: dict[str, Callable[[list[RunRecord]], Any]] = {
    **{name: module.data for name, module in OF_A_STUDY.items()},
    RESULTS: results.data,
    CLAIMS: claims.judge,
    MIXTURE: tab_mixture.data,
    NOISE: tab_noise.data,
}


def _read(runs: list[RunRecord], presentation: Presentation) -> tuple[list[RunRecord], dict[str, Any], dict[str, str]]:
    """Return the runs that all figures and tables can read, their data, and why the other runs cannot be read.

    Records that no earlier check refuses may still be odd, such as an evaluation without its number of samples. Such a
    run is left out of all figures of its study alike.
    """
    readers = _READERS | {CONTRASTS: lambda runs: contrasts_of(runs, presentation.compare)}
    data = _read_all(readers, runs)
    failing = {name: read for name, read in readers.items() if isinstance(data[name], Exception)}
    unusable: dict[str, str] = {}
    for read in failing.values():
        failures = {run.run_key: _attempt(read, [run]) for run in runs}
        reasons = {key: _describe(failure) for key, failure in failures.items() if isinstance(failure, Exception)}
        if len(reasons) < len(runs) or len(runs) == 1:  # else it is not the runs' fault
            unusable |= {key: f"its records are odd: {reason}" for key, reason in reasons.items()}
    if not unusable:
        return runs, data, {}
    usable = [run for run in runs if run.run_key not in unusable]
    return usable, _read_all(readers, usable), unusable


def _read_all(readers: dict[str, Callable[[list[RunRecord]], Any]], runs: list[RunRecord]) -> dict[str, Any]:
    """Return the result of each reader, or the exception that it raised."""
    return {name: _attempt(read, runs) for name, read in readers.items()}


def _attempt(read: Callable[[list[RunRecord]], Any], runs: list[RunRecord]) -> Any:
    try:
        return read(runs)
    except Exception as error:  # whatever an odd record causes in a reader that expects a right one
        return error


def _result(outcome: Any) -> Any:
    """Return a reader's result; raise its exception."""
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, HarnessError) else f"{type(error).__name__}: {error}"
