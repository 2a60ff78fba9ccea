"""A study as one archive for another machine: its runs' records, and optionally figures and checkpoints.

    manifest.json               first: study, harness version, counts, and the size and sha256 of every file below
    runs/<run_key>/...          the run's records (harness/records/archived_run.py)
    scored/<arm>.json           images from elsewhere that were scored for the study (harness/records/scored.py)
    figures/...                 the study's figures

The same content gives the same bytes, independent of time, user and machine. An archive may come from anywhere, so the
import verifies everything: a file that is not in the manifest, a name that leaves its folder, a link, a device, a wrong
checksum or a record that is not what its name says stops it before anything is put in place, and no run is ever
overwritten. Files that are no records, such as a status or a log, are left out and named.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import unicodedata
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, cast, get_args

from harness import __version__
from harness.errors import RecordError
from harness.records.archived_run import (
    check_png,
    check_run,
    complete_import,
    is_record,
    same_content,
    stays_behind,
)
from harness.records.directory import RunDirectory, without_joining_time
from harness.records.disk import SCORES, best_step, checkpoint_files, snapshot_files
from harness.records.files import sync_folder
from harness.records.manifest import join
from harness.records.reading import MAX_EXPANSION, STUDY_NAME, read_bytes, read_json
from harness.records.scored import exported_scored, import_scored
from harness.text import count, spreadsheet_cell

FORMAT = 1
MANIFEST = "manifest.json"
SUFFIXES = (".json", ".jsonl", ".yaml", ".npz", ".png", ".pt", ".pdf", ".csv", ".md", ".html", ".txt", ".log")
SMALL_BYTES = 64 << 20  # allowed for any archive, and more than its manifest may have
_CHUNK_BYTES = 1 << 20
_NAME = re.compile(r"(?:runs/[0-9a-f]{16}|figures|scored)(?:/[^\W_][\w.+=,@-]{0,149}){1,6}")

WhichCheckpoints = Literal["none", "newest", "all"]


@dataclass(frozen=True)
class Exported:
    """What an export wrote, and what it left out: files of a kind that no run has, and runs with damaged records."""

    path: Path
    num_runs: int
    num_files: int
    num_bytes: int
    sha256: str
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Imported:
    """The result of an import: runs by run_key, the number of figures, and the files that it left out."""

    study: str
    added: tuple[str, ...]
    present: tuple[str, ...]
    num_figures: int
    left_out: tuple[str, ...] = ()


# -------------------------------------------------------------------------------------------------------------- export


def export_study(
    study: str,
    run_directories: list[RunDirectory],
    path: Path,
    *,
    checkpoints: WhichCheckpoints = "none",
    figures: Path | None = None,
) -> Exported:
    """Write a study as one archive: a tar, compressed where the name ends in .gz or .tgz.

    Args:
        run_directories: the study's runs; no process may be writing in them.
        path: of the archive; replaced atomically if it exists.
        checkpoints: none, the newest of each run together with the best, or all that are kept.
        figures: the study's folder of figures; skipped if it does not exist.

    Raises:
        RecordError: a run is running, none can be exported, a file changes meanwhile, or the archive cannot be written.
    """
    sources: dict[str, Path] = {}
    dated: dict[Path, bytes] = {}  # replaces a file's content
    left_out: list[str] = []
    exported: list[RunDirectory] = []
    for directory in run_directories:
        try:
            owner, present = directory.writer(), _files_of(directory, checkpoints)
            check_run(directory.path, filter(is_record, present))
        except RecordError as error:
            left_out.append(f"runs/{directory.key}: {error}")
            continue
        if owner:
            raise RecordError(
                f"run {directory.key} is running (process {owner.get('pid')} on {owner.get('host')}); wait for its end"
            )
        exported.append(directory)
        sources |= {f"runs/{directory.key}/{name}": file for name, file in present.items() if is_record(name)}
        odd = [name for name in present if not is_record(name) and not stays_behind(name)]
        left_out += [f"runs/{directory.key}/{name}" for name in odd]
        dated |= {path: text.encode() for path, text in directory.dated_studies().items()}
    if run_directories and not exported:
        raise RecordError("\n  ".join(["no run of the study can be exported:", *left_out]))
    for folder in {directory.path.parent for directory in exported}:
        dated |= (scored := exported_scored(folder, study))
        sources |= {f"scored/{source.name}": source for source in scored}
    if figures and figures.is_dir():
        sources |= {f"figures/{name}": source for name, source in _files_below(figures).items()}
    for name in [name for name in sources if not _NAME.fullmatch(name) or not name.endswith(SUFFIXES)]:
        left_out.append(name)
        del sources[name]
    files = {name: _facts(source, dated.get(source)) for name, source in sources.items()}
    num_bytes = sum(entry["bytes"] for entry in files.values())
    manifest = {
        "format": FORMAT,
        "study": study,
        "harness": __version__,
        "checkpoints": checkpoints,
        "counts": {"runs": len(exported), "files": len(files), "bytes": num_bytes},
        "runs": {directory.key: list(directory.studies_by_joining()) for directory in exported},
        "files": files,
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _writing(temporary, compress=path.suffix in (".gz", ".tgz")) as tar:
            text = json.dumps(manifest, indent=1, sort_keys=True).encode()
            tar.addfile(_entry(MANIFEST, len(text)), io.BytesIO(text))
            for name in sorted(sources):
                _add(tar, name, sources[name], files[name], dated.get(sources[name]))
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise RecordError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return Exported(path, len(exported), len(files), num_bytes, _sha256(path), tuple(left_out))


def _files_of(directory: RunDirectory, checkpoints: WhichCheckpoints) -> dict[str, Path]:
    """Return the files of a run that go into an archive, by their names in the run directory."""
    files = _files_below(directory.path)
    kept = checkpoint_files(directory.checkpoints_folder)
    if checkpoints != "all":
        best = best_step(directory.checkpoints_folder) if kept else None
        kept = [] if checkpoints == "none" else [(step, file) for step, file in kept if step in (kept[-1][0], best)]
    checkpoints_folder = directory.checkpoints_folder.name
    chosen = {f"{checkpoints_folder}/{file.name}" for _, file in kept}
    if kept:
        snapshots = {f"{checkpoints_folder}/{file.name}" for _, file in snapshot_files(directory.checkpoints_folder)}
        chosen |= {f"{checkpoints_folder}/{SCORES}"} | snapshots
    left_out = (directory.lock_folder.name, directory.tracking_folder.name, checkpoints_folder)
    return {name: source for name, source in files.items() if name.split("/")[0] not in left_out or name in chosen}


def _files_below(folder: Path) -> dict[str, Path]:
    """Return the regular files below a folder by relative name, without hidden ones (half-written) and links."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not path.is_symlink() and not any(part.startswith(".") for part in name.split("/")):
            files[name] = path
    return files


@contextmanager
def _writing(path: Path, *, compress: bool) -> Iterator[tarfile.TarFile]:
    with path.open("wb") as file:
        # No name and no time in gzip's header either; tarfile's own "w:gz" would write them.
        stream: Any = gzip.GzipFile("", "wb", 6, file, mtime=0) if compress else file
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
            yield tar
        if compress:
            stream.close()
        file.flush()
        os.fsync(file.fileno())


def _entry(name: str, num_bytes: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)  # owner, time and mode are the same for all
    entry.size = num_bytes
    return entry


def _facts(source: Path, content: bytes | None) -> dict[str, Any]:
    if content is not None:
        return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return {"bytes": source.stat().st_size, "sha256": _sha256(source)}


def _add(tar: tarfile.TarFile, name: str, source: Path, entry: dict[str, Any], content: bytes | None) -> None:
    with source.open("rb") if content is None else io.BytesIO(content) as file:
        hashing = _Hashing(file)
        tar.addfile(_entry(name, entry["bytes"]), cast(IO[bytes], hashing))
    if hashing.digest.hexdigest() != entry["sha256"]:
        raise RecordError(f"{source} changed while it was exported; try again")


class _Hashing:
    """A file wrapper that hashes what is read."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -------------------------------------------------------------------------------------------------------------- import


def import_study(path: Path, runs_folder: Path, *, figures: Path | None = None) -> Imported:
    """Import an archive's runs, after checking all of them; a run that exists already is not changed.

    Args:
        figures: the folder that gets the study's figures, in a folder of the study's name, unless that exists.

    Raises:
        RecordError: the archive is invalid, a run exists here and differs, or is being written.
    """
    runs_folder.mkdir(parents=True, exist_ok=True)
    staging = runs_folder / f".import-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        try:
            manifest = _unpack(path, staging)
        except (RecordError, tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise RecordError(f"{path} is damaged, or not an archive of a study: {error}") from error
        return _put_in_place(manifest, staging, runs_folder, figures)
    except OSError as error:
        raise RecordError(f"{path}: cannot be imported: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _unpack(path: Path, staging: Path) -> dict[str, Any]:
    """Unpack into the staging folder with all checks; return the manifest."""
    limit = MAX_EXPANSION * path.stat().st_size + SMALL_BYTES
    with path.open("rb") as file, _decompressed(file) as content:
        bounded = _Bounded(content, limit)
        tar = tarfile.open(fileobj=cast(IO[bytes], bounded), mode="r:")  # noqa: SIM115 (it does not own the file)
        first = tar.next()
        if first is None or first.name != MANIFEST or not first.isreg() or first.size > SMALL_BYTES:
            raise RecordError(f"it does not begin with {MANIFEST}")
        manifest = _checked_manifest(_read_all(tar, first), limit, staging)
        seen: set[str] = set()
        while (member := tar.next()) is not None:
            _unpack_one(tar, member, manifest["files"], seen, staging)
        while bounded.read(_CHUNK_BYTES):
            pass  # to the end, where gzip has its own checksum, which covers the manifest too
    if missing := sorted(manifest["files"].keys() - seen):
        raise RecordError(f"{count(len(missing), 'file')} missing, the first: {missing[0]}")
    return manifest


def _decompressed(file: IO[bytes]) -> Any:
    compressed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return gzip.GzipFile(fileobj=file, mode="rb") if compressed else file


class _Bounded:
    """A stream that limits what tarfile reads, in total and at once, because sizes in headers are not trusted."""

    def __init__(self, file: Any, limit: int):
        self._file, self._limit = file, limit

    def read(self, size: int) -> bytes:
        if size > SMALL_BYTES or self._file.tell() + size > self._limit + tarfile.RECORDSIZE:
            raise RecordError("it unpacks to more than an archive of its size can hold")
        return self._file.read(size)

    def seek(self, position: int) -> int:
        if position > self._limit + tarfile.RECORDSIZE:
            raise RecordError("it unpacks to more than an archive of its size can hold")
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()


def _read_all(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = tar.extractfile(member)
    assert content is not None, "a regular file has content"
    return content.read()


def _checked_manifest(text: bytes, limit: int, staging: Path) -> dict[str, Any]:
    """Return the manifest if it is complete and its files fit on the disk."""
    try:
        manifest = json.loads(text)
        files, runs = manifest["files"], manifest["runs"]
        if manifest["format"] != FORMAT:
            raise RecordError(f"its format is {manifest['format']!r}, but this version reads {FORMAT}")
        sizes = [entry["bytes"] for entry in files.values()]
        plain = (
            STUDY_NAME.fullmatch(manifest["study"]),
            manifest["checkpoints"] in get_args(WhichCheckpoints),
            all(type(size) is int and size >= 0 for size in sizes),
            all(type(entry["sha256"]) is str for entry in files.values()),
            all(type(names) is list and all(type(name) is str for name in names) for names in runs.values()),
        )
        if not all(plain):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise RecordError(f"its {MANIFEST} is not valid") from None
    for name in files:
        if not _NAME.fullmatch(name) or ".." in name or not name.endswith(SUFFIXES):
            raise RecordError(f"{name!r} is not the name of a file that runs or figures have")
    if len({unicodedata.normalize("NFC", name).casefold() for name in files}) < len(files):
        raise RecordError("two of its files have names that differ in upper and lower case alone")
    named = {name.split("/")[1] for name in files if name.startswith("runs/")}
    if named != runs.keys():
        raise RecordError(f"its {MANIFEST} lists other runs than its files")
    if sum(sizes) > limit:
        raise RecordError("it unpacks to more than an archive of its size can hold")
    if sum(sizes) > shutil.disk_usage(staging).free:
        raise RecordError(f"it unpacks to {sum(sizes) >> 20} MiB, more than the disk of {staging.parent} has left")
    return manifest


def _unpack_one(
    tar: tarfile.TarFile, member: tarfile.TarInfo, files: dict[str, Any], seen: set[str], staging: Path
) -> None:
    name = member.name
    if not member.isreg() or member.issparse():
        raise RecordError(f"{name!r} is not a plain file")
    if name not in files:
        raise RecordError(f"{name!r} is not in its {MANIFEST}")
    if name in seen:
        raise RecordError(f"{name!r} is in it twice")
    seen.add(name)
    if member.size != files[name]["bytes"]:
        raise RecordError(f"{name} has {member.size} bytes, and its {MANIFEST} says {files[name]['bytes']}")
    target = staging / PurePosixPath(name)
    if _is_taken(name):
        target.parent.mkdir(parents=True, exist_ok=True)
    content = tar.extractfile(member)
    assert content is not None
    digest_of_content = hashlib.sha256()
    with target.open("xb") if _is_taken(name) else Path(os.devnull).open("wb") as file:
        while chunk := content.read(_CHUNK_BYTES):
            digest_of_content.update(chunk)
            file.write(chunk)
    if digest_of_content.hexdigest() != files[name]["sha256"]:
        raise RecordError(f"{name} is damaged: its checksum does not fit")


def _is_taken(name: str) -> bool:
    """Return whether an import takes a file of an archive: a record, a scored arm, or a figure that runs nothing."""
    if name.startswith("runs/"):
        return is_record(name.split("/", 2)[2])
    return bool(_BESIDE_RUNS.fullmatch(name))


_BESIDE_RUNS = re.compile(r"figures/[^/]+\.(?:png|csv|md)|scored/[^/]+\.json")  # PDF and HTML may carry scripts


def _put_in_place(manifest: dict[str, Any], staging: Path, runs_folder: Path, figures: Path | None) -> Imported:
    new, present, wrong = [], [], []
    left_out = [name for name in sorted(manifest["files"]) if not _is_taken(name)]
    for key in sorted(manifest["runs"]):
        try:
            check_run(staging / "runs" / key, _records_of(key, manifest))
        except RecordError as error:
            raise RecordError(f"run {key} cannot be imported: {error}") from None
        local = RunDirectory(runs_folder / key)
        if not local.path.exists():
            new.append(key)
            continue
        if owner := local.writer():
            wrong.append(f"run {key} is being written by process {owner.get('pid')} on {owner.get('host')}")
        elif changes := _differences(local, staging / "runs" / key, manifest):
            wrong.append(f"run {key} is here already and differs: {'; '.join(changes)}")
        else:
            present.append(key)
    arms = import_scored(staging / "scored", runs_folder, manifest["study"])
    if wrong:
        raise RecordError("\n  ".join(["nothing was imported, since runs are never overwritten:", *wrong]))
    for key in new:
        directory = RunDirectory(staging / "runs" / key)
        for path, dated in directory.dated_studies(manifest["runs"][key]).items():
            path.write_text(dated)
        try:
            complete_import(directory)
        except RecordError as error:
            raise RecordError(f"run {key} cannot be imported: {error}") from None
    for key in new:
        (staging / "runs" / key).rename(runs_folder / key)
    sync_folder(runs_folder)
    for staged, target in arms.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        staged.rename(target)
    _ask_for_imported([*new, *present], manifest["study"], runs_folder)
    drawn = staging / "figures"
    num_figures = 0
    if figures and drawn.is_dir() and not (figures / manifest["study"]).exists():
        left_out += _remove_odd_figures(drawn)
        num_figures = sum(path.is_file() for path in drawn.rglob("*"))
        figures.mkdir(parents=True, exist_ok=True)
        shutil.move(drawn, figures / manifest["study"])
    return Imported(manifest["study"], tuple(new), tuple(present), num_figures, tuple(left_out))


def _ask_for_imported(run_keys: list[str], study: str, runs_folder: Path) -> None:
    """Add imported runs to what their study asks for here, since a person has put them there."""
    studies = {key: RunDirectory(runs_folder / key).studies() for key in run_keys}
    join(runs_folder, study, {key: entries[study] for key, entries in studies.items() if study in entries})


def _records_of(key: str, manifest: dict[str, Any]) -> list[str]:
    """Return the names of an archive's records of a run in its run directory."""
    prefix = f"runs/{key}/"
    return [name.removeprefix(prefix) for name in manifest["files"] if name.startswith(prefix) and _is_taken(name)]


def _remove_odd_figures(folder: Path) -> list[str]:
    """Remove pictures that are none, and tables with cells that a spreadsheet would run; return their names."""
    odd = []
    for path in sorted(folder.glob("*")):
        try:
            if path.suffix == ".png":
                check_png(path)
            elif path.suffix == ".csv":
                _check_table(path)
        except RecordError as error:
            odd.append(f"figures/{path.name}: {str(error).removeprefix(f'{path}: ')}")
            path.unlink()
    return odd


def _check_table(path: Path) -> None:
    try:
        rows = list(csv.reader(io.StringIO(read_bytes(path).decode("utf-8"), newline="")))
    except (ValueError, csv.Error) as error:
        raise RecordError(f"{path}: is not a table: {error}") from None
    if any(spreadsheet_cell(cell) != cell for row in rows for cell in row):
        raise RecordError(f"{path}: has a cell that a spreadsheet would run")


def _differences(local: RunDirectory, staged: Path, manifest: dict[str, Any]) -> list[str]:
    """Describe in which files a local run differs from the archive's, the first five.

    When it joined its studies, and on which hosts it ran, may differ between machines.
    """
    archived = set(_records_of(local.key, manifest))
    present = {name: path for name, path in _files_of(local, manifest["checkpoints"]).items() if is_record(name)}
    changes = []
    for name in sorted((archived | present.keys()) - {local.spec_yaml_path.name}):
        if name not in present:
            changes.append(f"{name} is only in the archive")
        elif name not in archived:
            changes.append(f"{name} is only in the local run")
        elif name.split("/")[0] == local.studies_folder.name:
            if not _same_study(present[name], staged / name):
                changes.append(f"{name} has different content")
        elif not same_content(name, present[name], staged / name):
            changes.append(f"{name} has different content")
    return changes if len(changes) <= 5 else [*changes[:5], f"and {len(changes) - 5} more"]


def _same_study(present: Path, archived: Path) -> bool:
    """Return whether two files of a study are equal except for the time at which the run joined it."""
    try:
        return without_joining_time(read_json(present)) == without_joining_time(read_json(archived))
    except (RecordError, AttributeError):
        return False
