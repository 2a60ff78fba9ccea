"""What a paper takes in: tables of siunitx, macros, the appendix on reproducibility."""

import json
import re

import pytest

from harness.analysis.answers import results
from harness.analysis.answers.best import against_best
from harness.analysis.answers.contrasts import contrasts
from harness.analysis.page.page import Section
from harness.analysis.report import for_papers
from harness.analysis.runs import load_records
from harness.analysis.statistics.intervals import Cell
from harness.analysis.tables import macros, reproducibility, tab_results
from harness.analysis.tables.latex import escape, number_cell, number_column
from harness.records.attempts import attempt_spans
from harness.records.directory import RunDirectory
from harness.testing import tiny_study, write_finished_run

ARMS = """
arms: {linear: {diffusion.schedule: linear}, cosine-s0.02: {diffusion.schedule: {name: cosine, s: 0.02}}}
replicates: 4
evaluate: [{name: eval, nll: {}, fidelity: {num_samples: 64, num_steps: 10}}]
"""


def nll(run):
    noise = [0.01, -0.02, 0.0, 0.02][run.replicate]
    return {"nll": 3 + run.replicate - (0.5 + noise) * ("cosine" in run.arm), "nll_standard_error_bpd": 0.002}


@pytest.fixture
def runs(study_runs):
    return load_records(study_runs(ARMS, nll))


class TestBest:
    def sides(self, *sides):
        return {name: {seed: (value, 0.01) for seed, value in enumerate(values)} for name, values in sides}

    def test_each_is_compared_in_pairs_with_the_best_mean(self):
        same_noise = self.sides(("a", [1, 2, 3, 4.001]), ("b", [1.2, 2.21, 3.2, 4.2]), ("c", [1.5, 1.8, 3.4, 4]))
        assert against_best(same_noise, higher_is_better=False) == {"a": "best", "b": "worse", "c": "inconclusive"}
        assert against_best(same_noise, higher_is_better=True)["a"] != "best"

    def test_below_four_seeds_and_without_common_seeds_nothing_is_said(self):
        assert (
            against_best(self.sides(("a", [1, 2, 3]), ("b", [9, 9.9, 11])), higher_is_better=False)["b"] == "untested"
        )
        apart = {"a": {seed: (1.0, 0.0) for seed in range(4)}, "b": {seed: (2.0, 0.0) for seed in range(4, 8)}}
        assert against_best(apart, higher_is_better=False) == {"a": "best", "b": "untested"}

    def test_one_side_alone_and_a_side_without_a_value_are_nothing(self):
        assert against_best(self.sides(("a", [1, 2])), higher_is_better=False) == {"a": ""}
        lost = self.sides(("a", [1, 2]), ("b", [float("nan")] * 2))
        assert against_best(lost, higher_is_better=False) == {"a": "", "b": ""}


class TestCells:
    def test_a_column_is_as_wide_as_its_numbers(self):
        cells = [Cell(((13.17, 0.02),), 2), Cell(((-1.5, None),), 2), None, Cell(((3.0, None), (3.1, None)), 2)]
        assert number_column("FID (digitsnet) ↓", cells).alignment == "S[table-format=-2.2(3)]"
        assert number_column("FID (digitsnet) ↓", cells).head == r"{\shortstack[r]{FID $\downarrow$\\(digitsnet)}}"

    def test_bold_marks_and_what_is_no_single_number(self):
        assert number_cell(Cell(((3.17, 0.02),), 2), bold=True, mark="x") == r"\bfseries 3.17 \pm 0.02{x}"
        assert number_cell(Cell(((3.0, None), (-3.1, None)), 2)) == r"{\num{3.00} / \num{-3.10}}"
        assert (
            number_cell(Cell(((3.0, 0.1),), 2, "1 NaN", "seeds")) == r"{\num{3.00}\,$\pm$\,\num{0.10}, 1 NaN (seeds)}"
        )
        assert number_cell(Cell(((25.0, 0.0),), 1)) == r"{\num{25.0}\,$\pm$\,\num{0.0}}", "siunitx would leave ± 0 out"
        assert number_cell(None) == number_cell(Cell((), 2)) == "{--}"
        assert number_cell(Cell(((float("inf"), None),), 2)) == "{inf}"

    @pytest.mark.parametrize("formula", [r"$\input{x}$", r"$^^5cinput$", "$a}b$", r"$\def\x{}$", "$#1$", "$a%b$"])
    def test_a_formula_from_records_that_does_more_than_show_is_text(self, formula):
        assert "$" not in escape(formula).replace(r"\$", "").replace("$-$", "")
        assert escape(formula, trusted=True) == formula


class TestMacros:
    def test_names_have_letters_alone_and_tell_numbers_apart(self):
        names = ["a-b", "s=0.02", "s=0.002", "lr 1e-3", "lr 1e3", "10", "1.0", "β̃ 2"]
        letters = [macros.letters(name) for name in names]
        assert letters[:4] == ["AB", "SIsZeroPointZeroTwo", "SIsZeroPointZeroZeroTwo", "LrOneEMinusThree"]
        assert len(set(letters)) == len(names) and all(re.fullmatch("[A-Za-z]+", name) for name in letters)

    def test_every_mean_interval_difference_and_p_is_there_with_what_it_is(self, runs):
        frame, compared = results.data(runs), contrasts(runs)
        text = macros.macros("small", frame, compared)
        values = dict(re.findall(r"\\newcommand\{\\(\w+)\}\{(.*)\} % .+", text))
        name = "SmallCosineSZeroPointZeroTwoNll"
        row = frame[(frame["arm"] == "cosine-s0.02") & (frame["metric"] == "nll")].iloc[0]
        assert values[f"{name}Mean"] == rf"\num{{{row['mean']:.3f}}}" and values[f"{name}N"] == "4"
        assert values[f"{name}Low"] == rf"\num{{{row['low']:.3f}}}"
        difference = "SmallCosineSZeroPointZeroTwoVsLinearNll"
        assert values[f"{difference}Difference"] == r"\num{-0.502}" and values[f"{difference}Pairs"] == "4"
        assert values[f"{difference}P"] == r"\ensuremath{<\num{0.001}}"
        assert values[f"{difference}Verdict"] == "better"
        assert len(values) == text.count(r"\newcommand"), "no name is there twice"

    def test_two_arms_of_one_name_in_letters_are_numbered_in_the_studys_order(self, study_runs):
        arms = "arms: {a-b: {}, a.b: {optim.lr: 0.1}, ab: {optim.lr: 0.2}}\nevaluate: [{name: eval, nll: {}}]\n"
        text = macros.macros("small", results.data(load_records(study_runs(arms, lambda run: {}))), [])
        means = re.findall(r"\\(\w+Mean\w*)\}.* % ([^,]+),", text)
        assert means == [("SmallABNllMean", "a-b"), ("SmallABNllMeanTwo", "a.b"), ("SmallAbNllMean", "ab")]


class TestReproducibility:
    def answers(self, runs, **options):
        return {answer.question: answer for answer in reproducibility.answers("small", runs, **options)}

    def test_compute_counts_every_attempt_and_says_how_it_ended(self, tmp_path):
        [run] = tiny_study(tmp_path, "evaluate: [{nll: {}}]")
        directory = write_finished_run(run, tmp_path / "runs")
        directory.write_environment(1, {"harness": "1.2.3", "num_processes": 2})
        path = directory.journal_path(1)
        lines = path.read_bytes().splitlines(keepends=True)
        with directory.lock(), directory.open_journal(resumed_from_step=12):
            pass  # killed at once
        assert [(span.number, span.ending) for span in attempt_spans(directory)] == [(1, "finished"), (2, "")]
        path.write_bytes(b"".join(lines) + b"torn")
        assert [span.ending for span in attempt_spans(directory)] == ["finished", ""]
        answer = self.answers(load_records(tmp_path / "runs"))["How much compute?"]
        assert "In total 2 attempts" in answer.sentences[0]
        assert "ended without a word (killed), or still running: 1 attempt" in answer.sentences[0]
        [row] = answer.table.rows
        assert row[4] == "2"

    def test_device_time_is_that_of_all_processes(self, tmp_path):
        [run] = tiny_study(tmp_path)
        directory = RunDirectory(write_finished_run(run, tmp_path / "runs").path)
        [span] = attempt_spans(directory)
        for processes in (1, 4):
            directory.write_environment(1, {"harness": "1.2.3", "num_processes": processes})
            used = reproducibility._used([directory])
            assert used.total.device_seconds == pytest.approx(span.seconds * processes)

    def test_what_is_not_recorded_is_said_to_be_not_recorded(self, runs):
        answers = self.answers(runs)
        hardware = dict(answers["On what hardware?"].table.rows)
        assert hardware["device"] == "not recorded" and hardware["threads of a process"] == "1"
        libraries = dict(answers["Which code and libraries?"].table.rows)
        assert libraries["diffusion-harness"] == "1.2.3" and libraries["PyTorch"] == "not recorded"

    def test_settings_are_shared_or_differ_and_licences_are_named(self, runs):
        answers = self.answers(runs, file="/home/somebody/experiments/laptop/small.yaml")
        [shared] = answers["Which hyperparameters do all arms share?"].sentences
        assert "diffusion.num_timesteps = 50" in shared and "schedule" not in shared
        rows = dict(answers["In which do they differ?"].table.rows)
        assert rows["cosine-s0.02"] == "diffusion.schedule.name = cosine; diffusion.schedule.s = 0.02"
        data = answers["Which data and pretrained networks, under which licences?"].table.rows
        assert [row[0] for row in data] == ["data digits", "features digitsnet"] and "CC BY 4.0" in data[0][3]
        [again] = answers["How is it run again?"].sentences
        assert "harness submit experiments/laptop/small.yaml" in again and "/home" not in again

    def test_the_files_are_made_together_and_are_the_same_each_time(self, runs, tmp_path):
        section, frame = Section("small", runs), results.data(runs)
        first = for_papers.texts(section, tmp_path, frame, contrasts(runs), "origin")
        assert first == for_papers.texts(section, tmp_path, frame, contrasts(runs), "origin")
        assert list(first) == ["macros.tex", "reproducibility.md", "reproducibility.tex"]
        assert for_papers.texts(Section("small", []), tmp_path, frame, [], "") == {}
        assert json.dumps(first).count("custom-") > 1, "the protocol stands in both forms of the appendix"


def test_the_results_as_latex_have_bold_and_daggers_n_the_protocol_and_labels(runs):
    text = tab_results.latex(results.data(runs), "runs: x", {"linear": r"$\beta$-linear"})
    assert text.startswith("% needs") and "% runs: x" in text
    assert r"$\beta$-linear & 4 & 4.500 \pm 2.054" in text
    assert r"cosine-s0.02 & 4 & \bfseries 3.998" in text
    assert "n = 4 replicates (seeds) of each arm." in text and "64 samples of ancestral 10 steps" in text
