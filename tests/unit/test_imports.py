"""Imports point down: the table of who may import whom (docs/architecture.md draws it), walked with `ast`.

A module-level import is paid by everyone who imports the module; one inside a function only by who calls it. Both must
point down; only the first decides what a login node has to load.
"""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted([*ROOT.glob("harness/**/*.py"), *ROOT.glob("analysis/**/*.py")])

# A package (or a module at the top level of harness/) -> those that it may import. Itself always; what those may import
# is not implied. The order is that of the layers, from below.
MAY_IMPORT = {
    # on which all else stands
    "errors": set(),
    "randomness": set(),
    "text": set(),
    "progress": {"text"},
    "messages": {"text"},
    # leaves: plain values, never the spec
    "diffusion": {"errors"},
    "models": {"diffusion", "errors"},
    "data": {"errors"},
    "methods": {"diffusion", "randomness", "errors"},
    "metrics": {"diffusion", "data", "errors"},
    # no torch in these. The spec reads two torch-free tables of leaves: data.facts and diffusion.respacing
    "spec": {"data", "diffusion", "text", "errors"},
    "study": {"spec", "text", "errors"},
    "records": {"spec", "text", "errors"},
    "tracking": {"analysis", "records", "spec", "messages", "text", "errors"},
    "slurm": {"study", "spec", "data", "text", "errors"},
    "datasets": {"spec", "data", "errors"},
    # names become objects, and a run is worked on
    "registry": {"spec", "diffusion", "models", "data", "methods", "randomness", "errors"},
    "training": {"slurm", "records", "spec", "diffusion", "data", "methods", "randomness", "errors"},
    "evaluation": {
        *("training", "registry", "records", "spec"),
        *("diffusion", "data", "methods", "metrics", "randomness", "text", "errors"),
    },
    "interop": {"evaluation", "training", "registry", "records", "models", "metrics", "spec", "errors"},
    "job": {
        *("training", "evaluation", "registry", "datasets", "slurm", "tracking", "records", "study", "spec"),
        *("data", "methods", "metrics", "progress", "messages", "errors"),
    },
    # runs are handed out, followed and searched over
    "launch": {
        *("job", "training", "registry", "datasets", "slurm", "tracking", "records", "study", "spec"),
        *("data", "metrics", "messages", "text", "errors"),
    },
    "doctor": {"launch", "slurm", "datasets", "tracking", "records", "data", "metrics", "spec", "text", "errors"},
    "search": {"launch", "slurm", "tracking", "records", "study", "spec", "text", "errors"},
    "analysis": {"records", "study", "spec", "diffusion", "data", "text", "errors"},
    # what others import: for plugins' files, and for notebooks
    "plugins": {"spec", "data"},
    "api": None,
    "testing": {
        *("registry", "job", "training", "evaluation", "records", "study", "spec"),
        *("methods", "randomness", "errors"),
    },
    "cli": None,  # all
}

# From below, the packages in analysis/: each may import those before it. Modules of none of them read records.
WITHIN_ANALYSIS = ("", "statistics", "answers", "claims", "figures", "tables", "page", "report")

# Each is imported in one place, so that replacing it is a change of one package.
ONE_HOME = {
    "mlflow": "harness/tracking/",
    "submitit": "harness/launch/processes.py",
    "optuna": "harness/search/optuna_backend.py",
    "torch_fidelity": "harness/metrics/torchvision_compat.py",
    "torchvision": "harness/metrics/torchvision_compat.py",
}

# Programs are started in one place, too: no other file has one's name in its code, be it as a word of a command or in a
# line of shell. A message for people may name one.
PROGRAMS_HOME = "harness/slurm/"
PROGRAM = r"(?:squeue|sacct|sbatch|scontrol|scancel|srun|sinfo|sacctmgr|sreport|salloc|scrontab)"
# The whole text; or a line of shell: a program where a command begins, with an option, a variable or a verb after it.
COMMAND = re.compile(
    rf"(?:\S*/)?{PROGRAM}"
    rf"|.*?(?:^|[|;&({{!]|\b(?:then|do|else|exec|xargs|trap|nice|env)\b)\s*['\"]?(?:\S*/)?{PROGRAM}\b"
    r"(?:\s+(?:-|[$\"']|(?:show|update|requeue|hold|release|list|add|python)\b)|\s*[|;&)]|\s*$).*",
    re.MULTILINE | re.DOTALL,
)

LEAVES = ("diffusion", "models", "data", "methods", "metrics")
# What computes may load torch at once; everything else answers on a login node without it.
LOADS_TORCH = (*LEAVES, "randomness", "registry", "training", "evaluation", "interop", "job")
LOADS_NO_TORCH_ALL_THE_SAME = (
    "harness.job",
    "harness.job.endings",
    "harness.job.request",
    "harness.job.verify",
    "harness.job.writer",
    "harness.data.facts",
)
HEAVY = ("torch", "torchvision", "torch_fidelity", "mlflow", "submitit", "optuna", "scipy", "sklearn", "matplotlib")


def module_name(path):
    """Return the name that a file is imported by: harness/analysis is a link to analysis/, which is walked once."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("harness", *parts) if parts[0] == "analysis" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package(module):
    parts = module.split(".")
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


def paid_by(module):
    """Return every module that importing `module` imports at once, with the packages on the way."""
    paid, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name not in paid:
            paid.add(name)
            waiting += imported_at_once(name)
    return paid


@cache
def imported_at_once(module):
    """Return what a module imports when it is imported, and the packages that these are in; nothing of foreign ones."""
    names = [name for name, _, at_top in imports(MODULES[module]) if at_top] if module in MODULES else []
    return {name.rsplit(".", depth)[0] for name in names for depth in range(name.count(".") + 1)}


def relative(path):
    return path.relative_to(ROOT).as_posix()


def test_every_file_is_walked_once_and_analysis_is_imported_from_the_harness_alone():
    assert len(MODULES) == len(FILES) == len({path.resolve() for path in FILES})
    assert "harness.analysis.report.report" in MODULES
    assert not [(path, name) for path in FILES for name, *_ in imports(path) if name.split(".")[0] == "analysis"]


def test_every_file_has_a_place_in_the_table():
    packages = {package(module) for module in MODULES} - {"harness"}
    assert packages <= set(MAY_IMPORT), f"give {packages - set(MAY_IMPORT)} a place in the table and in architecture.md"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_point_down(path):
    here = package(module_name(path))
    allowed = MAY_IMPORT.get(here, set())
    for name, line, _ in imports(path):
        target = package(name)
        if name.split(".")[0] != "harness" or target in (here, "harness") or allowed is None:
            continue
        assert target in allowed, f"{relative(path)}:{line}: {here} may not import {target} ({name})"


def within_analysis(module):
    parts = module.split(".")
    path = MODULES[module]
    return parts[2] if len(parts) > 3 or (len(parts) == 3 and path.name == "__init__.py") else ""


@pytest.mark.parametrize(
    "module", [name for name in MODULES if package(name) == "analysis" and name != "harness.analysis"]
)
def test_imports_within_analysis_point_down(module):
    here = WITHIN_ANALYSIS.index(within_analysis(module))
    for name, line, _ in imports(MODULES[module]):
        if package(name) == "analysis" and name in MODULES:
            target = WITHIN_ANALYSIS.index(within_analysis(name))
            assert target <= here, f"{relative(MODULES[module])}:{line}: {module} may not import {name}"


def test_the_table_has_no_circle():
    graph = {one: set(targets or ()) for one, targets in MAY_IMPORT.items()}
    standing = set()
    while graph.keys() - standing:
        free = {one for one, targets in graph.items() if one not in standing and targets <= standing}
        assert free, f"a circle among {graph.keys() - standing}"
        standing |= free


@pytest.mark.parametrize("outside", ONE_HOME)
def test_an_outside_package_is_imported_in_one_place(outside):
    importers = {relative(p) for p in FILES for name, *_ in imports(p) if name.split(".")[0] == outside}
    assert all(importer.startswith(ONE_HOME[outside]) for importer in importers)


def commands(path):
    """Return (text, line) for each string of a file that starts a program of SLURM's; docstrings are left out."""
    tree = ast.parse(path.read_text(), str(path))
    docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        (node.value, node.lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings
        if COMMAND.fullmatch(node.value)
    ]


@pytest.mark.parametrize("path", [path for path in FILES if not relative(path).startswith(PROGRAMS_HOME)], ids=relative)
def test_slurms_programs_are_started_in_one_package(path):
    assert commands(path) == [], f"{relative(path)}: ask harness.slurm for it"


@pytest.mark.parametrize("path", [path for path in FILES if package(module_name(path)) in LEAVES], ids=relative)
def test_leaves_do_not_know_the_spec_even_for_types(path):
    text = path.read_text()
    for upper in ("spec", "study", "records", "tracking", "launch", "training", "evaluation", "registry"):
        assert f"harness.{upper}" not in text and f"from harness import {upper}" not in text


@pytest.mark.parametrize(
    "module",
    [name for name in MODULES if package(name) not in LOADS_TORCH or name in LOADS_NO_TORCH_ALL_THE_SAME],
)
def test_a_login_node_loads_nothing_heavy(module):
    heavy = ("matplotlib",) if package(module) == "analysis" else ()  # figures are drawn with it
    paid = {name.split(".")[0] for name in paid_by(module)}
    assert paid.isdisjoint(set(HEAVY) - set(heavy))


@pytest.mark.process
def test_the_facts_and_schedules_that_the_spec_and_the_figures_read_load_no_torch():
    code = (
        "import sys, harness.data.facts, harness.diffusion.respacing, harness.records.directory;"
        "from harness.study.expand import load_study;"
        "assert harness.study.expand.load_study(sys.argv[1]).runs;"
        "from harness.diffusion import SCHEDULES; SCHEDULES['cosine'](10);"
        f"found = sorted(set(sys.modules) & {set(HEAVY)!r}); assert not found, found"
    )
    study = ROOT / "experiments" / "iddpm" / "table1_imagenet64.yaml"
    subprocess.run([sys.executable, "-c", code, str(study)], check=True, cwd=ROOT, timeout=240)


# The walker itself, on a file made for it: a checker that finds nothing would pass all the above.


def test_the_walker_tells_module_level_from_function_level_and_leaves_types_out(tmp_path):
    path = tmp_path / "sample.py"
    path.write_text(
        "import torch\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import mlflow\n"
        "try:\n    import psutil\nexcept ImportError:\n    psutil = None\n"
        "class A:\n    import yaml\n    def f(self):\n        from harness.spec.run import RunSpec\n"
        "def g():\n    import submitit\n"
    )
    assert imports(path) == [
        ("torch", 1, True),
        ("typing", 2, True),
        ("psutil", 6, True),
        ("yaml", 10, True),
        ("harness.spec.run", 12, False),
        ("submitit", 14, False),
    ]


@pytest.mark.parametrize(
    "code",
    [
        'run(["squeue", "--me"])',
        'run(("/usr/bin/scontrol", "show", "config"))',
        'shutil.which("sbatch")',
        'PROGRAM = "srun"',
        'os.system("scancel --quiet 7")',
        'run(f"scontrol show node {name}".split())',
        'run("scontrol requeue 7", shell=True)',
        'setup = ["trap leave EXIT", "[ $code = 0 ] || scontrol requeue $job"]',
        "line = 'x=$(squeue --me) && sacct -X; if true; then srun --ntasks=1 python; fi'",
        'script = "#!/bin/bash\\nsrun \\"$@\\"\\n"',
        'run("sinfo", shell=True)',
    ],
)
def test_the_walker_finds_programs_that_are_started(tmp_path, code):
    path = tmp_path / "sample.py"
    path.write_text(code)
    assert len(commands(path)) == 1


@pytest.mark.parametrize(
    "code",
    [
        '"""Runs squeue --me and reads it."""',
        'raise LaunchError("sacctmgr does not answer; run `sacctmgr show assoc`, or scontrol show config, there")',
        'echo("SLURM took 3 calls of sbatch, and srun started 2 tasks")',
        'job = {"slurm_srun_args": 1, "sbatch_options": 2}',
    ],
)
def test_the_walker_leaves_messages_for_people_out(tmp_path, code):
    path = tmp_path / "sample.py"
    path.write_text(code)
    assert commands(path) == []


def test_the_walker_follows_imports_through_packages():
    assert "torch" in paid_by("harness.training.loop")
    assert {"harness.data", "harness.data.facts", "pydantic"} <= paid_by("harness.study.expand")
