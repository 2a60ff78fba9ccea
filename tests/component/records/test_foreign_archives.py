"""What an archive may bring: results that are what they say; no status, lock, cursor, request or script."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from harness.cli import cli
from harness.cli.common import all_runs
from harness.errors import RecordError
from harness.launch.rungs import drop
from harness.records.archive import export_study, import_study
from harness.records.directory import RunDirectory
from harness.records.status import Status
from harness.spec.base import digest
from harness.testing import tiny_study, write_finished_run

STUDY = "evaluate: [{name: eval, nll: {num_images: 16}, grid: 4}]\n"
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Files:
    """The files of an archive of one finished run, without its manifest."""
    folder = tmp_path_factory.mktemp("exported")
    [run] = tiny_study(folder, STUDY)
    write_finished_run(run, folder / "runs")
    export_study("tiny", all_runs(folder / "runs"), folder / "tiny.tar")
    with tarfile.open(folder / "tiny.tar") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.name != "manifest.json"}  # type: ignore[union-attr]


def archive(path: Path, files: Files) -> Path:
    """Write an archive of these files, whose manifest has them."""
    keys = {name.split("/")[1] for name in files if name.startswith("runs/")}
    entries = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    manifest = {"format": 1, "study": "tiny", "harness": "0", "checkpoints": "all", "counts": {}, "files": entries}
    text = json.dumps(manifest | {"runs": {key: ["tiny"] for key in keys}}).encode()
    with tarfile.open(path, "w") as tar:
        for name, data in {"manifest.json": text, **files}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def key_of(files: Files) -> str:
    return next(iter(files)).split("/")[1]


def line(entry: object) -> bytes:
    body = entry if isinstance(entry, bytes) else json.dumps(entry).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def arrays(**values: object) -> bytes:
    file = io.BytesIO()
    np.savez(file, **values)  # type: ignore[arg-type]
    return file.getvalue()


class Command:
    """An object whose pickle would run something when it is loaded."""

    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def bomb() -> bytes:
    """Return a small npz that unpacks to 512 MiB."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("L_t_bpd.npy", bytes(512 << 20))
    return file.getvalue()


def test_what_is_no_record_of_a_run_is_left_out_and_named(exported, tmp_path):
    run = f"runs/{key_of(exported)}"
    foreign = {
        "status.json": b'{"state": "queued", "reason": "<script>alert(1)</script>"}',
        "prune.json": b'{"reason": "go away"}',
        "tracking/tiny-0123456789ab.json": b'{"run_id": "0"}',
        "lock/000001.json": b"{}",
        "logs/attempt-0001.log": b"out of memory",
        "certificates/verify.json": b"{}",
        "cancelled/x.json": b"{}",
        "study.yaml": b"study: evil",
        "evil.html": b"<script>alert(1)</script>",
        "samples/page.html": b"<script>alert(1)</script>",
        "checkpoints/step-1.pt": pickle.dumps(Command()),
    }
    files = exported | {f"{run}/{name}": data for name, data in foreign.items()}
    imported = import_study(archive(tmp_path / "x.tar", files), tmp_path / "runs")
    assert set(imported.left_out) == {f"{run}/{name}" for name in foreign}
    [directory] = all_runs(tmp_path / "runs")
    names = {path.relative_to(directory.path).as_posix() for path in directory.path.rglob("*") if path.is_file()}
    assert names == {name.removeprefix(f"{run}/") for name in exported} | {"status.json"}
    assert directory.status().state == "done"
    assert directory.pruning_requested() == ""
    result = CliRunner().invoke(cli, ["import", str(tmp_path / "x.tar"), "--runs", str(tmp_path / "again")])
    assert f"left out: {run}/status.json" in result.output


REFUSED: dict[str, tuple[Callable[[Files, str], Files], str]] = {
    "another spec": (
        lambda files, run: {f"{run}/spec.json": files[f"{run}/spec.json"].replace(b'"seed": 0', b'"seed": 1')},
        "it holds the spec of run",
    ),
    "no spec": (lambda files, run: {f"{run}/spec.json": b""}, "spec.json: is not JSON"),
    "a journal line whose checksum does not fit": (
        lambda files, run: {f"{run}/journal-0001.jsonl": files[f"{run}/journal-0001.jsonl"].replace(b"mse", b"msf", 1)},
        "its checksum does not fit",
    ),
    "a text for a number": (
        lambda files, run: {
            f"{run}/journal-0001.jsonl": files[f"{run}/journal-0001.jsonl"]
            + line({"seq": 999, "ms": 1, "step": 1, "at": 1, "metrics": {"train/loss": "<b>"}})
        },
        "'train/loss' is not a number",
    ),
    "a journal without a header": (
        lambda files, run: {f"{run}/journal-0002.jsonl": line({"seq": 1, "ms": 1, "event": "failed", "facts": {}})},
        "the header line is damaged",
    ),
    "an arm that is HTML with an escape": (
        lambda files, run: {f"{run}/studies/tiny.json": b'{"arm": "\\u001b[2J", "replicate": 0}'},
        "arm is",
    ),
    "a replicate that is a script": (
        lambda files, run: {f"{run}/studies/tiny.json": b'{"arm": "a", "replicate": "<script>"}'},
        "replicate is '<script>'",
    ),
    "a study whose name is a formula": (
        lambda files, run: {f"{run}/studies/a=1.json": b'{"arm": "a", "replicate": 0}'},
        "is not the name of a study",
    ),
    "environments that are no list": (lambda files, run: {f"{run}/environment.json": b"{}"}, "not a list"),
    "arrays that are a pickle": (
        lambda files, run: {f"{run}/arrays/eval_likelihood.npz": arrays(L_t_bpd=np.array([Command()], object))},
        "is not a file of arrays",
    ),
    "arrays of texts": (
        lambda files, run: {f"{run}/arrays/eval_likelihood.npz": arrays(L_t_bpd=np.array(["a"]))},
        "does not hold numbers",
    ),
    "arrays that unpack to gigabytes": (
        lambda files, run: {f"{run}/arrays/eval_likelihood.npz": bomb()},
        "unpacks to 512 MiB",
    ),
    "a sample that is HTML": (
        lambda files, run: {f"{run}/samples/eval_samples.png": b"<script>alert(1)</script>"},
        "is not a PNG",
    ),
    "a checkpoint of other content": (
        lambda files, run: {f"{run}/checkpoints/step-00000012-{'0' * 64}.pt": pickle.dumps(Command())},
        "its content is not the one in its name",
    ),
    "an evaluation that is a list": (
        lambda files, run: {f"{run}/evaluations/0123456789abcdef.json": b"[]"},
        "is a list, not an object",
    ),
    "two names that differ in case": (
        lambda files, run: {f"{run}/samples/A.png": b"", f"{run}/samples/a.png": b""},
        "differ in upper and lower case alone",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_record_that_is_not_what_its_name_says_is_refused_and_nothing_is_put_in_place(
    exported, tmp_path, case, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    change, reason = REFUSED[case]
    files = exported | change(exported, f"runs/{key_of(exported)}")
    with pytest.raises(RecordError) as refused:
        import_study(archive(tmp_path / "x.tar", files), tmp_path / "runs")
    assert reason in str(refused.value)
    assert list((tmp_path / "runs").iterdir()) == []
    assert not Path("executed").exists()


def test_a_spec_whose_seed_is_a_script_is_refused_under_its_own_key(exported, tmp_path):
    run = f"runs/{key_of(exported)}"
    document = json.loads(exported[f"{run}/spec.json"])
    document["spec"]["seed"] = "<script>alert(1)</script>"
    key = digest(document)
    files = {name.replace(run, f"runs/{key}"): data for name, data in exported.items()}
    files[f"runs/{key}/spec.json"] = json.dumps(document).encode()
    with pytest.raises(RecordError, match="seed is '<script>alert"):
        import_study(archive(tmp_path / "x.tar", files), tmp_path / "runs")


@pytest.mark.parametrize(
    ("name", "data", "taken"),
    [
        ("curve.csv", b"arm,value\na,-1.5\n", True),
        ("curve.csv", b"arm,value\n=HYPERLINK(1),-1.5\n", False),
        ("page.html", b"<script>alert(1)</script>", False),
        ("paper.pdf", b"%PDF-1.4 /JavaScript", False),
        ("picture.png", b"<svg onload=alert(1)>", False),
        ("results.md", b"| arm |\n", True),
    ],
)
def test_figures_that_could_run_something_are_left_out(exported, tmp_path, name, data, taken):
    files = exported | {f"figures/{name}": data}
    imported = import_study(archive(tmp_path / "x.tar", files), tmp_path / "runs", figures=tmp_path / "figures")
    assert (tmp_path / "figures" / "tiny" / name).exists() == taken
    assert [entry for entry in imported.left_out if name in entry] == [] if taken else imported.left_out


def test_spec_yaml_is_made_from_the_spec_and_not_believed(exported, tmp_path):
    files = exported | {f"runs/{key_of(exported)}/spec.yaml": b"seed: !!python/object:os.system x\n"}
    import_study(archive(tmp_path / "x.tar", files), tmp_path / "runs")
    [directory] = all_runs(tmp_path / "runs")
    assert directory.spec_yaml_path.read_bytes() == exported[f"runs/{key_of(exported)}/spec.yaml"]


@pytest.mark.parametrize(
    ("state", "imported_state", "cause"),
    [
        ("done", "done", ""),
        ("failed", "failed", "error"),
        ("pruned", "pruned", "pruned"),
        ("running", "interrupted", "imported"),
        ("interrupted", "interrupted", "imported"),
    ],
)
def test_the_state_of_an_imported_run_is_read_from_its_journals(tmp_path, state, imported_state, cause):
    [run] = tiny_study(tmp_path, STUDY)
    directory = write_finished_run(run, tmp_path / "runs", state=state)
    directory.set_status(Status("done", step=10**6, reason="believe me"))
    export_study("tiny", [directory], tmp_path / "tiny.tar")
    import_study(tmp_path / "tiny.tar", tmp_path / "there")
    status = RunDirectory(tmp_path / "there" / directory.key).status()
    assert (status.state, status.cause, status.step, status.num_steps) == (imported_state, cause, 12, 12)
    assert "believe" not in status.reason


def test_a_run_that_was_dropped_at_a_rung_is_imported_as_such_and_may_still_be_let_on(tmp_path):
    [run] = tiny_study(tmp_path, STUDY)
    directory = write_finished_run(run, tmp_path / "runs", state="paused")
    directory.set_status(replace(directory.status(), cause="rung"))
    drop(directory, "nll 3 is not among the best")
    export_study("tiny", [directory], tmp_path / "tiny.tar")
    import_study(tmp_path / "tiny.tar", tmp_path / "there")
    status = RunDirectory(tmp_path / "there" / directory.key).status()
    assert (status.state, status.cause, status.reason) == ("pruned", "rung", "nll 3 is not among the best")


def test_a_run_that_says_finished_without_its_last_checkpoint_is_interrupted(tmp_path):
    [run] = tiny_study(tmp_path, STUDY)
    directory = write_finished_run(run, tmp_path / "runs")
    path = directory.journal_path(1)
    entries = [json.loads(entry[9:]) for entry in path.read_bytes().splitlines()]
    kept = [entry for entry in entries if entry.get("event") != "checkpoint"]
    path.write_bytes(b"".join(line(entry | {"seq": number}) for number, entry in enumerate(kept, 1)))
    export_study("tiny", [directory], tmp_path / "tiny.tar")
    import_study(tmp_path / "tiny.tar", tmp_path / "there")
    status = RunDirectory(tmp_path / "there" / directory.key).status()
    assert (status.state, status.cause) == ("interrupted", "imported")


def test_a_run_with_damaged_records_is_left_out_of_an_archive_and_the_others_are_in_it(tmp_path):
    first, second = tiny_study(tmp_path, STUDY + "replicates: 2\n")
    damaged, intact = (write_finished_run(run, tmp_path / "runs") for run in (first, second))
    with damaged.journal_path(1).open("ab") as file:
        file.write(b"00000000 {}\n")
    exported = export_study("tiny", [damaged, intact], tmp_path / "tiny.tar")
    [left_out] = exported.left_out
    assert left_out.startswith(f"runs/{damaged.key}: journal-0001.jsonl: line ")
    assert import_study(tmp_path / "tiny.tar", tmp_path / "there").added == (intact.key,)
    with pytest.raises(RecordError, match="no run of the study can be exported"):
        export_study("tiny", [damaged], tmp_path / "none.tar")
