"""Arms, grid and exclusions of a study."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from harness.spec.base import SpecModel
from harness.spec.run import RunSpec
from harness.study.document import DOTTED_PATH, Document, Keys, SourceLocation, dotted, spec_error
from harness.study.model import Override, Variant
from harness.text import did_you_mean

RUN_PARTS = tuple(name for name in RunSpec.model_fields if name != "plugins")  # plugins are filled in


SIDE_PARTS = ("resources", "records")


MAX_RUNS = 100_000


def read_variants(document: Document) -> list[Variant]:
    axes = [_arms(document), *_grid(document)]
    variants = []
    for point in itertools.product(*[axis for axis in axes if axis]):
        name = "-".join(variant.arm for variant in point if variant.arm) or "base"
        variants.append(Variant(name, tuple(override for variant in point for override in variant.overrides)))
        if len(variants) > MAX_RUNS:
            raise spec_error(document.mark(("grid",)), "grid", f"more than {MAX_RUNS} runs in a study")
    names = [variant.arm for variant in variants]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise spec_error(
            document.mark(("grid",)), "grid", f"two points have the name {twice!r}; a value is listed twice"
        )
    return variants


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


def _arms(document: Document) -> list[Variant]:
    arms = document.value.get("arms")
    if arms is None:
        return []
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
    return variants


def _grid(document: Document) -> list[list[Variant]]:
    grid = document.value.get("grid")
    if grid is None:
        return []
    if not isinstance(grid, dict) or not grid:
        raise spec_error(document.mark(("grid",)), "grid", "a mapping of paths to lists: objective: [simple, hybrid]")
    axes = []
    for axis, points in grid.items():
        keys: Keys = ("grid", axis)
        paths = [path.strip() for path in axis.split("&")]
        if not isinstance(points, list) or not points:
            raise spec_error(document.mark(keys), dotted(keys), f"a list of values, not {points!r}")
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
            mark = document.mark((*keys, index))
            values = [next(_overrides(document, keys, {path: value})) for path, value in zip(paths, row, strict=True)]
            variants.append(Variant(names[index], tuple(Override(o.path, o.value, mark) for o in values)))
        axes.append(variants)
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
class _Exclusion:
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
        return (list(value) if isinstance(value, tuple) else value) == expected


def read_exclusions(document: Document) -> list[_Exclusion]:
    rules = document.value.get("exclude", [])
    if not isinstance(rules, list) or not all(isinstance(rule, dict) and rule for rule in rules):
        raise spec_error(
            document.mark(("exclude",)), "exclude", "a list of mappings: - {objective: vlb, diffusion.schedule: linear}"
        )
    return [_Exclusion(rule, document.mark(("exclude", index))) for index, rule in enumerate(rules)]
