import io
import json
import logging
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.analysis.report.report import OF_A_STUDY, WITHOUT_RUNS, draw_report, report
from harness.cli import cli
from harness.errors import RecordError
from harness.records.directory import RunDirectory

pytestmark = pytest.mark.slow  # each draws all the figures of a study

REPO = Path(__file__).parents[3]
STUDY = """
grid: {diffusion.schedule: [linear, cosine]}
replicates: 3
evaluate:
  - {name: eval, nll: {}, fidelity: {num_samples: 64, num_steps: 10}, grid: 36}
  - {name: eval, sweep: {num_steps: [5, 10], num_samples: 64}}
"""


def test_captions_and_the_table_say_what_was_ignored_of_the_data(study_runs, tmp_path):
    folder = study_runs("evaluate: [{name: eval, nll: {}, grid: 4}]\n", lambda run: {})
    account = {"seen": 30, "used": 29, "ignored": {".txt": 1}, "num_ignored": 1}
    for path in folder.glob("[!.]*"):
        environment = RunDirectory(path).environments()[0] | {"data_account": account}
        RunDirectory(path).environment_path.write_text(json.dumps([environment]))
    page = report(folder, tmp_path / "figures").read_text()
    sentence = "Of the 30 files in digits, 1 was ignored (1 .txt)."
    assert page.count(f"all done. {sentence} ") == page.count("<figcaption>") - 3  # three figures need no runs
    assert page.count(sentence) == page.count("<figcaption>") - 3 + 1
    assert (tmp_path / "figures" / "small" / "results.md").read_text().endswith(f"\n{sentence}\n")


def files(folder):
    """The files that people see in a folder, by their names."""
    paths = [path for path in sorted(folder.rglob("[!.]*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


class Links(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found, self.ids = [], set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("href", "src")]
        self.ids |= {value for name, value in attrs if name == "id"}


# Whose data are a mixture, whose method has a discriminator, or that have a grid of sizes and lengths of training.
OF_OTHER_STUDIES = {"mixture", "game", "allocation"}


@pytest.fixture(scope="module")
def some_runs(study_runs_of_module):
    return study_runs_of_module(STUDY, lambda run: {"nll": 3.0 + run.replicate / 100 - (run.arm == "cosine") / 10})


@pytest.fixture(scope="module")
def drawn(some_runs, tmp_path_factory):
    """The report of `some_runs`, what was logged meanwhile, and what there are no data for."""
    out, messages = tmp_path_factory.mktemp("figures"), io.StringIO()
    handler, logger = logging.StreamHandler(messages), logging.getLogger("harness")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        outcome = draw_report(some_runs, out)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return out, messages.getvalue(), outcome.without_data


def test_every_figure_of_a_study_is_written_in_three_formats_with_a_table_and_claims(some_runs, drawn):
    out, said, without_data = drawn
    names = {"samples", "learning_curves", "L_t", "sampling_steps"}
    stems = {f"schedules/{name}" for name in WITHOUT_RUNS} | {f"small/{name}" for name in names} | {"claims"}
    assert set(files(out)) == (
        {f"{stem}.{kind}" for stem in stems for kind in ("png", "pdf", "csv")}
        | {"index.html", "small/claims.csv", "small/macros.tex"}
        | {f"small/reproducibility.{kind}" for kind in ("md", "tex")}
        | {f"small/{name}.{kind}" for name in ("contrasts", "results") for kind in ("csv", "md", "tex")}
        | {f"small/{name}" for name in ("macros.tex", "reproducibility.md", "reproducibility.tex")}
    )
    without = {f"{name} figure": module.NEEDS for name, module in OF_A_STUDY.items() if name not in names}
    assert without_data == {"small": without} and said == ""
    assert without["trajectories figure"] == "an evaluation with trajectories"
    text = (out / "index.html").read_text()
    for run in some_runs.glob("[!.]*"):
        assert run.name in text
    assert "suggests" in text or "inconclusive" in text
    assert "6 runs, all done" in text


def test_the_page_needs_nothing_from_outside_and_all_its_links_hold(drawn):
    out = drawn[0]
    text = (out / "index.html").read_text()
    links = Links(text)
    assert len(links.found) > 30
    for link in links.found:
        if link.startswith("#"):
            assert link[1:] in links.ids
        else:
            assert (out / link).is_file(), link
    assert "://" not in text.replace("http://www.w3.org/2000/svg", "")  # a name, which nothing loads
    assert sum(link.startswith("../") for link in links.found) >= 6 * 2  # each run's spec and samples


def test_the_command_counts_what_there_are_no_data_for_and_names_it_on_request(some_runs, drawn, tmp_path):
    shutil.copytree(drawn[0], tmp_path / "figures")
    options = ["figures", "--runs", str(some_runs), "--out", str(tmp_path / "figures")]
    said, *more = [CliRunner().invoke(cli, [*options, option]).output for option in ("--one-file", "--verbose")]
    needed = drawn[2]["small"]
    assert f"no data for {len(needed)} more figures and tables: --verbose" in said and "it needs" not in said
    for name, what in needed.items():
        assert f"small: no {name}: it needs {what}\n" in more[0]


@pytest.mark.slow
def test_another_process_draws_the_same_bytes_without_torch_mlflow_or_pyplot(some_runs, drawn, tmp_path):
    script = (
        "import sys; from pathlib import Path; from harness.analysis.report.report import report\n"
        "report(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "print(*({'torch', 'mlflow', 'optuna', 'submitit', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, str(some_runs), str(tmp_path)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
    assert files(tmp_path) == files(drawn[0])


@pytest.mark.slow
@pytest.mark.usefixtures("without_closed_forms")
def test_failed_runs_are_counted_in_every_caption_and_their_reason_stands_in_the_list(study_runs, tmp_path):
    from harness.records.directory import RunDirectory
    from harness.records.status import Status

    folder = study_runs(STUDY, lambda run: {"state": "failed" if run.replicate == 2 else "done"})
    path = next(path for path in sorted(folder.glob("[!.]*")) if RunDirectory(path).status().state == "failed")
    RunDirectory(path).set_status(Status(state="failed", reason="loss <is> not a number"))
    text = report(folder, tmp_path / "figures").read_text()
    assert text.count("The study has 6 runs, of them 2 failed.") == 4
    assert "loss &lt;is&gt; not a number" in text


@pytest.mark.slow
def test_without_runs_the_closed_forms_are_drawn_all_the_same(tmp_path, caplog):
    caplog.set_level("INFO", logger="harness")
    report(tmp_path / "runs", tmp_path / "figures")
    assert "no runs yet" in caplog.text
    assert (tmp_path / "figures" / "schedules" / "alpha_bar.pdf").is_file()


@pytest.fixture
def two_studies(tmp_path, tiny_study):
    """A folder of runs of the studies `tiny` and `other`, one run each."""
    from harness import testing

    other = testing.TINY_STUDY.replace("study: tiny", "study: other")
    for run in [*tiny_study(), *testing.tiny_study(tmp_path, "seed: 5\n", study=other)]:
        testing.write_finished_run(run, tmp_path / "runs")
    return tmp_path / "runs"


def sections(page):
    return {name.removeprefix("study-") for name in Links(page.read_text()).ids if name.startswith("study-")}


@pytest.mark.usefixtures("without_closed_forms")
def test_a_report_of_one_study_keeps_the_others_on_the_page_as_long_as_they_have_runs(two_studies, tmp_path):
    page = report(two_studies, tmp_path / "figures")
    assert sections(page) == {"tiny", "other"}
    before = files(tmp_path / "figures")
    assert sections(report(two_studies, tmp_path / "figures", ["tiny"])) == {"tiny", "other"}
    assert files(tmp_path / "figures") == before
    for path in two_studies.glob("[!.]*/studies/other.json"):
        path.unlink()
    text = report(two_studies, tmp_path / "figures", ["tiny"]).read_text()
    assert sections(page) == {"tiny"}
    assert "other/" not in text


@pytest.mark.usefixtures("without_closed_forms")
def test_a_report_of_one_study_shows_no_study_that_was_never_drawn(two_studies, tmp_path):
    assert sections(report(two_studies, tmp_path / "figures", ["tiny"])) == {"tiny"}
    assert sections(report(two_studies, tmp_path / "figures", ["other"])) == {"tiny", "other"}


@pytest.mark.usefixtures("without_closed_forms")
def test_a_picture_that_was_deleted_since_is_not_linked(two_studies, tmp_path):
    page = report(two_studies, tmp_path / "figures")
    (tmp_path / "figures" / "other" / "learning_curves.png").write_text("no picture")
    report(two_studies, tmp_path / "figures", ["tiny"])
    assert sections(page) == {"tiny", "other"}
    assert "other/learning_curves.png" not in Links(page.read_text()).found
    assert "tiny/learning_curves.png" in Links(page.read_text()).found


def test_one_style_sheet_and_one_script_are_on_the_page_and_only_these_are_allowed_by_its_policy(drawn):
    import base64
    import hashlib
    import re

    text = (drawn[0] / "index.html").read_text()
    policy = re.search('http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    (style,), (script,) = (re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL) for tag in ("style", "script"))
    of_style, of_script = (
        base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (style, script)
    )
    assert policy == (
        f"default-src 'none'; img-src 'self' file: data:; style-src 'sha256-{of_style}'; "
        f"script-src 'sha256-{of_script}'; base-uri 'none'"
    )
    assert text.index("Content-Security-Policy") < text.index("<style>")
    rest = text.replace(script, "").replace(style, "").replace('<script type="application/json"', "")
    assert re.findall(r"<script", rest) == ["<script"]
    assert not re.search(r"\bon\w+=|\bstyle=|javascript:", rest, re.IGNORECASE)


def test_a_page_in_one_file_has_its_pictures_inside_and_leads_nowhere(two_studies, tmp_path, without_closed_forms):
    (file,) = draw_report(two_studies, tmp_path / "figures", ["other"], one_file=True).files
    assert file == tmp_path / "figures" / "other" / "other.html"
    links = Links(file.read_text())
    pictures = [link for link in links.found if not link.startswith("#")]
    assert len(pictures) == file.read_text().count("<img ") > 0
    assert all(link.startswith("data:image/png;base64,iVBOR") for link in pictures)
    assert links.ids == {"study-other"}


def test_a_figure_that_cannot_be_drawn_is_named_and_the_others_are_drawn(two_studies, tmp_path, monkeypatch, caplog):
    from harness.analysis.figures import fig_learning_curves

    def fail(frame):
        raise ValueError("<b>odd</b>")

    monkeypatch.setattr(fig_learning_curves, "draw", fail)
    text = report(two_studies, tmp_path / "figures", ["tiny"]).read_text()
    assert "<li><code>Learning curves</code>: cannot be drawn: ValueError: &lt;b&gt;odd&lt;/b&gt;</li>" in text
    assert "schedules/alpha_bar.png" in text
    assert "tiny: left out: Learning curves: cannot be drawn: ValueError" in caplog.text


def test_a_study_without_runs_is_refused_with_the_choices(some_runs, tmp_path):
    with pytest.raises(RecordError, match=r"no run in .* belongs to study 'smal'; choices: small"):
        report(some_runs, tmp_path / "figures", ["smal"])
    assert not (tmp_path / "figures").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("without_closed_forms")
def test_a_study_that_was_really_trained_and_measured_gives_every_figure(tiny_study, tmp_path):
    from harness.analysis.runs import load_records
    from harness.job.job import run_job
    from harness.records.directory import RunDirectory

    runs = tiny_study(
        """
grid: {model.channels: [8, 16]}
evaluate:
  - {name: eval, nll: {num_images: 16, evaluations_per_image: 8}, every: 6, grid: 36, trajectories: {num_steps: 6},
     fidelity: {num_samples: 64, num_steps: 5, metrics: [fid, precision, recall, memorisation]}}
  - {name: eval, sweep: {num_samples: 32, num_steps: [2, 5]}, interpolation: {num_pairs: 1},
     skip: {num_samples: 32, num_steps: 4, fractions: [0, 0.5]},
     progressive: {num_samples: 32, num_steps: 4, num_frames: 3},
     rate_distortion: {num_images: 4, num_steps: 5}, reconstruction: {num_images: 4, num_steps: [2, 5]}}
  - {name: eval_few, fidelity: {num_samples: 64, num_steps: 3, metrics: [fid]}}
  - {name: eval_raw, weights: raw, noise_scale: {batch_size: 4, small_per_big: 2, num_big: 2}}
  - {name: eval_untrained, weights: untrained, nll: {num_images: 16, evaluations_per_image: 8}}
"""
    )
    for run in runs:
        directory = RunDirectory(tmp_path / "runs" / run.run_key)
        directory.register(run)
        assert run_job(directory.path, threads=1, sync=False, show_progress=False) == "done"
    out = tmp_path / "figures"
    report(tmp_path / "runs", out)
    assert {path.stem for path in (out / "tiny").glob("*.png")} == set(OF_A_STUDY) - OF_OTHER_STUDIES
    table = (out / "tiny" / "results.md").read_text()
    assert "untrained network (channels=8)" in table
    assert "Gaussian per pixel" in table
    assert "nan" not in table.lower()
    first = load_records(tmp_path / "runs")[0]
    assert list(first.sample_pictures()) == ["eval"]
    assert "nll" in (out / "tiny" / "learning_curves.csv").read_text(), "measured at step 6 and at the end"
