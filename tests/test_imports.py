"""Imports point down: ARCHITECTURE.md's picture of who may import whom, as a table, walked with `ast`.

A module-level import is paid by everyone who imports the module; one inside a function only by who calls it. Both must
point down; only the first decides what a login node has to load.
"""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*ROOT.glob("harness/**/*.py"), *ROOT.glob("analysis/**/*.py")])

# A room -> the rooms that it may import (itself always, and what those may import is not implied).
# The whole-file rooms of harness/ carry their file's name, the packages their folder's.
ROOMS = {
    # on which all else stands
    "errors": set(),
    "randomness": set(),
    "progress": set(),
    # leaves: plain values, never the spec
    "diffusion": {"errors"},
    "models": {"errors"},
    "data": {"errors"},
    "methods": {"diffusion", "errors"},
    "metrics": {"diffusion", "data", "errors"},
    # no torch in this row. The spec reads two torch-free tables of leaves: data.facts and diffusion.respacing
    "spec": {"data", "diffusion", "errors"},
    "study": {"spec", "errors"},
    "records": {"errors", "spec"},
    "tracking": {"records", "study", "spec", "errors"},
    "snapshot": {"records", "errors"},
    "throughput": {"records"},
    # names become objects, and a run is worked on
    "registry": {"spec", "diffusion", "models", "data", "methods", "metrics", "randomness", "errors"},
    "lineage": {"records", "spec", "errors"},
    "disk": {"records", "errors"},
    "archive": {"disk", "records", "spec", "errors"},
    "checkpoint": {"disk", "records", "errors"},
    "evaluation": {
        *("registry", "checkpoint", "records", "spec"),
        *("diffusion", "models", "data", "methods", "metrics", "randomness", "progress", "errors"),
    },
    "distributed": {"errors"},
    "trainer": {
        *("registry", "checkpoint", "distributed", "records", "spec"),
        *("diffusion", "data", "methods", "randomness", "errors"),
    },
    "job": {
        *("trainer", "distributed", "evaluation", "registry", "checkpoint", "tracking", "lineage", "records"),
        *("snapshot", "throughput", "spec"),
        *("data", "metrics", "progress", "errors"),
    },
    "published": {"trainer", "registry", "checkpoint", "records", "models", "spec", "errors"},
    "cluster": {"study", "spec", "errors"},
    "launch": {
        "cluster",
        "lineage",
        "job",
        "registry",
        "trainer",
        "snapshot",
        "throughput",
        "tracking",
        "records",
        "study",
        "spec",
        "progress",
        "errors",
    },
    "errand": {"cluster", "spec", "errors"},
    "calibrate": {
        *("launch", "errand", "throughput", "job", "trainer", "registry", "checkpoint", "cluster"),
        *("records", "spec", "errors"),
    },
    "doctor": {
        *("launch", "views", "errand", "registry", "cluster", "tracking", "records", "spec", "errors"),
    },
    "views": {"launch", "cluster", "disk", "tracking", "records", "study", "spec", "progress", "errors"},
    "verify": {"job", "checkpoint", "lineage", "records", "study", "spec", "errors"},
    "search": {"launch", "cluster", "tracking", "records", "study", "spec", "errors"},
    "analysis": {"tracking", "records", "study", "spec", "diffusion", "data", "errors"},
    "cli": None,  # all
    "__main__": {"cli"},
}

# Each is imported in one place, so that replacing it is a change of one file.
ONE_HOME = {
    "mlflow": {"harness/tracking.py"},
    "submitit": {"harness/launch.py"},
    "optuna": {"harness/search.py"},
    "torch_fidelity": {"harness/metrics/torchvision_compat.py"},
    "torchvision": {"harness/metrics/torchvision_compat.py"},
}

TORCH_FREE = (
    "spec",
    "study",
    "records",
    "tracking",
    "cluster",
    "launch",
    "search",
    "snapshot",
    "throughput",
    "errand",
    "calibrate",
    "doctor",
    "lineage",
    "disk",
    "archive",
    "verify",
    "views",
    "progress",
    "cli",
    "errors",
)
HEAVY = ("torch", "torchvision", "torch_fidelity", "mlflow", "submitit", "optuna", "scipy", "sklearn", "matplotlib")


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module):
    parts = module.split(".")
    if parts[0] == "analysis":
        return "analysis"
    return parts[1] if len(parts) > 1 else "harness"


MODULES = {module_name(path): path for path in FILES}


@cache
def imports(path):
    """Return (imported module, line, whether at module level) for each import of a file; not those for types alone."""
    found = []

    def walk(node, at_top):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, node.lineno, at_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative imports hide who is imported"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.append((full if full in MODULES else node.module, node.lineno, at_top))
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            walk(child, at_top and not inside)

    walk(ast.parse(path.read_text(), str(path)), True)
    return found


def paid_by(module, seen=()):
    """Return every module that importing `module` imports at once, with the packages on the way."""
    if module in seen or module not in MODULES:
        return {module}
    paid = {module}
    for name, _, at_top in imports(MODULES[module]):
        if at_top:
            parents = [name.rsplit(".", depth)[0] for depth in range(name.count(".") + 1)]
            for one in parents:
                paid |= paid_by(one, (*seen, module))
    return paid


def relative(path):
    return path.relative_to(ROOT).as_posix()


def test_every_file_has_a_room_in_the_table():
    rooms = {room(module) for module in MODULES} - {"harness"}
    assert rooms <= set(ROOMS), f"give {rooms - set(ROOMS)} a place in the table, and in docs/architecture.md"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_point_down(path):
    here = room(module_name(path))
    allowed = ROOMS.get(here, set())
    for name, line, _ in imports(path):
        target = room(name)
        if name.split(".")[0] not in ("harness", "analysis") or target in (here, "harness") or allowed is None:
            continue
        assert target in allowed, f"{relative(path)}:{line}: {here} may not import {target} ({name})"


def test_the_table_has_no_circle():
    graph = {one: set(targets or ()) for one, targets in ROOMS.items()}
    standing = set()
    while graph.keys() - standing:
        free = {one for one, targets in graph.items() if one not in standing and targets <= standing}
        assert free, f"a circle among {graph.keys() - standing}"
        standing |= free


@pytest.mark.parametrize("package", ONE_HOME)
def test_an_outside_package_is_imported_in_one_file(package):
    importers = {relative(p) for p in FILES for name, *_ in imports(p) if name.split(".")[0] == package}
    assert importers <= ONE_HOME[package]


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_leaves_do_not_know_the_spec_even_for_types(path):
    if room(module_name(path)) in ("diffusion", "models", "data", "methods", "metrics"):
        text = path.read_text()
        for upper in ("spec", "study", "records", "tracking", "launch", "trainer", "evaluation", "registry"):
            assert f"harness.{upper}" not in text and f"from harness import {upper}" not in text


@pytest.mark.parametrize(
    "module", [one for one in MODULES if one in {f"harness.{name}" for name in TORCH_FREE} or room(one) == "analysis"]
)
def test_a_login_node_loads_nothing_heavy(module):
    heavy = ("matplotlib",) if room(module) == "analysis" else ()  # figures are drawn with it
    paid = {name.split(".")[0] for name in paid_by(module)}
    assert paid.isdisjoint(set(HEAVY) - set(heavy))


def test_the_facts_and_schedules_that_the_spec_and_the_figures_read_load_no_torch():
    code = (
        "import sys, harness.study, harness.data.facts, harness.diffusion.respacing, harness.records;"
        "assert harness.study.load_study(sys.argv[1]).runs;"
        "from harness.diffusion import SCHEDULES; SCHEDULES['cosine'](10);"
        f"found = sorted(set(sys.modules) & {set(HEAVY)!r}); assert not found, found"
    )
    study = ROOT / "experiments" / "iddpm" / "table1_imagenet64.yaml"
    subprocess.run([sys.executable, "-c", code, str(study)], check=True, cwd=ROOT, timeout=60)


# The walker itself, on a file made for it: a checker that finds nothing would pass all the above.


def test_the_walker_tells_module_level_from_function_level_and_leaves_types_out(tmp_path):
    path = tmp_path / "sample.py"
    path.write_text(
        "import torch\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import mlflow\n"
        "try:\n    import psutil\nexcept ImportError:\n    psutil = None\n"
        "class A:\n    import yaml\n    def f(self):\n        from harness.spec import RunSpec\n"
        "def g():\n    import submitit\n"
    )
    assert imports(path) == [
        ("torch", 1, True),
        ("typing", 2, True),
        ("psutil", 6, True),
        ("yaml", 10, True),
        ("harness.spec", 12, False),
        ("submitit", 14, False),
    ]


def test_the_walker_follows_imports_through_packages():
    assert "torch" in paid_by("harness.trainer")
    assert {"harness.data", "harness.data.facts", "pydantic"} <= paid_by("harness.study")
