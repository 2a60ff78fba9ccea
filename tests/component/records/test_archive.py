"""A study as one file: it comes back whole elsewhere, and nothing in it is believed."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from harness.analysis.answers import results
from harness.analysis.figures import fig_L_t, fig_learning_curves
from harness.analysis.runs import load_records
from harness.cli import cli
from harness.cli.common import all_runs
from harness.errors import RecordError
from harness.job.job import run_job
from harness.job.request import RunRequest
from harness.records import archive
from harness.records.archive import export_study, import_study
from harness.records.directory import RunDirectory
from harness.records.scored import import_scored, read_scored, write_scored
from harness.testing import tiny_study, write_run
from harness.tracking.check import check
from harness.tracking.sync import sync_run

TWO_ARMS = """
arms: {slow: {}, fast: {optim.lr: 2.0e-3}}
evaluate: [{nll: {num_images: 16}, grid: 4, every: 4}]
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Train the two runs of a small study once; return the folder of its runs."""
    folder = tmp_path_factory.mktemp("trained")
    for run in tiny_study(folder, TWO_ARMS, ["records.best=eval/nll_bpd"]):
        directory = write_run(run, folder / "runs")
        assert run_job(directory.path, sync=False, show_progress=False) == "done"
    return folder / "runs"


@pytest.fixture
def runs(trained, tmp_path) -> Path:
    """A copy of these runs to play with, as they are after a sync."""
    shutil.copytree(trained, tmp_path / "runs")
    for directory in all_runs(tmp_path / "runs"):
        (directory.path / "tracking").mkdir(exist_ok=True)
        (directory.path / "tracking" / "tiny-0123456789ab.json").write_text("{}")
    return tmp_path / "runs"


@pytest.fixture
def there(tmp_path) -> Path:
    """Where the runs go on the other machine."""
    return tmp_path / "there" / "runs"


def export(runs: Path, name: str = "tiny.tar.gz", **options) -> Path:
    return export_study("tiny", all_runs(runs), runs.parent / name, **options).path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def invoke(*arguments: str | Path):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


# ------------------------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("name", ["tiny.tar", "tiny.tar.gz"])
def test_what_is_imported_is_what_was_exported_less_locks_cursors_and_checkpoints(runs, there, name):
    imported = import_study(export(runs, name), there)
    assert sorted(imported.added) == sorted(path.name for path in runs.glob("[!.]*"))
    left_out = re.compile(r"[0-9a-f]+/((lock|tracking|checkpoints|logs)/.*|status\.json)|\..*")

    def kept(folder: Path) -> dict[str, bytes]:
        return {name: data for name, data in contents(folder).items() if not left_out.fullmatch(name)}

    assert kept(there) == kept(runs)
    assert not list(there.glob(".import-*"))
    for here, elsewhere in zip(all_runs(runs), all_runs(there), strict=True):
        status, imported = here.status(), elsewhere.status()
        assert (imported.state, imported.step, imported.loss) == ("done", status.step, status.loss)


def test_figures_and_status_work_on_what_was_imported(runs, there):
    import_study(export(runs), there)
    here, elsewhere = load_records(runs), load_records(there)
    for figure in (fig_learning_curves, fig_L_t, results):
        data = figure.data(here)
        assert len(data) > 0
        pd.testing.assert_frame_equal(figure.data(elsewhere), data)
    assert "2 done" in invoke("status", "tiny", "--runs", there).output


@pytest.mark.slow
def test_what_was_imported_is_carried_into_a_fresh_store_row_for_row(runs, there, tmp_path):
    import_study(export(runs), there)
    uri = f"sqlite:///{tmp_path / 'fresh' / 'mlflow.db'}"
    for directory in all_runs(there):
        sync_run(directory, tracking_uri=uri)
        # Against the records that were left behind: MLflow has their rows, each once.
        found = check(RunDirectory(runs / directory.key), tracking_uri=uri)
        assert found.ok
        assert found.num_rows_compared > 20


def test_the_same_content_gives_the_same_bytes(runs, tmp_path):
    first = export(runs).read_bytes()
    for path in runs.rglob("*"):
        if path.is_file():
            os.utime(path, (1, 1))
    assert export(runs, "again.tar.gz").read_bytes() == first
    shutil.copytree(runs, tmp_path / "elsewhere" / "other")
    assert export(tmp_path / "elsewhere" / "other").read_bytes() == first


SCORED = {"metrics": {"fid": 1.5}, "num_images": 64, "extractor": {"name": "digitsnet"}}
SCORED |= {"fidelity": {"reference": "train", "k": 3}}


def test_images_that_were_scored_for_the_study_go_along_without_the_path_to_them(runs, there):
    write_scored(runs, "tiny", "ADM", SCORED | {"source": "/home/somebody/their/samples.npz"})
    path = export(runs)
    for _ in range(2):  # the second finds what the first has brought
        import_study(path, there)
    [arm] = read_scored(there, "tiny")
    assert (arm.arm, arm.source, arm.metrics) == ("ADM", "samples.npz", {"fid": 1.5})
    assert b"somebody" not in gzip.decompress(path.read_bytes())
    assert export(there, "again.tar").exists() and read_scored(runs, "tiny")[0].source.startswith("/home/")
    write_scored(there, "tiny", "ADM", SCORED | {"source": "x", "num_images": 65})
    with pytest.raises(RecordError, match="scored arm ADM is here already and differs"):
        import_study(path, there)


@pytest.mark.parametrize(
    ("document", "message"),
    [({"num_images": "many"}, "num_images"), ({"arm": "other"}, "is of arm 'other'"), ({"format": 2}, "format 2")],
)
def test_a_scored_arm_that_is_not_what_it_says_is_neither_exported_nor_imported(runs, document, message):
    path = write_scored(runs, "tiny", "ADM", SCORED | {"source": "x"})
    path.write_text(json.dumps(json.loads(path.read_text()) | document))
    with pytest.raises(RecordError, match=message):
        export(runs)
    with pytest.raises(RecordError, match=message):
        import_scored(path.parent, runs, "tiny")


def test_checkpoints_go_along_where_asked_and_the_best_is_among_the_newest(runs, there):
    key = min(path.name for path in runs.glob("[!.]*"))
    folder = runs / key / "checkpoints"
    best = json.loads((folder / "scores.json").read_text())
    assert set(best["scores"]) >= {"8", "12"}
    (folder / "scores.json").write_text(json.dumps(best | {"scores": {"8": 1.0, "12": 2.0}}))
    import_study(export(runs, checkpoints="newest"), there)
    assert invoke("export-checkpoint", key, there / "x.pt", "--checkpoint", "best", "--runs", there).exit_code == 0
    assert contents(there / key / "checkpoints") == {
        name: data for name, data in contents(folder).items() if not name.startswith("step-00000004")
    }
    everything = export(runs, "all.tar", checkpoints="all")
    assert everything.stat().st_size > export(runs, "none.tar").stat().st_size + sum(
        map(len, contents(folder).values())
    )


def test_the_study_that_a_run_joined_last_is_the_last_one_there_too(runs, there):
    directory = all_runs(runs)[0]
    facts = directory.studies()["tiny"]
    directory.add_to_study("another", facts | {"data_root": "/the/last/word"})
    import_study(export(runs), there)
    assert RunRequest.of(RunDirectory(there / directory.key)).data_root == "/the/last/word"


def test_an_archive_of_runs_from_before_the_joining_time_was_written_keeps_their_order(runs, there):
    directory = all_runs(runs)[0]
    facts = directory.studies()["tiny"]
    for name, seconds, root in (("tiny", 3, None), ("another", 1, "/the/first"), ("last", 7, "/the/last/word")):
        directory.study_path(name).write_text(json.dumps(facts | {"data_root": root}))
        os.utime(directory.study_path(name), (seconds, seconds))
    path = export(runs)
    import_study(path, there)
    imported = RunDirectory(there / directory.key)
    assert list(imported.studies_by_joining()) == ["another", "tiny", "last"]
    assert RunRequest.of(imported).data_root == "/the/last/word"
    imported.add_to_study("tiny", imported.studies()["tiny"])  # whenever it joined: it is the same run
    assert len(import_study(path, there).present) == 2


def test_what_a_run_here_has_printed_since_is_no_other_run(runs, there):
    path = export(runs)
    import_study(path, there)
    log = all_runs(there)[0].log_path(7)
    log.parent.mkdir(exist_ok=True)
    log.write_text("looked at it\n")
    assert len(import_study(path, there).present) == 2


def test_the_verbs_carry_figures_and_say_what_they_did(runs, there, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "figures" / "tiny").mkdir(parents=True)
    (tmp_path / "figures" / "tiny" / "L_t.csv").write_text("t,value\n")
    said = invoke("export", "tiny", "--runs", runs).output
    assert re.fullmatch(r"tiny\.tar\.gz: 2 runs, \d+ files, [\d.]+ \w+; sha256 [0-9a-f]{64}\n", said)
    said = invoke("import", "tiny.tar.gz", "--runs", there, "--figures", there.parent / "figures").output
    assert said.startswith("study tiny: 2 runs imported, 1 figure file\n")
    assert (there.parent / "figures" / "tiny" / "L_t.csv").read_text() == "t,value\n"
    assert "0 runs imported, 2 runs already here\n" in invoke("import", "tiny.tar.gz", "--runs", there).output


def test_a_run_at_work_is_not_exported(runs):
    with all_runs(runs)[0].lock(), pytest.raises(RecordError, match=f"is running \\(process {os.getpid()}"):
        export(runs)


def test_links_and_half_written_files_stay_behind_and_odd_ones_are_named(runs, there):
    key = all_runs(runs)[0].key
    (runs / key / "samples" / "secret.png").symlink_to("/etc/hostname")
    (runs / key / ".status.json.1.2").write_text("half")
    (runs / key / "core.dump").write_bytes(b"x")
    done = export_study("tiny", all_runs(runs), runs.parent / "tiny.tar")
    assert done.left_out == (f"runs/{key}/core.dump",)
    import_study(done.path, there)
    assert not [name for name in contents(there) if re.search("secret|core|status.json.1", name)]


# ------------------------------------------------------------------------------------------------------ already there


def test_a_run_that_is_there_and_identical_is_left_alone(runs, there):
    path = export(runs)
    import_study(path, there)
    before = {file: file.stat().st_mtime_ns for file in there.rglob("*")}
    assert len(import_study(path, there).present) == 2
    assert {file: file.stat().st_mtime_ns for file in there.rglob("*")} == before


def test_a_run_that_is_there_and_differs_is_refused_with_the_difference_and_nothing_is_imported(runs, there):
    path = export(runs)
    first, second = sorted(directory.key for directory in all_runs(runs))
    import_study(path, there)
    shutil.rmtree(there / first)
    (there / second / "environment.json").write_text("[]")
    (there / second / "samples" / "eval_samples.png").unlink()
    with pytest.raises(RecordError) as refused:
        import_study(path, there)
    assert f"run {second} is here already and differs: " in str(refused.value)
    assert "environment.json has different content; samples/eval_samples.png is only in the archive" in str(
        refused.value
    )
    assert (there / second / "environment.json").read_text() == "[]"
    assert not (there / first).exists()


def test_a_run_that_is_being_written_is_refused(runs, there):
    path = export(runs)
    import_study(path, there)
    with all_runs(there)[0].lock(), pytest.raises(RecordError, match=f"is being written by process {os.getpid()}"):
        import_study(path, there)


# ------------------------------------------------------------------------------------------------------------- hostile


def refused(path: Path, there: Path) -> str:
    """Return why an archive is refused, after making sure that it has left no trace."""
    with pytest.raises(RecordError) as caught:
        import_study(path, there)
    assert list(there.iterdir()) == []
    assert [one.name for one in there.parent.iterdir()] == ["runs"]
    return str(caught.value)


def content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Return the bytes of a member that is a file."""
    file = tar.extractfile(member)
    assert file is not None, member.name
    return file.read()


def rewritten(path: Path, change) -> Path:
    """Write the archive anew, its members and manifest changed by `change(entries, manifest)`."""
    with tarfile.open(path) as tar:
        entries = [(member, content(tar, member)) for member in tar]
    manifest = json.loads(entries[0][1])
    change(entries, manifest)
    text = json.dumps(manifest).encode()
    entries[0][0].size = len(text)
    entries[0] = (entries[0][0], text)
    out = path.with_name("changed.tar.gz")
    with tarfile.open(out, "w:gz") as tar:
        for member, data in entries:
            tar.addfile(member, io.BytesIO(data))
    return out


def replace_member(entries, manifest, name: str, content: bytes) -> None:
    """Give a member another content, which the manifest has too; a new name is added."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    place = next((index for index, (other, _) in enumerate(entries) if other.name == name), len(entries))
    entries[place : place + 1] = [(member, content)]
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_every_flipped_byte_of_a_file_is_found(runs, there):
    path = export(runs, "tiny.tar")
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        members = list(tar)[1:]
    for member in members[:: len(members) // 8]:
        place = member.offset_data + member.size // 2
        data[place] ^= 1
        path.write_bytes(data)
        assert f"{member.name} is damaged: its checksum does not fit" in refused(path, there)
        data[place] ^= 1


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.9, 0.9999])
@pytest.mark.parametrize("name", ["tiny.tar", "tiny.tar.gz"])
def test_an_archive_that_is_cut_off_is_refused(runs, there, name, share):
    path = export(runs, name)
    path.write_bytes(path.read_bytes()[: place_to_cut(path, share)])
    assert "is damaged, or not an archive of a study" in refused(path, there)


def place_to_cut(path: Path, share: float) -> int:
    """Return where an archive's beginning of about this share ends: of a plain tar, in the middle of a member.

    Elsewhere it might end in the padding behind all members, where nothing would be missing.
    """
    if share == 0 or path.suffix == ".gz":
        return int(share * path.stat().st_size)
    with tarfile.open(path) as archive:
        members = [member for member in archive.getmembers() if member.size]
    member = members[round(share * (len(members) - 1))]
    return member.offset_data + member.size // 2


@pytest.mark.parametrize(
    "name",
    ["../evil.json", "/tmp/evil.json", "runs/../evil.json", "runs/0123456789abcdef/../../evil.json", "a\nb.json"],
)
def test_a_name_that_leaves_its_folder_is_refused_even_when_the_manifest_has_it(runs, there, name):
    def add(entries, manifest):
        member = tarfile.TarInfo(name)
        member.size = 2
        entries.append((member, b"{}"))
        manifest["files"][name] = {"bytes": 2, "sha256": "0" * 64}

    assert f"{name!r} is not the name of a file" in refused(rewritten(export(runs), add), there)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_links_devices_and_folders_are_refused(runs, there, kind):
    def turn(entries, manifest):
        entries[3][0].type = kind
        entries[3][0].linkname = "/etc/passwd"
        entries[3][0].size = 0
        entries[3] = (entries[3][0], b"")

    assert "is not a plain file" in refused(rewritten(export(runs), turn), there)


def test_a_file_of_a_kind_that_runs_do_not_have_is_refused(runs, there):
    def add(entries, manifest):
        name = entries[3][0].name
        manifest["files"][f"{name}.so"] = manifest["files"].pop(name)
        entries[3][0].name += ".so"

    assert "is not the name of a file that runs or figures have" in refused(rewritten(export(runs), add), there)


def test_a_file_beside_the_manifest_or_twice_is_refused(runs, there):
    def beside(entries, manifest):
        manifest["files"].pop(entries[3][0].name)

    assert "is not in its manifest.json" in refused(rewritten(export(runs), beside), there)
    assert "is in it twice" in refused(rewritten(export(runs), lambda entries, _: entries.append(entries[3])), there)
    assert "1 file missing, the first: " in refused(rewritten(export(runs), lambda entries, _: entries.pop(3)), there)


def test_a_run_under_another_runs_key_is_not_exported_and_not_imported(runs, there):
    first, second = (directory.key for directory in all_runs(runs))

    def swap(entries, manifest):
        content = next(data for member, data in entries if member.name == f"runs/{second}/spec.json")
        replace_member(entries, manifest, f"runs/{first}/spec.json", content)

    assert f"run {first} cannot be imported: spec.json: it holds the spec of run {second}" in refused(
        rewritten(export(runs), swap), there
    )

    first, second = (directory.key for directory in all_runs(runs))
    (runs / first).rename(runs / "swap")
    (runs / second).rename(runs / first)
    (runs / "swap").rename(runs / second)
    with pytest.raises(RecordError, match=rf"runs/{first}: spec.json: it holds the spec of run {second}"):
        export(runs)


@pytest.mark.parametrize(
    "said, why", [(10, "bytes, and its manifest.json says 10"), (1 << 40, "more than an archive of its size can hold")]
)
def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused_before_it_does(
    runs, there, said, why, monkeypatch
):
    monkeypatch.setattr(archive, "SMALL_BYTES", 1 << 20)
    num_bytes = 1 << 26

    def swell(entries, manifest):
        member, _ = entries[3]
        manifest["files"][member.name]["bytes"] = said
        member.size = num_bytes
        entries[3] = (member, bytes(num_bytes))

    path = rewritten(export(runs), swell)
    assert path.stat().st_size < 1 << 20
    assert why in refused(path, there)


def test_a_header_that_asks_for_gigabytes_is_refused_before_they_are_read(there, tmp_path):
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 1 << 40
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20)))
    there.mkdir(parents=True)
    assert "unpacks to more than an archive of its size can hold" in refused(path, there)


@pytest.mark.parametrize("manifest", [b"[]", b"{}", b"x", b'{"format": 2, "files": {}, "runs": {}}', b"[" * 100_000])
def test_a_manifest_that_is_not_ours_is_refused(there, tmp_path, manifest):
    path = tmp_path / "odd.tar"
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("manifest.json")
        member.size = len(manifest)
        tar.addfile(member, io.BytesIO(manifest))
    there.mkdir(parents=True)
    assert "manifest.json is not valid" in (said := refused(path, there)) or "its format is 2" in said
