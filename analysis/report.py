"""Draw all figures from the records and collect them on one page: `harness figures [STUDY...]`.

    figures/index.html                       all figures, with the runs that they were drawn from
    figures/schedules/<name>.{png,pdf,csv}   figures that need no runs
    figures/<study>/<name>.{png,pdf,csv}     figures that a study has data for; results.{csv,md}, claims.csv

The same records give the same bytes, independent of time and machine.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pandas as pd

from harness import __version__
from harness.analysis import (
    claims,
    data_notes,
    fig_alpha_bar,
    fig_beta_ratio,
    fig_forward_noising,
    fig_L_t,
    fig_learning_curves,
    fig_samples,
    fig_sampling_steps,
    fig_scaling,
    fig_search,
    style,
    tab_results,
)
from harness.analysis.runs import RunRecord, by_arm, count_states, load_records, require_study, study_names

logger = logging.getLogger(__name__)

WITHOUT_RUNS: dict[str, ModuleType] = {
    "beta_ratio": fig_beta_ratio,
    "alpha_bar": fig_alpha_bar,
    "forward_noising": fig_forward_noising,
}
OF_A_STUDY: dict[str, ModuleType] = {
    "samples": fig_samples,
    "learning_curves": fig_learning_curves,
    "L_t": fig_L_t,
    "sampling_steps": fig_sampling_steps,
    "scaling": fig_scaling,
}


@dataclass
class Shown:
    """One figure on the page: its path relative to the page without suffix, and its caption."""

    stem: str
    title: str
    caption: str
    width_inches: float


@dataclass
class Section:
    """A study on the page."""

    name: str
    runs: list[RunRecord]
    figures: list[Shown] = field(default_factory=list)
    data_note: str = ""
    results: pd.DataFrame | None = None
    claims: list[claims.Claim] = field(default_factory=list)


def report(runs_folder: Path, out: Path, studies: Sequence[str] = ()) -> Path:
    """Draw all figures and write the page; log a line for each figure without data.

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
    closed_form = [_figure(out, "schedules", name, module, [])[0] for name, module in WITHOUT_RUNS.items()]
    sections = [_section(runs_folder, out, name) for name in (studies or known)]
    out.mkdir(parents=True, exist_ok=True)
    page = out / "index.html"
    page.write_text(_page(sections, [shown for shown in closed_form if shown]), encoding="utf-8")
    return page


def _section(runs_folder: Path, out: Path, study: str) -> Section:
    section = Section(study, load_records(runs_folder, study))
    section.data_note = data_notes.data_sentence(section.runs)
    figures: dict[str, ModuleType | fig_search.Picture] = {**OF_A_STUDY}
    if fig_search.is_search(section.runs):
        figures |= fig_search.FIGURES
    for name, module in figures.items():
        shown, frame = _figure(out, study, name, module, section.runs)
        if shown:
            section.figures.append(shown)
        elif frame is not None:
            logger.info(f"{study}: no {name} figure: it needs {module.NEEDS}")
    results = tab_results.data(section.runs)
    if len(results):
        section.results = results
        folder = out / study
        folder.mkdir(parents=True, exist_ok=True)
        style.write_csv(results, folder / "results.csv")
        note = f"\n{section.data_note}\n" if section.data_note else ""
        (folder / "results.md").write_text(tab_results.markdown(results) + note, encoding="utf-8")
    else:
        logger.info(f"{study}: no results table: it needs {tab_results.NEEDS}")
    section.claims = claims.judge(section.runs)
    if section.claims:
        style.write_csv(claims.table(section.claims), out / study / "claims.csv")
    return section


def _figure(
    out: Path, folder: str, name: str, module: ModuleType | fig_search.Picture, runs: list[RunRecord]
) -> tuple[Shown | None, pd.DataFrame]:
    frame = module.data(runs)
    if frame.empty:
        return None, frame
    command = f"harness figures{f' {folder}' if runs else ''}"
    versions = tuple(sorted({run.code_version for run in runs}))
    keys = tuple(run.run_key for run in runs)
    provenance = style.Provenance(module.TITLE, folder, keys, versions, command)
    figure = module.draw(frame)
    style.save(figure, frame, out / folder / name, provenance)
    caption = module.caption(frame)
    if runs:
        caption += f" The study has {count_states(runs)}."
        if note := data_notes.data_sentence(runs):
            caption += f" {note}"
    return Shown(f"{folder}/{name}", module.TITLE, caption, figure.get_figwidth()), frame


# ---------------------------------------------------------------------------------------------------------------- page


def _page(sections: list[Section], closed_form: list[Shown]) -> str:
    links = "".join(f'<a href="#{_id(section.name)}">{_text(section.name)}</a>' for section in sections)
    parts = [
        f"<header><h1>Figures from records</h1><p>{_summary(sections)}</p>"
        f'<nav>{links}<a href="#schedules">schedules</a></nav></header>',
        *map(_study, sections),
        '<section id="schedules"><h2>Schedules</h2><p class="lead">Closed forms: no runs are needed.</p>'
        f'<div class="figures">{"".join(map(_shown, closed_form))}</div></section>',
        f"<footer>diffusion-harness {_text(__version__)} · every figure has its data beside it as CSV, and its runs in "
        "the metadata of its PNG and PDF</footer>",
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Figures</title>{_STYLE}'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _summary(sections: list[Section]) -> str:
    runs = [run for section in sections for run in section.runs]
    if not runs:
        return "No runs yet. Submit a study, then draw again."
    studies = f"{len(sections)} stud{'ies' if len(sections) != 1 else 'y'}"
    return f"{studies}, {count_states(runs)}."


def _study(section: Section) -> str:
    arms = by_arm(section.runs)
    parts = [
        f'<section id="{_id(section.name)}"><h2>{_text(section.name)}</h2>',
        f'<p class="lead">{len(arms)} arm{"s" if len(arms) != 1 else ""}, {count_states(section.runs)}.</p>',
    ]
    if section.results is not None:
        base, captions = _text(section.name), [tab_results.caption(section.results), section.data_note]
        parts.append(
            f'<h3>Results</h3><div class="wide">{tab_results.as_html(section.results)}</div>'
            f'<p class="caption">{_text(" ".join(filter(None, captions)))} '
            f'<span class="files"><a href="{base}/results.csv">CSV</a> '
            f'<a href="{base}/results.md">Markdown</a></span></p>'
        )
    if section.claims:
        parts.append(_claims(section))
    parts.append(f'<div class="figures">{"".join(map(_shown, section.figures))}</div>')
    parts.append(_runs(section.runs))
    return "\n".join([*parts, "</section>"])


def _shown(shown: Shown) -> str:
    stem = _text(shown.stem)
    files = " ".join(f'<a href="{stem}.{kind}">{kind.upper()}</a>' for kind in ("png", "pdf", "csv"))
    return (
        f'<figure class="{"half" if shown.width_inches <= style.ONE_COLUMN * 1.3 else "wide"}"><a href="{stem}.png">'
        f'<img src="{stem}.png" alt="{_text(shown.title)}" style="max-width: {round(shown.width_inches * 150)}px"></a>'
        f"<figcaption><b>{_text(shown.title)}.</b> {_text(shown.caption)} "
        f'<span class="files">{files}</span></figcaption></figure>'
    )


_COLOUR_OF = {"supported": "good", "suggests": "good", "contradicted": "bad", "suggests the opposite": "bad"}


def _claims(section: Section) -> str:
    lines = ["<h3>The papers' claims, compared with these runs</h3>", '<div class="wide"><table class="claims">']
    for claim in section.claims:
        lines.append(
            f'<tr class="claim"><td colspan="3"><b>{_text(claim.statement)}</b> '
            f"<small>{_text(claim.source)}</small></td></tr>"
        )
        for contrast in claim.contrasts:
            colour = _COLOUR_OF.get(contrast.verdict, "")
            verdict = f'<span class="verdict {colour}">{_text(contrast.verdict)}</span>'
            numbers = f"{contrast.metric}: {_text(contrast.numbers())}"
            lines.append(f"<tr><td>{verdict}</td><td>{_text(contrast.context)}</td><td>{numbers}</td></tr>")
    caption = _text(" ".join(filter(None, [claims.RULE, section.data_note])))
    link = f'<span class="files"><a href="{_text(section.name)}/claims.csv">CSV</a></span>'
    return "\n".join([*lines, f'</table></div><p class="caption">{caption} {link}</p>'])


_STATE_COLOUR = {"done": "good", "failed": "bad", "interrupted": "bad"}


def _runs(runs: list[RunRecord]) -> str:
    lines = [
        f"<details><summary>The {len(runs)} runs that this came from</summary>"
        '<div class="wide"><table class="runs"><thead><tr><th>run</th><th>arm</th><th>replicate</th><th>seed</th>'
        "<th>state</th><th>steps</th><th>code</th><th></th></tr></thead><tbody>"
    ]
    for run in runs:
        notes = "; ".join(filter(None, [run.status.reason, *run.problems]))
        steps = f"{run.status.step:,} of {run.spec['train']['steps']:,}"
        lines.append(
            f"<tr><td><code>{run.run_key}</code></td><td>{_text(run.arm)}</td><td>{run.replicate}</td>"
            f'<td>{run.spec["seed"]}</td><td><span class="state {_STATE_COLOUR.get(run.state, "")}">{run.state}</span>'
            f"</td><td>{steps}</td>"
            f"<td>{_text(run.code_version)}</td><td>{_text(notes)}</td></tr>"
        )
    return "\n".join([*lines, "</tbody></table></div></details>"])


def _text(text: str) -> str:
    return html.escape(text, quote=True)


def _id(study: str) -> str:
    return f"study-{_text(study)}"


_ARM_COLOURS = "\n".join(
    f".arm{index} {{ background: {style.arm_style(index)['color']} }}" for index in range(len(style.COLOURS) * 4)
)
_STYLE = f"""<style>
:root {{
  color-scheme: light dark;
  --paper: #fbfbfa; --card: #ffffff; --ink: #1d1f21; --soft: #62676d; --line: #e3e3e0; --link: #0b5c94;
  --good: #00724f; --bad: #b04a00; --open: #6b6f75;
}}
@media (prefers-color-scheme: dark) {{
  :root {{
    --paper: #16181b; --card: #1f2226; --ink: #e8e8e6; --soft: #a2a7ad; --line: #34383d; --link: #7cc1f2;
    --good: #4cc79c; --bad: #f0965a; --open: #a2a7ad;
  }}
}}
* {{ box-sizing: border-box }}
body {{ margin: 0 auto; max-width: 74rem; padding: 2.5rem 1.5rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif }}
h1 {{ font-size: 1.9rem; margin: 0 0 .2rem; letter-spacing: -.01em }}
h2 {{ font-size: 1.4rem; margin: 3.2rem 0 .2rem; padding-top: 1.2rem; border-top: 1px solid var(--line) }}
h3 {{ font-size: 1.05rem; margin: 1.8rem 0 .6rem }}
header p, .lead {{ color: var(--soft); margin: 0 0 .8rem }}
a {{ color: var(--link); text-decoration: none }} a:hover {{ text-decoration: underline }}
nav a {{ display: inline-block; margin: .2rem .5rem .2rem 0; padding: .15rem .7rem; border: 1px solid var(--line);
  border-radius: 1rem; background: var(--card); font-size: .9rem }}
.figures {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1.4rem;
  margin-top: 1.6rem; align-items: start }}
figure {{ margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: .6rem; overflow: hidden }}
figure > a {{ display: block; background: #fff; padding: .7rem }}
figure img {{ display: block; width: 100%; height: auto; margin: 0 auto }}  /* max-width: letters of one size */
figcaption, .caption {{ font-size: .875rem; color: var(--soft) }}
figcaption {{ padding: .8rem 1rem 1rem; border-top: 1px solid var(--line) }} figcaption b {{ color: var(--ink) }}
.files a {{ font-size: .78rem; padding: 0 .35rem; border: 1px solid var(--line); border-radius: .3rem }}
figure.wide {{ grid-column: 1 / -1 }} div.wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; background: var(--card);
  border: 1px solid var(--line); width: 100% }}
th, td {{ padding: .42rem .8rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }}
th {{ font-weight: 600; color: var(--soft) }}
th:first-child, td:first-child, .claims td, .runs td, .runs th {{ text-align: left }}
tr.baseline td {{ color: var(--soft); font-style: italic }}
.dot {{ display: inline-block; width: .65rem; height: .65rem; border-radius: 50%; margin-right: .55rem }}
.claims td {{ border-bottom: 0; padding: .22rem .8rem }} .claims small {{ color: var(--soft); white-space: normal }}
.claims td:last-child {{ width: 100%; white-space: normal }}
tr.claim td {{ padding-top: .7rem; border-top: 1px solid var(--line); white-space: normal }}
.verdict, .state {{ font-size: .8rem; font-weight: 600; color: var(--open) }}
.good {{ color: var(--good) }} .bad {{ color: var(--bad) }}
details {{ margin-top: 1.4rem }} summary {{ cursor: pointer; color: var(--link); margin-bottom: .6rem }}
.runs {{ font-size: .82rem }} .runs td:last-child {{ white-space: normal; color: var(--soft) }}
footer {{ margin-top: 3rem; color: var(--soft); font-size: .85rem }}
{_ARM_COLOURS}
</style>"""
