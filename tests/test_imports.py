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
from harness.config import conf_dir

PACKAGE = Path(harness.__file__).parent
TESTS = Path(__file__).parent

ORDER = (
    # Facts and small tools: nothing of the house, or only what stands before.
    "errors",
    "records",
    "absences",
    "text",
    "streams",
    "patterns",
    "collector",
    "commandline",
    "config",
    "closure",
    "identity",
    "devices",
    "fingerprint",
    "cache",
    "journal",
    "job",
    "training",
    "precision",
    "conversation",
    "generation",
    "display",
    "allocator",
    "preload",
    "guard",
    "forkserver",
    "outcome",
    "past",
    "modelcard",
    "meter",
    "callback",
    # Tracking and what is made from tracked numbers.
    "tracking",
    "runs",
    "logged",
    "views",
    "projection",
    "results",
    "forecast",
    "spread",
    "stats",
    "report",
    # Components.
    "tasks",
    "audit",
    "ids",
    "loading",
    "models",
    "skeleton",
    "adapters",
    "classifier",
    "telemetry",
    "rewards",
    "stages",
    "algorithms",
    "evaluators",
    # The rows of a task.
    "data",
    "keys",
    # One trial, then many.
    "trial",
    "ground",
    "saved",
    "behaviour",
    "trainers",
    "worker",
    "rehearsal",
    "child",
    "peaks",
    "attend",
    "books",
    "runner",
    "sweep",
    "preflight",
    "plan",
    "launch",
    "gate",
    # What a person calls.
    "commands",
    "doctor",
    "showing",
    "validate",
    "cli",
    "__main__",
)
"""Imports run from right to left only. Packages count as one module; within them files may import each other."""

FOUNDATIONS = {"errors": set(), "records": set(), "config": {"errors"}, "closure": set(),
               "identity": {"closure", "errors"}, "cache": {"errors", "records"},
               "journal": {"errors", "records"}}  # fmt: skip
"""The leftmost modules, and all of the house that they may know."""

COMPONENTS = ("tasks", "models", "adapters", "stages", "rewards", "algorithms", "evaluators")
CONDUCTORS = {"tracking", "projection", "results", "report", "trial", "worker", "child", "runner", "sweep", "launch"}

HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes", "lm_eval")
LIGHT = ("cli", "config", "launch", "sweep", "runner", "trial", "tracking", "runs", "projection", "outcome", 
         "preflight", "commands", "doctor", "results", "report")  # fmt: skip
MOST_LINES = 400


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_of(file: Path) -> str:
    """The top-level module or package of a file: ``tasks`` for ``harness/tasks/rows.py``."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    """Top-level modules of the house that a syntax tree imports, anywhere in it but for type checkers alone."""
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
    """Module -> the other modules of the house that it imports, at its top or inside functions."""
    found: dict[str, set[str]] = {}
    for file in files():
        name = module_of(file)
        if name != "__init__":
            found.setdefault(name, set()).update(imported(ast.parse(file.read_text())) - {name})
    return found


def test_every_module_has_its_place_in_the_order():
    assert [name for name in edges() if name not in ORDER] == []
    assert len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize("name", sorted(edges()))
def test_imports_run_one_way(name):
    allowed = set(ORDER[: ORDER.index(name)])
    assert edges()[name] - allowed == set()


@pytest.mark.parametrize(("name", "allowed"), FOUNDATIONS.items())
def test_the_foundations_know_next_to_nothing_of_the_house(name, allowed):
    assert edges()[name] <= allowed


@pytest.mark.parametrize("name", COMPONENTS)
def test_components_do_not_know_who_runs_them(name):
    assert edges()[name] & CONDUCTORS == set()


def test_the_worker_knows_nothing_of_tracking():
    known, open_ = set(), ["worker", "child"]
    while open_:
        for name in edges()[open_.pop()] - known:
            known.add(name)
            open_.append(name)
    assert known & {"tracking", "projection", "results", "report", "runner", "sweep"} == set()


def test_records_and_errors_need_the_standard_library_alone():
    for name in ("records", "errors"):
        tree = ast.parse((PACKAGE / f"{name}.py").read_text())
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


def dotted(*names: str) -> list[str]:
    """Dotted names of every file that belongs to the modules ``names``."""
    here = [file for file in files() if module_of(file) in names]
    return [
        ".".join(("harness", *f.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__") for f in here
    ]


def test_planning_tracking_and_reporting_import_no_library_that_computes():
    assert loaded_by(*dotted(*LIGHT)) & set(HEAVY) == set()


def test_component_modules_named_in_yaml_import_no_library_that_computes():
    targets = {
        match.rpartition(".")[0]
        for file in conf_dir().rglob("*.yaml")
        for match in re.findall(r"^\s*_target_:\s*(\S+)", file.read_text(), flags=re.MULTILINE)
    }
    assert len(targets) >= 12
    assert loaded_by(*sorted(targets)) & {*HEAVY, "scipy"} == set()


def test_the_command_line_itself_is_light_enough_to_help_at_once():
    assert loaded_by("harness.cli") & {*HEAVY, "hydra", "omegaconf", "pydantic", "mlflow", "pandas", "numpy"} == set()


def test_planning_a_sweep_imports_neither_mlflow_nor_pandas():
    assert (
        loaded_by("harness.sweep", "harness.launch", "harness.tracking") & {"mlflow", "pandas", "matplotlib"} == set()
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
                case ast.Call(ast.Attribute(attr="setattr"), [ast.Constant(str(target)), *_]):
                    where, _, name = target.rpartition(".")
                case ast.Call(ast.Attribute(attr="setattr"), [ast.Name(owner), ast.Constant(str(name)), *_]):
                    where = modules.get(owner, "")
                case _:
                    continue
            try:
                found = not where or hasattr(pkgutil.resolve_name(where), name)
            except (ImportError, AttributeError):
                found = False
            if not found:
                missing.append(f"{path.name}:{call.lineno}: {where}.{name}")
    assert not missing, missing
