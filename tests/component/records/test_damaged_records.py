"""A damaged or odd run directory is shown with a reason, and leaves every other run readable."""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.analysis.report import report
from harness.analysis.runs import load_records, unreadable_runs
from harness.cli import cli
from harness.cli.common import all_runs
from harness.errors import HarnessError
from harness.records import layout
from harness.records.directory import RunDirectory
from harness.records.status import Status
from harness.spec.presentation import Presentation
from harness.testing import TINY_STUDY, tiny_study, write_finished_run
from harness.tracking.sync import sync_run

STUDY = """
replicates: 3
evaluate: [{name: eval, nll: {num_images: 16}, grid: 4}]
"""


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory) -> Path:
    """Three finished runs of a study, and one of another."""
    folder = tmp_path_factory.mktemp("undamaged")
    for run in tiny_study(folder, STUDY):
        write_finished_run(run, folder / "runs")
    for run in tiny_study(folder, "seed: 7\n", study=TINY_STUDY.replace("study: tiny", "study: other")):
        write_finished_run(run, folder / "runs")
    return folder / "runs"


@pytest.fixture
def runs(undamaged, tmp_path) -> Path:
    return shutil.copytree(undamaged, tmp_path / "runs")


def line(entry: object) -> bytes:
    """Return a journal line with a checksum that fits, whatever is in it."""
    body = entry if isinstance(entry, bytes) else json.dumps(entry).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def row(**changes: object) -> dict:
    return {"seq": 99, "ms": 1, "step": 3, "at": 3, "metrics": {"train/loss": 1.0}} | changes


def without(values: dict, name: str) -> dict:
    return {key: value for key, value in values.items() if key != name}


def age(path: Path) -> None:
    """Give a file a time long ago: a lock is one that its writer left."""
    os.utime(path, (0, 0))


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def add_folder(path: Path) -> None:
    path.mkdir()
    age(path)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def edit(name: str, **changes: object) -> Callable[[Path], object]:
    """Return a function that changes values of a JSON file in a run directory."""
    return lambda run: (run / name).write_text(json.dumps(json.loads((run / name).read_text()) | changes))


def write(name: str, content: bytes | str) -> Callable[[Path], Path]:
    data = content.encode() if isinstance(content, str) else content

    def damage(run: Path) -> Path:
        (run / name).write_bytes(data)
        return run / name

    return damage


def append(entry: object) -> Callable[[Path], object]:
    def damage(run: Path) -> None:
        with (run / "journal-0001.jsonl").open("ab") as file:
            file.write(line(entry))

    return damage


DEEP = "[" * 100_000 + "]" * 100_000
HUGE = "1" + "0" * 400

# What is done to a run -> a word of the reason that `status` or the figures give; "" where nothing has to be said.
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a status that is a list": (write("status.json", "[]"), "status.json: is a list, not an object"),
    "an empty status": (write("status.json", ""), "status.json: is not JSON: it is empty"),
    "a torn status": (write("status.json", '{"state": "do'), "status.json: is not JSON"),
    "a status that is not UTF-8": (write("status.json", b'{"state": "\xff\xfe"}'), "status.json: is not text in UTF-8"),
    "a status of NUL bytes": (write("status.json", bytes(100)), "status.json: is not JSON"),
    "a status nested deeply": (write("status.json", DEEP), "status.json: is nested too deeply"),
    "an unknown state": (edit("status.json", state="<img onerror=x>"), "state is '<img onerror=x>', not one of new"),
    "a step that is a text": (edit("status.json", step="7"), "step is '7', not a whole number"),
    "a step that is true": (edit("status.json", step=True), "step is True, not a whole number"),
    "a huge step": (write("status.json", f'{{"step": {HUGE}}}'), "step is a number of more than 77 digits"),
    "a time beyond all dates": (edit("status.json", updated_seconds=1e18), "updated_seconds is 1e+18"),
    "a time of 1e400": (write("status.json", '{"state": "done", "updated_seconds": 1e400}'), "updated_seconds is inf"),
    "an endless ETA": (write("status.json", '{"state": "running", "eta_seconds": 1e400}'), "eta_seconds is inf"),
    "a folder as status": (lambda run: replace_by_folder(run / "status.json"), "status.json: cannot be read"),
    "a pipe as status": (
        lambda run: replace_by_pipe(run / "status.json"),
        "status.json: cannot be read: it is not a file",
    ),
    "studies without arm": (write("studies/tiny.json", '{"replicate": 0}'), "studies/tiny.json: arm is missing"),
    "studies that are a list": (write("studies/tiny.json", "[1]"), "studies/tiny.json: is a list"),
    "an arm that is a number": (edit("studies/tiny.json", arm=7), "arm is 7, not a printable line"),
    "an arm with an escape": (edit("studies/tiny.json", arm="\x1b[2J"), "arm is '\\x1b[2J', not a printable line"),
    "a replicate that is HTML": (edit("studies/tiny.json", replicate="<b>"), "replicate is '<b>', not a whole number"),
    "evaluations that are a text": (edit("studies/tiny.json", evaluations="all"), "evaluations is 'all', not a list"),
    "an evaluation named like a path": (
        edit("studies/tiny.json", evaluations=[{"name": "../../x"}]),
        "name is '../../x', not a name of letters",
    ),
    "a folder as studies' file": (lambda run: replace_by_folder(run / "studies/tiny.json"), "it is not a file"),
    "a spec that is a list": (write("spec.json", "[]"), "spec.json: is a list"),
    "an empty spec": (write("spec.json", ""), "spec.json: is not JSON"),
    "a spec without a seed": (write("spec.json", '{"schema_version": 1, "spec": {}}'), "seed is missing"),
    "a seed that is a script": (
        write("spec.json", '{"schema_version": 1, "spec": {"seed": "<script>alert(1)</script>"}}'),
        "seed is '<script>alert(1)</script>', not a whole number",
    ),
    "a folder as spec": (lambda run: replace_by_folder(run / "spec.json"), "spec.json: cannot be read"),
    "a text for a number": (append(row(metrics={"train/loss": "a lot"})), "'train/loss' is not a number"),
    "a number too large": (append(json.dumps(row(ms=1)).replace("1.0", HUGE).encode()), "is not a number"),
    "no seq": (append(without(row(), "seq")), "seq is missing"),
    "no metrics and no event": (append(without(row(), "metrics")), "metrics is missing"),
    "a metric named like a path": (append(row(metrics={"../x": 1.0})), "'../x' cannot be a metric"),
    "a time of year 10000": (append(row(ms=10**18)), "ms is 1000000000000000000"),
    "a step beyond integers": (append(row(step=2**70)), "step is 1180591620717411303424"),
    "a journal line that is a list": (append([1, 2]), "is a list, not an object"),
    "a journal line that is not JSON": (append(b"{"), "is not JSON"),
    "a journal line nested deeply": (append(DEEP.encode()), "is nested too deeply"),
    "an evaluation of a path": (
        append({"seq": 99, "ms": 1, "event": "evaluation", "facts": {"key": "../../../x", "prefix": "eval"}}),
        "key is '../../../x'",
    ),
    "a checkpoint at no step": (
        append({"seq": 99, "ms": 1, "event": "checkpoint", "facts": {"step": None}}),
        "step is None, not a whole number",
    ),
    "an empty journal": (write("journal-0001.jsonl", ""), ""),
    "a journal of NUL bytes": (write("journal-0001.jsonl", bytes(1000) + b"\n"), "the header line is damaged"),
    "a folder as journal": (lambda run: replace_by_folder(run / "journal-0001.jsonl"), "it is not a file"),
    "a journal of no number": (write("journal-last.jsonl", "x\n"), ""),
    "environments that are an object": (write("environment.json", "{}"), "environments is an object, not a list"),
    "an environment without attempt": (write("environment.json", '[{"harness": "1"}]'), "attempt is missing"),
    "a protocol that is a list": (
        lambda run: next((run / "evaluations").glob("*.json")).write_text("[]"),
        "is a list, not an object",
    ),
    "a damaged lock": (lambda run: age(write("lock/000009", '{"heartbeat": "x", "pid": []}')(run)), ""),
    "a folder in the lock": (lambda run: add_folder(run / "lock/000009"), ""),
    "a lock that is a loop of links": (lambda run: (run / "lock/000009").symlink_to(run / "lock/000009"), ""),
    "an odd number in the lock": (lambda run: (run / "lock" / "²").write_text(""), ""),
}


def invoke(*arguments: str | Path) -> str:
    """Run a command that has to succeed; return its output."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exc_info)
    return result.output


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_named_with_a_reason_and_the_others_are_read(runs, damage, tmp_path):
    change, reason = DAMAGES[damage]
    keys = [record.run_key for record in load_records(runs, "tiny")]
    change(runs / keys[1])

    everything = (
        invoke("status", "--runs", runs) + invoke("list", "--runs", runs) + invoke("status", "tiny", "--runs", runs)
    )
    for key in keys:
        assert key in everything
    assert "Traceback" not in everything
    assert "\x1b" not in everything
    rows = json.loads(CliRunner().invoke(cli, ["status", "--json", "--runs", str(runs)]).stdout)
    assert len(rows) == 4
    assert sum(row["state"] == "done" for row in rows) >= 3

    records = {record.run_key: record for record in load_records(runs, "tiny")}
    assert {keys[0], keys[2]} <= records.keys()
    usable, data, unusable = report._read(list(records.values()), Presentation())
    assert {keys[0], keys[2]} <= {record.run_key for record in usable}
    assert not [outcome for outcome in data.values() if isinstance(outcome, Exception)]
    reasons = [*unreadable_runs(runs, "tiny").values(), *unusable.values()]
    if keys[1] in records:
        reasons += [records[keys[1]].status.reason, *records[keys[1]].problems]
    assert reason in " ".join([everything, *reasons])

    invoke("export", "tiny", "-o", tmp_path / "tiny.tar.gz", "--runs", runs)
    invoke("import", tmp_path / "tiny.tar.gz", "--runs", tmp_path / "elsewhere")
    assert {keys[0], keys[2]} <= {run.key for run in all_runs(tmp_path / "elsewhere")}
    invoke("clean", "--runs", runs)
    for verb in (["why", keys[1]], ["logs", keys[1]], ["retry", keys[1]]):
        result = CliRunner().invoke(cli, [*verb, "--runs", str(runs)])
        assert result.exception is None or isinstance(result.exception, HarnessError | SystemExit), result.exc_info


def test_a_sync_uploads_the_other_runs_and_names_the_damaged_one(runs, tmp_path, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri := f"sqlite:///{tmp_path / 'mlflow.db'}")
    keys = [record.run_key for record in load_records(runs, "tiny")]
    write("journal-0001.jsonl", bytes(1000) + b"\n")(runs / keys[0])
    append(row(metrics={"train/loss": "a lot"}))(runs / keys[1])
    result = CliRunner().invoke(cli, ["sync", "tiny", "--runs", str(runs)])
    assert result.exit_code == 1
    assert f"{keys[0]}: not uploaded: " in result.output
    assert "the header line is damaged" in result.output
    assert f"{keys[1]}: journal-0001.jsonl: line" in result.output
    assert "3 runs, " in result.output and "2 with problems" in result.output
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("tiny")
    stored = client.search_runs([experiment.experiment_id], "tags.kind = 'run'")
    assert {run.data.tags["run_key"] for run in stored} == set(keys[1:])


def test_mlflow_takes_names_and_texts_that_it_would_refuse_elsewhere(tmp_path):
    import mlflow

    directory = RunDirectory(tmp_path / "0123456789ab")
    directory.path.mkdir()
    spec = {"seed": 0, "../a": {"x<y>|": 1}, "note": "a\x00\ud800"}
    directory.spec_path.write_text(json.dumps({"schema_version": 1, "spec": spec}))
    directory.add_to_study("tiny", {"arm": "$x^{ <b>", "replicate": 0})
    with directory.lock(), directory.open_journal(resumed_from_step=0) as journal:
        journal.event("failed", reason="x")
    directory.set_status(Status("failed", reason="\x1b[2J\x00 it\nended", cause="error"))
    (directory.path / "samples").mkdir()
    (directory.path / "samples" / "secret.png").symlink_to("/etc/passwd")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    report = sync_run(directory, tracking_uri=uri)
    assert report.problems == []
    client = mlflow.MlflowClient(tracking_uri=uri)
    run = client.get_run(report.studies["tiny"].run_id)
    assert run.data.params == {"seed": "0", "a.x_y__": "1", "note": "a  "}
    assert run.data.tags["reason"] == " [2J  it\nended"
    assert client.list_artifacts(run.info.run_id, "samples") == []


@pytest.mark.slow
@pytest.mark.usefixtures("without_closed_forms")
def test_the_page_names_what_it_leaves_out_and_runs_no_script(runs, tmp_path):
    keys = [record.run_key for record in load_records(runs, "tiny")]
    edit("status.json", state="<img src=x onerror=alert(1)>")(runs / keys[0])
    edit("studies/tiny.json", replicate="<script>alert(2)</script>")(runs / keys[1])
    edit("status.json", state="failed", reason="<script>alert(3)</script>\x00\ud800\u202e")(runs / keys[2])
    text = report.report(runs, tmp_path / "figures", ["tiny"]).read_text()
    scripts = re.findall(r"<script\b[^>]*>(.*?)</script", text, re.DOTALL | re.IGNORECASE)
    assert not [script for script in scripts if "alert(" in script]  # the page's own
    assert "script-src 'sha256-" in text
    assert "<img src=x" not in text
    assert f"<li><code>{keys[1]}</code>: studies/tiny.json: replicate is" in text
    assert "&lt;script&gt;alert(3)&lt;/script&gt;" in text
    assert not {"\x00", "\u202e"} & set(text)
    assert "default-src 'none'; img-src 'self'" in text


def test_a_copy_of_a_run_beside_it_is_no_replicate_and_is_named(runs):
    key = load_records(runs, "tiny")[0].run_key
    for name in (f"{key} (copy)", f"{key}.bak", "x" * 16):
        shutil.copytree(runs / key, runs / name)
    renamed = "0123456789abcdef"
    shutil.copytree(runs / key, runs / renamed)
    assert len(load_records(runs, "tiny")) == 3
    reasons = unreadable_runs(runs, "tiny")
    assert reasons[f"{key} (copy)"].startswith("its name is not a run_key")
    assert reasons[renamed] == f"spec.json is the spec of run {key}: it was changed, or the folder renamed"
    assert f"left out: {runs / key} (copy): its name is not a run_key" in invoke("status", "--runs", runs)


def test_a_run_that_may_not_be_read_is_named(runs, monkeypatch):
    key = load_records(runs, "tiny")[0].run_key
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != key)  # root may read everything
    assert layout.folders_that_are_no_runs(runs) == {key: "it cannot be read: permission denied"}


def test_a_run_with_a_damaged_status_resumes_when_it_is_submitted_again(runs):
    directory = RunDirectory(runs / load_records(runs, "tiny")[0].run_key)
    write("status.json", "")(directory.path)
    status = directory.status()
    assert (status.state, status.cause) == ("interrupted", "killed")
    with directory.lock():
        assert directory.status().state == "running"
