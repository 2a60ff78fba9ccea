"""Specs damaged by a fuzzer: each is valid, or refused line by line with its place and a reason; nothing else happens.

The damage is of two kinds: of the text (lines and tokens moved, doubled, lost, joined, bytes flipped) and of the values
(YAML's traps, names that leave their folder, numbers out of all bounds). `make_runs` then lets every study that is left
valid join a run directory, as a submission does, and looks whether anything appeared elsewhere.
"""

import json
import re
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import SpecError
from harness.records.directory import RunDirectory
from harness.records.files import safe_name
from harness.spec.base import SCHEMA_VERSION
from harness.spec.run import RunSpec
from harness.study.expand import load_study

BASE = """\
study: base
data: digits
model: {channels: 32, channel_mult: [1, 2], num_res_blocks: 1, attention_resolutions: [4]}
train: {steps: 100, batch_size: 64, ema_rate: 0.9}
evaluate:
  - {name: eval, nll: {num_images: 50}, grid: 16}
"""

STUDIES = (
    """\
study: schedules  # Does cosine beat linear?
extends: base.yaml
arms:
  linear: {diffusion.schedule: {name: linear}}
  cosine: {diffusion.schedule: {name: cosine, s: 0.008}, diffusion.num_timesteps: 200}
replicates: 2
exclude:
  - {arm: linear}
""",
    """\
study: widths
extends: [base.yaml]
grid:
  model.channels & optim.lr: [[16, 2e-3], [32, 1e-3]]
  diffusion.mean_type: [epsilon, x_0]
evaluate:
  - {name: eval, nll: {estimator: full, num_images: 20}}
  - name: eval
    replicates: [0]
    fidelity: {num_samples: 100, num_steps: 50, extractor: classifier}
""",
    """\
study: alone
seed: 3
data: {name: image_folder, path: cats/small, image_size: 32, num_classes: 2}
diffusion: {num_timesteps: 1000, var_type: learned_range, schedule: cosine}
objective: {name: hybrid, lambda_vlb: 0.001}
timestep_sampler: loss_second_moment
model: {channels: 32, dropout: 0.1, class_cond: true}
optim: {lr: 1.0e-4, betas: [0.9, 0.999], grad_clip: 1}
train: {steps: 5000}
resources: {threads: 1, time_minutes: 60}
records: {keep_every: 100}
data_root: /data
budget_gpu_hours: 4
""",
    """\
study: points
data: mog
model: {name: mlp, width: 64}
train: {steps: 1000}
evaluate: [{name: eval, fidelity: {num_samples: 500}, sweep: {samplers: [ancestral, {name: ddim, eta: 0.5}]}}]
""",
)

WORDS = (
    """\
2e-4|no|yes|on|~|null|true|007|0o17|0x1F|1:30|1_000|.5|-1|0|1e400|.inf|.nan|-0.0|9999999999999999999999|1e308
|../../etc/passwd|/etc/passwd|~/x|..|.|a/b|"a\\nb"|"\\0"|"\\uD800"|"\\UFFFFFFFF"|'|"|{}|[]|[1, [2]]|{name: [1]}
|{name: {a: 1}}|{name: 7}|{name: no}|{name: }|&a x|*a|!!python/object:os.system x|!tag x|<<: {}|? x|- x|: x|#|---|...
|%YAML 1.1|\t|\u2028|\u00a0|\x85|\ufeff|é|日本|study|extends|arms|grid|evaluate|exclude|replicates|seed|model|name
|simple|vlb|hybrid|cosine|linear|unet|mlp|digits|cifar10|mog|ancestral|learned|fixed|base.yaml|&|,|:|[|]|{|}||\\|@|`
""".replace("\n|", "|")
    .rstrip("\n")
    .split("|")
)
JUNK = [*WORDS, "|", ">", "|\n  text", "x" * 300, "1" * 5000, "[" * 40, "{a: " * 40]

TOKEN = re.compile(r"[\w./-]+|[^\w\s]")


def _lines(change):
    def damage(draw, text):
        lines = text.split("\n")
        change(draw, lines, draw(st.integers(0, len(lines) - 1)))
        return "\n".join(lines)

    return damage


def _tokens(change):
    def damage(draw, text):
        found = [match.span() for match in TOKEN.finditer(text)]
        if not found:
            return text
        start, end = draw(st.sampled_from(found))
        return text[:start] + change(draw, text[start:end], text) + text[end:]

    return damage


def _insert(draw, text):
    at = draw(st.integers(0, len(text)))
    return text[:at] + draw(st.sampled_from(JUNK)) + text[at:]


def _swap_lines(draw, lines, i):
    j = draw(st.integers(0, len(lines) - 1))
    lines[i], lines[j] = lines[j], lines[i]


def _indent(draw, lines, i):
    lines[i] = draw(st.sampled_from(["  ", "\t", "- ", " "])) + lines[i]


DAMAGES = (
    _lines(lambda draw, lines, i: lines.pop(i)),
    _lines(lambda draw, lines, i: lines.insert(draw(st.integers(0, len(lines))), lines[i])),
    _lines(_swap_lines),
    _lines(_indent),
    _lines(lambda draw, lines, i: lines.__setitem__(i, lines[i].lstrip())),
    _tokens(lambda draw, token, text: draw(st.sampled_from(JUNK))),
    _tokens(lambda draw, token, text: draw(st.sampled_from(TOKEN.findall(text)))),
    _tokens(lambda draw, token, text: ""),
    _tokens(lambda draw, token, text: token * 2),
    _tokens(lambda draw, token, text: token[:-1]),
    _tokens(lambda draw, token, text: draw(st.text(max_size=5))),
    _insert,
)


@st.composite
def damaged_studies(draw):
    """Return the bytes of a study after one to three damages."""
    text = draw(st.sampled_from(STUDIES))
    for damage in draw(st.lists(st.sampled_from(DAMAGES), min_size=1, max_size=3)):
        text = damage(draw, text)
    content = text.encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 19)) == 0:
        at = draw(st.integers(0, len(content)))
        content = content[:at] + draw(st.binary(min_size=1, max_size=4)) + content[at + 1 :]
    return content


def refused_or_valid(path):
    """Load a study; hold a refusal to its form. Returns the study, or None."""
    try:
        study = load_study(path)
    except SpecError as error:
        for line in str(error).split("\n"):
            # The file (the study or its base), the line, and a reason in words.
            assert re.match(rf"{re.escape(str(path.parent))}/[^:]*:\d+: \S.*[a-z]{{2}}", line), repr(line)
            assert line.isprintable() and len(line) < 1000, repr(line)
        return None
    for run in study.runs[:3]:
        for evaluation in run.evaluations:  # these names become those of files
            assert safe_name(evaluation.name) and safe_name(evaluation.key)
        stored = run.spec.model_dump(mode="json")
        assert RunSpec.model_validate(stored).run_key == run.run_key  # what is stored gives the same key again
    return study


def make_runs(study, runs):
    for run in study.runs[:2]:
        directory = RunDirectory(runs / run.run_key)
        directory.create(run.spec.model_dump(mode="json"), SCHEMA_VERSION)
        directory.add_to_study(study.name, run.membership())


def fuzz(tmp_path_factory, writes_only_below, examples, joined):
    """Try that many damaged studies; let the first `joined` valid ones become runs. Returns how many were valid."""
    home = tmp_path_factory.mktemp("home")
    (home / "studies").mkdir()
    runs = home / "inner" / "runs"
    runs.mkdir(parents=True)
    (home / "studies" / "base.yaml").write_text(BASE)
    path = home / "studies" / "study.yaml"
    path.write_bytes(b"")
    counts = {"valid": 0, "refused": 0}

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(damaged_studies())
    def one(content):
        path.write_bytes(content)
        with writes_only_below(runs):
            study = refused_or_valid(path)
            counts["valid" if study else "refused"] += 1
            if study and counts["valid"] <= joined:
                make_runs(study, runs)

    one()
    outside = {str(p.relative_to(home)) for p in home.rglob("*") if runs not in p.parents}
    assert outside == {"studies", "studies/base.yaml", "studies/study.yaml", "inner", "inner/runs"}
    inside = {p.relative_to(runs).parts[1:] for p in runs.glob("*/**/*")}
    assert all(parts[0] in ("spec.json", "spec.yaml", "studies") and len(parts) <= 2 for parts in inside)
    print(f"{examples} damaged specs: {counts['valid']} valid, {counts['refused']} refused", file=sys.stderr)
    return counts


@pytest.mark.slow
def test_5000_damaged_specs_are_valid_or_refused_with_their_place(tmp_path_factory, writes_only_below):
    counts = fuzz(tmp_path_factory, writes_only_below, 5000, joined=100)
    assert min(counts.values()) > 250


LEAVING = (
    "../out",
    "..",
    "a/../../out",
    "/tmp/out",
    "~/out",
    "a\nb",
    "a\0b",
    "a/b",
    ".hidden",
    "x" * 300,
    "\ud800",
    "-",
    "",
)
PLACES = {
    "study": "study: {}\nextends: base.yaml\n",
    "arm": "study: s\nextends: base.yaml\narms: {{{}: {{optim.lr: 0.5}}}}\n",
    "evaluation": "study: s\nextends: base.yaml\nevaluate: [{{name: {}, nll: {{num_images: 4}}}}]\n",
    "extends": "study: s\nextends: {}\n",
    "data": "study: s\nextends: base.yaml\ndata: {{name: image_folder, path: {}, image_size: 8, num_classes: 2}}\n",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_name_that_leaves_its_folder_is_refused_or_writes_nothing_outside(tmp_path, writes_only_below, place):
    (tmp_path / "base.yaml").write_text(BASE)
    path, runs, counts = tmp_path / "study.yaml", tmp_path / "runs", {"valid": 0, "refused": 0}
    runs.mkdir()
    path.write_text(PLACES[place].format("base.yaml" if place == "extends" else "fine"))
    assert refused_or_valid(path)  # it is the name that is refused below, and nothing else
    for name in LEAVING:
        path.write_text(PLACES[place].format(json.dumps(name)))
        with writes_only_below(runs):
            study = refused_or_valid(path)
            if study:
                make_runs(study, runs)
        counts["valid" if study else "refused"] += 1
    print(f"{place}: {len(LEAVING)} names that leave their folder: {counts}; nothing written outside", file=sys.stderr)
    if place in ("study", "evaluation", "extends"):
        assert counts["valid"] == 0


def test_the_watch_sees_what_is_written_outside(tmp_path, writes_only_below):
    (tmp_path / "runs").mkdir()
    for write in (lambda p: p.write_text(""), lambda p: p.unlink(), lambda p: p.mkdir(), lambda p: p.rename(f"{p}2")):
        with pytest.raises(AssertionError, match="outside"), writes_only_below(tmp_path / "runs"):
            write(tmp_path / "outside")


def test_an_unknown_key_that_bears_the_name_of_its_part_is_refused_with_its_place(tmp_path):
    # The fuzzer's find: {name: ddim, ddim: 0.5} was a KeyError.
    path = tmp_path / "study.yaml"
    path.write_text(STUDIES[3].replace("{name: ddim, eta: 0.5}", "{name: ddim, ddim: 0.5}"))
    with pytest.raises(SpecError, match=r"study\.yaml:5: evaluate\.0\.sweep\.samplers\.1\.ddim: unknown key; .*eta"):
        load_study(path)


@pytest.mark.parametrize("study", STUDIES, ids=lambda text: text.split()[1])
def test_the_undamaged_studies_are_valid(tmp_path, study):
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "study.yaml").write_text(study)
    assert refused_or_valid(tmp_path / "study.yaml") is not None
