"""A YAML study -> a list of runs: extends, arms, grid, replicates, exclude. Every mistake gets its file and line.

The dialect is YAML less its traps: `2e-4` is a number, bare `no` and `on` are refused, and so are duplicate keys,
anchors, tags and merge keys. There are no loops and no interpolation; a study that needs logic is a Python function
that returns specs.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml
from pydantic import TypeAdapter, ValidationError

from harness.errors import SpecError
from harness.spec import SCHEMA_VERSION, Evaluation, Part, Records, Resources, RunSpec

Keys = tuple[str | int, ...]

RUN_PARTS = tuple(RunSpec.model_fields)  # what the weights depend on
SIDE_PARTS = ("resources", "records")
STUDY_PARTS = ("study", "extends", "arms", "grid", "replicates", "exclude", "evaluate", "data_root", "budget_gpu_hours")
MAX_RUNS = 100_000
MAX_FILE_BYTES = 1 << 20
MAX_DEPTH = 30


class Mark(NamedTuple):
    """Where a value was written."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass
class Document:
    """Plain values with the place of each: `marks[("optim", "lr")]` is where that key stands."""

    value: dict[str, Any]
    marks: dict[Keys, Mark]

    def mark(self, keys: Keys) -> Mark:
        """Return the place of the nearest written parent of `keys`."""
        while keys and keys not in self.marks:
            keys = keys[:-1]
        return self.marks.get(keys, Mark("study", 0))

    def fail(self, keys: Keys, what: str) -> SpecError:
        """Return the error that says what is wrong at `keys`, with its file and line."""
        return _fail(self.mark(keys), _dotted(keys), what)

    def below(self, above: Keys) -> Callable[[Keys, Keys], Mark]:
        """Return what finds the places of a part that stands at `above`."""
        return lambda keys, culprit: self.mark((*above, *keys))


def _fail(mark: Mark, path: str, what: str) -> SpecError:
    return SpecError(_line(mark, path, what))


def _line(mark: Mark, path: str, what: str) -> str:
    """Spell one mistake on one printable line of bounded length, whatever the file had in it."""
    text = f"{mark}: {_short(path, 120)}: {_short(what, 600)}" if path else f"{mark}: {_short(what, 600)}"
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length // 2]} ... {text[-length // 2 + 5 :]}"


def _dotted(keys: Keys) -> str:
    return ".".join(map(str, keys))


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return `did you mean 'x'?` or the list of choices."""
    close = difflib.get_close_matches(str(word), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choices: {', '.join(known)}"


# ---------------------------------------------------------------------------------------------------------------- YAML


class _PlainLoader(yaml.SafeLoader):
    """Composes nodes only; without implicit resolvers a plain scalar comes as text and we read it ourselves."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012  (PyYAML's own attribute)


_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*)$")
_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$")
_PATH = re.compile(r"[A-Za-z_0-9]+(\.[A-Za-z_0-9]+){0,9}")
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NULLS = ("", "~", "null", "Null", "NULL")
_AMBIGUOUS = re.compile(r"(yes|no|on|off|y|n)$", re.IGNORECASE)


def _scalar(text: str, mark: Mark, keys: Keys) -> Any:
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _AMBIGUOUS.match(text):
        raise _fail(mark, _dotted(keys), f"bare {text!r} is a boolean to YAML 1.1; write true or false, or quote it")
    if _INT.match(text) and len(text) < 20:
        return int(text.replace("_", ""))
    if _FLOAT.match(text):
        if re.match(r"[-+]?0[0-9]", text):
            raise _fail(mark, _dotted(keys), f"{text!r} is octal to some readers; drop the leading zero, or quote it")
        number = float(text.replace("_", ""))
        if number in (float("inf"), float("-inf")):
            raise _fail(mark, _dotted(keys), f"{text!r} is beyond the range of a float")
        return number
    return text


def _construct(node: yaml.Node, file: str, keys: Keys, marks: dict[Keys, Mark], seen: set[int]) -> Any:
    mark = Mark(file, node.start_mark.line + 1)
    marks.setdefault(keys, mark)
    if id(node) in seen:
        raise _fail(mark, _dotted(keys), "anchors and aliases are not part of a study; use extends or arms")
    seen.add(id(node))
    if len(keys) > MAX_DEPTH:
        raise _fail(mark, _dotted(keys[:4]) + "...", f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(node, yaml.ScalarNode):
        if node.tag != "tag:yaml.org,2002:str":
            raise _fail(
                mark, _dotted(keys), f"tags such as {node.tag!r} are not part of a study; write the plain value"
            )
        return _scalar(node.value, mark, keys) if node.style is None else node.value
    kind = "seq" if isinstance(node, yaml.SequenceNode) else "map"
    if node.tag != f"tag:yaml.org,2002:{kind}":
        raise _fail(mark, _dotted(keys), f"tags such as {node.tag!r} are not part of a study; write the plain value")
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, file, (*keys, i), marks, seen) for i, item in enumerate(node.value)]
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        at = Mark(file, key_node.start_mark.line + 1)
        if not isinstance(key_node, yaml.ScalarNode) or key_node.value == "<<":
            raise _fail(at, _dotted(keys), "keys are plain words (no merge keys, lists or maps)")
        key = key_node.value
        here = (*keys, key)
        if key in mapping:
            raise _fail(at, _dotted(here), f"duplicate key; it stands at line {marks[here].line} already")
        marks[here] = at
        mapping[key] = _construct(value_node, file, here, marks, seen)
    return mapping


def parse_yaml(text: str, file: str) -> tuple[Any, dict[Keys, Mark]]:
    """Read one YAML text as plain values and their places.

    Raises:
        SpecError: it is not YAML, or it uses one of YAML's traps; with file and line.
    """
    loader = None
    try:
        loader = _PlainLoader(text)
        node = loader.get_single_node()
        marks: dict[Keys, Mark] = {}
        return (None if node is None else _construct(node, file, (), marks, set())), marks
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        hint = "" if "\t" not in text else " (YAML indents with spaces, not tabs)"
        raise _fail(Mark(file, line), "", f"not YAML: {error.problem or error.context}{hint}") from None
    except yaml.YAMLError as error:
        raise _fail(Mark(file, 1), "", f"not YAML: {' '.join(str(error).split())[:200]}") from None
    except RecursionError:
        raise _fail(Mark(file, 1), "", f"nested deeper than {MAX_DEPTH} levels") from None
    except (ValueError, OverflowError) as error:  # PyYAML on "\UFFFFFFFF"
        line = loader.line + 1 if loader else 1
        raise _fail(Mark(file, line), "", f"not YAML: an escape stands for no character: {error}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _read(path: Path, asked_by: Mark | None = None) -> Document:
    file = str(path)
    try:
        if path.exists() and not path.is_file():  # a device would be read without end
            raise OSError(0, "not a file")
        with path.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        raise (
            _fail(asked_by, "extends", f"{file}: {reason}") if asked_by else _fail(Mark(file, 0), "", reason)
        ) from None
    if len(content) > MAX_FILE_BYTES:
        raise _fail(Mark(file, 1), "", f"larger than {MAX_FILE_BYTES} bytes; this is not a study")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _fail(Mark(file, line), "", f"not UTF-8 text: byte {content[error.start]:#04x}") from None
    value, marks = parse_yaml(text, file)
    if not isinstance(value, dict):
        raise _fail(Mark(file, 1), "", "a study is a mapping that begins with `study: name`")
    return Document(value, marks)


# ------------------------------------------------------------------------------------------------------------- merging


def merge(base: Any, over: Any) -> Any:
    """Lay `over` upon `base`: mappings merge key by key, all else replaces; a mapping that says its `name` replaces."""
    if isinstance(base, dict) and isinstance(over, dict) and "name" not in over:
        return {**base, **{key: merge(base.get(key), value) for key, value in over.items()}}
    return over


def _resolve_extends(path: Path, chain: tuple[Path, ...] = (), asked_by: Mark | None = None) -> Document:
    document = _read(path, asked_by)
    here = path.resolve()
    if here in chain:
        raise SpecError(f"{asked_by}: extends: {path} extends itself")
    parents = document.value.pop("extends", [])
    mark = document.mark(("extends",))
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise _fail(mark, "extends", "give a path relative to this file, or a list of them")
    merged = Document({}, {})
    for parent in parents:
        base = _resolve_extends(path.parent / parent, (*chain, here), mark)
        base.value.pop("study", None)
        merged = Document(merge(merged.value, base.value), {**merged.marks, **base.marks})
    return Document(merge(merged.value, document.value), {**merged.marks, **document.marks})


def _put(value: Any, keys: Keys, new: Any, mark: Mark, above: Keys = ()) -> Any:
    """Return a copy of `value`, which stands at `above`, with `new` merged in at `keys`; the rest is shared."""
    if not keys:
        return merge(value, new)
    if isinstance(value, list):
        index = int(keys[0]) if str(keys[0]).isdigit() else -1
        if not 0 <= index < len(value):
            known = ", ".join(map(str, range(len(value)))) or "none"
            raise _fail(mark, _dotted((*above, *keys)), f"no such entry; choices: {known}")
        here = (*above, keys[0])
        return [_put(item, keys[1:], new, mark, here) if i == index else item for i, item in enumerate(value)]
    if isinstance(value, str):
        value = {"name": value}
    if value is not None and not isinstance(value, dict):
        raise _fail(mark, _dotted((*above, *keys)), f"{value!r} has no parts")
    value = value or {}
    return {**value, keys[0]: _put(value.get(keys[0]), keys[1:], new, mark, (*above, keys[0]))}


# ----------------------------------------------------------------------------------------------------------- expanding


@dataclass(frozen=True)
class Override:
    path: str
    value: Any
    mark: Mark

    @property
    def keys(self) -> Keys:
        return tuple(self.path.split("."))


@dataclass(frozen=True)
class Variant:
    """One point of the study before replication: a name for legends and what it changes."""

    arm: str
    overrides: tuple[Override, ...]


@dataclass(frozen=True)
class Run:
    """One planned run: its spec (the identity), and what stands around it."""

    study: str
    arm: str
    replicate: int
    spec: RunSpec
    overrides: Mapping[str, Any]
    evaluations: tuple[Evaluation, ...] = ()
    resources: Resources = field(default_factory=Resources)
    records: Records = field(default_factory=Records)
    data_root: str | None = None

    @property
    def run_key(self) -> str:
        return self.spec.run_key

    def facts(self) -> dict[str, Any]:
        """Return what the run directory keeps of this run's place in its study."""
        return {
            "arm": self.arm,
            "replicate": self.replicate,
            "overrides": dict(self.overrides),
            "evaluations": [evaluation.model_dump(mode="json") for evaluation in self.evaluations],
            "resources": self.resources.model_dump(mode="json"),
            "records": self.records.model_dump(mode="json"),
            "data_root": self.data_root,
        }

    @cached_property
    def resolved(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, **self.spec.model_dump(mode="json")}


@dataclass(frozen=True)
class Study:
    name: str
    path: Path
    runs: tuple[Run, ...]
    budget_gpu_hours: float | None = None

    def warnings(self) -> list[str]:
        """Return each warning once, with the arms that it concerns."""
        arms: dict[str, list[str]] = {}
        for run in self.runs:
            if run.replicate == 0:
                for warning in run.spec.warnings():
                    arms.setdefault(warning, []).append(run.arm)
        return [f"{', '.join(names)}: {warning}" for warning, names in arms.items()]


def load_study(path: str | Path, *, sets: Sequence[str] = (), inception: bool = False) -> Study:
    """Read, expand and validate a study.

    Args:
        path: the YAML file.
        sets: `path=value` for once, as the command line gives them; they win over all that the file says.
        inception: whether Inception's weights are at hand (decides what `extractor: auto` means).

    Raises:
        SpecError: one line a mistake: `file:line: path: what is wrong; the choices`.
    """
    document, late = read_document(path, sets)
    if "search" in document.value:
        raise document.fail(("search",), "this file is a search: `harness search FILE` asks for its trials one by one")
    return expand(document, Path(path), late, inception)


def read_document(path: str | Path, sets: Sequence[str] = ()) -> tuple[Document, tuple[Override, ...]]:
    """Read a file with all that it extends; `sets` that concern runs come back, to be laid over each run at last."""
    document = _resolve_extends(Path(path))
    late: list[Override] = []
    for text in sets:
        override = _parse_set(text)
        head = override.path.split(".")[0]
        if head in (*STUDY_PARTS, "search"):
            document.value = _put(document.value, override.keys, override.value, override.mark)
            kept = {keys: mark for keys, mark in document.marks.items() if keys[: len(override.keys)] != override.keys}
            document.marks = {**kept, override.keys: override.mark}
        else:
            late.append(override)
    return document, tuple(late)


def is_search(path: str | Path) -> bool:
    """Tell a search's file from a study's; one that cannot be read is none."""
    try:
        return "search" in read_document(path)[0].value
    except SpecError:
        return False


def _parse_set(text: str) -> Override:
    path, equals, value = text.partition("=")
    mark = Mark(f"--set {text}", 0)
    if not equals or not _PATH.fullmatch(path):
        raise SpecError(f"{mark}: write --set path=value, as in --set train.steps=100")
    return Override(path, parse_yaml(value, str(mark))[0], mark)


def expand(document: Document, path: Path, late: tuple[Override, ...], inception: bool) -> Study:
    """Return the runs that a document describes, all of them validated."""
    value = document.value
    known = (*STUDY_PARTS, *RUN_PARTS, *SIDE_PARTS)
    for key in value:
        if key not in known:
            raise _fail(document.mark((key,)), key, f"unknown key; {did_you_mean(key, known)}")
    name = value.get("study")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or ".." in name:
        raise _fail(
            document.mark(("study",)),
            "study",
            "name the study in letters, digits, '.', '_' and '-' (at most 100, a letter or digit first, no '..'), "
            f"not {name!r}",
        )
    replicates = value.get("replicates", 1)
    if type(replicates) is not int or not 1 <= replicates <= 10_000:
        raise _fail(
            document.mark(("replicates",)), "replicates", f"a number of runs from 1 to 10000, not {replicates!r}"
        )
    budget = value.get("budget_gpu_hours")
    if budget is not None and (type(budget) not in (int, float) or budget < 0):
        raise _fail(document.mark(("budget_gpu_hours",)), "budget_gpu_hours", f"hours, 0 or more, not {budget!r}")
    data_root = value.get("data_root")
    if data_root is not None and not isinstance(data_root, str):
        raise _fail(document.mark(("data_root",)), "data_root", f"a folder's path, not {data_root!r}")

    variants = _variants(document)
    if len(variants) * replicates > MAX_RUNS:
        raise _fail(
            document.mark(("grid",)), "grid", f"{len(variants) * replicates} runs; at most {MAX_RUNS} in a study"
        )
    base = {key: value[key] for key in (*RUN_PARTS, *SIDE_PARTS) if key in value}
    entries = _evaluation_entries(document, {variant.arm for variant in variants}, replicates)
    excluded = _exclusions(document)
    runs: list[Run] = []
    owner: dict[str, Run] = {}
    resolved_evaluations: dict[tuple[int, str], Evaluation] = {}
    for variant in variants:
        overrides = (*variant.overrides, *late)
        assembled = base
        for override in overrides:
            assembled = _put(assembled, override.keys, override.value, override.mark)
        parts = _validate_run(assembled, document, overrides)
        # A list, not a generator: every rule is asked, so that none looks idle because an earlier one hit.
        if any([rule.matches(variant.arm, parts[0]) for rule in excluded]):
            continue
        if parts[0].seed + replicates > 2**31:
            raise _fail(document.mark(("seed",)), "seed", f"{parts[0].seed} and {replicates} replicates pass 2**31 - 1")
        for replicate in range(replicates):
            # Replicates differ in the seed alone, so only the first is validated.
            spec = parts[0] if replicate == 0 else _reseed(parts[0], parts[0].seed + replicate)
            evaluations = tuple(
                _resolve_evaluation(entry, spec, inception, resolved_evaluations)
                for entry in entries
                if entry.applies(variant.arm, replicate)
            )
            _require_best(parts[2], evaluations, _place_of(document, overrides, ("records", "best")))
            changed = {o.path: o.value for o in overrides}
            run = Run(name, variant.arm, replicate, spec, changed, evaluations, parts[1], parts[2], data_root)
            if run.run_key in owner:
                twin = owner[run.run_key]
                mark = variant.overrides[-1].mark if variant.overrides else document.mark(("arms",))
                raise _fail(
                    mark,
                    "",
                    f"arms {twin.arm!r} (replicate {twin.replicate}) and {run.arm!r} (replicate {replicate}) are "
                    "the same run: they differ in nothing that the weights depend on; drop one, or exclude it",
                )
            owner[run.run_key] = run
            runs.append(run)
    for rule in excluded:
        if not rule.hits:
            raise _fail(rule.mark, "exclude", f"{rule.conditions} matches no run; drop it, or mend its values")
    if not runs:
        raise _fail(document.mark(("exclude",)), "exclude", "every run is excluded")
    return Study(name, path, tuple(runs), budget)


def _require_best(records: Records, evaluations: Sequence[Evaluation], mark: Mark) -> None:
    """Refuse a metric of the best checkpoint that no evaluation gives during training."""
    given = [f"{one.name}/nll_bpd" for one in evaluations if one.every]
    if records.best is not None and records.best not in given:
        known = did_you_mean(records.best, given) if given else "none has `every` and an nll"
        raise _fail(mark, "records.best", f"no evaluation gives {records.best!r} during training; {known}")


def _reseed(spec: RunSpec, seed: int) -> RunSpec:
    # model_copy shares nothing that depends on the seed except the cached key, which must go.
    twin = spec.model_copy(update={"seed": seed})
    twin.__dict__.pop("run_key", None)
    return twin


# ------------------------------------------------------------------------------------------------- arms, grid, exclude


def _variants(document: Document) -> list[Variant]:
    axes = [_arms(document), *_grid(document)]
    variants = []
    for point in itertools.product(*[axis for axis in axes if axis]):
        name = "-".join(variant.arm for variant in point if variant.arm) or "base"
        variants.append(Variant(name, tuple(override for variant in point for override in variant.overrides)))
        if len(variants) > MAX_RUNS:
            raise _fail(document.mark(("grid",)), "grid", f"more than {MAX_RUNS} runs in a study")
    names = [variant.arm for variant in variants]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise _fail(
            document.mark(("grid",)), "grid", f"two points are both called {twice!r}; a value stands there twice"
        )
    return variants


def _overrides(document: Document, keys: Keys, value: Any) -> Iterator[Override]:
    """Read `{a.b: 1, c: {d: 2}}` below `keys` as overrides of the run's parts."""
    known = (*RUN_PARTS, *SIDE_PARTS)
    for path, new in value.items():
        mark = document.mark((*keys, path))
        if not _PATH.fullmatch(path):
            raise _fail(mark, path, "a dotted path such as diffusion.schedule is expected")
        head = path.split(".")[0]
        if head not in known:
            raise _fail(mark, path, f"unknown key; {did_you_mean(head, known)}")
        if head == "seed":
            raise _fail(mark, path, "seeds are replicates, not arms: use `replicates: 3`")
        yield Override(path, new, mark)


def _arms(document: Document) -> list[Variant]:
    arms = document.value.get("arms")
    if arms is None:
        return []
    if not isinstance(arms, dict) or not arms:
        raise _fail(
            document.mark(("arms",)),
            "arms",
            "a mapping of names to what they change: cosine: {diffusion.schedule: cosine}",
        )
    variants = []
    for name, change in arms.items():
        keys: Keys = ("arms", name)
        if not re.fullmatch(r"[^\s/\\'\"\x00-\x1f][^/\\'\"\x00-\x1f\x7f]{0,99}", name) or not name.isprintable():
            raise _fail(
                document.mark(keys),
                f"arms.{name!r}",
                "an arm's name is printable, without slashes or quotes, at most 100 characters",
            )
        if change is not None and not isinstance(change, dict):
            raise _fail(document.mark(keys), _dotted(keys), f"a mapping of paths to values, not {change!r}")
        variants.append(Variant(name, tuple(_overrides(document, keys, change or {}))))
    return variants


def _grid(document: Document) -> list[list[Variant]]:
    grid = document.value.get("grid")
    if grid is None:
        return []
    if not isinstance(grid, dict) or not grid:
        raise _fail(document.mark(("grid",)), "grid", "a mapping of paths to lists: objective: [simple, hybrid]")
    axes = []
    for axis, points in grid.items():
        keys: Keys = ("grid", axis)
        paths = [path.strip() for path in axis.split("&")]
        if not isinstance(points, list) or not points:
            raise _fail(document.mark(keys), _dotted(keys), f"a list of values, not {points!r}")
        variants, rows = [], []
        for index, point in enumerate(points):
            row = point if len(paths) > 1 else [point]
            if not isinstance(row, list) or len(row) != len(paths):
                raise _fail(
                    document.mark((*keys, index)),
                    f"grid.{axis}",
                    f"{len(paths)} paths move together, so every point is a list of {len(paths)} values, not {point!r}",
                )
            rows.append(row)
        names = labels(paths, rows)
        for index, row in enumerate(rows):
            mark = document.mark((*keys, index))
            values = [next(_overrides(document, keys, {path: value})) for path, value in zip(paths, row, strict=True)]
            variants.append(Variant(names[index], tuple(Override(o.path, o.value, mark) for o in values)))
        axes.append(variants)
    return axes


def labels(paths: list[str], rows: list[list[Any]]) -> list[str]:
    """Name the points of an axis as briefly as they stay apart: `hybrid`, `lr=0.001`, `channels=64`."""

    def label(path: str, value: Any, full: bool) -> str:
        if isinstance(value, dict) and "name" in value:
            rest = ",".join(f"{key}={one}" for key, one in value.items() if key != "name")
            return f"{value['name']}({rest})" if full and rest else str(value["name"])
        if isinstance(value, str):
            return value
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        return f"{path.split('.')[-1]}={text}"

    for count, full in ((1, False), (1, True), (len(paths), True)):
        names = [",".join(label(p, v, full) for p, v in list(zip(paths, row, strict=True))[:count]) for row in rows]
        if len(set(names)) == len(names):
            break
    return [re.sub(r"[^\w.,=()+-]", "_", name)[:80] for name in names]


@dataclass
class _Exclusion:
    conditions: dict[str, Any]
    mark: Mark
    hits: int = 0

    def matches(self, arm: str, spec: RunSpec) -> bool:
        hit = all(
            arm == wanted if path == "arm" else self._holds(path, wanted, spec)
            for path, wanted in self.conditions.items()
        )
        self.hits += hit
        return hit

    def _holds(self, path: str, wanted: Any, spec: RunSpec) -> bool:
        found: Any = spec
        for key in path.split("."):
            if not isinstance(found, Part) or key not in type(found).model_fields:
                return False
            found = getattr(found, key)
        if isinstance(found, Part):
            wanted = {"name": wanted} if isinstance(wanted, str) else wanted
            plain = found.model_dump(mode="json")
            return isinstance(wanted, dict) and all(plain.get(key) == one for key, one in wanted.items())
        return (list(found) if isinstance(found, tuple) else found) == wanted


def _exclusions(document: Document) -> list[_Exclusion]:
    rules = document.value.get("exclude", [])
    if not isinstance(rules, list) or not all(isinstance(rule, dict) and rule for rule in rules):
        raise _fail(
            document.mark(("exclude",)), "exclude", "a list of mappings: - {objective: vlb, diffusion.schedule: linear}"
        )
    return [_Exclusion(rule, document.mark(("exclude", index))) for index, rule in enumerate(rules)]


# ---------------------------------------------------------------------------------------------------------- validation


@dataclass(frozen=True)
class _EvaluationEntry:
    evaluation: Evaluation
    arms: tuple[str, ...] | None
    replicates: tuple[int, ...] | None
    mark: Mark
    index: int

    def applies(self, arm: str, replicate: int) -> bool:
        return (self.arms is None or arm in self.arms) and (self.replicates is None or replicate in self.replicates)


def _evaluation_entries(document: Document, arm_names: set[str], num_replicates: int) -> list[_EvaluationEntry]:
    entries = document.value.get("evaluate", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise _fail(document.mark(("evaluate",)), "evaluate", "a list of protocols: - {name: eval, nll: {}}")
    found: list[_EvaluationEntry] = []
    for index, entry in enumerate(entries):
        keys: Keys = ("evaluate", index)
        protocol = {key: value for key, value in entry.items() if key not in ("arms", "replicates")}
        arms, replicates = entry.get("arms"), entry.get("replicates")
        for key, wanted, kind in (("arms", arms, str), ("replicates", replicates, int)):
            if wanted is not None and not (isinstance(wanted, list) and all(type(one) is kind for one in wanted)):
                raise _fail(document.mark((*keys, key)), _dotted((*keys, key)), f"a list, not {wanted!r}")
        for arm in arms or ():
            if arm not in arm_names:
                raise _fail(
                    document.mark((*keys, "arms")),
                    _dotted((*keys, "arms")),
                    f"no arm is called {arm!r}; {did_you_mean(arm, sorted(arm_names))}",
                )
        for replicate in replicates or ():
            if not 0 <= replicate < num_replicates:
                raise _fail(
                    document.mark((*keys, "replicates")),
                    _dotted((*keys, "replicates")),
                    f"no replicate {replicate}; choices: 0 to {num_replicates - 1}",
                )
        evaluation = validate(Evaluation, protocol, document.below(keys), keys)
        taken = {part for one in found if one.evaluation.name == evaluation.name for part in one.evaluation.parts}
        twice = [part for part in evaluation.parts if part in taken]
        if twice:
            raise _fail(
                document.mark(keys),
                f"evaluate.{index}.name",
                f"two evaluations called {evaluation.name!r} measure {' and '.join(twice)}; the name is the prefix of "
                "their metrics, so give one of them another",
            )
        selection = (tuple(arms) if arms is not None else None, tuple(replicates) if replicates is not None else None)
        found.append(_EvaluationEntry(evaluation, *selection, document.mark(keys), index))
    return found


def _resolve_evaluation(
    entry: _EvaluationEntry, spec: RunSpec, inception: bool, known: dict[tuple[int, str], Any]
) -> Evaluation:
    # What an evaluation resolves to depends on these parts of the spec alone; a thousand runs share a few of them.
    about = (entry.index, f"{spec.data!r} {spec.diffusion.var_type} {spec.diffusion.num_timesteps}")
    if about not in known:
        try:
            known[about] = entry.evaluation.resolve(spec, inception=inception)
        except ValueError as error:
            raise _fail(entry.mark, f"evaluate.{entry.index}", str(error)) from None
    return known[about]


_ADAPTERS: dict[type[Part], TypeAdapter] = {}


def validate(kind: type[Part], value: Any, where: Callable[[Keys, Keys], Mark], prefix: Keys = ()) -> Any:
    """Validate plain values as `kind`, strictly; turn pydantic's errors into our lines."""
    adapter = _ADAPTERS.setdefault(kind, TypeAdapter(kind))
    try:
        return adapter.validate_python(_tuples(value), strict=True)
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False):
            if problem["type"] == "too_short" and problem["input"]:
                continue  # a list is short only because its bad items were left out: those have lines of their own
            keys = _real_keys(problem["loc"], value, kind)
            path = _dotted((*prefix, *keys))
            what = _explain(problem, kind, keys, value)
            # A rule between parts has no place of its own; its message begins with the path at fault.
            culprit = keys or tuple(what.split()[0].rstrip(":").split("."))
            lines.append(_line(where(keys, culprit), path, what))
        raise SpecError("\n".join(dict.fromkeys(lines))) from None


def _tuples(value: Any) -> Any:
    """Strict validation wants tuples where YAML has lists."""
    if isinstance(value, dict):
        return {key: _tuples(one) for key, one in value.items()}
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value


def _real_keys(loc: tuple, value: Any, kind: type[Part]) -> Keys:
    """Drop the tags of discriminated unions, which pydantic puts among the keys."""
    keys: list[str | int] = []
    places = [kind]
    for depth, part in enumerate(loc):
        name = value.get("name") if isinstance(value, dict) else value
        if len(places) > 1 and part == name:  # a tag, even where a key of that name (an unknown one) is there too
            places = [one for one in places if _name_of(one) == name]
            continue
        if isinstance(value, dict) and part in value:
            field = places[0].model_fields.get(part) if places else None
            places = _parts_in(field.annotation) if field else []
        indexed = isinstance(value, (list, tuple)) and isinstance(part, int) and part < len(value)
        if indexed or (isinstance(value, dict) and part in value):
            value = value[part]
        elif part == name or depth < len(loc) - 1:
            continue
        keys.append(part)
    return tuple(keys)


def _explain(problem: Any, kind: type[Part], keys: Keys, value: Any) -> str:
    context, given = problem.get("ctx", {}), problem.get("input")
    match problem["type"]:
        case "extra_forbidden":
            return f"unknown key; {did_you_mean(str(keys[-1]), list(_place(kind, keys[:-1], value)[0].model_fields))}"
        case "missing":
            return "is required"
        case "union_tag_invalid":
            tags = [tag.strip().strip("'") for tag in context["expected_tags"].split(",")]
            return f"unknown name {context['tag']!r}; {did_you_mean(context['tag'], tags)} (choices: {', '.join(tags)})"
        case "union_tag_not_found":
            names = ", ".join(filter(None, map(_name_of, _place(kind, keys, value))))
            return f"say which: name is one of {names}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"a mapping is expected, not {given!r}"
        case "literal_error":
            return f"unknown value {given!r}; choices: {context['expected']}"
        case "value_error":
            return str(context["error"])
    message = problem["msg"][0].lower() + problem["msg"][1:]
    shown = list(given) if isinstance(given, tuple) else given
    return f"{message}, not {shown!r}" if not isinstance(given, dict) else message


def _parts_in(annotation: Any) -> list[type[Part]]:
    """Return the Part classes that an annotation such as `tuple[Ancestral | Ddim, ...]` speaks of."""
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return [annotation]
    return [part for argument in get_args(annotation) for part in _parts_in(argument)]


def _place(kind: type[Part], keys: Keys, value: Any) -> list[type[Part]]:
    """Return the classes that can stand at `keys`: several where a name is still to be said."""
    places = [kind]
    for key in keys:
        if isinstance(value, dict):
            places = _parts_in(places[0].model_fields[str(key)].annotation)
            value = value.get(key)
        else:
            value = value[int(key)]
        name = value.get("name") if isinstance(value, dict) else value
        places = [one for one in places if _name_of(one) == name] or places
    return places


def _name_of(kind: type[Part]) -> str | None:
    return kind.model_fields["name"].default if "name" in kind.model_fields else None


def _place_of(document: Document, overrides: Sequence[Override], keys: Keys) -> Mark:
    """Return where a run's value was written: by its arm, by --set, or in the file's base."""
    for override in reversed(overrides):
        if override.keys == tuple(map(str, keys[: len(override.keys)])):
            return override.mark
    return document.mark(keys)


def _validate_run(value: dict, document: Document, overrides: Sequence[Override]) -> tuple[RunSpec, Resources, Records]:
    def where(keys: Keys, culprit: Keys) -> Mark:
        said = any(override.keys == tuple(map(str, culprit[: len(override.keys)])) for override in overrides)
        return overrides[-1].mark if overrides and not keys and not said else _place_of(document, overrides, culprit)

    def side(part: str) -> Callable[[Keys, Keys], Mark]:
        return lambda keys, _: where((part, *keys), (part, *keys))

    spec = validate(RunSpec, {key: value[key] for key in RUN_PARTS if key in value}, where)
    resources = validate(Resources, value.get("resources") or {}, side("resources"), ("resources",))
    records = validate(Records, value.get("records") or {}, side("records"), ("records",))
    return spec, resources, records
