"""A study's question, what decides it, and how its figures look."""

import pytest

from harness.analysis.presentation import presentation_of
from harness.errors import SpecError
from harness.records.manifest import ask_for, read_manifest
from harness.spec.presentation import Compare, FigureStyle, Presentation, width_in_inches
from harness.study.expand import load_study
from harness.study.presentation import question_of

STUDY = """# yaml-language-server: $schema=study.schema.json
#
# Does width pay?
# More words.
study: tiny
data: digits
model: {channels: 8, attention_resolutions: []}
train: {steps: 4}
arms: {small: {}, wide: {model.channels: 16}}
evaluate: [{name: eval, nll: {}, fidelity: {num_samples: 64, num_steps: 2}}]
"""

PYTHON_STUDY = '''"""Does width pay?

More."""
import harness

def study():
    parts = {"data": "digits", "train": {"steps": 4}}
    models = [{"channels": channels, "attention_resolutions": []} for channels in (8, 16)]
    measured = [{"name": "eval", "nll": {}}]
    runs = [harness.run(arm=f"w{m['channels']}", spec=parts | {"model": m}, evaluate=measured) for m in models]
    return harness.python_study("tiny", runs, compare={"baseline": "w16", "metric": "nll"})
'''


@pytest.fixture
def write(tmp_path):
    def write(extra="", name="tiny.yaml"):
        path = tmp_path / name
        path.write_text(STUDY + extra)
        return path

    return write


def test_the_question_is_the_first_line_of_comment_unless_the_file_names_another(write):
    assert load_study(write()).presentation.question == "Does width pay?"
    assert load_study(write('question: "Is wide better?"\n')).presentation.question == "Is wide better?"


@pytest.mark.parametrize(
    ("text", "question"),
    [("study: x\n# Not a question.\n", ""), ("#!/bin/sh\n## What? ##\n", "What? ##"), ("", ""), ("\n# Late?\n", "")],
)
def test_only_comments_at_the_top_are_questions(tmp_path, text, question):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    assert question_of(path) == question
    assert question_of(tmp_path / "missing.yaml") == ""


def test_what_decides_and_how_figures_look_are_read_and_are_no_part_of_a_key(write):
    plain = load_study(write())
    study = load_study(
        write(
            "compare: {baseline: wide, metric: eval/fid, by: [model.channels]}\n"
            'figures: {width: icml, labels: {wide: "$W$"}, arms: [wide, small], formats: [pdf], palette: ["#0072B2"]}\n'
        )
    )
    assert study.presentation.compare == Compare(baseline="wide", metric="eval/fid", by=("model.channels",))
    assert study.presentation.figures == FigureStyle(
        width="icml", labels={"wide": "$W$"}, arms=("wide", "small"), formats=("pdf",), palette=("#0072B2",)
    )
    assert [run.run_key for run in study.runs] == [run.run_key for run in plain.runs]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("compare: {baseline: wid}\n", "tiny.yaml:11: compare.baseline: no arm 'wid'; did you mean 'wide'?"),
        ("compare: {metric: fdi}\n", "tiny.yaml:11: compare.metric: no metric 'fdi' is measured; did you mean 'fid'?"),
        ("compare: {metric: other/fid}\n", "choices: nll, fid, precision, recall, eval/nll, eval/fid"),
        ("compare: {pairs: [[wide, tall]]}\n", "compare.pairs.0.1: no arm 'tall'"),
        ("compare: {baseline: wide, pairs: all}\n", "compare.pairs: either a baseline or pairs"),
        ("compare: {basline: wide}\n", "unknown key; did you mean 'baseline'?"),
        ("compare: wide\n", "compare: a mapping is expected, not 'wide'"),
        ("figures: {width: 3in, labels: {tall: T}}\n", "figures.labels.tall: no arm 'tall'"),
        ("figures: {arms: [tall]}\n", "figures.arms.0: no arm 'tall'"),
        ("figures: {width: wide}\n", "figures.width: a width such as 3.25in, 8.5cm or 234pt, or one of icml, neurips"),
        ("figures: {width: 90in}\n", "a width from 2 to 20 inches, not 90in"),
        ("figures: {palette: [red]}\n", "figures.palette.0"),
        ("figures: {formats: [gif]}\n", "choices: 'png', 'pdf' or 'svg'"),
        ("figures: {formats: []}\n", "figures.formats"),
        ("question: [a]\n", "question: a sentence, not ['a']"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_the_choices(write, extra, words):
    with pytest.raises(SpecError) as caught:
        load_study(write(extra))
    assert words in str(caught.value)
    assert "tiny.yaml:11:" in str(caught.value)


def test_widths_are_lengths_or_the_columns_of_conferences():
    assert [width_in_inches(text) for text in ("icml", "neurips", "3.25in", "254mm")] == [3.25, 5.5, 3.25, 10]
    assert width_in_inches("234pt") == pytest.approx(3.2379, abs=1e-4)


def test_the_file_counts_while_it_is_there_and_then_what_was_stored(write, tmp_path):
    study, folder = load_study(write("figures: {width: icml}\n")), tmp_path / "runs"
    asked = {run.run_key: run.membership() for run in study.runs}
    ask_for(folder, "tiny", asked, file=study.path, presentation=study.presentation.model_dump(mode="json"))
    assert presentation_of(folder, "tiny") == study.presentation
    write("figures: {width: neurips}\n")
    assert presentation_of(folder, "tiny").figures.width == "neurips"
    write("figures: {width: 3 feet}\n")  # being edited
    assert presentation_of(folder, "tiny") == study.presentation
    study.path.write_text(STUDY.replace("study: tiny", "study: other"))
    assert presentation_of(folder, "tiny") == study.presentation
    study.path.unlink()
    assert presentation_of(folder, "tiny") == study.presentation
    assert presentation_of(folder, "unknown") == Presentation()


def test_another_presentation_is_stored_but_is_no_other_generation(write, tmp_path):
    study, folder = load_study(write()), tmp_path / "runs"
    asked = {run.run_key: run.membership() for run in study.runs}
    for label in ("first", "second"):
        presentation = {"question": label}
        manifest = ask_for(folder, "tiny", asked, file=study.path, presentation=presentation)
        assert (manifest.generation, dict(manifest.presentation)) == (1, presentation)
    assert read_manifest(folder, "tiny").presentation == {"question": "second"}


def test_what_was_stored_by_anybody_is_checked(write, tmp_path, caplog):
    study, folder = load_study(write()), tmp_path / "runs"
    asked = {run.run_key: run.membership() for run in study.runs}
    ask_for(folder, "tiny", asked, presentation={"figures": {"width": "$(rm)"}})
    assert presentation_of(folder, "tiny") == Presentation()
    assert "its stored presentation is not used: 1 of its values" in caplog.text


def test_a_study_in_python_has_a_presentation_too(tmp_path):
    path = tmp_path / "study.py"
    path.write_text(PYTHON_STUDY)
    presentation = load_study(path).presentation
    assert presentation.question == "Does width pay?"
    assert presentation.compare == Compare(baseline="w16", metric="nll")
    path.write_text(path.read_text().replace('"w16", "metric"', '"w17", "metric"'))
    with pytest.raises(SpecError, match="no arm 'w17'"):
        load_study(path)
