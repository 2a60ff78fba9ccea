"""Code snapshots: at submission the code is copied, named by its content, and jobs import from the copy.

    <store>/<id>/               what a job can import: of the files that are tracked or that git does not ignore, all
                                Python files but tests, and every file of a package; not studies and documents
        .snapshot.json          id, time, commit, branch, whether anything was uncommitted, every file with its hash
    <store>/.staging-*/         an unfinished copy; only a finished folder is renamed to its id
    <store>/.lock/              the process that is copying

Editing a file while jobs wait then changes nothing for them, and editing a study is no new version of the code. The id
is a function of paths, executable bits and contents alone, so the same tree has the same id on every machine, and
taking it twice copies it once. Plugins' files are kept with the runs that use them (harness/records/plugins.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from harness import PACKAGE_ROOT
from harness.errors import LaunchError
from harness.records.directory import RunDirectory
from harness.records.files import sync_folder
from harness.records.lock import STALE_SECONDS, FolderLock

MANIFEST = ".snapshot.json"
LIMIT_BYTES = 200 * 10**6
NUM_TRIES = 5
MODULES = (".py", ".pyi", ".so")

Files = dict[str, str]  # path below the root -> "<file | executable | link> <sha256 of the content or of the target>"


@dataclass(frozen=True)
class Snapshot:
    """A snapshot: its 16 hex digits, and the folder that jobs import from."""

    id: str
    path: Path

    @cached_property
    def manifest(self) -> dict:
        """The tree's content (`files`), and its origin when it was first taken (`git`, `time`)."""
        return json.loads((self.path / MANIFEST).read_text())


def take(store: Path, root: Path | None = None, *, leave_out: Iterable[Path] = ()) -> Snapshot:
    """Take a snapshot of the working tree, or return the existing one of the same tree.

    The tree is read twice, the second time while copying. If both agree, the tree had this content at a moment between
    them; while it is being edited they differ, and the copy is repeated.

    Args:
        store: folder of the snapshots; the compute nodes must see it.
        root: the tree (default: the folder of the harness package in use). If it is not a git work tree, as in an
            installed wheel, only its folder `harness/` is taken.
        leave_out: folders that are not code although git does not ignore them, such as the runs folder.

    Raises:
        LaunchError: the tree is empty or larger than 200 MB, links to a folder outside it, cannot be read or copied, or
            keeps changing; or the existing snapshot was modified.
        RecordError: another process has been copying for minutes.
    """
    root = Path(root or PACKAGE_ROOT).resolve()
    store = Path(store).resolve()
    apart = [os.path.relpath(Path(folder).resolve(), root) + os.sep for folder in (store, *leave_out)]
    try:
        files = _read(root, apart)
        if not files:
            raise LaunchError(f"{root} does not contain the harness's code")
        return _present(store, files) or _stage(store, root, apart, files)
    except OSError as error:
        raise LaunchError(f"the code in {root} cannot be copied: {error.strerror}: {error.filename}") from error


def find(store: Path, snapshot_id: str) -> Snapshot | None:
    """Return an existing snapshot, or None."""
    snapshot = Snapshot(snapshot_id, Path(store).resolve() / snapshot_id)
    try:
        return snapshot if snapshot.manifest["id"] == snapshot_id else None
    except (OSError, ValueError, KeyError):
        return None


def verify(snapshot: Snapshot) -> list[str]:
    """Return the files of a snapshot that were changed, removed or added since it was taken.

    Bytecode caches are ignored. The manifest itself is listed if it does not match the snapshot's id.
    """
    files: Files = snapshot.manifest["files"]
    wrong = {path for path, expected in files.items() if _fingerprint_of(snapshot.path / path) != expected}
    wrong |= set(_walk(snapshot.path)) - {*files, MANIFEST}
    return sorted(wrong | ({MANIFEST} if _identify(files) != snapshot.id else set()))


def environment(snapshot: Snapshot) -> dict[str, str]:
    """Return the environment variables with which Python imports from the snapshot before any editable install.

    Raises:
        LaunchError: its path contains the separator of PYTHONPATH.
    """
    if os.pathsep in str(snapshot.path):
        raise LaunchError(
            f"Python cannot import from {snapshot.path}: use a runs folder without {os.pathsep!r} in its path"
        )
    present = os.environ.get("PYTHONPATH")
    return {
        "PYTHONPATH": os.pathsep.join([str(snapshot.path), *([present] if present else [])]),
        "PYTHONSAFEPATH": "1",  # `python -m` would put the working folder, which may be the tree, before PYTHONPATH
        # Not PYTHONPYCACHEPREFIX: under it torch's own bytecode, which lies beside torch, would not be found either.
        "PYTHONDONTWRITEBYTECODE": "1",
        # What a user has set for programs of their own: an encoding of logs, warnings that are errors.
        "PYTHONIOENCODING": "utf-8:backslashreplace",
        "PYTHONWARNINGS": "",
        "HARNESS_SNAPSHOT": snapshot.id,
    }


def current() -> str | None:
    """Return the id of the snapshot that the harness was imported from: the code in use, not the requested one."""
    return PACKAGE_ROOT.name if find(PACKAGE_ROOT.parent, PACKAGE_ROOT.name) else None


def of(run_directory: Path) -> str | None:
    """Return the id of the snapshot that a run's last attempt used, None if it had none or never started."""
    entries = RunDirectory(run_directory).environments()
    return entries[-1].get("code_snapshot") if entries else None


# ----------------------------------------------------------------------------------------------------------- the store


def _present(store: Path, files: Files) -> Snapshot | None:
    snapshot = find(store, _identify(files))
    if snapshot and (wrong := verify(snapshot)):
        raise LaunchError(
            f"the snapshot {snapshot.path} was modified: {_some(wrong)}. "
            "Remove the folder if no job uses it, and submit again"
        )
    return snapshot


def _stage(store: Path, root: Path, apart: list[str], files: Files) -> Snapshot:
    store.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(store / ".lock", f"the snapshot store {store}")
    lock.acquire(wait_seconds=STALE_SECONDS + 30)
    staging = store / f".staging-{os.getpid()}-{time.time_ns()}"
    try:
        for left in store.glob(".staging-*"):  # left by a killed process, since this one has the lock
            shutil.rmtree(left, ignore_errors=True)
        for _ in range(NUM_TRIES):
            if snapshot := _present(store, files):  # another process was faster
                return snapshot
            copied = _read(root, apart, copy_to=staging)
            if copied == files:
                return _finish(staging, store, files, origin(root))
            changed = [path for path in {**files, **copied} if files.get(path) != copied.get(path)]
            files = copied
            shutil.rmtree(staging)
        raise LaunchError(
            f"the code in {root} keeps changing while it is copied: {_some(changed)}. "
            "If these files are not code, add them to .gitignore"
        )
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        lock.release()


def _finish(staging: Path, store: Path, files: Files, origin: dict) -> Snapshot:
    """Write the copy's manifest, flush it to disk and rename it."""
    snapshot = Snapshot(_identify(files), store / _identify(files))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = {"id": snapshot.id, "time": now, **origin, "files": files}
    (staging / MANIFEST).write_text(json.dumps(manifest, indent=1))
    (staging / MANIFEST).chmod(0o444)
    for folder, _, names in os.walk(staging, topdown=False):
        for name in names:
            if not (path := Path(folder, name)).is_symlink():
                sync_folder(path)
        sync_folder(Path(folder))
    staging.rename(snapshot.path)
    sync_folder(store)
    return snapshot


def _identify(files: Files) -> str:
    """Return 16 hex digits over paths, executable bits and contents, in the order of the paths."""
    lines = sorted(os.fsencode(path) + b"\0" + value.encode() + b"\0" for path, value in files.items())
    return hashlib.sha256(b"".join(lines)).hexdigest()[:16]


# ------------------------------------------------------------------------------------------------------------ the tree


def _read(root: Path, apart: list[str], copy_to: Path | None = None) -> Files:
    """Hash every file of the tree; with `copy_to`, write what was hashed."""
    sizes, links = {}, set()
    for path in _paths(root):
        if not path.startswith(tuple(apart)):
            with suppress(FileNotFoundError, NotADirectoryError):  # git also lists deleted files
                status = os.lstat(root / path)
                sizes[path] = status.st_size
                links |= {path} if stat.S_ISLNK(status.st_mode) else set()
    # A tracked folder that was replaced by a link: git lists the link, and what was in the folder.
    sizes = {path: size for path, size in sizes.items() if links.isdisjoint(_parents(path))}
    _require_small(root, sizes)
    names = {*sizes, *(parent for path in sizes for parent in _parents(path))}
    files = {}
    for path in sorted(sizes):
        try:
            kind, content = _read_link(root, path, names) if path in links else _content(root / path)
        except FileNotFoundError:  # deleted just now
            continue
        files[path] = _fingerprint(kind, content)
        if copy_to:
            _write(copy_to / path, kind, content)
    return files


def _paths(root: Path) -> list[str]:
    """List the code files: the snapshot's if the root is one, else git's, else the package's."""
    if snapshot := find(root.parent, root.name):
        return list(snapshot.manifest["files"])
    listed = _listed_by_git(root) if _in_git(root) else []
    return _importable(root, listed) if "harness/__init__.py" in listed else _package(root)


def _importable(root: Path, paths: list[str]) -> list[str]:
    """Return those of the tree's files that a job can import, or that code finds beside itself.

    These are all files in packages and in folders that packages link to, such as harness/analysis; modules elsewhere,
    but not tests; and links to any of these.
    """
    links = {path for path in paths if (root / path).is_symlink()}
    packages = {os.path.dirname(path) for path in paths if path.endswith("/__init__.py")}  # noqa: PTH120
    linked = [path for path in links if (root / path).is_dir() and not packages.isdisjoint(_parents(path))]
    packages |= {os.path.relpath((root / path).resolve(), root) for path in linked}

    def is_code(path: str) -> bool:
        in_package = not packages.isdisjoint(_parents(path))
        return in_package or (path.endswith(MODULES) and not {"tests", "test"}.intersection(path.split("/")[:-1]))

    code = [path for path in paths if path not in links and is_code(path)]
    names = {*code, *(parent for path in code for parent in _parents(path))}

    def leads_to_code(link: str) -> bool:
        target = (root / link).resolve()
        if not target.is_dir():
            return target.exists() and is_code(link)  # some editors' locks lead nowhere
        return root not in target.parents or os.path.relpath(target, root) in names

    return [*code, *filter(leads_to_code, links)]


def _package(root: Path) -> list[str]:
    """List the files of the package, and of folders of the tree that it links to, such as harness/analysis."""
    paths = _walk(root / "harness", root)
    linked = {(root / path).resolve() for path in paths if (root / path).is_symlink() and (root / path).is_dir()}
    return [*paths, *(path for folder in linked if root in folder.parents for path in _walk(folder, root))]


def _listed_by_git(root: Path) -> list[str]:
    """List the files that git tracks or does not ignore, including those of submodules and nested repositories."""
    listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard") or b""
    paths = []
    for path in {os.fsdecode(name).rstrip("/") for name in listed.split(b"\0") if name}:
        folder = root / path
        if not folder.is_dir() or folder.is_symlink():
            paths.append(path)
        elif (folder / ".git").exists():
            paths.extend(f"{path}/{below}" for below in _listed_by_git(folder))
    return paths


def _walk(folder: Path, root: Path | None = None) -> list[str]:
    """List the files below a folder, without bytecode caches."""
    paths: list[str] = []
    for parent, folders, names in os.walk(folder):
        names += [name for name in folders if Path(parent, name).is_symlink()]
        folders[:] = [name for name in folders if name != "__pycache__"]
        paths.extend(os.path.relpath(Path(parent, name), root or folder) for name in names)
    return paths


def _parents(path: str) -> list[str]:
    """Return `.`, `a` and `a/b` for `a/b/c`."""
    pieces = path.split("/")
    return [".", *("/".join(pieces[:depth]) for depth in range(1, len(pieces)))]


def _require_small(root: Path, sizes: dict[str, int]) -> None:
    total = sum(sizes.values())
    if total <= LIMIT_BYTES:
        return
    folders: Counter[str] = Counter()
    for path, size in sizes.items():
        folders[os.path.dirname(path) or "."] += size  # noqa: PTH120
    largest = ", ".join(f"{folder} ({size / 1e6:.0f} MB)" for folder, size in folders.most_common(3))
    raise LaunchError(
        f"the code in {root} has {total / 1e6:.0f} MB, more than the limit of {LIMIT_BYTES / 1e6:.0f} MB for a "
        f"snapshot. Most of it is in {largest}; add what is not code to .gitignore"
    )


def _content(path: Path) -> tuple[str, bytes]:
    with path.open("rb") as file:
        executable = os.fstat(file.fileno()).st_mode & stat.S_IXUSR
        return "executable" if executable else "file", file.read()


def _read_link(root: Path, path: str, names: set[str]) -> tuple[str, bytes]:
    """Return a link itself if its target is copied too or does not exist; else the target's content."""
    target = os.readlink(root / path)  # noqa: PTH115 (Path would tidy it up)
    inside = os.path.normpath(os.path.join(os.path.dirname(path), target)) in names  # noqa: PTH118, PTH120
    if inside or not (root / path).exists():
        return "link", os.fsencode(target)
    if (root / path).is_dir():
        raise LaunchError(
            f"the code cannot be copied: {root / path} links to a folder outside it ({target}). If it is not code, add "
            f"the line /{path} to .gitignore (without a slash at the end, which would match only folders)"
        )
    return _content(root / path)


def _write(path: Path, kind: str, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "link":
        path.symlink_to(os.fsdecode(content))
    else:
        path.write_bytes(content)
        path.chmod(0o555 if kind == "executable" else 0o444)


def _fingerprint(kind: str, content: bytes) -> str:
    return f"{kind} {hashlib.sha256(content).hexdigest()}"


def _fingerprint_of(path: Path) -> str | None:
    """Return the fingerprint of a file or link, None when it cannot be read."""
    try:
        link = os.fsencode(os.readlink(path)) if path.is_symlink() else None  # noqa: PTH115
        return _fingerprint("link", link) if link is not None else _fingerprint(*_content(path))
    except OSError:
        return None


def _some(paths: list[str]) -> str:
    names = [os.fsencode(path).decode(errors="replace") for path in paths[:5]]
    return ", ".join(names) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")


# ----------------------------------------------------------------------------------------------------------------- git


def _git(root: Path, *arguments: str) -> bytes | None:
    """Return git's output, or None without git or outside a work tree.

    Raises:
        LaunchError: git refuses (for example because the work tree belongs to another user).
    """
    # Within a git hook these name the repository of the hook.
    misleading = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
    variables = {key: value for key, value in os.environ.items() if key not in misleading}
    command = ["git", "-C", str(root), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, env=variables | {"GIT_OPTIONAL_LOCKS": "0"}, check=False)
    except FileNotFoundError:
        return None
    if answer.returncode == 0:
        return answer.stdout
    if (root / ".git").exists():
        raise LaunchError(f"git cannot list the code in {root}: {answer.stderr.decode(errors='replace').strip()}")
    return None


def _in_git(root: Path) -> bool:
    """Return whether git tracks the harness: a wheel may be installed below another project's work tree."""
    return (root / ".git").exists() or bool(_git(root, "ls-files", "harness"))


def origin(root: Path) -> dict:
    """Return the tree's origin: its root, commit and branch, and whether it had uncommitted changes."""
    if snapshot := find(root.parent, root.name):
        return {key: snapshot.manifest[key] for key in ("root", "git")}
    answer = _git(root, "status", "--porcelain=v2", "--branch", "--", ".") if _in_git(root) else None
    if answer is None:
        return {"root": str(root), "git": None}
    lines = answer.decode(errors="replace").splitlines()
    header = dict(line.split(" ", 2)[1:] for line in lines if line.startswith("# "))
    commit, branch = header["branch.oid"], header["branch.head"]
    dirty = any(not line.startswith("# ") for line in lines)
    return {"root": str(root), "git": {"commit": commit, "branch": branch, "dirty": dirty}}
