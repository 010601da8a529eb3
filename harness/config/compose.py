"""Find ``conf/``, compose it with Hydra, and build validated components from YAML nodes.

A node with a ``_target_`` names a frozen dataclass that is schema and component at once. Building one touches
no GPU, no network and no environment variable. All errors of a configuration are collected, not the first.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from harness.base.errors import UserError, UserErrors
from harness.base.formatting import did_you_mean
from harness.config import renamed, rules

OWN_PACKAGE = "harness"
IMPORTING = ("callbacks", "job_logging", "hydra_logging")
"""Parts of Hydra's own node whose classes it imports; it looks after sweeper and launcher itself."""


def conf_dir() -> Path:
    """The folder of the YAML groups: inside the wheel, or at the top of the checkout."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise UserError("the configuration folder conf/ is missing", fix="reinstall: pip install -e .[dev]")


@contextmanager
def hydra_config(config_dirs: Sequence[str] = ()) -> Iterator[None]:
    """Initialise Hydra's compose API on ``conf/`` (plus the user's ``--config-dir``) for a while."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    try:
        with _ours_first(), initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
            if config_dirs:
                loader = GlobalHydra.instance().config_loader()
                for path in config_dirs:
                    if not Path(path).is_dir():
                        raise UserError(
                            "no such folder", key="--config-dir", value=path, fix="name a folder of YAML groups"
                        )
                    _refuse_hidden(Path(path))
                    # Before the schema, which must be last, and read again: as Hydra's own command line does it.
                    loader.get_search_path().prepend("command-line", f"file://{Path(path).resolve()}", "schema")
                loader.repository.initialize_sources(loader.get_search_path())  # type: ignore[attr-defined]
            yield
    except _theirs() as error:
        raise as_user_error(error) from None
    finally:
        GlobalHydra.instance().clear()


@contextmanager
def _ours_first() -> Iterator[None]:
    """Launchers whose plugins have a configuration of the same name: Hydra takes ours, and warns that there are two."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")
        yield


def _refuse_hidden(folder: Path) -> None:
    for path in sorted(conf_dir().rglob("*.yaml")):
        if (error := hidden(folder, path.relative_to(conf_dir()))) is not None:
            raise error


def hidden(folder: Path, name: Path) -> UserError | None:
    """Hydra reads the first YAML of a name that it finds, which is ours: one's own would change nothing, unsaid."""
    if not ((conf_dir() / name).is_file() and (folder / name).is_file()):
        return None
    return UserError(
        "has the name of one of harness's own, which would be read in its place",
        key="--config-dir",
        value=str(folder / name),
        fix=f"give it another name, such as {name.with_suffix('')}_own.yaml",
    )


def compose(overrides: Sequence[str], *, with_hydra: bool = False) -> dict[str, Any]:
    """Compose one configuration and resolve it to plain containers. Call inside ``hydra_config``."""
    from hydra import compose as hydra_compose
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    try:
        config = hydra_compose("config", overrides=_present(overrides), return_hydra_config=True)
    except OmegaConfBaseException:
        raise  # some of these are ValueErrors too
    except ValueError as error:  # Hydra's own, for example for a group set to null
        empty = next((o for o in overrides if o.endswith(("=null", "="))), "")
        raise UserError(str(error), key=empty or None, fix="choose an option; `--help` lists them") from None
    # Only these are resolvable outside a job; the rest of the hydra node needs one.
    hydra_node = {name: OmegaConf.to_container(config.hydra[name], resolve=False) for name in ("sweeper", "launcher")}
    for name in IMPORTING:
        node = OmegaConf.to_container(config.hydra[name], resolve=False)
        _refuse_strangers(node, f"hydra.{name}", tuple(config.get("plugins") or ()))
    with open_dict(config):
        del config["hydra"]
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    assert isinstance(plain, dict)
    result = {str(key): value for key, value in plain.items()}
    if with_hydra:
        result["hydra"] = hydra_node
    return result


def _present(given: Sequence[str]) -> list[str]:
    return rules.arguments(renamed.arguments(given))


def _refuse_strangers(node: Any, path: str, plugins: Sequence[str]) -> None:
    """Hydra imports what its own node names, and that is code like any other.

    Raises:
        UserError: a class of a package that is neither ours, Hydra's, the standard library's nor a named plugin.
    """
    if isinstance(node, list):
        for i, item in enumerate(node):
            _refuse_strangers(item, f"{path}[{i}]", plugins)
    if not isinstance(node, Mapping):
        return
    for key, value in node.items():
        if key in ("_target_", "class", "()") and isinstance(value, str):
            package = value.split(".")[0]
            if package not in (OWN_PACKAGE, "hydra", "hydra_plugins", "logging", "colorlog", *plugins):
                raise UserError(
                    "only classes of harness, Hydra and packages listed in plugins are imported",
                    key=f"{path}.{key}",
                    value=value,
                    fix=f"plugins=[{package}]",
                )
        _refuse_strangers(value, f"{path}.{key}", plugins)


def hydra_application(task: Callable[[Any], object], arguments: Sequence[str]) -> None:
    """Run Hydra's command line over ``conf/`` with ``task`` as the job; plugins of our own are registered before.

    Raises:
        UserError: in place of Hydra's and OmegaConf's own errors.
        SystemExit: as Hydra's argument parser does.
    """
    import hydra

    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise instead of exiting with 1 and a message of its own
    shown = sys.argv
    sys.argv = [shown[0], *_present(arguments)]
    try:
        with _ours_first():
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()
    except _theirs() as error:
        raise as_user_error(error) from None
    finally:
        sys.argv = shown


def _theirs() -> tuple[type[Exception], ...]:
    """What Hydra, OmegaConf and the reader of YAML raise about a configuration."""
    import yaml
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    return HydraException, OmegaConfBaseException, yaml.YAMLError


def as_user_error(error: Exception) -> UserError:
    """Complaints of Hydra, OmegaConf and the reader of YAML, as ours; any other error is raised again."""
    import yaml

    if isinstance(error, UserError):
        return error
    if not isinstance(error, _theirs()):
        raise error
    if isinstance(error, yaml.YAMLError):
        return UserError(f"is no YAML: {' '.join(str(error).split())}", key="configuration", fix="mend the file")
    text = (str(error).strip() or type(error).__name__).partition("\nConfig search path:")[0]
    absent = re.search(r"Could not find '([^']*)/([^'/]*)'\s+Available options in '[^']*':\s+(.+)", text, re.DOTALL)
    if absent:
        group, option, options = absent.groups()
        if group.startswith("model/"):
            fix = f"a model in a folder: model=hf model.path={group.removeprefix('model/')}/{option}"
            return UserError("no such option", key="model", value=f"{group.removeprefix('model/')}/{option}", fix=fix)
        folders = sorted(f"{p.parent.name}/{p.stem}" for p in (conf_dir() / group).glob("*/*.yaml"))
        known = [*options.split(), *folders]
        fix = f"{did_you_mean(option, known)} {group} is one of {', '.join(known)}".lstrip()
        return UserError("no such option", key=group, value=option, fix=fix)
    chained = error.__cause__
    if chained is not None and str(chained).strip() and str(chained).strip() not in text:
        text += f" ({str(chained).strip()})"
    fix = "see the known options in the message, or `python -m harness --help`"
    if "ambiguous" in text.lower():
        fix = "add -m to sweep over comma-separated values"
    elif re.search(r"(mismatched|extraneous) input '='|no viable alternative at input '[^']*='", text):
        fix = "a value that holds = must be in quotes within the shell's own: 'task.path=\"a=b.jsonl\"'"
    elif (missing := re.search(r"Could not override '(model|reward|task)\.path'", text)) is not None:
        text = "what is chosen reads no files"
        fix = {
            "model": "the embedded model has no path; yours: model=hf model.path=PATH",
            "reward": "a reward of your own by path: reward=model reward.path=PATH",
            "task": "data of your own: task=preferences task.path=FILE, or task=problems task.path=FILE",
        }[missing.group(1)]
        return UserError(text, key=f"{missing.group(1)}.path", fix=fix)
    elif (unknown := re.search(r"Could not override '([\w.@/]+)'", text)) is not None:
        near, others = _like(unknown[1]), _options_with(unknown[1])
        fix = f"it is a setting of {others}. " if others else f"did you mean {near}? " if near else ""
        fix += "`python -m harness --cfg job` prints every key"
        return UserError("no such key", key=unknown[1], fix=fix)
    elif "mismatched input '<EOF>'" in text:
        text = f"a value is missing: {text.splitlines()[0]}" if "LexerNoViableAlt" in text else "a value is missing"
        fix = "a value after each = and each comma, and no blank after a comma: beta=0.1,0.5"
    elif "Could not append" in text or "Key '" in text or "not in struct" in text:
        fix = "check the spelling; `python -m harness --cfg job` prints every key (a leading + adds a new one)"
    return UserError(text, fix=fix)


def _options_with(key: str) -> str:
    """The options of a group that have the setting ``group.name``, two at most; empty where none has."""
    import yaml

    group, _, name = key.partition(".")
    files = sorted((conf_dir() / group).rglob("*.yaml")) if name.isidentifier() else []
    having = [f for f in files if name in (yaml.safe_load(f.read_text(encoding="utf-8")) or {})]
    return " and ".join(f"{group}={f.relative_to(conf_dir() / group).with_suffix('').as_posix()}" for f in having[:2])


def _like(wrong: str) -> str:
    """Keys of ``conf/`` that may have been meant by one that is not there; empty where none is like it."""
    import yaml

    if (present := renamed.key(wrong)) != wrong:
        return present
    known: set[str] = set()
    for file in conf_dir().rglob("*.yaml"):
        parts, content = file.relative_to(conf_dir()).parts, yaml.safe_load(file.read_text(encoding="utf-8"))
        group = parts[0] if len(parts) > 1 else ""
        if group not in ("experiment", "rules", "evaluator", "hydra") and isinstance(content, dict):
            names = [str(name) for name in content if str(name).isidentifier()]
            known |= {group, *(f"{group}.{name}" for name in names)} if group else set(names)
    end = wrong.rpartition(".")[2]
    end = "learning_rate" if end == "lr" else end
    same_end = sorted((k for k in known if k.rpartition(".")[2] == end), key=lambda k: (not k.startswith("train."), k))
    found = same_end or difflib.get_close_matches(wrong, sorted(known), n=1, cutoff=0.75)
    return " or ".join(found[:3])


def build(node: Any, *, path: str, plugins: Sequence[str] = (), base: type | None = None) -> Any:
    """Turn a plain node into a validated component; raises ``UserErrors`` with everything wrong below ``path``.

    Args:
        node: plain containers, as ``compose`` returns them.
        path: the node's key, for messages (``algo``).
        plugins: packages besides ``harness`` from which classes may be built.
        base: class that the component must derive from.
    """
    errors: list[UserError] = []
    built = _build(node, path, tuple(plugins), errors)
    if errors:
        raise UserErrors(errors)
    if base is not None and not isinstance(built, base):
        raise UserErrors(
            [UserError(f"must be a {base.__name__}, not a {type(built).__name__}", key=f"{path}._target_")]
        )
    return built


def _build(node: Any, path: str, plugins: tuple[str, ...], errors: list[UserError]) -> Any:
    if isinstance(node, list):
        return [_build(item, f"{path}[{i}]", plugins, errors) for i, item in enumerate(node)]
    if not isinstance(node, Mapping):
        if node == "???":
            errors.append(UserError("a value is required", key=path, fix=f"set it: {path}=..."))
        if isinstance(node, float) and not math.isfinite(node):
            errors.append(UserError("must be a finite number", key=path, value=node, fix=f"give {path} a number"))
        return node
    if "_target_" not in node:
        return {key: _build(value, f"{path}.{key}", plugins, errors) for key, value in node.items()}
    before = len(errors)
    fields = {key: _build(value, f"{path}.{key}", plugins, errors) for key, value in node.items() if key != "_target_"}
    try:
        target = import_component(node["_target_"], key=f"{path}._target_", plugins=plugins)
    except UserError as error:
        errors.append(error)
        return None
    if len(errors) > before:
        # Children are broken: still validate this level's own fields, so that everything is reported at once.
        broken = {e.key for e in errors[before:] if e.key}
        fields = {k: v for k, v in fields.items() if not any(b.startswith(f"{path}.{k}") for b in broken)}
        _validate(target, fields, path, errors, ignore_missing=True)
        return None
    return _validate(target, fields, path, errors)


def _validate(
    target: type, fields: dict[str, Any], path: str, errors: list[UserError], *, ignore_missing: bool = False
) -> Any:
    from pydantic import TypeAdapter, ValidationError
    from pydantic.errors import PydanticUserError

    if not is_dataclass(target) or inspect.isabstract(target):
        absent = ", ".join(f"{name}()" for name in sorted(getattr(target, "__abstractmethods__", ())))
        rule = f"cannot be built without {absent}" if is_dataclass(target) else "names no dataclass"
        fix = f"write {absent}, or name another class" if absent else "name a component's class"
        errors.append(UserError(rule, key=f"{path}._target_", value=target.__name__, fix=fix))
        return None
    try:
        return TypeAdapter(target).validate_python(fields)
    except ValidationError as failure:
        found: dict[str | None, UserError] = {}
        for item in failure.errors():
            if ignore_missing and item["type"] == "missing":
                continue
            error = _explain(item, target, path)
            found.setdefault(error.key, error)  # of the members of a union, each complains: one is enough
        errors += found.values()
    except (TypeError, PydanticUserError) as failure:
        text = str(failure).splitlines()[0]
        bare = [f"{k}.{n}" for k, v in fields.items() if isinstance(v, Mapping) for n in v if isinstance(v[n], Mapping)]
        if bare:  # where a component belongs, a node without _target_ stayed a dictionary
            path, text = f"{path}.{bare[0]}", "it has no _target_, so its class is not known"
        errors.append(UserError(f"cannot be built ({text})", key=path, fix="check _target_ and the fields"))
    return None


def _explain(item: Any, target: type, path: str) -> UserError:
    """One pydantic error as key, value, rule and fix."""
    # Of a union, pydantic adds the member it tried to the location ("str", "tuple[str, ...]").
    names = [part for part in item["loc"] if isinstance(part, int) or str(part).isidentifier()]
    location = ".".join(str(part) for part in names if part not in ("dataclass", "str", "int", "float", "bool"))
    key = f"{path}.{location}" if location else path
    rule = item["msg"][:1].lower() + item["msg"][1:]
    known = [name for name in inspect.signature(target).parameters]
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        if (own := _undeclared(target, str(item["loc"][-1]), key)) is not None:
            return own
        return UserError("unknown key", key=key, fix=f"remove it; known keys of {path}: {', '.join(known) or 'none'}")
    if item["type"] == "missing":
        return UserError("a value is required", key=key, fix=f"set it: {key}=...")
    fix = _example(target, names, key)
    if "expected" in (item.get("ctx") or {}):
        fix = f"use one of {item['ctx']['expected']}"
    return UserError(rule.removeprefix("value error, "), key=key, value=item["input"], fix=fix)


def _undeclared(target: type, name: str, key: str) -> UserError | None:
    """A setting that a class has, and not as a field of a dataclass; None where it has none of the name."""
    if "__dataclass_params__" not in vars(target):
        rule = f"{target.__qualname__} is no dataclass of its own, so it has no settings"
        return UserError(rule, key=key, fix=f"@dataclass(frozen=True) above it, and {name}: TYPE = DEFAULT below")
    if hasattr(target, name):
        rule = f"{target.__qualname__}.{name} has no type, so it is no setting"
        return UserError(rule, key=key, fix=f"{name}: {type(getattr(target, name)).__name__} = ...")
    return None


def _example(target: type, names: Sequence[Any], key: str) -> str:
    """A value of a setting that would do: its default, where it has one."""
    field = next((f for f in fields(target) if names and f.name == names[0]), None)
    if field is not None and len(names) == 1 and isinstance(field.default, bool | int | float | str):
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default
        return f"a value that satisfies this, such as {key}={default}"
    return f"give {key} a value that satisfies this"


def import_component(target: Any, *, key: str, plugins: Sequence[str] = ()) -> type:
    """Import the class behind a ``_target_``; only from ``harness`` and the packages in ``plugins``."""
    name = str(target)
    package = name.split(".")[0]
    if package != OWN_PACKAGE and package not in plugins:
        raise UserError(
            "only classes of harness and of packages listed in plugins are built",
            key=key,
            value=name,
            fix=f"plugins=[{package}]",
        )
    module_name, _, class_name = renamed.class_name(name).rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        fix = "check the dotted path of the class"
        if isinstance(error, ModuleNotFoundError) and error.name and not module_name.startswith(error.name):
            fix = f"{module_name} imports {error.name}, which is not installed, or has another name"
        raise UserError(f"cannot be imported ({error})", key=key, value=name, fix=fix) from None
    if not isinstance(found, type):
        raise UserError("must name a class", key=key, value=name)
    return found
