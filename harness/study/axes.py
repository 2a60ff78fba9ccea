"""Arms, grid and exclusions of a study."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.spec.base import SpecModel, expand_name
from harness.spec.run import RunSpec
from harness.study.document import (
    DOTTED_PATH,
    Document,
    Keys,
    SourceLocation,
    dotted,
    merge,
    set_in,
    spec_error,
    value_at,
)
from harness.study.model import Override, Variant
from harness.text import did_you_mean

RUN_PARTS = tuple(name for name in RunSpec.model_fields if name != "plugins")  # plugins are filled in


SIDE_PARTS = ("resources", "records")


MAX_RUNS = 100_000


@dataclass
class _Axis:
    """Variants, one of which is chosen; `conditions` are those under which the axis exists."""

    variants: list[Variant]
    mark: SourceLocation
    conditions: dict[str, Any] = field(default_factory=dict)
    hits: int = 0


def read_variants(document: Document, base: dict[str, Any], replicates: int) -> list[Variant]:
    """Return the arms and points of the grid of a study, combined.

    Args:
        document: the study.
        base: the parts of a run that they change.
        replicates: number of runs of each.
    """
    axes = [axis for axis in (_arms(document), *_grid(document)) if axis.variants]
    limit = MAX_RUNS // replicates
    points = list(itertools.islice(_points(axes, (), with_defaults(base)), limit + 1))
    if len(points) > limit:
        raise document.fail(("grid",), f"more than {MAX_RUNS} runs in a study")
    for axis in axes:
        if not axis.hits:
            raise spec_error(axis.mark, "when", "is never true; it may refer to arms, to axes above, and to the base")
    variants = []
    for point in points:
        name = "-".join(variant.arm for variant in point if variant.arm) or "base"
        variants.append(Variant(name, tuple(override for variant in point for override in variant.overrides)))
    names = Counter(variant.arm for variant in variants)
    for name, count in names.items():
        if count > 1:
            raise document.fail(
                ("grid",),
                f"two points have the name {name!r}: remove a value that is listed twice, or use `arms` and name them",
            )
    return variants


def _points(axes: list[_Axis], chosen: tuple[Variant, ...], value: dict[str, Any]) -> Iterator[tuple[Variant, ...]]:
    """Yield each combination of the axes; `value` is a run so far, in plain values."""
    if not axes:
        yield chosen
        return
    axis, *others = axes
    if not conditions_hold(value, axis.conditions):
        yield from _points(others, chosen, value)
        return
    axis.hits += 1
    later_conditions = any(other.conditions for other in others)
    for variant in axis.variants:
        changed = value
        for override in variant.overrides if later_conditions else ():
            changed = set_in(changed, override.keys, override.value, override.mark)
        yield from _points(others, (*chosen, variant), changed)


def with_defaults(value: dict[str, Any]) -> dict[str, Any]:
    """Return plain values with the defaults of what they leave open."""
    defaults = {
        name: field.default.model_dump(mode="json") if isinstance(field.default, SpecModel) else field.default
        for name, field in RunSpec.model_fields.items()
        if not field.is_required()
    }
    return merge({name: expand_name(default) for name, default in defaults.items()}, value)


def conditions_hold(value: dict[str, Any], conditions: Mapping[str, Any]) -> bool:
    """Return whether plain values meet all conditions, each a path and its value, or several; of a part its name."""
    return all(
        any(_equals(value_at(value, path.split(".")), item) for item in _listed(expected))
        for path, expected in conditions.items()
    )


def _listed(expected: Any) -> Sequence[Any]:
    return expected if isinstance(expected, list | tuple) else [expected]


def _equals(value: Any, expected: Any) -> bool:
    if isinstance(value, dict) and isinstance(expected, str):
        value = value.get("name")
    return value == expected and isinstance(value, bool) == isinstance(expected, bool)  # 1 == True in Python


def _overrides(document: Document, keys: Keys, value: Any) -> Iterator[Override]:
    """Read `{a.b: 1, c: {d: 2}}` below `keys` as overrides of the run's parts."""
    known = (*RUN_PARTS, *SIDE_PARTS)
    for path, new in value.items():
        mark = document.mark((*keys, path))
        if not DOTTED_PATH.fullmatch(path):
            raise spec_error(mark, path, "a dotted path such as diffusion.schedule is expected")
        head = path.split(".")[0]
        if head not in known:
            raise spec_error(mark, path, f"unknown key; {did_you_mean(head, known)}")
        if head == "seed":
            raise spec_error(mark, path, "seeds are replicates, not arms: use `replicates: 3`")
        yield Override(path, new, mark)


def _arms(document: Document) -> _Axis:
    arms = document.value.get("arms")
    if arms is None:
        return _Axis([], document.mark(("arms",)))
    if not isinstance(arms, dict) or not arms:
        raise spec_error(
            document.mark(("arms",)),
            "arms",
            "a mapping of names to what they change: cosine: {diffusion.schedule: cosine}",
        )
    variants = []
    for name, change in arms.items():
        keys: Keys = ("arms", name)
        if not re.fullmatch(r"[^\s/\\'\"\x00-\x1f][^/\\'\"\x00-\x1f\x7f]{0,99}", name) or not name.isprintable():
            raise spec_error(
                document.mark(keys),
                f"arms.{name!r}",
                "an arm's name must be printable, without slashes or quotes, at most 100 characters",
            )
        if change is not None and not isinstance(change, dict):
            raise spec_error(document.mark(keys), dotted(keys), f"a mapping of paths to values, not {change!r}")
        variants.append(Variant(name, tuple(_overrides(document, keys, change or {}))))
    return _Axis(variants, document.mark(("arms",)))


def _grid(document: Document) -> list[_Axis]:
    grid = document.value.get("grid")
    if grid is None:
        return []
    if not isinstance(grid, dict) or not grid:
        raise spec_error(document.mark(("grid",)), "grid", "a mapping of paths to lists: objective: [simple, hybrid]")
    axes = []
    for axis, points in grid.items():
        keys: Keys = ("grid", axis)
        paths = [path.strip() for path in axis.split("&")]
        conditions: dict[str, Any] = {}
        mark = document.mark(keys)
        if isinstance(points, dict) and points.keys() == {"choices", "when"}:
            points, conditions, keys = points["choices"], points["when"], (*keys, "choices")
            if not isinstance(conditions, dict) or not conditions:
                raise spec_error(mark, f"grid.{axis}.when", "a mapping of paths to values: {objective: hybrid}")
        if not isinstance(points, list) or not points:
            raise spec_error(
                mark, dotted(keys), f"a list of values, or {{choices: [...], when: {{path: value}}}}, not {points!r}"
            )
        variants, rows = [], []
        for index, point in enumerate(points):
            row = point if len(paths) > 1 else [point]
            if not isinstance(row, list) or len(row) != len(paths):
                raise spec_error(
                    document.mark((*keys, index)),
                    f"grid.{axis}",
                    f"{len(paths)} paths change together, so a point is a list of {len(paths)} values, not {point!r}",
                )
            rows.append(row)
        names = labels(paths, rows)
        for index, row in enumerate(rows):
            place = document.mark((*keys, index))
            values = [next(_overrides(document, keys, {path: value})) for path, value in zip(paths, row, strict=True)]
            variants.append(Variant(names[index], tuple(Override(o.path, o.value, place) for o in values)))
        axes.append(_Axis(variants, mark, conditions))
    return axes


def labels(paths: list[str], rows: list[list[Any]]) -> list[str]:
    """Name the points of an axis as briefly as is unambiguous: `hybrid`, `lr=0.001`, `channels=64`."""

    def label(path: str, value: Any, full: bool) -> str:
        if isinstance(value, dict) and "name" in value:
            parameters = ",".join(f"{key}={field_value}" for key, field_value in value.items() if key != "name")
            return f"{value['name']}({parameters})" if full and parameters else str(value["name"])
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
class Exclusion:
    conditions: dict[str, Any]
    mark: SourceLocation
    hits: int = 0

    def matches(self, arm: str, spec: RunSpec) -> bool:
        hit = all(
            arm == expected if path == "arm" else self._holds(path, expected, spec)
            for path, expected in self.conditions.items()
        )
        self.hits += hit
        return hit

    def _holds(self, path: str, expected: Any, spec: RunSpec) -> bool:
        value: Any = spec
        for key in path.split("."):
            if not isinstance(value, SpecModel) or key not in type(value).model_fields:
                return False
            value = getattr(value, key)
        if isinstance(value, SpecModel):
            expected = {"name": expected} if isinstance(expected, str) else expected
            plain = value.model_dump(mode="json")
            return isinstance(expected, dict) and all(plain.get(key) == item for key, item in expected.items())
        return _equals(list(value) if isinstance(value, tuple) else value, expected)


def read_exclusions(document: Document) -> list[Exclusion]:
    rules = document.value.get("exclude", [])
    if not isinstance(rules, list) or not all(isinstance(rule, dict) and rule for rule in rules):
        raise spec_error(
            document.mark(("exclude",)), "exclude", "a list of mappings: - {objective: vlb, diffusion.schedule: linear}"
        )
    return [Exclusion(rule, document.mark(("exclude", index))) for index, rule in enumerate(rules)]
