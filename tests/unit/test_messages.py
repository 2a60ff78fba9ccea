"""The library logs and the command line prints: no `print` outside harness/cli and what runs as a program."""

import ast
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from harness.messages import show_messages

ROOT = Path(__file__).parents[2]
FILES = sorted([*ROOT.glob("harness/**/*.py"), *ROOT.glob("analysis/*.py")])
LIBRARY = [path for path in FILES if "cli" not in path.relative_to(ROOT).parts]


def prints(tree):
    """Return the lines on which something is printed, those below `if __name__ == "__main__":` left out."""
    lines = []
    for node in tree.body:
        if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test):
            continue
        for call in (inner for inner in ast.walk(node) if isinstance(inner, ast.Call)):
            name = ast.unparse(call.func)
            if name in ("print", "traceback.print_exc", "sys.stdout.write", "sys.stderr.write"):
                lines.append(call.lineno)
    return lines


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_library_logs_and_does_not_print(path):
    assert prints(ast.parse(path.read_text())) == [], f"{path}: use logging.getLogger(__name__)"


def test_the_search_for_prints_sees_them_in_functions_and_not_in_programs():
    code = "def f():\n    print(1)\n\nif __name__ == '__main__':\n    print(2)\n"
    assert prints(ast.parse(code)) == [2]


@pytest.fixture
def shown():
    """Show messages, and take the handlers away afterwards."""
    logger = logging.getLogger("harness")
    before = (list(logger.handlers), logger.level)
    yield show_messages
    logger.handlers, level = before
    logger.setLevel(level)


def test_messages_are_shown_once_as_plain_lines_on_the_stream_that_was_asked_for_last(shown, capsys):
    shown()
    shown("stdout")
    shown()
    logging.getLogger("harness.some.module").info("3 rows sent")
    assert capsys.readouterr() == ("", "3 rows sent\n")
    shown("stdout")
    logging.getLogger("harness.some.module").warning("a problem")
    assert capsys.readouterr() == ("a problem\n", "")


@pytest.mark.process
def test_a_notebook_that_configures_nothing_sees_problems_and_no_news():
    program = (
        "import logging; logger = logging.getLogger('harness.job.job'); logger.info('news'); logger.warning('problem')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "problem\n")
