"""Trial keys, digests of code and models, and the record of the environment.

A trial is known by a *train key* (everything that can change what training yields) and an *eval key* (the
evaluators' configuration, code and data). Keys are computed without importing torch.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.base.errors import UserError, without_password
from harness.config import closure, renamed

PACKAGE = closure.PACKAGE
COMPUTING_LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "tokenizers")
"""Count wherever code counts."""
WHERE_IMPORTED = ("lm_eval", "math_verify")
"""Count where code of the house imports them; what code of the user's imports always does."""

LOOKS_LOCAL = ("/", "./", "../", "~")
"""How a path begins that is meant to be a directory, whether it is there or not."""


def digest(content: Any, length: int = 16) -> str:
    """SHA-256 of the canonical JSON of ``content``."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


@functools.cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries that compute, as keys and digests hold them: without the build.

    ``2.13.0+cpu`` is ``2.13.0``: one source, built for another device. The device is told apart where it counts
    (kernels do not agree to the bit between devices of one build either), and a baseline can be carried elsewhere.
    """
    return {name: version_of(name).partition("+")[0] for name in COMPUTING_LIBRARIES}


def versions_beside(files: Mapping[str, Path]) -> dict[str, str]:
    """Versions of what modules (``closure``) compute with beside the libraries that always count."""
    found = {}
    for name, importers in closure.libraries(files).items():
        of_user = any(not closure.within(module, (closure.HOUSE,)) for module in importers)
        if name not in COMPUTING_LIBRARIES and (name in WHERE_IMPORTED or of_user):
            found[name] = _version_of_import(name)
    return found


@functools.cache
def _version_of_import(name: str) -> str:
    """Version of the distribution that a top-level package comes from; most bear its name."""
    version = version_of(name)
    if version == "absent":
        version = ", ".join(version_of(d) for d in _distributions().get(name, ())) or version
    return version


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


def folder_digest(folder: Path) -> str:
    """Digest of a model folder by content; cached per process by path, size and time of change."""
    return closure.content_digest(sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")))


def model_content(path: str, revision: str | None = None) -> str:
    """What stands for the content behind a model's path.

    Of a directory the digest of its files; of a hub model the commit that the local cache of the hub has for the
    revision, and where it has none (before the first download) name and revision.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder_digest(folder)
    return f"{path}@{hub_commit(path, revision) or revision}"


def pinned_content(path: str, revision: str | None = None, *, key: str) -> str:
    """``model_content`` of what will be loaded, the same before and after the first download (``pinned``)."""
    return model_content(path, pinned(path, revision, key=key))


def pinned(path: str, revision: str | None, *, key: str) -> str | None:
    """The revision to load a model by, so that what is loaded is what a key names: the commit of a hub model.

    From the local cache of the hub; before the first download the hub is asked, by fetching ``config.json``, which
    leaves the commit in that cache. Nothing is asked about a directory.

    Args:
        path: directory or hub id.
        revision: as the user names it.
        key: the configuration key that holds the path, for the message.

    Raises:
        UserError: the hub has no such model, or cannot be reached.
    """
    if Path(path).expanduser().is_dir() or path.startswith(LOOKS_LOCAL):
        return revision
    said = ""
    if (commit := hub_commit(path, revision)) is None:
        import huggingface_hub

        try:
            huggingface_hub.hf_hub_download(path, "config.json", revision=revision)
        except (OSError, ValueError) as error:  # a refusal, no network, or a name that is none
            said = f" ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        commit = hub_commit(path, revision)
    if commit is None:
        rule = f"is no directory, and the hub does not say which commit it is{said}"
        fix = "check the path; for a hub model the network, HF_HOME and HF_TOKEN; or name a local directory"
        raise UserError(rule, key=key, value=path, fix=fix)
    return commit


def hub_file(path: str, revision: str | None, name: str) -> Path | None:
    """A file of a hub model, from the local cache and offline; None where it is not there."""
    from huggingface_hub import constants

    commit = hub_commit(path, revision)
    folder = Path(constants.HF_HUB_CACHE) / f"models--{path.replace('/', '--')}" / "snapshots"
    return None if commit is None else folder / commit / name


def hub_commit(path: str, revision: str | None) -> str | None:
    """The commit of a hub model's revision, from the local cache and offline; None where it is not known there."""
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{path.replace('/', '--')}" / "refs"
    try:
        return (folder / (revision or "main")).read_text().strip() or None
    except (OSError, ValueError):  # ValueError: the name cannot be one of a file
        return None


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
    before = {_present(name): value for name, value in before.items()}
    changed = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
    return ", ".join(changed) or "nothing"


def _present(name: str) -> str:
    """The name of a part of a key, as an older trial wrote it, in present words."""
    group, _, key = name.partition(".")
    return f"{group}.{renamed.key(key)}" if group == "config" else name


def modules_of(components: Iterable[object]) -> tuple[str, ...]:
    """Modules of components and of those in their fields: where a closure of their code begins."""
    return tuple(sorted({type(c).__module__ for component in components for c in _components_in(component)}))


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
