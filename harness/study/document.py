"""Read a YAML file as plain values with their locations; refuse YAML's traps with file and line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from harness.errors import SpecError

Keys = tuple[str | int, ...]
T = TypeVar("T")


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


MAX_MISTAKES = 20


@dataclass
class Mistakes:
    """The mistakes of a file, collected so that all are reported at once."""

    lines: dict[str, None] = field(default_factory=dict)  # in order, each once

    def add(self, error: SpecError) -> None:
        self.lines |= dict.fromkeys(str(error).split("\n"))

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Keep the SpecErrors of a block instead of raising them."""
        try:
            yield
        except SpecError as error:
            self.add(error)

    def attempt(self, read: Callable[[], T], default: T) -> T:
        """Return what `read` returns, or the default if it raises a SpecError, which is kept."""
        with self.collect():
            return read()
        return default

    def raise_any(self) -> None:
        """Raise one SpecError with all mistakes, a line each, if there are any."""
        if self.lines:
            lines = list(self.lines)
            more = [f"... and {len(lines) - MAX_MISTAKES} more"] if len(lines) > MAX_MISTAKES else []
            raise SpecError("\n".join(lines[:MAX_MISTAKES] + more))


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


def integer(value: Any) -> Any:
    """Return the integer for a float without a fraction, such as 2e2; any other value as it is."""
    return int(value) if type(value) is float and value.is_integer() and abs(value) < 2**53 else value


def value_at(value: Any, keys: Sequence[str]) -> Any:
    """Return what plain values have at `keys`, None if nothing; `schedule: cosine` has a name."""
    for key in keys:
        value = {"name": value} if isinstance(value, str) else value
        value = value.get(key) if isinstance(value, dict) else None
    return value


@dataclass
class _Constructor:
    """Constructs plain values from YAML's nodes; collects the mistakes of the whole file."""

    file: str
    marks: dict[Keys, SourceLocation] = field(default_factory=dict)
    mistakes: Mistakes = field(default_factory=Mistakes)
    seen: set[int] = field(default_factory=set)

    def value(self, node: yaml.Node, keys: Keys) -> Any:
        """Return a node's value; None if it is wrong."""
        with self.mistakes.collect():
            return self._value(node, keys)
        return None

    def _value(self, node: yaml.Node, keys: Keys) -> Any:
        mark = SourceLocation(self.file, node.start_mark.line + 1)
        self.marks.setdefault(keys, mark)
        if id(node) in self.seen:
            raise spec_error(mark, dotted(keys), "anchors and aliases are not allowed; use extends or arms")
        self.seen.add(id(node))
        if len(keys) > MAX_DEPTH:
            raise spec_error(mark, dotted(keys[:4]) + "...", f"nested deeper than {MAX_DEPTH} levels")
        kind = {yaml.ScalarNode: "str", yaml.SequenceNode: "seq"}.get(type(node), "map")
        if node.tag != f"tag:yaml.org,2002:{kind}":
            raise spec_error(
                mark, dotted(keys), f"tags such as {node.tag!r} are not part of a study; write the plain value"
            )
        if isinstance(node, yaml.ScalarNode):
            if node.style is not None:
                return node.value
            if not node.value and keys and keys[:-1] != ("arms",):  # an arm may change nothing
                raise spec_error(
                    self.marks[keys], dotted(keys), "has no value: give one, `{}` for a part's defaults, or null"
                )
            return _scalar(node.value, mark, keys)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*keys, index)) for index, item in enumerate(node.value)]
        return self._mapping(node, keys)

    def _mapping(self, node: yaml.Node, keys: Keys) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            location = SourceLocation(self.file, key_node.start_mark.line + 1)
            with self.mistakes.collect():
                if not isinstance(key_node, yaml.ScalarNode) or key_node.value == "<<":
                    raise spec_error(location, dotted(keys), "keys are plain words (no merge keys, lists or maps)")
                path = (*keys, key_node.value)
                if key_node.value in mapping:
                    first = self.marks[path].line
                    raise spec_error(location, dotted(path), f"duplicate key; first at line {first}")
                self.marks[path] = location
                mapping[key_node.value] = self.value(value_node, path)
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
        constructor = _Constructor(file)
        value = None if node is None else constructor.value(node, ())
        constructor.mistakes.raise_any()
        return value, constructor.marks
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


def read_file(path: Path, referrer: SourceLocation | None = None) -> Document:
    file = str(path)
    try:
        if path.exists() and not path.is_file():  # a device could be read endlessly
            raise OSError(0, "not a file")
        with path.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        raise (
            spec_error(referrer, "extends", f"{file}: {reason}; the path is relative to the folder of this file")
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
    document = read_file(path, referrer)
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


def set_in(value: Any, keys: Sequence[str | int], new: Any, mark: SourceLocation, above: Keys = ()) -> Any:
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
