"""No sentence is parsed: in a copy of the harness every text for people is another one, and all goes on as before.

A literal is a text for people when it has two words or more and does not stand where programs look: in a comparison, as
what is searched for or cut at, as a key, or in the language of another program (Python, SQL, a shell, MLflow's filters,
strftime). Docstrings stay, for click prints them and nothing can parse them.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness import PACKAGE_ROOT

ROOT = Path(__file__).parents[2]
# Methods whose string arguments are looked for, not shown.
LOOKS_FOR = {
    *("startswith", "endswith", "removeprefix", "removesuffix", "partition", "rpartition", "split", "rsplit"),
    *("find", "rfind", "index", "rindex", "count", "replace", "strftime", "strptime"),
    *("match", "search", "fullmatch", "findall", "finditer", "sub", "compile"),
}
OTHER_LANGUAGES = re.compile(
    r"\bimport\b|sys\.argv|^SELECT\b|tags\.\w+ = |%[A-Za-z]|^export |^mkdir |^module load|^show (config|node|partition)"
    r"|^if \[ |\brm -rf -- "
)
# Shell scripts, a schema of torch, the YAML of tiny studies.
LEFT_OUT = ("slurm/kills.py", "slurm/probe.py", "metrics/torchvision_compat.py", "testing.py")
WORDS = re.compile(r"[A-Za-z]{2,}")


class _OtherWords(ast.NodeTransformer):
    def __init__(self) -> None:
        self.replaced: list[str] = []

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        return node

    def visit_MatchValue(self, node: ast.MatchValue) -> ast.AST:
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        node.value = self.visit(node.value)
        return node

    def visit_Dict(self, node: ast.Dict) -> ast.AST:
        node.values = [self.visit(value) for value in node.values]
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name == "getattr" or (isinstance(node.func, ast.Attribute) and name in LOOKS_FOR):
            node.func = self.visit(node.func)
            return node
        if name in ("finish", "Ending"):
            node.args = [self._without_values(argument) for argument in node.args]
        return self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> ast.AST:
        if node.arg == "reason":
            node.value = self._without_values(node.value)
        return self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        if [ast.unparse(target) for target in node.targets] == ["reason"]:
            node.value = self._without_values(node.value)
        return self.generic_visit(node)

    def _without_values(self, text: ast.expr) -> ast.expr:
        """Replace a reason as a whole: the name of a signal in it must mean nothing either."""
        if not isinstance(text, ast.JoinedStr):
            return text
        self.replaced.append(ast.unparse(text))
        return ast.copy_location(ast.Constant("bla"), text)

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        return node if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, str) and self._is_for_people(node.value):
            self.replaced.append(node.value)
            return ast.copy_location(ast.Constant(_other(node.value)), node)
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        parts = [str(part.value) for part in node.values if isinstance(part, ast.Constant)]
        # What stands in braces is a word too.
        whole = "".join(str(part.value) if isinstance(part, ast.Constant) else "values" for part in node.values)
        if parts and self._is_for_people(whole) and WORDS.search(" ".join(parts)):
            self.replaced.append(whole)
            for part in node.values:
                if isinstance(part, ast.Constant):
                    part.value = _other(str(part.value))
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                part.value = self.visit(part.value)
        return node

    @staticmethod
    def _is_for_people(text: str) -> bool:
        return (
            bool(re.search(r"\w[^\w\n]* [^\w\n]*\w", text))
            and bool(WORDS.search(text))
            and not (OTHER_LANGUAGES.search(text))
        )


def _other(text: str) -> str:
    """Put other words in the place of words; lines, brackets and numbers stay."""
    return WORDS.sub(lambda word: "Bla" if word[0][0].isupper() else "bla", text)


def copy_with_other_words(package: Path, folder: Path) -> list[str]:
    """Copy the package `harness` into a folder with other texts; return those that were replaced."""
    copy = folder / package.name
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    replaced: list[str] = []
    for path in copy.rglob("*.py"):
        if path.relative_to(copy).as_posix() in LEFT_OUT:
            continue
        words = _OtherWords()
        tree = words.visit(ast.parse(path.read_text()))
        path.write_text(ast.unparse(ast.fix_missing_locations(tree)) + "\n")
        replaced.extend(words.replaced)
    return replaced


PARSES_A_SENTENCE = """
def stop(signal):
    reason = f"stopped by {signal}"
    raise ValueError(f"{reason}; resubmit to resume")
def requeued():
    try:
        stop("SIGUSR2")
    except ValueError as error:
        return str(error).endswith("resubmit to resume")
def stopped_by():
    try:
        stop("SIGUSR2")
    except ValueError as error:
        return "SIGUSR2" in str(error)
"""


def test_what_parses_a_sentence_breaks_in_the_copy(tmp_path):
    (tmp_path / "sample").mkdir()
    (tmp_path / "sample" / "module.py").write_text(PARSES_A_SENTENCE)
    assert len(copy_with_other_words(tmp_path / "sample", tmp_path / "copy")) == 2
    answers = []
    for folder in (tmp_path, tmp_path / "copy"):
        spec = importlib.util.spec_from_file_location("module", folder / "sample" / "module.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        answers.append((module.requeued(), module.stopped_by()))
    assert answers == [(True, True), (False, False)]


@pytest.fixture(scope="module")
def other_words(tmp_path_factory) -> dict[str, str]:
    """Copy the harness with other words; return the environment of processes that import the copy."""
    folder = tmp_path_factory.mktemp("other_words")
    replaced = copy_with_other_words(PACKAGE_ROOT / "harness", folder)
    assert len(replaced) > 500
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    program = "from harness.launch import requeue, submit; print(requeue.__file__, end='')"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout) == folder / "harness" / "launch" / "requeue.py"
    return environment


def run_tests(environment: dict[str, str], *arguments: str) -> None:
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_with_other_words_runs_end_and_come_back_as_before(other_words):
    run_tests(other_words, "tests/unit/launch/test_endings.py", "tests/component/launch/test_local_endings.py")


@pytest.mark.slow
@pytest.mark.slurm
def test_with_other_words_the_scenarios_of_slurm_pass(other_words, start_slurm):
    scenarios = "preempt or time_limit or crashed or over_memory or cancel or canary or dies_at_once"
    run_tests(other_words, "tests/system/slurm/test_live.py", "-k", scenarios)
