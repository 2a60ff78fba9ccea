"""Text from records, escaped for where it goes."""

import csv
import io
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from harness import PACKAGE_ROOT
from harness.analysis import html
from harness.analysis.csv_files import write_csv
from harness.cli import cli
from harness.text import harness_command, markdown, printable, printable_lines, spreadsheet_cell

HOSTILE = ["\x1b[31mred", "\x9b2J", "a\u202eb", "a\x00b", "\ud800", "a\u2028b", "a\x7fb", "a\u200bb", "a\rb"]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_terminal_gets_no_control_character(text):
    assert printable(text).isprintable()
    assert len(printable(text)) == len(text)
    assert all(line.isprintable() for line in printable_lines(f"one\n{text}\n").split("\n"))


def test_lines_and_tabs_stay_where_several_lines_are_meant():
    assert printable_lines("a\tb\r\nc\x1b\nβ") == "a\tb\nc \nβ"
    assert printable("a\tb\nc") == "a b c"


FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3+cmd|x", "@SUM(A1)", "\t=1", "\r=1", "-", "=-1", "＝1", " =1"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_spreadsheet_takes_no_text_for_a_formula(text, tmp_path):
    cell = f"'{printable(text)}"
    assert spreadsheet_cell(text) == cell
    write_csv(pd.DataFrame({text: [text, "x"], "value": [-1.5, 2.0]}), tmp_path / "x.csv")
    rows = list(csv.reader(io.StringIO((tmp_path / "x.csv").read_bytes().decode(), newline="")))
    assert rows == [[cell, "value"], [cell, "-1.5"], ["x", "2"]]


@pytest.mark.parametrize("text", ["-1.5", "+3", "-1e-5 2.25 nan", "-0.5/1.25 3/4", "cosine", "a=1", "", "−1"])
def test_numbers_and_plain_texts_are_no_formulas(text):
    assert spreadsheet_cell(text) == text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b", r"a\|b"),
        ("<script>", r"\<script\>"),
        ("[x](javascript:1)", r"\[x\](javascript:1)"),
        ("*a* _b_ `c`", r"\*a\* \_b\_ \`c\`"),
        ("lambda_vlb=0.001, channels=8 (cosine)", "lambda_vlb=0.001, channels=8 (cosine)"),
        ("# title", r"\# title"),
        ("a\nb", "a b"),
        ("\\|", r"\\\|"),
        ("&lt;", r"\&lt;"),
    ],
)
def test_markdown_gets_no_markup_and_no_new_cell(text, escaped):
    assert markdown(text) == escaped


def test_html_gets_no_markup_and_no_control_characters():
    text = "<script>alert(1)</script>\"'&\x1b\u202e"
    page = html.render("results.html", tables=[(text, {"nll": text}, [])])
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&amp;  " in page
    assert "<script" not in page and "\x1b" not in page and "\u202e" not in page


def test_a_printed_command_is_understood_as_it_was_meant_when_it_is_pasted(monkeypatch):
    monkeypatch.setenv("HARNESS_RUNS", "my runs")
    sets = ("train.steps=9", "objective={name: hybrid, lambda_vlb: 0.1}")
    printed = harness_command("submit", "a study.yaml", "--watch", runs_folder=Path("their runs"), sets=sets)
    program, verb, *words = shlex.split(printed)
    assert program == "harness"
    parameters = cli.commands[verb].make_context(verb, words).params
    assert (parameters["study"], parameters["watch"]) == (Path("a study.yaml"), True)
    assert (parameters["sets"], parameters["runs_folder"]) == (sets, Path("their runs"))
    assert harness_command("list", runs_folder=Path("my runs")) == "harness list"


def test_no_printed_command_is_put_together_by_hand():
    """Else it lacks --runs, --set, or the quotes of a name with a space."""
    by_hand = re.compile(rf"harness ({'|'.join(cli.commands)}) \{{")
    told_by = {"harness/cli/compare.py", "harness/tracking/experiment.py"}  # what a table or page was made by
    places = [
        f"{path.relative_to(PACKAGE_ROOT)}: {line.strip()}"
        for path in (PACKAGE_ROOT / "harness").rglob("*.py")
        if "analysis" not in path.parts and str(path.relative_to(PACKAGE_ROOT)) not in told_by
        for line in path.read_text().splitlines()
        if by_hand.search(line)
    ]
    assert places == []
