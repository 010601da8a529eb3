"""The house: what may import what, what stays light, and how long a file may be."""

from __future__ import annotations

import ast
import functools
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from harness.config import closure
from harness.config.compose import conf_dir

PACKAGE = Path(harness.__file__).parent
TESTS = Path(__file__).parent

ROOMS = (
    "base",  # no domain
    "config",
    "telemetry",
    "store",
    "sandbox",  # for programs that a model writes
    "tasks",
    "models",
    "judges",
    "rewards",
    "stages",
    "evaluators",
    "algorithms",
    "trial",  # inside the process
    "rehearsal",
    "runner",  # the parent's side
    "launchers",
    "sweep",
    "plan",
    "report",
    "gate",
    "cli",
    "__main__",
)
"""Imports run from a room to those before it only; within a room files may import each other."""

COMPONENTS = ("tasks", "models", "judges", "rewards", "stages", "evaluators", "algorithms")
VARIANTS = COMPONENTS
"""Rooms with a file for each variant, which may be many."""

HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes", "lm_eval")
LIGHT = ("base", "config", "store", "report", "gate", "sweep", "runner", "cli")
COMPUTES = ("harness.runner.preload", "harness.runner.child")
"""Of these rooms, what a trial's process alone imports."""
MOST_LINES, MOST_FILES = 400, 15


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path) -> str:
    """The room of a file: ``tasks`` for ``harness/tasks/reading/rows.py``."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    """Rooms of the house that a syntax tree imports from, anywhere in it but for type checkers alone."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("harness.")}
        found |= imported(node)
    return found


@functools.cache
def edges() -> dict[str, set[str]]:
    """Room -> the other rooms that its files import from, at their top or inside functions."""
    found: dict[str, set[str]] = {}
    for file in files():
        name = room_of(file)
        if name != "__init__":
            found.setdefault(name, set()).update(imported(ast.parse(file.read_text())) - {name})
    return found


def test_every_room_has_its_place_in_the_order():
    assert set(edges()) == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room):
    assert edges()[room] - set(ROOMS[: ROOMS.index(room)]) == set()


@pytest.mark.parametrize("room", COMPONENTS)
def test_components_do_not_know_who_runs_them(room):
    assert edges()[room] <= {"base", "config", "telemetry", "store", "sandbox", *COMPONENTS}


def test_the_trial_knows_nothing_of_tracking():
    tracking = {"harness.store.mlflow_store", "harness.store.mlflow_sync", "harness.store.results"}
    assert tracking.isdisjoint(closure.closure(["harness.runner.child"], stops=()))


def test_no_room_is_crowded():
    crowded = {}
    for folder in {file.parent for file in files()}:
        count = len(list(folder.glob("*.py"))) - 1
        if count > MOST_FILES and folder.relative_to(PACKAGE).parts[0] not in VARIANTS:
            crowded[str(folder.relative_to(PACKAGE))] = count
    assert crowded == {}
    assert {file.name for file in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}


def test_records_and_errors_need_the_standard_library_alone():
    for name in ("records", "errors"):
        tree = ast.parse((PACKAGE / "base" / f"{name}.py").read_text())
        tops = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        tops |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert {t.split(".")[0] for t in tops} <= sys.stdlib_module_names


def test_every_file_reads_in_one_sitting():
    lines = {str(file.relative_to(PACKAGE)): len(file.read_text().splitlines()) for file in files()}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


# -- what importing costs ------------------------------------------------------------------------------


def loaded_by(*modules: str) -> set[str]:
    """Foreign top-level modules that are loaded after importing ``modules`` in a fresh process."""
    script = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def dotted(*rooms: str) -> list[str]:
    """Dotted names of every file of the rooms."""
    here = [file for file in files() if room_of(file) in rooms]
    return [
        ".".join(("harness", *f.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__") for f in here
    ]


def test_planning_tracking_and_reporting_import_no_library_that_computes():
    assert loaded_by(*(name for name in dotted(*LIGHT) if name not in COMPUTES)) & set(HEAVY) == set()


def test_component_modules_named_in_yaml_import_no_library_that_computes():
    targets = {
        match.rpartition(".")[0]
        for file in conf_dir().rglob("*.yaml")
        for match in re.findall(r"^\s*_target_:\s*(harness\S+)", file.read_text(), flags=re.MULTILINE)
    }
    assert len(targets) >= 12
    assert loaded_by(*sorted(targets)) & {*HEAVY, "scipy"} == set()


def test_the_command_line_itself_is_light_enough_to_help_at_once():
    assert (
        loaded_by("harness.cli.main") & {*HEAVY, "hydra", "omegaconf", "pydantic", "mlflow", "pandas", "numpy"} == set()
    )


def test_planning_a_sweep_imports_neither_mlflow_nor_pandas():
    assert (
        loaded_by("harness.sweep.expand", "harness.cli.launch", "harness.store.mlflow_store")
        & {"mlflow", "pandas", "matplotlib"}
        == set()
    )


def test_what_a_test_replaces_is_there() -> None:
    """A slow or nightly test that patches a function by its name must not be the first to hear that it was renamed."""
    missing = []
    for path in sorted(TESTS.rglob("*.py")):
        tree = ast.parse(path.read_text())
        modules = {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "harness"
            for alias in node.names
        }
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            match call:
                case ast.Call(ast.Attribute(attr="setattr") | ast.Name("patch"), [ast.Constant(str(target)), *_]):
                    where, _, name = target.rpartition(".")
                case ast.Call(ast.Attribute(attr="setattr" | "object"), [owner, ast.Constant(str(name)), *_]):
                    first, _, rest = ast.unparse(owner).partition(".")
                    where = ".".join(filter(None, (modules.get(first), rest))) if first in modules else ""
                case _:
                    continue
            try:
                found = not where or hasattr(pkgutil.resolve_name(where), name)
            except (ImportError, AttributeError):
                found = False
            if not found:
                missing.append(f"{path.name}:{call.lineno}: {where}.{name}")
    assert not missing, missing
