"""Draw all figures from the records and collect them on one page: `harness figures [STUDY...]`.

    figures/index.html                       all figures, with the runs that they were drawn from
    figures/schedules/<name>.{png,pdf,csv}   figures that need no runs
    figures/<study>/<study>.html             with --one-file: the study's page with its pictures inside
    figures/<study>/<name>.{png,pdf,csv}     figures that a study has data for; results.{csv,md,tex}, claims.csv,
                                             contrasts.{csv,md,tex}, of a mixture mixture_by_steps.{csv,md,tex}, of the
                                             papers' data published.{csv,md}
    figures/claims.{png,pdf,csv}             the papers' claims, over all studies on the page
    figures/.drawn.json                      what each file was made of (drawn.py)

The same records give the same bytes, independent of time and machine, and of what was drawn before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

from harness.analysis import data_notes
from harness.analysis.answers import results
from harness.analysis.answers.contrasts import Contrast, contrasts_of
from harness.analysis.claims import verdicts
from harness.analysis.claims.verdicts import JudgedClaim
from harness.analysis.csv_files import csv_text
from harness.analysis.figures import (
    fig_allocation,
    fig_alpha_bar,
    fig_beta_ratio,
    fig_forward_noising,
    fig_game,
    fig_interpolation,
    fig_L_t,
    fig_learning_curves,
    fig_mixture,
    fig_nearest,
    fig_noise_scale,
    fig_progressive,
    fig_quality_cost,
    fig_rate_distortion,
    fig_reconstruction,
    fig_samples,
    fig_sampling_steps,
    fig_scaling,
    fig_search,
    fig_skip,
    fig_trajectories,
    style,
)
from harness.analysis.page import page_curves
from harness.analysis.page.page import Section, render
from harness.analysis.page.page_differences import differences
from harness.analysis.page.page_labels import contrasts_with_names, labelled, shown_names, with_names
from harness.analysis.presentation import presentation_of
from harness.analysis.provenance import Provenance
from harness.analysis.report import claims_report, for_papers, parallel
from harness.analysis.report.drawing import Picture, Planned, write_text
from harness.analysis.report.drawn import Drawn, DrawnStudy, one_file_name, read_drawn
from harness.analysis.report.publishing import (
    Content,
    Published,
    describe,
    publish,
    publish_schedules,
    remove_what_is_no_longer_made,
)
from harness.analysis.report.stamps import Stamps, made_with, on_the_page
from harness.analysis.runs import (
    RunRecord,
    count_earlier,
    count_states,
    load_records,
    require_study,
    study_names,
    unreadable_runs,
    with_arms,
)
from harness.analysis.tables import tab_contrasts, tab_mixture, tab_noise, tab_published, tab_results
from harness.spec.presentation import FigureStyle, Presentation

logger = logging.getLogger(__name__)

SCHEDULES = "schedules"
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
    "quality_cost": fig_quality_cost,
    "skip": fig_skip,
    "progressive": fig_progressive,
    "rate_distortion": fig_rate_distortion,
    "reconstruction": fig_reconstruction,
    "noise_scale": fig_noise_scale,
    "scaling": fig_scaling,
    "allocation": fig_allocation,
    "mixture": fig_mixture,
    "game": fig_game,
    "trajectories": fig_trajectories,
    "interpolation": fig_interpolation,
}
PAGE = "index.html"
MANY_RUNS = 50  # are drawn sooner by several processes, although each takes a second to start


@dataclass(frozen=True)
class Outcome:
    """What a report has done.

    Attributes:
        made: names of the figures and tables that it has written.
        files: pages with their pictures inside.
        without_data: of each study what there are no data for -> what it needs.
    """

    page: Path
    made: list[str]
    files: list[Path]
    without_data: dict[str, dict[str, str]]


def report(runs_folder: Path, out: Path, studies: Sequence[str] = ()) -> Path:
    """Draw figures as `draw_report` does, and return the page."""
    return draw_report(runs_folder, out, studies).page


def draw_report(
    runs_folder: Path,
    out: Path,
    studies: Sequence[str] = (),
    *,
    fresh: bool = False,
    num_processes: int = 1,
    look: FigureStyle | None = None,
    one_file: bool = False,
) -> Outcome:
    """Draw all figures and write the page.

    A figure that is there is drawn again if its data, its code or its files have changed. Other studies that earlier
    reports have drawn stay on the page, as long as they have runs. What cannot be read or drawn is named on the page
    and logged, and ends no other figure.

    Args:
        runs_folder: contains the run directories; if it is missing, only figures that need no runs are drawn.
        out: folder for the figures; files of an earlier report are replaced.
        studies: names; if empty, all studies that have runs.
        fresh: draw everything again.
        look: of all figures; what it says counts more than what the studies say.
        num_processes: that draw, each one study at a time; of fewer than `MANY_RUNS` runs one does.
        one_file: whether each study that is drawn also gets a page of its own with its pictures inside.

    Raises:
        RecordError: a study has no runs; the message lists the studies that have.
    """
    known = study_names(runs_folder)
    for name in studies:
        require_study(runs_folder, name)
    if not known:
        logger.info(f"{runs_folder}: no runs yet, so only the figures that need none are drawn")
    before = read_drawn(out)
    page = on_the_page(known, studies, before, out)
    files = Stamps(runs_folder, look)
    stamps = {name: files.of(name) for name in page}  # before the records are read: a change meanwhile is seen later
    asked = {name for name in page if not studies or name in studies}
    common: dict[str, Any] = {"out": out, "before": before, "fresh": fresh}
    schedules = partial(_of_schedules, **common, look=look or FigureStyle())
    of_studies = [partial(_of_a_study, runs_folder, name, name in asked, **common, look=look) for name in page]
    first, *published = parallel.results([schedules, *of_studies], num_processes if files.num_runs >= MANY_RUNS else 1)
    after = Drawn(made_with(look, runs_folder, out), page, {}, {**first.outputs})
    for name, part in zip(page, published, strict=True):
        current = name in asked or (name in before.studies and stamps[name] == before.studies[name].stamp)
        after.studies[name] = DrawnStudy(stamps[name] if current and part.is_complete else "", part.provenance)
        after.outputs |= part.outputs
    sections = [part.section for part in published if part.section]
    card = claims_report.draw_card(sections, out, before.outputs.get(CLAIMS), look or FigureStyle(), fresh=fresh)
    text = str(render(sections, first.shown, card[0] if card else None))
    after.outputs |= {CLAIMS: card[1]} if card else {}
    after.outputs[PAGE], _ = write_text(out, PAGE, text, "", before.outputs.get(PAGE))
    in_one_file = []
    for section in sections:
        file = one_file_name(section.name)
        if one_file and section.name in asked:
            text = str(render([section], [], pictures_from=out))
            output, _ = write_text(out, file, text, section.name, before.outputs.get(file))
            after.outputs[file] = replace(output, title="Figures", records=after.digest_of(section.name))
            in_one_file.append(out / file)
        elif file in before.outputs:
            after.outputs[file] = before.outputs[file]
    remove_what_is_no_longer_made(out, before, after, asked)
    after.write(out)
    made = [name for part in (first, *published) for name in part.made]
    made += [CLAIMS] if card and after.outputs[CLAIMS] != before.outputs.get(CLAIMS) else []
    without_data = {name: part.without_data for name, part in zip(page, published, strict=True) if part.without_data}
    return Outcome(out / PAGE, made, in_one_file, without_data)


def _of_schedules(out: Path, before: Drawn, *, fresh: bool, look: FigureStyle) -> Published:
    return publish_schedules(WITHOUT_RUNS, SCHEDULES, out, before, fresh=fresh, look=look)


def _of_a_study(
    runs_folder: Path, study: str, asked: bool, out: Path, before: Drawn, *, fresh: bool, look: FigureStyle | None
) -> Published:
    content = contents(runs_folder, study, look)
    try:
        _add_for_the_page(content, out)
    except Exception as error:  # the figures are shown as pictures, and the tables as they are
        content.section.left_out["Curves and differences"] = f"cannot be shown: {describe(error)}"
    return publish(content, out, before, asked=asked, fresh=fresh)


def _add_for_the_page(content: Content, out: Path) -> None:
    """Add the study's labels, and what the page's script shows: curves, and the differences from every arm."""
    for planned in content.figures:
        name = planned.stem.rpartition("/")[2]
        content.section.curves[name] = page_curves.panels(name, planned.frame, content.section.runs)
    section = content.section = labelled(content.section)
    section.folder = out
    if section.results is not None:
        compare = section.presentation.compare
        section.differences = differences(section.runs, section.results, compare, section.contrasts)


# ---------------------------------------------------------------------------------------------- what a study shows


def contents(runs_folder: Path, study: str, look: FigureStyle | None = None) -> Content:
    """Read the records of a study, and return what it shows.

    Args:
        look: of its figures; what it says counts more than what the study says.
    """
    presentation = presentation_of(runs_folder, study, look)
    presentation, unusable_labels = style.with_usable_labels(presentation)
    runs, data, unusable = _read(load_records(runs_folder, study), presentation)
    keys = {run.run_key for run in runs}  # by its manifest a study may know a run whose membership is damaged
    unreadable = {name: why for name, why in unreadable_runs(runs_folder, study).items() if name not in keys}
    left_out = unreadable | unusable
    section = Section(study, runs, presentation, data_note=data_notes.data_sentence(runs), left_out=left_out)
    section.num_earlier = count_earlier(runs_folder, study)
    section.left_out |= {f"label of {arm}": f"cannot be drawn: {why}" for arm, why in unusable_labels.items()}
    content = Content(section, _provenance(study, runs), names=shown_names(section))
    pictures: dict[str, Picture] = {**OF_A_STUDY}
    if fig_search.is_search(runs):
        pictures |= fig_search.FIGURES
        data |= _read_all({name: picture.data for name, picture in fig_search.FIGURES.items()}, runs)
    if presentation.figures.arms:
        few = with_arms(runs, presentation.figures.arms)
        data |= _read_all({name: module.data for name, module in OF_A_STUDY.items()}, few)
    for name, picture in pictures.items():
        try:
            _add_figure(content, name, picture, _result(data[name]))
        except Exception as error:  # of one figure: the others are drawn
            section.left_out[picture.TITLE] = f"cannot be drawn: {describe(error)}"
    try:
        _add_results(content, _result(data[RESULTS]), _result(data[CLAIMS]))
        _add_contrasts(content, _result(data[CONTRASTS]))
        _add_mixture(content, _result(data[MIXTURE]))
        _add_noise(content, _result(data[NOISE]))
        _add_published(content, _result(data[PUBLISHED]))
        compared = _result(data[CONTRASTS])
        content.tables |= for_papers.texts(section, runs_folder, data[RESULTS], compared, _origin(section))
    except Exception as error:
        section.left_out[tab_results.TITLE] = f"cannot be shown: {describe(error)}"
    return content


def _provenance(study: str, runs: Sequence[RunRecord]) -> Provenance:
    protocols = [measurement.protocol.get("protocol_id") for run in runs for measurement in run.measurements]
    digests = [run.environment.get("data_digest") for run in runs]
    return Provenance(
        title="",
        study=study,
        run_keys=tuple(run.run_key for run in runs),
        code_versions=tuple(sorted({run.code_version for run in runs})),
        command=f"harness figures {study}",
        data_digests=tuple(sorted({digest for digest in digests if isinstance(digest, str)})),
        protocols=tuple(sorted({protocol for protocol in protocols if isinstance(protocol, str)})),
    )


def _add_figure(content: Content, name: str, picture: Picture, frame: pd.DataFrame) -> None:
    if frame.empty:
        content.without_data[f"{name} figure"] = picture.NEEDS
        return
    section = content.section
    sentences = [f"The study has {count_states(section.runs)}.", section.data_note]
    caption = " ".join(filter(None, [picture.caption(frame), *sentences]))
    content.figures.append(Planned(f"{section.name}/{name}", picture, frame, caption, content.made_of, _look(section)))


def _add_results(content: Content, frame: pd.DataFrame, judged: list[JudgedClaim]) -> None:
    section, tables = content.section, content.tables
    if len(frame):
        note = f"\n{section.data_note}\n" if section.data_note else ""
        tables["results.csv"] = csv_text(frame)
        tables["results.md"] = tab_results.markdown(with_names(frame, content.names)) + note
        tables["results.tex"] = tab_results.latex(frame, _origin(section), _look(section).labels)
        section.results = frame
    else:
        content.without_data["results table"] = tab_results.NEEDS
    if judged:
        tables["claims.csv"] = csv_text(verdicts.table(judged))
        section.claims = judged


def _look(section: Section) -> FigureStyle:
    return section.presentation.figures


def _origin(section: Section) -> str:
    """Say what a table was made of and how, for its first lines."""
    return f"runs: {' '.join(sorted(run.run_key for run in section.runs))}\nharness figures {section.name}"


def _add_contrasts(content: Content, compared: list[Contrast]) -> None:
    """Add the differences between the arms, where the study has several."""
    if compared:
        content.tables["contrasts.csv"] = csv_text(tab_contrasts.data(compared))
        content.tables["contrasts.md"] = tab_contrasts.markdown(contrasts_with_names(compared, content.names))
        content.tables["contrasts.tex"] = tab_contrasts.latex(
            compared, _origin(content.section), _look(content.section).labels
        )
        content.section.contrasts = compared


def _add_mixture(content: Content, frame: pd.DataFrame) -> None:
    """Add the table of a mixture by number of steps, where the study has one."""
    if len(frame):
        content.tables["mixture_by_steps.csv"] = csv_text(frame)
        content.tables["mixture_by_steps.md"] = tab_mixture.markdown(with_names(frame, content.names, "row"))
        content.tables["mixture_by_steps.tex"] = tab_mixture.latex(
            frame, _origin(content.section), _look(content.section).labels
        )
        content.section.mixture = frame


def _add_noise(content: Content, frame: pd.DataFrame) -> None:
    """Add the table of the two sources of variance, where an evaluation has several sampling seeds."""
    if len(frame):
        content.tables["noise.csv"] = csv_text(frame)
        content.tables["noise.md"] = tab_noise.markdown(frame)
        content.section.noise = frame


def _add_published(content: Content, frame: pd.DataFrame) -> None:
    """Add the papers' tables, where they report on the study's data."""
    if len(frame):
        content.tables["published.csv"] = csv_text(frame)
        content.tables["published.md"] = tab_published.markdown(frame)
        content.section.published = frame


# --------------------------------------------------------------------------------------------------- what is readable

RESULTS, CLAIMS, CONTRASTS, MIXTURE, NOISE = "results", "claims", "contrasts", "mixture_by_steps", "noise"
PUBLISHED = "published"
_READERS: dict[str, Callable[[list[RunRecord]], Any]] = {
    **{name: module.data for name, module in OF_A_STUDY.items()},
    RESULTS: results.data,
    CLAIMS: verdicts.judge,
    MIXTURE: tab_mixture.data,
    NOISE: tab_noise.data,
    PUBLISHED: tab_published.data,
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
        reasons = {key: describe(failure) for key, failure in failures.items() if isinstance(failure, Exception)}
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
