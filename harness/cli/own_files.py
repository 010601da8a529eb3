"""The files of a user's configuration folder, before anything is made of them: which can be read, and what is wrong."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from harness.base.errors import UserError
from harness.config.compose import hidden

COMPONENTS = ("algo", "adapter", "curate", "evaluator", "judge", "model", "reward", "task")
"""Groups whose YAMLs name a class."""
OTHER_SUFFIXES = (".yml", ".json")


@contextmanager
def sound_part(folder: Path) -> Iterator[tuple[Path, list[tuple[str, UserError]]]]:
    """A folder with the files that can be read, and (file, error) for those that cannot.

    It is the folder itself where nothing is wrong: one file that cannot be read keeps Hydra from all others.
    """
    wrong: dict[Path, UserError] = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if name.parts[0].startswith(".") or "__pycache__" in name.parts:
            continue
        if (error := problem(folder, name)) is not None:
            wrong[name] = error
    told = [(str(name), error) for name, error in wrong.items()]
    if not wrong:
        yield folder, told
        return
    with tempfile.TemporaryDirectory(prefix="harness-validate-") as scratch:
        copy = Path(scratch) / folder.resolve().name
        copy.mkdir()
        for file in sorted(folder.rglob("*.yaml")):
            name = file.relative_to(folder)
            if name not in wrong and file.is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy / name)
        yield copy, told


def problem(folder: Path, name: Path) -> UserError | None:
    """What is wrong with a file as a file; None where nothing is, or it is none of ours."""
    file, key = folder / name, str(name)
    if file.suffix in OTHER_SUFFIXES:
        return UserError("is not read: Hydra looks for .yaml", key=key, fix=f"call it {name.with_suffix('.yaml')}")
    if file.suffix != ".yaml":
        return None
    if file.is_dir():
        return UserError("is a folder", key=key, fix="give the folder another name; options are files GROUP/NAME.yaml")
    if not file.exists():
        return UserError(f"points to {os.readlink(file)}, which is not there", key=key, fix="mend or remove the link")
    if len(name.parts) == 1:
        return UserError("stands in no group, so nothing can choose it", key=key, fix=f"move it: GROUP/{name}")
    if (error := hidden(folder, name)) is not None:
        return error
    if set(name.stem) & set(",= "):
        return UserError(
            "has a name that no command line can choose", key=key, fix="name it with letters, digits and _"
        )
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        return UserError(f"is not UTF-8 (byte {error.start})", key=key, fix="save it as UTF-8")
    except OSError as error:
        return UserError(f"cannot be read ({error.strerror})", key=key, fix="see its permissions")
    return _content_problem(text, name)


def _content_problem(text: str, name: Path) -> UserError | None:
    """What says nothing or names no class, where one is needed; what is no YAML is told when it is composed."""
    try:
        content: Any = yaml.safe_load(text)
    except yaml.YAMLError:
        return None
    if content is None:
        return UserError("is empty", key=str(name), fix="write what it chooses, or remove it")
    if not isinstance(content, dict):
        return UserError(f"must hold keys and values, not a {type(content).__name__}", key=str(name), fix="key: value")
    if name.parts[0] in COMPONENTS and not {"_target_", "defaults"} & set(content):
        below = next((key for key, value in content.items() if isinstance(value, dict) and "_target_" in value), None)
        if below is not None and "@package" not in text.partition("\n")[0]:
            fix = f"move what stands below '{below}:' to the left margin, and remove that line"
            return UserError(f"names its class one level too deep, below {below!r}", key=str(name), fix=fix)
        return UserError("names no class", key=str(name), fix="_target_: my_package.my_module.MyClass")
    return None
