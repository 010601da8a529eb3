"""Trial keys, digests of code and models, and the record of the environment.

A trial is known by a *train key* (everything that can change what training yields) and an *eval key* (the
evaluators' configuration, code and data). Keys are computed without importing torch.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.errors import without_password

PACKAGE = Path(__file__).resolve().parent
COMPUTING_LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "tokenizers")
TRAINING_CODE = (
    "algorithms",
    "rewards",
    "stages",
    "tasks",
    "adapters.py",
    "classifier.py",
    "conversation.py",
    "ground.py",
    "models.py",
    "loading.py",
    "meter.py",
    "trainers.py",
    "training.py",
    "worker.py",
)
EVALUATION_CODE = ("evaluators", "forecast.py")


def digest(content: Any, length: int = 16) -> str:
    """SHA-256 of the canonical JSON of ``content``."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


@functools.cache
def code_digest(parts: tuple[str, ...], extra_modules: tuple[str, ...] = ()) -> str:
    """Digest of the source files below the package parts, and of the files of ``extra_modules`` (plugins).

    Of each file the syntax tree counts, docstrings left out: rewording or reformatting retrains nothing.
    """
    files: list[Path] = []
    for part in parts:
        place = PACKAGE / part
        files += sorted([*place.rglob("*.py"), *place.rglob("*.yaml")]) if place.is_dir() else [place]
    for name in extra_modules:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file:
            files.append(Path(file))
    hasher = hashlib.sha256()
    for file in files:
        hasher.update(file.name.encode())
        text = file.read_text()
        hasher.update((_meaning(text) if file.suffix == ".py" else text).encode())
    return hasher.hexdigest()[:16]


def _meaning(source: str) -> str:
    """The syntax tree of a source file without comments, layout and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            text = body[0].value
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                del body[0]
    return ast.dump(tree)


@functools.cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries that compute, as keys and digests hold them: without the build.

    ``2.13.0+cpu`` is ``2.13.0``: one source, built for another device. The device is told apart where it counts
    (kernels do not agree to the bit between devices of one build either), and a baseline can be carried elsewhere.
    """
    return {name: version_of(name).partition("+")[0] for name in COMPUTING_LIBRARIES}


def folder_digest(folder: Path) -> str:
    """Digest of a model folder by content; cached per process by path, size and time of change."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    return _folder_digest(tuple((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files))


@functools.cache
def _folder_digest(files: tuple[tuple[str, int, int], ...]) -> str:
    hasher = hashlib.sha256()
    for name, _size, _time in files:
        hasher.update(Path(name).name.encode())
        with open(name, "rb") as file:
            while chunk := file.read(1 << 24):
                hasher.update(chunk)
    return hasher.hexdigest()[:16]


def environment() -> dict[str, Any]:
    """What a number was measured on: versions, processor, commit."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpu_count": os.cpu_count(),
        "versions": {
            **{name: version_of(name) for name in COMPUTING_LIBRARIES},
            "harness": version_of("alignment-harness"),
            "mlflow": version_of("mlflow"),
        },
        "git_sha": git_sha(),
        "command": command_line(),
        "trial_command": trial_command(),
    }


@functools.cache
def git_sha() -> str | None:
    """Commit of the working directory, else of the harness's own checkout; ``-dirty`` where files differ."""
    for folder in (Path.cwd(), PACKAGE):
        try:
            sha = _git("-C", str(folder), "rev-parse", "--short=12", "HEAD")
            dirty = _git("-C", str(folder), "status", "--porcelain", "--untracked-files=no")
            return f"{sha}-dirty" if dirty else sha
        except (OSError, subprocess.SubprocessError):
            continue  # no checkout, or no git
    return None


def command_line() -> str:
    """What was typed, near enough to type it again."""
    arguments = without_password(shlex.join(sys.argv[1:]))
    name = Path(sys.argv[0]).name
    program = "python -m harness" if name == "__main__.py" else name
    return f"{program} {arguments}".strip()


def trial_command() -> str | None:
    """What would run the present Hydra job alone, in a sweep of its own; None outside of a job."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return None
    job = HydraConfig.get()
    folders = [s.path for s in job.runtime.config_sources if s.provider == "command-line"]
    words = [word for folder in folders for word in ("--config-dir", folder)]
    words += [str(o) for o in job.overrides.task if not str(o).lstrip("+").startswith("sweep=")]
    return without_password(shlex.join(["python", "-m", "harness", *words]))


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys: ``{"algo": {"beta": 1}}`` -> ``{"algo.beta": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def what_changed(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """The names under which two explanations of a key differ, for the log."""
    changed = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
    return ", ".join(changed) or "nothing"


def modules_of(components: Iterable[object]) -> tuple[str, ...]:
    """Modules of components that live outside the package: plugins, whose code counts too. Looks into components."""
    names = {type(c).__module__ for component in components for c in _components_in(component)}
    return tuple(sorted(n for n in names if not n.startswith("harness.")))


def _components_in(value: object) -> Iterator[object]:
    """A component and those in its fields (the parts of a sum)."""
    if is_dataclass(value):
        yield value
        for item in fields(value):
            yield from _components_in(getattr(value, item.name))
    elif isinstance(value, Mapping):
        for nested in value.values():
            yield from _components_in(nested)
    elif isinstance(value, list | tuple):
        for nested in value:
            yield from _components_in(nested)


def version_of(name: str) -> str:
    """Installed version of a distribution, or ``absent``."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=True)
    return done.stdout.strip()


@functools.cache
def processor() -> str:
    """Name of the CPU."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux: the platform module's answer is all there is
    return platform.processor() or "unknown"
