"""Find ``conf/`` and compose it with Hydra; what Hydra refuses is told with key, rule and fix."""

from __future__ import annotations

import difflib
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.formatting import did_you_mean
from harness.config import renamed, rules
from harness.config.building import OWN_PACKAGE

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
