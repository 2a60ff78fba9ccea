"""Code is frozen at submission: a copy of the working tree, named by its content, which jobs import from.

    <store>/<id>/               the tree: tracked, modified and untracked files that git does not ignore
        .snapshot.json          id, time, commit, branch, whether anything was uncommitted, every file with its hash
    <store>/.staging-*/         a copy being made; no snapshot, for only the finished folder is renamed to its id
    <store>/.lock/              who copies now

Editing a file while jobs wait then changes nothing for them. The id is a function of paths, executable bits and
contents alone, so the same tree has the same id on every machine, and taking it twice copies it once.
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

Files = dict[str, str]  # path below the root -> "<file | executable | link> <sha256 of the content or of the target>"


@dataclass(frozen=True)
class Snapshot:
    """A frozen tree: its 16 hex digits, and the folder that jobs import from."""

    id: str
    path: Path

    @cached_property
    def manifest(self) -> dict:
        """What the tree is made of (`files`), and where it came from when it was first taken (`git`, `time`)."""
        return json.loads((self.path / MANIFEST).read_text())


def take(store: Path, root: Path | None = None, *, leave_out: Iterable[Path] = ()) -> Snapshot:
    """Freeze the working tree, or find the snapshot that was taken of the same tree before.

    Two readings that agree, the second being the copy, prove that the tree stood so at a moment between them; while it
    is being edited they differ, and the copy is made again.

    Args:
        store: folder of the snapshots; the compute nodes must see it.
        root: the tree (default: the folder of the harness package in use). Where it is no git work tree, as in an
            installed wheel, its folder `harness/` alone is taken.
        leave_out: folders that are not code though git does not ignore them, such as that of the runs.

    Raises:
        LaunchError: the tree is empty or larger than 200 MB, links to a folder outside it, cannot be read or copied, or
            does not stand still; or the snapshot that is there was changed by hand.
        RecordError: another process has been copying for minutes.
    """
    root = Path(root or PACKAGE_ROOT).resolve()
    store = Path(store).resolve()
    apart = [os.path.relpath(Path(folder).resolve(), root) + os.sep for folder in (store, *leave_out)]
    try:
        files = _read(root, apart)
        if not files:
            raise LaunchError(f"{root} holds no code of the harness")
        return _present(store, files) or _stage(store, root, apart, files)
    except OSError as error:
        raise LaunchError(f"the code in {root} cannot be frozen: {error.strerror}: {error.filename}") from error


def find(store: Path, snapshot_id: str) -> Snapshot | None:
    """Return a snapshot that was taken before, or None when it is not there."""
    snapshot = Snapshot(snapshot_id, Path(store).resolve() / snapshot_id)
    try:
        return snapshot if snapshot.manifest["id"] == snapshot_id else None
    except (OSError, ValueError, KeyError):
        return None


def verify(snapshot: Snapshot) -> list[str]:
    """Return the files of a snapshot that are not as they were taken: changed, missing or added.

    Bytecode caches are left out of it. The manifest itself is among them if it does not fit the snapshot's id.
    """
    files: Files = snapshot.manifest["files"]
    wrong = {path for path, expected in files.items() if _fingerprint_of(snapshot.path / path) != expected}
    wrong |= set(_walk(snapshot.path)) - {*files, MANIFEST}
    return sorted(wrong | ({MANIFEST} if _identify(files) != snapshot.id else set()))


def environment(snapshot: Snapshot) -> dict[str, str]:
    """Return the variables under which Python imports from the snapshot before any editable install.

    Raises:
        LaunchError: its path holds the character that separates the folders of PYTHONPATH.
    """
    if os.pathsep in str(snapshot.path):
        raise LaunchError(f"Python cannot import from {snapshot.path}: put the runs where no name has a {os.pathsep!r}")
    present = os.environ.get("PYTHONPATH")
    return {
        "PYTHONPATH": os.pathsep.join([str(snapshot.path), *([present] if present else [])]),
        "PYTHONSAFEPATH": "1",  # `python -m` would put the working folder, which may be the tree, before PYTHONPATH
        # Not PYTHONPYCACHEPREFIX: under it torch's own bytecode, which lies beside torch, would not be found either.
        "PYTHONDONTWRITEBYTECODE": "1",
        "HARNESS_SNAPSHOT": snapshot.id,
    }


def current() -> str | None:
    """Return the id of the snapshot that the imported harness lies in: what is in use, whatever was asked for."""
    return PACKAGE_ROOT.name if find(PACKAGE_ROOT.parent, PACKAGE_ROOT.name) else None


def of(run_directory: Path) -> str | None:
    """Return the id of the snapshot that a run's last attempt ran on, None if it had none or never began."""
    entries = RunDirectory(run_directory).environments()
    return entries[-1].get("code_snapshot") if entries else None


# ----------------------------------------------------------------------------------------------------------- the store


def _present(store: Path, files: Files) -> Snapshot | None:
    snapshot = find(store, _identify(files))
    if snapshot and (wrong := verify(snapshot)):
        raise LaunchError(
            f"the snapshot {snapshot.path} was changed after it was taken: {_some(wrong)}. "
            "Remove the folder when no job uses it, and submit again"
        )
    return snapshot


def _stage(store: Path, root: Path, apart: list[str], files: Files) -> Snapshot:
    store.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(store / ".lock", f"the store of snapshots {store}")
    lock.acquire(wait_seconds=STALE_SECONDS + 30)
    staging = store / f".staging-{os.getpid()}-{time.time_ns()}"
    try:
        for left in store.glob(".staging-*"):  # by a killed process, since this one has the lock
            shutil.rmtree(left, ignore_errors=True)
        for _ in range(NUM_TRIES):
            if snapshot := _present(store, files):  # another process was faster
                return snapshot
            copied = _read(root, apart, copy_to=staging)
            if copied == files:
                return _finish(staging, store, files, _origin(root))
            changed = [path for path in {**files, **copied} if files.get(path) != copied.get(path)]
            files = copied
            shutil.rmtree(staging)
        raise LaunchError(
            f"the code in {root} changes faster than it can be copied: {_some(changed)}. "
            "If that is no code, a line in .gitignore leaves it out"
        )
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        lock.release()


def _finish(staging: Path, store: Path, files: Files, origin: dict) -> Snapshot:
    """Give the copy its manifest, put it on the disk and rename it whole."""
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
    """Return the 16 hex digits that stand for paths, executable bits and contents, in the order of the paths."""
    lines = sorted(os.fsencode(path) + b"\0" + value.encode() + b"\0" for path, value in files.items())
    return hashlib.sha256(b"".join(lines)).hexdigest()[:16]


# ------------------------------------------------------------------------------------------------------------ the tree


def _read(root: Path, apart: list[str], copy_to: Path | None = None) -> Files:
    """Hash every file of the tree; with `copy_to`, write what was hashed."""
    sizes, links = {}, set()
    for path in _paths(root):
        if not path.startswith(tuple(apart)):
            with suppress(FileNotFoundError, NotADirectoryError):  # git lists what was deleted, too
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
        except FileNotFoundError:  # deleted this instant
            continue
        files[path] = _fingerprint(kind, content)
        if copy_to:
            _write(copy_to / path, kind, content)
    return files


def _paths(root: Path) -> list[str]:
    """List the files that are code: those of the snapshot when the root is one, else git's, else the package's."""
    if snapshot := find(root.parent, root.name):
        return list(snapshot.manifest["files"])
    listed = _listed_by_git(root) if _in_git(root) else []
    return listed if "harness/__init__.py" in listed else _package(root)


def _package(root: Path) -> list[str]:
    """List the files of the package, and those of the folders of the tree that it links to: harness/analysis is one."""
    paths = _walk(root / "harness", root)
    linked = {(root / path).resolve() for path in paths if (root / path).is_symlink() and (root / path).is_dir()}
    return [*paths, *(path for folder in linked if root in folder.parents for path in _walk(folder, root))]


def _listed_by_git(root: Path) -> list[str]:
    """List the files that git tracks or does not ignore, those of submodules and of repositories within it too."""
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
        f"the code in {root} has {total / 1e6:.0f} MB, more than the {LIMIT_BYTES / 1e6:.0f} MB that are frozen at a "
        f"submission. Most of it lies in {largest}; what is no code is left out by a line in .gitignore"
    )


def _content(path: Path) -> tuple[str, bytes]:
    with path.open("rb") as file:
        executable = os.fstat(file.fileno()).st_mode & stat.S_IXUSR
        return "executable" if executable else "file", file.read()


def _read_link(root: Path, path: str, names: set[str]) -> tuple[str, bytes]:
    """Return a link as it is if it leads to something that is copied with it, or nowhere; else the file behind it."""
    target = os.readlink(root / path)  # noqa: PTH115 (Path would tidy it up)
    inside = os.path.normpath(os.path.join(os.path.dirname(path), target)) in names  # noqa: PTH118, PTH120
    if inside or not (root / path).exists():
        return "link", os.fsencode(target)
    if (root / path).is_dir():
        raise LaunchError(
            f"the code cannot be frozen: {root / path} links to a folder outside it ({target}). If that is no code, "
            f"the line /{path} in .gitignore leaves it out (without a slash at its end, which is for folders only)"
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
    """Return the fingerprint of a file or link as it lies there, None when it cannot be read."""
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
    """Return git's answer, or None where there is no git or no work tree.

    Raises:
        LaunchError: there is one, and git refuses (because it belongs to another user, for example).
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
        raise LaunchError(
            f"git cannot tell what the code in {root} is: {answer.stderr.decode(errors='replace').strip()}"
        )
    return None


def _in_git(root: Path) -> bool:
    """Tell whether git looks after the harness: a wheel may lie below the work tree of something else."""
    return (root / ".git").exists() or bool(_git(root, "ls-files", "harness"))


def _origin(root: Path) -> dict:
    """Return where the tree came from: its root, commit and branch, and whether anything in it was uncommitted."""
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
