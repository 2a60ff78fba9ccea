"""Digests of what is drawn: equal for what is the same, different for all else."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness import PACKAGE_ROOT
from harness.analysis.provenance import Provenance, provenance_from
from harness.analysis.report import drawn
from harness.analysis.report.drawing import frame_digest
from harness.analysis.report.drawn import Drawn, DrawnStudy, Output, code_of, read_drawn
from harness.errors import RecordError


def frame(**columns):
    return pd.DataFrame(columns)


def test_equal_frames_have_equal_digests_wherever_they_were_made():
    first = frame(a=[1.0, np.nan], b=["x", "y"], c=[np.zeros((2, 2)), np.ones(3)], d=[("p", {"q": [1]}), None])
    second = pd.concat([first.iloc[:1], first.iloc[1:]]).copy()
    assert frame_digest(first) == frame_digest(second)


@pytest.mark.parametrize(
    "other",
    [
        frame(a=[1.0, 2.5], b=["x", "y"]),
        frame(a=[1.0, 2.0], b=["x", "z"]),
        frame(a=[1, 2], b=["x", "y"]),
        frame(b=["x", "y"], a=[1.0, 2.0]),
        frame(a=[2.0, 1.0], b=["y", "x"]),
        frame(a=[1.0, 2.0], c=["x", "y"]),
        frame(a=[1.0], b=["x"]),
        frame(a=[1.0, 2.0], b=["x", "y"]).set_index(pd.Index([1, 0])),
        frame(a=[1.0, 2.0], b=["x", None]),
    ],
)
def test_frames_that_differ_in_anything_have_different_digests(other):
    assert frame_digest(other) != frame_digest(frame(a=[1.0, 2.0], b=["x", "y"]))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (np.zeros(2, np.float32), np.zeros(1, np.float64)),
        (np.array([1, 2]), np.array([1, 3])),
        (["a", "b"], ["ab"]),
        ("1", 1),
        (1, 1.0),
        (True, 1),
        ({"a": 1}, {"a": 2}),
        (("a",), ["a"]),
    ],
)
def test_cells_that_differ_in_type_shape_or_value_have_different_digests(one, other):
    digests = []
    for value in (one, other):
        cells = np.empty(1, object)
        cells[0] = value
        digests.append(frame_digest(frame(a=cells)))
    assert digests[0] != digests[1]


def test_attributes_of_a_frame_count():
    with_note = frame(a=[1.0])
    with_note.attrs["note"] = "x"
    assert frame_digest(with_note) != frame_digest(frame(a=[1.0]))


def test_the_code_of_a_module_has_every_import_of_its_files_be_they_in_functions_or_over_several_lines():
    for path in [*PACKAGE_ROOT.glob("analysis/*.py"), *PACKAGE_ROOT.glob("harness/records/*.py")]:
        names = set()
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        files = {drawn._file_of(name) for name in names if name.startswith("harness.")}
        assert files <= {drawn._file_of(name) for name in drawn._imported_by(path.resolve())} | {None}, path


def test_a_figures_code_changes_with_what_it_imports_and_not_with_another_figure(monkeypatch):
    before = {name: code_of(f"harness.analysis.figures.{name}") for name in ("fig_samples", "fig_L_t")}
    digest = drawn._code_digest
    for edited, stay in (
        ("fig_samples.py", {"fig_L_t"}),
        ("style.py", set()),
        ("schedule.sh", {"fig_samples", "fig_L_t"}),
    ):
        monkeypatch.setattr(drawn, "_code_digest", lambda path, e=edited: "edited" if path.name == e else digest(path))
        code_of.cache_clear()
        assert {name for name, code in before.items() if code_of(f"harness.analysis.figures.{name}") == code} == stay
    code_of.cache_clear()


def test_the_record_of_what_was_drawn_is_read_as_it_was_written(tmp_path):
    made_of = Provenance("T", "s", ("b" * 16, "a" * 16), ("0.1",), "harness figures s", ("d",), ("p",))
    output = Output("s", "T", "r", "i", {"s/x.png": "0" * 64}, "Ünïcode ☃", 3.25)
    written = Drawn("x", ["s"], {"s": DrawnStudy("stamp", vars(made_of))}, {"s/x": output})
    written.write(tmp_path)
    read = read_drawn(tmp_path)
    assert (read.surroundings, read.page, read.outputs) == ("x", ["s"], {"s/x": output})
    assert provenance_from(read.studies["s"].provenance, "here") == made_of
    assert read.owner_of("s/x.png") == ("s/x", output) and read.owner_of("s/y.png") is None


def test_a_record_that_names_files_elsewhere_is_not_followed(tmp_path):
    output = Output("s", "T", "r", "i", {"../x": "0", "/etc/passwd": "0", "s/x.png": "0"})
    Drawn("x", ["s"], {}, {"s/x": output}).write(tmp_path)
    assert list(read_drawn(tmp_path).outputs["s/x"].files) == ["s/x.png"]


@pytest.mark.parametrize("values", [None, [], {"run_keys": 7}, {"title": 1}, {"run_keys": ["a", 2]}])
def test_what_is_no_provenance_is_refused(values):
    with pytest.raises(RecordError):
        provenance_from(values, "here")


def test_a_file_that_cannot_be_read_has_no_digest(tmp_path: Path):
    assert drawn.file_digest(tmp_path) == drawn.file_digest(tmp_path / "absent") == ""
