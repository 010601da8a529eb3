"""Which source files can change a number: what is imported, statically, from where a number is made.

Every key that holds code holds a closure: the modules that an entry's imports reach, those inside functions included,
in ``harness`` and in code of the user's. Nothing is imported to find out. A component is reached through its
``_target_``, by its trial alone; ``NO_NUMBER`` names what is reached and left out, each with the reason.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

HOUSE = "harness"
PACKAGE = Path(__file__).resolve().parents[1]

NO_NUMBER: Mapping[str, str] = {
    "harness.base.errors": "refusals and their words",
    "harness.base.records": "the shapes in which books are kept",
    "harness.base.formatting": "how figures are written",
    "harness.store.journal": "writes down what was computed",
    "harness.store.cache": "keeps what a key names; the keys are made elsewhere",
    "harness.config.closure": "makes keys",
    "harness.trial.keys": "makes keys",
    "harness.config.identity": "makes keys, and records the environment",
    "harness.trial.behaviour": "runs beside a trial, on toys; its figures are kept by the code that they come from",
    "harness.config.fingerprint": "compares such figures",
    "harness.tasks.audit": "refuses or tells; no row is changed",
    "harness.trial.heap": "how freed memory is held: the peak, and no value",
    "harness.models.embedded": "makes the embedded base, whose own digest holds it",
    "harness.telemetry": "samples memory and seconds beside the computation",
}
"""Modules and packages of the house that a trial reaches and that cannot change what it computes -> why not."""

ELSEWHERE = ("harness.evaluators", "harness.stages", "harness.trial.curve.points")
"""What the story of a trial reaches and other keys hold: evaluators, and what those trials bring along that need it:
stages by their components, and the curve where it was asked for."""
STORY = "harness.trial.worker"


@dataclass(frozen=True)
class Parsed:
    """What counts of a source file.

    Attributes:
        meaning: digest of its syntax tree without comments, layout and docstrings.
        imports: module, names taken from it, and the level of a relative import.
    """

    meaning: str
    imports: tuple[tuple[str, tuple[str, ...], int], ...]


class Sources:
    """Source files by module.

    A file of the house is read once per process: an edit during a sweep is not what its processes have imported.
    A user's file is read anew, since the process that runs it imports it when a trial starts.
    """

    def __init__(self) -> None:
        """Nothing is read yet."""
        self._texts: dict[Path, str] = {}

    def read(self, path: Path) -> str:
        """The text of a file."""
        if path in self._texts:
            return self._texts[path]
        text = path.read_text(encoding="utf-8")
        if path.is_relative_to(PACKAGE):
            self._texts[path] = text
        return text

    def parsed(self, path: Path) -> Parsed:
        """What counts of a file."""
        return _parsed(self.read(path))


DISK = Sources()


def closure(entries: Iterable[str], stops: Iterable[str] = NO_NUMBER, sources: Sources = DISK) -> dict[str, Path]:
    """Module -> file, of the entries and what their imports reach.

    Args:
        entries: dotted names; one without a file (typed into a session) has no code to count.
        stops: modules and packages that are left out, and not looked through.
        sources: of the files.
    """
    left_out = tuple(stops)
    found: dict[str, Path] = {}
    waiting = [name for entry in entries for name in _with_packages(entry)]
    while waiting:
        name = waiting.pop()
        if name in found or (path := file_of(name)) is None:
            continue
        found[name] = path
        waiting += [n for n in _imported(name, path, sources) if n not in found and not within(n, left_out)]
    return found


def of_training(components: Iterable[str], sources: Sources = DISK) -> dict[str, Path]:
    """What can change what a trial trains: its story, and its components with what they bring along."""
    story = closure([STORY], (*NO_NUMBER, *ELSEWHERE), sources)
    return {**story, **closure(components, sources=sources)}


def code_digest(files: Mapping[str, Path], sources: Sources = DISK) -> str:
    """Digest of modules' code, and of the data files that lie beside them (``data_beside``)."""
    hasher = hashlib.sha256()
    for name in sorted(files):
        hasher.update(f"{name} {sources.parsed(files[name]).meaning}\n".encode())
    for path in sorted({data for name in files for data in data_beside(name, files[name])}):
        code = path.suffix == ".py"
        hasher.update(f"{path.name} {sources.parsed(path).meaning if code else content_digest([path])}\n".encode())
    return hasher.hexdigest()[:16]


def freeze() -> None:
    """Read all code of the house now: what this process and its forks know of it from here on."""
    for path in sorted(PACKAGE.rglob("*.py")):
        DISK.parsed(path)


def of_others(module: str) -> bool:
    """Whether a module is neither the house's nor the user's, but of an installed package, or built in."""
    top = module.partition(".")[0]
    if top == HOUSE:
        return False
    return top in sys.stdlib_module_names or all(_installed(place) for place in _places(top))


def within(name: str, places: Iterable[str]) -> bool:
    """Whether a module is one of these, or lies in one of these packages."""
    return f"{name}.".startswith(tuple(f"{place}." for place in places))


def libraries(files: Mapping[str, Path], sources: Sources = DISK) -> dict[str, set[str]]:
    """Top-level names of other people's packages that the modules import -> the modules that do."""
    found: dict[str, set[str]] = {}
    for name, path in files.items():
        for module, _, level in sources.parsed(path).imports:
            top = module.partition(".")[0]
            if not level and top not in sys.stdlib_module_names and _root(top, of_user=name) is None:
                found.setdefault(top, set()).add(name)
    return found


# -- files ---------------------------------------------------------------------------------------------


def file_of(module: str) -> Path | None:
    """The source file of a module of the house or of the user's; None where there is none."""
    top, *rest = module.split(".")
    if top == HOUSE:
        return _in_house(tuple(rest))
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if loaded and loaded.endswith(".py"):
        return Path(loaded)
    found = (root if root.is_file() and not rest else _found_below(root, tuple(rest)) for root in _places(top))
    return next((path for path in found if path is not None), None)


@functools.cache
def _in_house(parts: tuple[str, ...]) -> Path | None:
    return _found_below(PACKAGE, parts)


def _found_below(root: Path, parts: tuple[str, ...]) -> Path | None:
    """The file of a module by its place in a package."""
    place = root.joinpath(*parts)
    named = [place / "__init__.py", *([place.with_suffix(".py")] if parts else [])]
    return next((path for path in named if path.is_file()), None)


def data_beside(module: str, path: Path) -> tuple[Path, ...]:
    """Files that a module may read, by where they lie.

    Those whose name begins with the module's (``lm_eval.py``: ``lm_eval_tasks/``); of a package of the user's, all
    that is no code in its folder.
    """
    return _of_house(module, path) if within(module, (HOUSE,)) else tuple(_data_beside(module, path))


@functools.cache
def _of_house(module: str, path: Path) -> tuple[Path, ...]:
    return tuple(_data_beside(module, path))


def _data_beside(module: str, path: Path) -> Iterator[Path]:
    stem = path.parent.name if path.name == "__init__.py" else path.stem
    package = path.name == "__init__.py" and module.partition(".")[0] != HOUSE
    for place in path.parent.iterdir():
        code = place.suffix == ".py" or place == path
        if code or place.name.startswith((".", "__pycache__")):
            continue
        if place.is_dir() and (place.name.startswith(stem) or package) and not (place / "__init__.py").exists():
            yield from files_below(place)
        elif place.is_file() and (place.name.startswith(stem) or package):
            yield place


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and its folders, hidden ones and bytecode left out."""
    found = (p for p in folder.rglob("*") if p.is_file())
    hidden = (".", "__pycache__")
    return sorted(p for p in found if not any(n.startswith(hidden) for n in p.relative_to(folder).parts))


def content_digest(paths: Iterable[Path]) -> str:
    """Digest of files by name and content; cached per process by path, size and time of change."""
    return _content_digest(tuple((str(p), (s := p.stat()).st_size, s.st_mtime_ns) for p in paths))


@functools.cache
def _content_digest(files: tuple[tuple[str, int, int], ...]) -> str:
    hasher = hashlib.sha256()
    for name, _size, _time in files:
        hasher.update(Path(name).name.encode())
        with open(name, "rb") as file:
            while chunk := file.read(1 << 24):
                hasher.update(chunk)
    return hasher.hexdigest()[:16]


# -- imports -------------------------------------------------------------------------------------------


def _imported(name: str, path: Path, sources: Sources) -> Iterator[str]:
    """Modules of the house and of the user's that a module imports, and the packages they lie in."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for module, names, level in sources.parsed(path).imports:
        base = module
        if level:
            above = package.split(".")[: len(package.split(".")) - level + 1]
            base = ".".join([*above, *([module] if module else [])])
        if _root(base.partition(".")[0], of_user=name) is None:
            continue
        yield from _with_packages(base)
        yield from (whole for taken in names if file_of(whole := f"{base}.{taken}") is not None)


def _with_packages(module: str) -> Iterator[str]:
    """A module and every package above it, whose ``__init__`` runs too."""
    parts = module.split(".")
    return (".".join(parts[: i + 1]) for i in range(len(parts)))


def _root(top: str, *, of_user: str) -> str | None:
    """The top-level name where it is the house's, or one that code of the user's takes from his own files."""
    importer = of_user.partition(".")[0]
    if top in (HOUSE, importer):
        return top
    if importer == HOUSE or top in sys.stdlib_module_names:
        return None  # the house imports no code of the user's but by ``_target_``
    return top if any(not _installed(place) for place in _places(top)) else None


def _places(top: str) -> tuple[Path, ...]:
    """File or folders of a top-level module or package; nothing where it is not found."""
    module = sys.modules.get(top)
    try:
        spec = getattr(module, "__spec__", None) or importlib.util.find_spec(top)
    except (ImportError, ValueError):  # ValueError: a module that was made by hand has no spec
        spec = None
    if spec is not None and spec.submodule_search_locations:
        return tuple(Path(place) for place in spec.submodule_search_locations)
    origin = getattr(module, "__file__", None) or (spec.origin if spec is not None else None)
    return (Path(origin),) if origin and origin.endswith(".py") else ()


@functools.cache
def _installation() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple({Path(sysconfig.get_path(name)).resolve() for name in names})


def _installed(place: Path) -> bool:
    """Whether a file is one of an installed package, which its version stands for."""
    return any(place.resolve().is_relative_to(folder) for folder in _installation())


@functools.cache
def _parsed(source: str) -> Parsed:
    tree = _stripped(ast.parse(source))
    imports: list[tuple[str, tuple[str, ...], int]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(alias.name, (), 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imports.append((node.module or "", tuple(a.name for a in node.names), node.level))
        elif isinstance(node, ast.Call) and (literal := _by_name(node)):
            imports.append((literal, (), 0))
    return Parsed(hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16], tuple(imports))


def _by_name(call: ast.Call) -> str | None:
    """The module of ``importlib.import_module("...")``."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", None)
    first = call.args[0] if call.args else None
    if name in ("import_module", "__import__") and isinstance(first, ast.Constant) and isinstance(first.value, str):
        return first.value
    return None


def _stripped(tree: ast.Module) -> ast.Module:
    """A syntax tree without what cannot run: texts that stand alone, and what is for type checkers."""
    for node in ast.walk(tree):
        for part in ("body", "orelse", "finalbody"):
            lines = getattr(node, part, None)
            if isinstance(lines, list):
                lines[:] = [line for line in lines if not _idle(line)]
    return tree


def _idle(line: ast.AST) -> bool:
    if isinstance(line, ast.Expr):
        return isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)
    if isinstance(line, ast.If) and not line.orelse:
        test = line.test
        name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", None)
        return name == "TYPE_CHECKING"
    return False
