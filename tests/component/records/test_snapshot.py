"""The frozen code: what is taken, that it is whole and by content, and which file a job then really imports."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
import venv
import zipfile
from pathlib import Path

import pytest

from harness import PACKAGE_ROOT
from harness.errors import LaunchError
from harness.records import snapshot
from harness.records.directory import RunDirectory
from harness.records.snapshot import MANIFEST

ROOT = PACKAGE_ROOT
PACKAGE = ["harness/__init__.py", "harness/data.txt", "harness/show.py"]


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout


def commit(folder):
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "x")


def write(path, text, mode=0o644):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


@pytest.fixture
def tree(tmp_path):
    """A committed work tree with a small package called harness."""
    root = tmp_path / "tree"
    write(root / "harness" / "__init__.py", "VERSION = 'committed'\n")
    write(root / "harness" / "show.py", "import harness\nprint(harness.__file__, harness.VERSION)\n")
    write(root / "harness" / "data.txt", "what code finds beside itself\n")
    write(root / "experiments" / "a.yaml", "study: a\n")
    write(root / ".gitignore", "__pycache__/\n/runs/\n*.log\n")
    git(root.parent, "init", "-qb", "main", str(root))
    commit(root)
    return root


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def files(taken):
    return sorted(str(path.relative_to(taken.path)) for path in taken.path.rglob("*") if not path.is_dir())


def folders_in(store):
    return sorted(path.name for path in store.iterdir() if path.name != ".lock")


def python(code, *arguments, interpreter=sys.executable, check=True, **options):
    """Run Python code in a process that imports this harness."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [str(interpreter), "-c", textwrap.dedent(code), *map(str, arguments)]
    options = {"env": variables, "capture_output": True, "text": True, "timeout": 60} | options
    return subprocess.run(command, check=check, **options)


# ------------------------------------------------------------------------------------------------------- what is taken


def test_modified_and_untracked_files_are_taken_deleted_and_ignored_ones_are_not(tree, store):
    write(tree / "harness" / "__init__.py", "VERSION = 'edited'\n")
    write(tree / "harness" / "new.py", "NEW = 1\n")
    write(tree / "runs" / "a" / "status.json", "{}")
    write(tree / "noise.log", "")
    (tree / "harness" / "data.txt").unlink()
    taken = snapshot.take(store, tree)
    assert files(taken) == [MANIFEST, "harness/__init__.py", "harness/new.py", "harness/show.py"]
    assert (taken.path / "harness" / "__init__.py").read_text() == "VERSION = 'edited'\n"


@pytest.mark.parametrize(
    "path",
    [
        *("experiments/a.yaml", "experiments/deep/b.yml", "README.md", "docs/x.md", "notes.ipynb", ".gitignore"),
        *("Makefile", "pyproject.toml", "tests/test_x.py", "tests/deep/conftest.py", "figures/a.png", "slurm/c.yaml"),
    ],
)
def test_what_no_job_imports_is_no_new_version_of_the_code(tree, store, path):
    before = snapshot.take(store, tree)
    write(tree / path, "edited\n" + "__pycache__/\n/runs/\n*.log\n")
    assert snapshot.take(store, tree) == before


@pytest.mark.parametrize(
    "path",
    [
        *("harness/show.py", "harness/data.txt", "harness/deep/part.json", "mine/net.py", "top.py", "lib/fast.so"),
        *("experiments/helper.py", "package/__init__.py"),
    ],
)
def test_what_a_job_can_import_is_a_new_version_of_the_code(tree, store, path):
    before = snapshot.take(store, tree)
    write(tree / path, "edited\n")
    after = snapshot.take(store, tree)
    assert after != before
    assert path in files(after)


def test_a_snapshot_of_a_version_that_took_studies_too_is_still_found_and_whole(tree, store):
    content = {"harness/__init__.py": "", "experiments/a.yaml": "study: a\n", "README.md": "x"}
    entries = {path: f"file {hashlib.sha256(text.encode()).hexdigest()}" for path, text in content.items()}
    name = snapshot._identify(entries)
    for path, text in content.items():
        write(store / name / path, text)
    manifest = {"id": name, "root": str(tree), "git": None, "files": entries}
    write(store / name / MANIFEST, json.dumps(manifest))
    old = snapshot.find(store, name)
    assert old is not None and snapshot.verify(old) == []
    assert snapshot.take(store.parent / "other", old.path).id == name  # submitted again from within it


def test_the_manifest_names_every_file_and_the_commit_that_it_came_from(tree, store):
    clean = snapshot.take(store, tree).manifest
    head = git(tree, "rev-parse", "HEAD").strip()
    assert clean["git"] == {"commit": head, "branch": "main", "dirty": False}
    write(tree / "harness" / "new.py", "")
    edited = snapshot.take(store, tree).manifest
    assert edited["git"] == {"commit": head, "branch": "main", "dirty": True}
    assert set(edited["files"]) - set(clean["files"]) == {"harness/new.py"}


def test_the_id_is_a_function_of_paths_contents_and_executable_bits(tree, store, tmp_path):
    first = snapshot.take(store, tree)
    for path in tree.rglob("*.py"):
        os.utime(path, (1, 1))
    (tree / "harness" / "show.py").chmod(0o600)
    assert snapshot.take(store, tree) == first
    git(tmp_path, "clone", "-q", str(tree), "clone")
    assert snapshot.take(store, tmp_path / "clone") == first

    (tree / "harness" / "show.py").chmod(0o744)
    executable = snapshot.take(store, tree)
    (tree / "harness" / "data.txt").rename(tree / "harness" / "b.txt")
    renamed = snapshot.take(store, tree)
    write(tree / "harness" / "b.txt", "b\n")
    edited = snapshot.take(store, tree)
    ids = [first.id, executable.id, renamed.id, edited.id]
    assert len(set(ids)) == 4 and folders_in(store) == sorted(ids)
    assert all(len(one) == 16 and not snapshot.verify(snapshot.find(store, one)) for one in ids)
    assert os.access(executable.path / "harness" / "show.py", os.X_OK)


def test_the_id_of_a_known_tree_is_what_it_always_was(tmp_path, store):
    write(tmp_path / "plain" / "harness" / "__init__.py", "VERSION = 1\n")
    content = hashlib.sha256(b"VERSION = 1\n").hexdigest()
    expected = hashlib.sha256(f"harness/__init__.py\0file {content}\0".encode()).hexdigest()[:16]
    assert snapshot.take(store, tmp_path / "plain").id == expected == "d251b67ed820fff6"


def test_names_with_spaces_newlines_and_bytes_that_are_no_text_are_taken(tree, store):
    odd = ["with space", "new\nline", '"quoted"', "Ωmega", os.fsdecode(b"\xff\xfe"), "-dash", "a\\b"]
    for name in odd:
        write(tree / "harness" / name, ascii(name))
    taken = snapshot.take(store, tree)
    for name in odd:
        assert (taken.path / "harness" / name).read_text() == ascii(name)
    assert snapshot.verify(taken) == [] and snapshot.take(store, tree) == taken


def test_a_link_within_the_tree_stays_a_link_and_one_to_a_file_outside_becomes_the_file(tree, store, tmp_path):
    write(tmp_path / "outside.py", "OUTSIDE = 1\n")
    (tree / "harness" / "relative.py").symlink_to("show.py")
    (tree / "scripts").symlink_to("harness")
    (tree / "studies").symlink_to("experiments")  # no code
    (tree / "harness" / "absolute.py").symlink_to(tree / "harness" / "show.py")  # would lead back to the tree
    (tree / "harness" / "roundabout.py").symlink_to("../../tree/harness/show.py")
    (tree / "harness" / "outside.py").symlink_to(tmp_path / "outside.py")
    (tree / ".#editor").symlink_to("user@host.123")  # leads nowhere: some editors' lock
    taken = snapshot.take(store, tree)
    assert (taken.path / "harness" / "relative.py").readlink() == Path("show.py")
    assert (taken.path / "scripts").readlink() == Path("harness")
    assert not (taken.path / "studies").is_symlink() and not (taken.path / ".#editor").is_symlink()
    for name in ("absolute.py", "roundabout.py", "outside.py"):
        assert not (taken.path / "harness" / name).is_symlink()
    (tmp_path / "outside.py").write_text("OUTSIDE = 2\n")
    assert (taken.path / "harness" / "outside.py").read_text() == "OUTSIDE = 1\n"
    assert snapshot.verify(taken) == [] and snapshot.take(store, tree) != taken


def test_a_link_to_a_folder_outside_is_refused_with_the_line_that_leaves_it_out(tree, store, tmp_path):
    (tmp_path / "scratch").mkdir()
    (tree / "runs").symlink_to(tmp_path / "scratch")  # git's /runs/ is for folders, and this is none
    with pytest.raises(LaunchError, match=r"/runs to \.gitignore"):
        snapshot.take(store, tree)
    write(tree / ".gitignore", "/runs\n")
    assert "runs" not in files(snapshot.take(store, tree))


def test_a_tracked_folder_that_became_a_link_is_taken_as_the_link(tree, store):
    write(tree / "experiments" / "a.py", "")
    commit(tree)
    (tree / "experiments").rename(tree / "studies")
    (tree / "experiments").symlink_to("studies")
    taken = snapshot.take(store, tree)
    assert (taken.path / "experiments").is_symlink() and "studies/a.py" in files(taken)
    assert "experiments/a.py" not in taken.manifest["files"]


def test_submodules_and_repositories_within_the_tree_are_taken_with_it(tree, store, tmp_path):
    write(tmp_path / "library" / "lib.py", "LIB = 1\n")
    write(tmp_path / "library" / ".gitignore", "*.bin\n")
    git(tmp_path, "init", "-q", "library")
    commit(tmp_path / "library")
    git(tree, "submodule", "add", "-q", str(tmp_path / "library"), "modules/lib")
    git(tree, "clone", "-q", str(tmp_path / "library"), str(tree / "nested"))
    write(tree / "modules" / "lib" / "edited.py", "")
    write(tree / "modules" / "lib" / "weights.bin", "")
    taken = files(snapshot.take(store, tree))
    assert {"modules/lib/lib.py", "modules/lib/edited.py", "nested/lib.py"} <= set(taken)
    assert not any(".git/" in path or path.endswith((".bin", "/.git")) for path in taken)
    git(tree, "submodule", "deinit", "--force", "modules/lib")  # as after a clone without --recurse-submodules: empty
    assert not any(path.startswith("modules") for path in files(snapshot.take(store, tree)))


def test_without_git_the_package_alone_is_taken(tree, store):
    shutil.rmtree(tree / ".git")
    write(tree / "harness" / "__pycache__" / "show.pyc", "")
    taken = snapshot.take(store, tree)
    assert files(taken) == [MANIFEST, *PACKAGE] and taken.manifest["git"] is None


def test_without_git_a_folder_that_the_package_links_to_is_taken_with_it(tree, store):
    shutil.rmtree(tree / ".git")
    write(tree / "analysis" / "__init__.py", "")
    (tree / "harness" / "analysis").symlink_to("../analysis")
    taken = snapshot.take(store, tree)
    assert "analysis/__init__.py" in files(taken)
    assert (taken.path / "harness" / "analysis" / "__init__.py").is_file() and snapshot.verify(taken) == []


def test_a_wheel_installed_below_a_work_tree_of_something_else_is_the_package_alone(tree, store):
    site = tree / "env" / "site-packages"
    shutil.copytree(tree / "harness", site / "harness")
    write(site / "numpy" / "__init__.py", "")
    taken = snapshot.take(store, site)
    assert files(taken) == [MANIFEST, *PACKAGE] and taken.manifest["git"] is None


def test_a_tree_that_is_a_folder_of_a_larger_work_tree_is_taken_by_git(tree, store, tmp_path):
    git(tmp_path, "init", "-q", "mono")
    shutil.copytree(tree, tmp_path / "mono" / "part", ignore=shutil.ignore_patterns(".git"))
    write(tmp_path / "mono" / "other.py", "")
    commit(tmp_path / "mono")
    part = snapshot.take(store, tmp_path / "mono" / "part")
    assert part.id == snapshot.take(store, tree).id and "harness/data.txt" in files(part)


def test_the_store_and_what_is_named_are_left_out_although_git_does_not_ignore_them(tree):
    write(tree / "results" / "run" / "status.json", "{}")
    store = tree / "results" / ".code"
    first = snapshot.take(store, tree, leave_out=[tree / "results"])
    assert not any(path.startswith("results") for path in files(first))
    store = tree / ".code"
    first = snapshot.take(store, tree)
    assert snapshot.take(store, tree) == first and folders_in(store) == [first.id]


def test_a_snapshot_of_a_snapshot_is_the_same_snapshot(tree, store, tmp_path):
    taken = snapshot.take(store, tree)
    assert snapshot.take(store, taken.path) == taken
    elsewhere = snapshot.take(tmp_path / "second", taken.path)
    assert elsewhere.id == taken.id and elsewhere.manifest["git"] == taken.manifest["git"]


def test_a_tree_that_is_too_large_is_refused_by_the_names_of_its_large_folders(tree, store):
    for name, size in (("harness/cifar", 190 * 10**6), ("harness/weights", 30 * 10**6), ("data", 10**9)):
        write(tree / name / "x", "")
        os.truncate(tree / name / "x", size)  # a hole: it takes no disk
    with pytest.raises(LaunchError, match=r"220 MB.*harness/cifar \(190 MB\), harness/weights .*\.gitignore"):
        snapshot.take(store, tree)
    write(tree / ".gitignore", "/harness/cifar/\n")
    assert "harness/weights/x" in files(snapshot.take(store, tree))
    assert "data/x" not in files(snapshot.take(store, tree))  # no job imports it


def test_a_folder_without_the_harness_is_refused(store, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(LaunchError, match="does not contain the harness's code"):
        snapshot.take(store, tmp_path / "empty")


def test_a_work_tree_that_git_refuses_is_not_taken_for_a_folder_without_git(tree, store):
    write(tree / ".git" / "config", "[core")
    with pytest.raises(LaunchError, match="git cannot list"):
        snapshot.take(store, tree)


def test_the_variables_of_a_git_hook_do_not_mislead(tree, store, tmp_path, monkeypatch):
    write(tree / "harness" / "tracked.log", "")  # ignored, but this repository knows it
    git(tree, "add", "--force", "harness/tracked.log")
    before = snapshot.take(store, tree)
    assert "harness/tracked.log" in files(before)
    git(tmp_path, "init", "-q", "other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "nothing"))
    assert snapshot.take(store, tree) == before


# ------------------------------------------------------------------------------------------------------ whole or absent


def test_a_second_take_copies_nothing(store, file_accesses):
    first = snapshot.take(store)
    assert (first.path / "harness" / "records" / "snapshot.py").read_bytes() == Path(snapshot.__file__).read_bytes()
    inodes = {path: path.stat().st_ino for path in first.path.rglob("*")}
    with file_accesses() as accesses:
        assert snapshot.take(store) == first
    assert {path: path.stat().st_ino for path in first.path.rglob("*")} == inodes
    written = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    assert [path for event, path, *mode in accesses if event == "open" and mode[1] & written] == []


def test_what_was_tampered_with_is_found_and_never_used(tree, store):
    taken = snapshot.take(store, tree)
    code = taken.path / "harness" / "show.py"
    assert not code.stat().st_mode & 0o222
    code.chmod(0o644)
    code.write_text("evil")
    (taken.path / "harness" / "data.txt").unlink()
    write(taken.path / "torch.py", "")  # would be imported instead of torch
    write(taken.path / "harness" / "__pycache__" / "show.pyc", "")
    assert snapshot.verify(taken) == ["harness/data.txt", "harness/show.py", "torch.py"]
    with pytest.raises(LaunchError, match=r"was modified: harness/data.txt, harness/show.py"):
        snapshot.take(store, tree)


def test_a_manifest_that_was_adjusted_to_the_tampering_is_found(tree, store):
    taken = snapshot.take(store, tree)
    manifest = taken.manifest | {"files": {"harness/__init__.py": taken.manifest["files"]["harness/__init__.py"]}}
    (taken.path / MANIFEST).unlink()
    (taken.path / MANIFEST).write_text(json.dumps(manifest))
    assert MANIFEST in snapshot.verify(snapshot.find(store, taken.id))


TAKE = """
    import sys
    from pathlib import Path
    from harness.records import snapshot
    print(snapshot.take(Path(sys.argv[1]), Path(sys.argv[2])).id)
"""


@pytest.mark.slow
def test_processes_that_take_at_once_end_with_one_whole_folder(tree, store):
    for number in range(200):
        write(tree / "many" / f"{number}.py", str(number))
    command = [sys.executable, "-c", textwrap.dedent(TAKE), str(store), str(tree)]
    options = {"env": {**os.environ, "PYTHONPATH": str(ROOT)}, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **options) for _ in range(4)]
    answers = {process.communicate(timeout=240)[0].strip() for process in processes}
    assert all(process.returncode == 0 for process in processes) and len(answers) == 1
    assert folders_in(store) == sorted(answers)
    taken = snapshot.find(store, answers.pop())
    assert snapshot.verify(taken) == [] and len(taken.manifest["files"]) == 203


# Runs `react(path)` each time that a file of the copy is opened for writing: an audit hook sees every open().
WHILE_COPYING = """
    import os, signal, sys
    from pathlib import Path
    from harness.records import snapshot
    store, tree = map(Path, sys.argv[1:])
    opened = []
    def hook(event, arguments):
        if event == "open" and ".staging-" in str(arguments[0]) and arguments[1] == "w":
            opened.append(arguments[0])
            react(Path(arguments[0]))
    def react(path):
        {react}
    sys.addaudithook(hook)
    print(snapshot.take(store, tree).id)
"""


def while_copying(react, store, tree, check=True):
    return python(textwrap.dedent(WHILE_COPYING).format(react=react), store, tree, check=check)


def test_the_half_copy_of_a_killed_process_is_no_snapshot_and_goes_with_the_next_take(tree, store):
    killed = while_copying("if len(opened) == 3: os.kill(os.getpid(), signal.SIGKILL)", store, tree, check=False)
    assert killed.returncode == -9
    (left,) = folders_in(store)
    assert left.startswith(".staging-") and len([path for path in (store / left).rglob("*") if path.is_file()]) == 2
    assert snapshot.find(store, left) is None
    taken = snapshot.take(store, tree)
    assert folders_in(store) == [taken.id] and snapshot.verify(taken) == []


def test_an_edit_between_hashing_and_copying_is_noticed_and_the_copy_made_again(tree, store):
    react = "if len(opened) == 1: (tree / 'harness' / 'show.py').write_text('edited')"
    answer = while_copying(react, store, tree).stdout.strip()
    taken = snapshot.take(store, tree)  # of the tree as it stands after the edit
    assert answer == taken.id and folders_in(store) == [taken.id] and snapshot.verify(taken) == []
    assert (taken.path / "harness" / "show.py").read_text() == "edited"


def test_an_edit_of_two_files_in_the_middle_of_a_copy_never_leaves_one_of_them_old(tree, store):
    # The copy goes by name: harness/__init__.py was read before the edit, harness/show.py is read after it.
    react = (
        "if path.name == '__init__.py' and len(opened) < 4:"
        " [(tree / 'harness' / name).write_text('edited') for name in ('__init__.py', 'show.py')]"
    )
    taken = snapshot.find(store, while_copying(react, store, tree).stdout.strip())
    assert {(taken.path / "harness" / name).read_text() for name in ("__init__.py", "show.py")} == {"edited"}


def test_a_file_that_vanishes_while_it_is_copied_is_left_out(tree, store):
    react = "(tree / 'harness' / 'show.py').unlink(missing_ok=True)"
    taken = snapshot.find(store, while_copying(react, store, tree).stdout.strip())
    assert "harness/show.py" not in files(taken) and snapshot.verify(taken) == []


def test_a_tree_that_never_stands_still_is_refused_by_name(tree, store):
    react = "(tree / 'harness' / 'show.py').write_text(str(len(opened)))"
    refused = while_copying(react, store, tree, check=False)
    assert "LaunchError" in refused.stderr and "keeps changing while it is copied: harness/show.py" in refused.stderr
    assert folders_in(store) == []


def test_a_store_that_cannot_be_written_is_said_plainly(tree, tmp_path):
    write(tmp_path / "file", "")
    with pytest.raises(LaunchError, match="cannot be copied: Not a directory"):
        snapshot.take(tmp_path / "file" / "store", tree)


# --------------------------------------------------------------------------------------------------- what is imported

SHOW = [sys.executable, "-m", "harness.show"]


def shown(command, cwd, variables):
    base = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    answer = subprocess.run(command, cwd=cwd, env=base | variables, check=True, capture_output=True, text=True)
    file, version = answer.stdout.split()
    return Path(file), version


@pytest.fixture(params=["finder", "pth"])
def editable(request, tree, tmp_path):
    """Return the Python of a virtual environment in which the tree is installed as `pip install -e` does it."""
    folder = tmp_path / "venv"
    venv.create(folder, symlinks=True, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    if request.param == "pth":
        (site / "tree.pth").write_text(f"{tree}\n")
    else:
        pytest.importorskip("setuptools")
        write(
            tree / "pyproject.toml",
            '[project]\nname = "tree"\nversion = "1"\n[tool.setuptools]\npackages = ["harness"]\n',
        )
        write(tree / ".gitignore", "__pycache__/\n*.egg-info/\n/build/\n")
        build = f"from setuptools.build_meta import build_editable; build_editable({str(site)!r})"
        subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True)
        (wheel,) = site.glob("*.whl")
        zipfile.ZipFile(wheel).extractall(site)
        assert list(site.glob("__editable__*_finder.py"))
    return folder / "bin" / "python"


def test_a_job_imports_the_snapshot_before_an_editable_install_and_its_working_directory(
    editable, tree, store, tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", str(tree))
    taken = snapshot.take(store, tree)
    write(tree / "harness" / "__init__.py", "VERSION = 'edited'\n")
    command = [editable, "-m", "harness.show"]
    # Without the snapshot all three ways lead to the tree: the install, the working directory, PYTHONPATH.
    for cwd, variables in ((tmp_path, {}), (tree, {}), (tmp_path, {"PYTHONPATH": str(tree)})):
        assert shown(command, cwd, variables)[1] == "edited"
    for cwd in (tmp_path, tree, tree / "harness"):
        file, version = shown(command, cwd, snapshot.environment(taken))
        assert file == taken.path / "harness" / "__init__.py" and version == "committed"
    assert snapshot.verify(taken) == [] and not list(taken.path.rglob("__pycache__"))


def test_pythonpath_alone_would_not_do_in_the_working_tree(tree, store):
    taken = snapshot.take(store, tree)
    write(tree / "harness" / "__init__.py", "VERSION = 'edited'\n")
    variables = snapshot.environment(taken)
    assert shown(SHOW, tree, variables)[1] == "committed"
    del variables["PYTHONSAFEPATH"]
    assert shown(SHOW, tree, variables)[1] == "edited"


def test_the_environment_keeps_the_present_pythonpath_behind_the_snapshot(tree, store, monkeypatch):
    taken = snapshot.take(store, tree)
    monkeypatch.setenv("PYTHONPATH", "/a:/b")
    assert snapshot.environment(taken) == {
        "PYTHONPATH": f"{taken.path}:/a:/b",
        "PYTHONSAFEPATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONIOENCODING": "utf-8:backslashreplace",
        "PYTHONWARNINGS": "",
        "HARNESS_SNAPSHOT": taken.id,
    }
    monkeypatch.delenv("PYTHONPATH")
    assert snapshot.environment(taken)["PYTHONPATH"] == str(taken.path)  # a ':' at its end would mean the cwd


def test_a_store_that_pythonpath_cannot_name_is_refused(tree, tmp_path):
    taken = snapshot.take(tmp_path / "12:30", tree)
    with pytest.raises(LaunchError, match="':'"):
        snapshot.environment(taken)


def test_current_tells_which_harness_was_imported_whatever_the_environment_says(tree, store):
    shutil.rmtree(tree / "harness")
    shutil.copytree(ROOT / "harness", tree / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    taken = snapshot.take(store, tree)
    code = "from harness.records import snapshot; print(snapshot.current())"
    variables = os.environ | snapshot.environment(taken)
    assert python(code, env=variables, cwd=tree).stdout.strip() == taken.id
    assert python(code, env=variables | {"PYTHONPATH": str(tree)}).stdout.strip() == "None"
    # A job that submits jobs freezes the snapshot that it runs on.
    again = "from harness.records import snapshot; print(snapshot.take(snapshot.Path.cwd()).id)"
    assert python(again, env=variables, cwd=store).stdout.strip() == taken.id


def test_the_snapshot_of_a_run_is_that_of_its_last_attempt(tmp_path):
    run = RunDirectory(tmp_path / "abc")
    run.path.mkdir()
    assert snapshot.of(run.path) is None
    run.write_environment(1, {"code_snapshot": "0123456789abcdef"})
    assert snapshot.of(run.path) == "0123456789abcdef"
    run.write_environment(2, {"code_snapshot": None})
    assert snapshot.of(run.path) is None
