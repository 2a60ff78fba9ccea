"""Plugins: a user's Python files that add parts, in tables like those of the built-in parts.

A plugin is code that its user runs on purpose. It is executed when a study that names it is planned, and when a run
that uses it is executed; never when records are listed, imported or drawn.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from symtable import symtable
from types import ModuleType
from typing import Any, NamedTuple, NoReturn, get_args

import harness.spec.discriminators
import harness.spec.evaluation  # noqa: F401 (both fill the table of kinds)
from harness.errors import SpecError
from harness.spec.base import SpecModel
from harness.spec.parts import KINDS, Plugin
from harness.text import did_you_mean

TABLES = {
    "SCHEDULES": "schedule",
    "OBJECTIVES": "objective",
    "TIMESTEP_SAMPLERS": "timestep_sampler",
    "SAMPLERS": "sampler",
    "MODELS": "model",
    "DATASETS": "data",
    "METRICS": "metric",
    "METHODS": "method",
    "DISCRIMINATORS": "discriminator",
}
"""Tables that a plugin may have: name -> (parameter class, implementation) of that kind."""

ENTRY_POINTS = "diffusion_harness.plugins"
MAX_FILE_BYTES = 1 << 20
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_REFERENCE = re.compile(r"([A-Za-z_]\w*\.py):([A-Za-z_]\w*)")

_loaded: dict[str, Plugin] = {}


def load_plugin(path: Path, digest: str | None = None) -> Plugin:
    """Execute a plugin's file and return its parts; each content is executed once per process.

    Args:
        path: the file with the tables. Files beside it that its implementations name are part of it.
        digest: expected digest of the files.

    Raises:
        SpecError: `file:line: message`: a file is missing, fails, or has an invalid declaration.
    """
    content = _read(path, str(path))
    files = {path.name: content}
    for reference in _references(content, path):
        if reference.file not in files:
            files[reference.file] = _read(path.parent / reference.file, f"{path}:{reference.line}")
    actual = files_digest(files)
    if digest not in (None, actual):
        raise SpecError(
            f"{path}: not the plugin that the run started with: sha256 {actual[:16]}, not {str(digest)[:16]}"
        )
    if actual not in _loaded:
        prefix = f"harness_plugin_{actual[:16]}_"
        tree = _parse(content, path)
        if digest is None:  # a stored one was checked when it was planned
            _refuse_torch(tree, path)
            for name, source in files.items():
                _refuse_unfrozen_imports(_parse(source, path.parent / name), path.parent / name)
            _require_attributes(files, path)
        module = execute(prefix + path.stem, content, path)

        def sibling(name: str, attribute: str) -> Any:
            return getattr(_module(prefix + Path(name).stem, files[name], path.parent / name), attribute)

        _loaded[actual] = _plugin(path.name, actual, module, path, tree, files, sibling)
    return _loaded[actual]


def load_package_plugin(name: str, digest: str | None = None) -> Plugin:
    """Return the parts that an installed package provides by an entry point of this name.

    Args:
        name: of the entry point; in a stored spec the version follows after a space.

    Raises:
        SpecError: no package provides it, it fails, or its content does not match `digest`.
    """
    name = name.split(" ")[0]
    points = {point.name: point for point in metadata.entry_points(group=ENTRY_POINTS)}
    if name not in points:
        known = f"choices: {', '.join(sorted(points))}" if points else "none is installed"
        raise SpecError(
            f"plugins: no installed package provides a plugin {name!r}; {known}. The name of a file ends in .py"
        )
    point = points[name]
    full_name = f"{name} {point.dist.version}" if point.dist else name
    try:
        module_spec = importlib.util.find_spec(point.module)
        if module_spec is None or not module_spec.origin or not module_spec.origin.endswith(".py"):
            raise ImportError(f"{point.module} is not a Python file")
        path = Path(module_spec.origin)
        content = path.read_bytes()
        module = importlib.import_module(point.module)
    except Exception as error:
        raise SpecError(f"plugin {full_name}: {type(error).__name__}: {error}") from None
    references = _references(content, path)
    beside = {named.file: _read(path.parent / named.file, f"{path}:{named.line}") for named in references}
    actual = files_digest({path.name: content, **beside})
    if digest not in (None, actual):
        raise SpecError(f"plugin {full_name} is installed with another content than the run started with")
    if actual not in _loaded:

        def sibling(file: str, attribute: str) -> Any:
            parent = point.module.rpartition(".")[0]
            return getattr(importlib.import_module(f"{parent}.{Path(file).stem}".lstrip(".")), attribute)

        _loaded[actual] = _plugin(full_name, actual, module, path, _parse(content, path), {}, sibling)
    return _loaded[actual]


def loaded_plugin(digest: str) -> Plugin | None:
    """Return a plugin that this process has loaded."""
    return _loaded.get(digest)


def files_digest(files: Mapping[str, bytes]) -> str:
    """Return the digest of a plugin's files: sha256 over the output of `sha256sum`, sorted by name."""
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


# -- files


def _read(path: Path, referrer: str) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise OSError(0, "not a file")
        content = path.read_bytes()
    except OSError as error:
        raise SpecError(f"{referrer}: plugin {path} cannot be read: {error.strerror or error}") from None
    if len(content) > MAX_FILE_BYTES:
        raise SpecError(f"{referrer}: plugin {path} is larger than {MAX_FILE_BYTES} bytes")
    return content


def _parse(content: bytes, path: Path) -> ast.Module:
    try:
        return ast.parse(content, str(path))
    except SyntaxError as error:
        raise SpecError(f"{path}:{error.lineno or 1}: not Python: {error.msg}") from None
    except ValueError as error:
        raise SpecError(f"{path}:1: not Python: {error}") from None


class _Reference(NamedTuple):
    """A string such as "my_networks.py:DiT"."""

    file: str
    attribute: str
    line: int


def _references(content: bytes, path: Path) -> list[_Reference]:
    """Return a plugin's references to files beside it."""
    texts = [
        (node.value, node.lineno)
        for node in ast.walk(_parse(content, path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    matches = [(match, line) for text, line in texts if (match := _REFERENCE.fullmatch(text))]
    return sorted(_Reference(match[1], match[2], line) for match, line in matches if match[1] != path.name)


def _require_attributes(files: Mapping[str, bytes], path: Path) -> None:
    """Refuse a reference to something that its file does not define."""
    for file, attribute, line in _references(files[path.name], path):
        symbols = symtable(importlib.util.decode_source(files[file]), str(path.parent / file), "exec").get_symbols()
        defined = {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}
        if attribute not in defined and not re.search(rb"import\s+\*", files[file]):
            known = did_you_mean(attribute, sorted(name for name in defined if not name.startswith("_")))
            raise SpecError(f"{path}:{line}: {file} does not define {attribute}; {known}")


def _refuse_unfrozen_imports(tree: ast.Module, path: Path) -> None:
    """Refuse to import a file beside a plugin: it would be neither hashed nor stored with it."""
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""] if node.level == 0 else [f"{'.' * node.level}{node.module or ''}"]
        for name in names:
            if name.startswith(".") or (path.parent / f"{name.split('.')[0]}.py").is_file():
                message = f"imports {name}, which would not be stored with the plugin"
                raise SpecError(
                    f"{path}:{getattr(node, 'lineno', 1)}: {message}: put that code into this file, or into a package"
                )


def _refuse_torch(tree: ast.Module, path: Path) -> None:
    for node in tree.body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if any(name.split(".")[0] == "torch" for name in names):
            raise SpecError(
                f"{path}:{node.lineno}: imports torch at module level, but `plan` runs without it: "
                "import it inside the function, or put the code into a file beside this one and name it as "
                '"my_networks.py:MyNetwork"'
            )


# -- modules


def execute(name: str, content: bytes, path: Path) -> ModuleType:
    """Execute the given bytes as a module.

    Raises:
        SpecError: it fails; the message has the line in the file.
    """
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # pydantic resolves annotations there
    with located(path):
        try:
            exec(compile(content, str(path), "exec"), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
    return module


@contextmanager
def located(path: Path) -> Iterator[None]:
    """Turn an error in a user's file into `file:line: message`, with the innermost line of that file.

    Raises:
        SpecError: instead of the error.
    """
    try:
        yield
    except SpecError:
        raise
    except (Exception, SystemExit) as error:
        line = error.lineno if isinstance(error, SyntaxError) else 1
        raise _located(error, [path]) or SpecError(f"{path}:{line or 1}: {_message(error)}") from None


@contextmanager
def located_in(plugins: Sequence[Plugin]) -> Iterator[None]:
    """Turn an error in the code of plugins into `file:line: message`; other errors are unchanged.

    Raises:
        SpecError: instead of the error.
    """
    try:
        yield
    except SpecError:
        raise
    except Exception as error:
        if refusal := _located(error, [plugin.path for plugin in plugins]):
            raise refusal from None
        raise


def _located(error: BaseException, paths: Sequence[Path]) -> SpecError | None:
    """Return the error with the innermost line in these files; None if its traceback has none of them."""
    files = set(map(str, paths))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    return SpecError(f"{frames[-1].filename}:{frames[-1].lineno}: {_message(error)}") if frames else None


def _message(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _module(name: str, content: bytes, path: Path) -> ModuleType:
    return sys.modules.get(name) or execute(name, content, path)


# -- declarations


def _plugin(
    name: str,
    digest: str,
    module: ModuleType,
    path: Path,
    tree: ast.Module,
    files: Mapping[str, bytes],
    sibling: Callable[[str, str], Any],
) -> Plugin:
    lines = {
        target.id: node.lineno
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    parts: dict[str, dict[str, type[SpecModel]]] = {}
    implementations: dict[type[SpecModel], Callable[[], Any]] = {}
    for table, kind in TABLES.items():
        entries = getattr(module, table, None)
        if entries is None:
            continue

        def fail(message: str, table: str = table) -> NoReturn:
            raise SpecError(f"{path}:{lines.get(table, 1)}: {table}: {message}")

        if kind not in KINDS:
            fail(
                f"parts of this kind cannot be added; choices: {', '.join(t for t, k in TABLES.items() if k in KINDS)}"
            )
        if not isinstance(entries, dict):
            fail("a mapping of names to (parameter class, implementation) is expected")
        for part, entry in entries.items():
            parameters, implementation = _entry(kind, part, entry, fail)
            if parameters in implementations:
                fail(f"{parameters.__name__} is used for two parts")
            parts.setdefault(kind, {})[part] = parameters
            implementations[parameters] = _lazily(implementation, sibling)
    if not parts:
        raise SpecError(f"{path}:1: a plugin needs one or more of the tables {', '.join(TABLES)}; this file has none")
    return Plugin(name, digest, path, files, parts, implementations)


def _entry(kind: str, name: Any, entry: Any, fail: Callable[[str], NoReturn]) -> tuple[type[SpecModel], Any]:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        fail(f"{name!r}: a name has lower-case letters, digits and underscores, and starts with a letter")
    if name in KINDS[kind].built_in:
        fail(f"{name!r} is built in; use another name")
    if not isinstance(entry, tuple) or len(entry) != 2:
        fail(f"{name!r}: (parameter class, implementation) is expected")
    parameters, implementation = entry
    base = KINDS[kind].base
    if not (isinstance(parameters, type) and issubclass(parameters, base)):
        fail(f"{name!r}: its parameter class must derive from harness.plugins.{base.__name__}")
    literal = parameters.model_fields["name"]
    if literal.default != name or get_args(literal.annotation) != (name,):
        fail(f'{name!r}: its parameter class must declare name: Literal["{name}"] = "{name}"')
    try:
        parameters.check_declaration()
    except ValueError as error:
        fail(f"{name!r}: {error}")
    if not callable(implementation) and not (isinstance(implementation, str) and _REFERENCE.fullmatch(implementation)):
        fail(
            f'{name!r}: its implementation must be a function, a class, or a string such as "my_networks.py:MyNetwork"'
        )
    return parameters, implementation


def _lazily(implementation: Any, sibling: Callable[[str, str], Any]) -> Callable[[], Any]:
    if match := _REFERENCE.fullmatch(implementation) if isinstance(implementation, str) else None:
        return cache(lambda: sibling(match[1], match[2]))
    return lambda: implementation
