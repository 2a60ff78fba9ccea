"""Read a YAML file as plain values with their locations; refuse YAML's traps with file and line."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from harness.errors import SpecError

Keys = tuple[str | int, ...]


MAX_FILE_BYTES = 1 << 20


MAX_DEPTH = 30


class SourceLocation(NamedTuple):
    """Where a value was written."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass
class Document:
    """Plain values with their locations: `marks[("optim", "lr")]` is the location of that key."""

    value: dict[str, Any]
    marks: dict[Keys, SourceLocation]
    plugins: dict[Path | str, SourceLocation] = field(default_factory=dict)  # files, and names of packages' own

    def mark(self, keys: Keys) -> SourceLocation:
        """Return the location of `keys`, or of the nearest parent that is in the file."""
        while keys and keys not in self.marks:
            keys = keys[:-1]
        return self.marks.get(keys, SourceLocation("study", 0))

    def fail(self, keys: Keys, message: str) -> SpecError:
        """Return an error about `keys`, with file and line."""
        return spec_error(self.mark(keys), dotted(keys), message)

    def locator(self, above: Keys) -> Callable[[Keys, Keys], SourceLocation]:
        """Return a function that locates keys of the part at `above`."""
        return lambda keys, culprit: self.mark((*above, *keys))


def spec_error(mark: SourceLocation, path: str, message: str) -> SpecError:
    return SpecError(error_line(mark, path, message))


def error_line(mark: SourceLocation, path: str, message: str) -> str:
    """Format a mistake as one printable line of bounded length, whatever the file contains."""
    text = f"{mark}: {_short(path, 120)}: {_short(message, 600)}" if path else f"{mark}: {_short(message, 600)}"
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length // 2]} ... {text[-length // 2 + 5 :]}"


def dotted(keys: Keys) -> str:
    return ".".join(map(str, keys))


class _PlainLoader(yaml.SafeLoader):
    """Composes nodes only; without implicit resolvers plain scalars are strings, which we parse ourselves."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012  (PyYAML's own attribute)


_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*)$")


_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$")


DOTTED_PATH = re.compile(r"[A-Za-z_0-9]+(\.[A-Za-z_0-9]+){0,9}")


_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


_NULLS = ("", "~", "null", "Null", "NULL")


_AMBIGUOUS = re.compile(r"(yes|no|on|off|y|n)$", re.IGNORECASE)


def _scalar(text: str, mark: SourceLocation, keys: Keys) -> Any:
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _AMBIGUOUS.match(text):
        raise spec_error(
            mark, dotted(keys), f"bare {text!r} is a boolean in YAML 1.1; write true or false, or quote it"
        )
    if _INT.match(text) and len(text) < 20:
        return int(text.replace("_", ""))
    if _FLOAT.match(text):
        if re.match(r"[-+]?0[0-9]", text):
            raise spec_error(
                mark, dotted(keys), f"{text!r} is octal in some parsers; remove the leading zero, or quote it"
            )
        number = float(text.replace("_", ""))
        if number in (float("inf"), float("-inf")):
            raise spec_error(mark, dotted(keys), f"{text!r} is beyond the range of a float")
        return number
    return text


def _construct(node: yaml.Node, file: str, keys: Keys, marks: dict[Keys, SourceLocation], seen: set[int]) -> Any:
    mark = SourceLocation(file, node.start_mark.line + 1)
    marks.setdefault(keys, mark)
    if id(node) in seen:
        raise spec_error(mark, dotted(keys), "anchors and aliases are not allowed; use extends or arms")
    seen.add(id(node))
    if len(keys) > MAX_DEPTH:
        raise spec_error(mark, dotted(keys[:4]) + "...", f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(node, yaml.ScalarNode):
        if node.tag != "tag:yaml.org,2002:str":
            raise spec_error(
                mark, dotted(keys), f"tags such as {node.tag!r} are not part of a study; write the plain value"
            )
        return _scalar(node.value, mark, keys) if node.style is None else node.value
    kind = "seq" if isinstance(node, yaml.SequenceNode) else "map"
    if node.tag != f"tag:yaml.org,2002:{kind}":
        raise spec_error(
            mark, dotted(keys), f"tags such as {node.tag!r} are not part of a study; write the plain value"
        )
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, file, (*keys, i), marks, seen) for i, item in enumerate(node.value)]
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        location = SourceLocation(file, key_node.start_mark.line + 1)
        if not isinstance(key_node, yaml.ScalarNode) or key_node.value == "<<":
            raise spec_error(location, dotted(keys), "keys are plain words (no merge keys, lists or maps)")
        key = key_node.value
        path = (*keys, key)
        if key in mapping:
            raise spec_error(location, dotted(path), f"duplicate key; first at line {marks[path].line}")
        marks[path] = location
        mapping[key] = _construct(value_node, file, path, marks, seen)
    return mapping


def parse_yaml(text: str, file: str) -> tuple[Any, dict[Keys, SourceLocation]]:
    """Parse YAML into plain values and their locations.

    Raises:
        SpecError: it is not YAML, or it uses one of YAML's traps; with file and line.
    """
    loader = None
    try:
        loader = _PlainLoader(text)
        node = loader.get_single_node()
        marks: dict[Keys, SourceLocation] = {}
        return (None if node is None else _construct(node, file, (), marks, set())), marks
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        hint = "" if "\t" not in text else " (YAML indents with spaces, not tabs)"
        raise spec_error(SourceLocation(file, line), "", f"not YAML: {error.problem or error.context}{hint}") from None
    except yaml.YAMLError as error:
        raise spec_error(SourceLocation(file, 1), "", f"not YAML: {' '.join(str(error).split())[:200]}") from None
    except RecursionError:
        raise spec_error(SourceLocation(file, 1), "", f"nested deeper than {MAX_DEPTH} levels") from None
    except (ValueError, OverflowError) as error:  # PyYAML on "\UFFFFFFFF"
        line = loader.line + 1 if loader else 1
        raise spec_error(
            SourceLocation(file, line), "", f"not YAML: an escape is not a valid character: {error}"
        ) from None
    finally:
        if loader is not None:
            loader.dispose()


def _read(path: Path, referrer: SourceLocation | None = None) -> Document:
    file = str(path)
    try:
        if path.exists() and not path.is_file():  # a device could be read endlessly
            raise OSError(0, "not a file")
        with path.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        raise (
            spec_error(referrer, "extends", f"{file}: {reason}")
            if referrer
            else spec_error(SourceLocation(file, 0), "", reason)
        ) from None
    if len(content) > MAX_FILE_BYTES:
        raise spec_error(SourceLocation(file, 1), "", f"larger than {MAX_FILE_BYTES} bytes; this is not a study")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise spec_error(SourceLocation(file, line), "", f"not UTF-8 text: byte {content[error.start]:#04x}") from None
    value, marks = parse_yaml(text, file)
    if not isinstance(value, dict):
        raise spec_error(SourceLocation(file, 1), "", "a study is a mapping that starts with `study: name`")
    return Document(value, marks)


def merge(base: Any, over: Any) -> Any:
    """Merge `over` into `base`: mappings merge key by key; other values, and mappings with a `name`, replace."""
    if isinstance(base, dict) and isinstance(over, dict) and "name" not in over:
        return {**base, **{key: merge(base.get(key), value) for key, value in over.items()}}
    return over


def resolve_extends(path: Path, chain: tuple[Path, ...] = (), referrer: SourceLocation | None = None) -> Document:
    document = _read(path, referrer)
    resolved = path.resolve()
    if resolved in chain:
        raise SpecError(f"{referrer}: extends: {path} extends itself")
    parents = document.value.pop("extends", [])
    mark = document.mark(("extends",))
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise spec_error(mark, "extends", "give a path relative to this file, or a list of them")
    merged = Document({}, {})
    for parent in parents:
        base = resolve_extends(path.parent / parent, (*chain, resolved), mark)
        base.value.pop("study", None)
        merged = _merge_documents(merged, base)
    document.plugins = _plugins(document, path)
    return _merge_documents(merged, document)


def _merge_documents(base: Document, over: Document) -> Document:
    marks, plugins = {**base.marks, **over.marks}, {**base.plugins, **over.plugins}
    return Document(merge(base.value, over.value), marks, plugins)


def _plugins(document: Document, path: Path) -> dict[Path | str, SourceLocation]:
    """Remove and return a file's plugins: paths relative to it, or names of plugins in packages."""
    names = document.value.pop("plugins", [])
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise document.fail(("plugins",), "a list of Python files beside this one: [my_parts.py]")
    return plugin_sources(names, path, lambda index: document.mark(("plugins", index)))


def plugin_sources(
    names: Sequence[str], path: Path, mark_of: Callable[[int], SourceLocation]
) -> dict[Path | str, SourceLocation]:
    """Return the plugin files, relative to `path`, and the names of plugins in packages."""
    plugins: dict[Path | str, SourceLocation] = {}
    for index, name in enumerate(names):
        if not name.endswith(".py"):
            plugins[name] = mark_of(index)
        elif Path(name).is_absolute() or name.startswith("~"):
            raise spec_error(mark_of(index), "plugins", f"{name!r}: give a path relative to this file")
        else:
            plugins[(path.parent / name).resolve()] = mark_of(index)
    return plugins


def set_in(value: Any, keys: Keys, new: Any, mark: SourceLocation, above: Keys = ()) -> Any:
    """Return a copy of `value`, located at `above`, with `new` merged in at `keys`; unchanged parts are shared."""
    if not keys:
        return merge(value, new)
    if isinstance(value, list):
        index = int(keys[0]) if str(keys[0]).isdigit() else -1
        if not 0 <= index < len(value):
            known = ", ".join(map(str, range(len(value)))) or "none"
            raise spec_error(mark, dotted((*above, *keys)), f"no such entry; choices: {known}")
        item_keys = (*above, keys[0])
        return [set_in(item, keys[1:], new, mark, item_keys) if i == index else item for i, item in enumerate(value)]
    if isinstance(value, str):
        value = {"name": value}
    if value is not None and not isinstance(value, dict):
        raise spec_error(mark, dotted((*above, *keys)), f"{value!r} has no parts")
    value = value or {}
    return {**value, keys[0]: set_in(value.get(keys[0]), keys[1:], new, mark, (*above, keys[0]))}
