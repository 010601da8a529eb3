"""The MLflow store of a sweep: settings, reachability, experiment and parent run. No torch here.

``mlflow_sync.py`` brings the trials' journals into it.
"""

from __future__ import annotations

import base64
import getpass
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

from harness.base.errors import UserError, keep_secret, without_login, without_password

REACH_S = 5.0
SQLITE = "sqlite:///"
WHOLE_URI = "HARNESS_STORE_URI"
"""Environment variable with the address of a database and its password, for the processes of other launchers."""
RACE = re.compile(
    r"already exists|duplicate|unique constraint|UniqueViolation|IntegrityError|RESOURCE_ALREADY_EXISTS|locked"
    r"|out-of-date|can't locate revision|no such table|UndefinedTable|could not serialize|deadlock|being accessed",
    re.IGNORECASE,
)
"""What databases say to one of two commands that make the same tables or rows at once."""
TRIES = 6
LOG_IN = (
    "give user and password, USER:PASSWORD and an @ before the host, or for a server "
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
)
_opened: set[str] = set()


@dataclass(frozen=True)
class Tracking:
    """The ``tracking`` group.

    Attributes:
        uri: MLflow store; a bare ``mlflow ui`` in the working directory opens the default.
        experiment: MLflow experiment.
        required: an unreachable store is an error at the start; false makes it a warning.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    uri: str = "sqlite:///mlflow.db"
    experiment: str = "harness"
    required: bool = True

    @property
    def resolved_uri(self) -> str:
        """The URI that may be shown and written down.

        A relative SQLite path is made absolute, so that jobs in other folders agree on it. User and password are taken
        out, kept for ``client``, and shown in no message from then on.
        """
        if self.uri.startswith(SQLITE) and not self.uri.startswith(SQLITE + "/"):
            return SQLITE + str(Path(self.uri.removeprefix(SQLITE)).resolve())
        return _without_credentials(self.uri)


@dataclass(frozen=True)
class SweepRun:
    """Where the runs of a sweep hang: store, experiment and parent run."""

    uri: str
    experiment_id: str
    parent_id: str


def client(uri: str) -> Any:
    """An MLflow client that gives up within seconds instead of MLflow's own minutes.

    The first one of a process may make the database's tables, so it waits for those of other commands.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # it reports every table of a new store
    from mlflow.tracking import MlflowClient

    whole = whole_uri(uri)
    if uri in _opened:
        return MlflowClient(tracking_uri=whole)
    with _alone(uri):
        if uri.startswith(SQLITE):
            _make_tables(Path(uri.removeprefix(SQLITE)), lambda draft: MlflowClient(tracking_uri=f"{SQLITE}{draft}"))
        made = patiently(lambda: MlflowClient(tracking_uri=whole))
    _opened.add(uri)
    return made


def _make_tables(path: Path, make: Any) -> None:
    """Make a new database beside its place and move it there: one that was left half made cannot be mended."""
    if path.exists() or not path.parent.is_dir():
        return
    draft = path.with_name(f".{path.name}.new")
    for left in path.parent.glob(f"{draft.name}*"):  # of a command that was killed, its journal too
        left.unlink()
    make(draft)
    os.replace(draft, path)


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """One command at a time in what makes tables, experiments and parent runs of a SQLite store.

    SQLite has no lock that lasts over several transactions, so a file beside the database is one. A server serves
    commands on other machines, where no file of ours helps: there ``patiently`` tries again.
    """
    from filelock import FileLock

    if not uri.startswith(SQLITE):
        yield
        return
    path = Path(uri.removeprefix(SQLITE))
    try:
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        lock.acquire()
    except OSError:  # a store that can only be read needs none: nothing is made in it
        yield
        return
    try:
        yield
    finally:
        lock.release()


def patiently(make: Any) -> Any:
    """What ``make`` returns; made again where another command was making the same thing at that moment."""
    for attempt in range(TRIES):
        try:
            return make()
        except Exception as error:  # of MLflow, SQLAlchemy and the drivers; what is no race is raised at once
            if attempt == TRIES - 1 or not RACE.search(str(error)):
                raise
            time.sleep(0.2 * 2**attempt)
    raise AssertionError("unreachable")


def check_reachable(tracking: Tracking) -> None:
    """Raise ``UserError`` within seconds if a tracking server does not answer, or a database cannot be opened."""
    uri = tracking.resolved_uri
    if not _is_server(uri):
        if uri.startswith(SQLITE):
            folder = Path(uri.removeprefix(SQLITE)).parent
            if not folder.is_dir() or not os.access(folder, os.W_OK):
                raise _unreachable(tracking, f"the folder {folder} cannot be written")
            if find_spec("sqlalchemy") is None:
                fix = "pip install -c constraints.txt mlflow (mlflow-skinny keeps no database)"
                raise _unreachable(tracking, "sqlalchemy is not installed", fix=fix)
        return
    request = urllib.request.Request(uri.rstrip("/") + "/health")
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    elif user and password:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=REACH_S):
            return
    except urllib.error.HTTPError as answer:
        answer.close()
        if answer.code in (401, 403):
            raise _unreachable(tracking, f"it answers {answer.code} {answer.reason}", fix=LOG_IN) from None
        return  # it answers; a proxy may guard /health
    except (OSError, ValueError) as error:
        raise _unreachable(tracking, str(getattr(error, "reason", error))) from None


def open_sweep(tracking: Tracking, sweep: str, description: Mapping[str, str] | None = None) -> SweepRun:
    """Create database, experiment and parent run, before any trial starts; found again if they exist."""
    check_reachable(tracking)
    uri = tracking.resolved_uri
    try:
        api = client(uri)
        with _alone(uri):
            experiment_id = patiently(lambda: _experiment(api, tracking.experiment, uri))
            return SweepRun(uri, experiment_id, _parent(api, experiment_id, sweep, description or {}))
    except UserError:
        raise
    except Exception as error:  # MLflow raises many kinds; each means that the store cannot be used
        raise _unusable(tracking, error) from None


def source_tags(command: str | None, commit: str | None = None) -> dict[str, str]:
    """Who ran what, of which commit, under the names that MLflow shows."""
    from harness.config.identity import git_sha

    found = {"mlflow.source.name": command or "python -m harness", "mlflow.source.type": "LOCAL"}
    commit = commit or git_sha()
    if commit and commit != "unknown":
        found["mlflow.source.git.commit"] = commit
    try:
        found["mlflow.user"] = getpass.getuser()
    except (KeyError, OSError, ImportError):
        pass  # a container without users
    return found


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _experiment(api: Any, name: str, uri: str) -> str:
    found = api.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == "deleted":
        raise UserError(
            "the experiment was deleted in MLflow, which keeps its name until its trash is emptied",
            key="tracking.experiment",
            value=name,
            fix=f"restore it: MLFLOW_TRACKING_URI=... mlflow experiments restore -x {found.experiment_id}; or name "
            "another: tracking.experiment=NAME",
        )
    if found is not None and str(found.artifact_location).startswith("mlflow-artifacts:") and not _is_server(uri):
        raise UserError(
            f"the artifacts of the experiment {name!r} lie behind the MLflow server that made it "
            f"({found.artifact_location}), and its database alone cannot reach them",
            key="tracking.uri",
            value=uri,
            fix="give the server's address, tracking.uri=http://…; or name another experiment: "
            "tracking.experiment=NAME",
        )
    # The UI then opens on training runs, and not on traces.
    tags = {"mlflow.experimentKind": "custom_model_development", "mlflow.note.content": HOW_TO_READ}
    return found.experiment_id if found else api.create_experiment(name, tags=tags)


HOW_TO_READ = """\
Each sweep is a run with its trials below it (unfold it with +). A trial's parameters are its recipe; what is
bookkeeping is a tag. `eval/` is what was measured after training, `baseline/` the base before, `delta/` the difference,
`memory/peak_mb` the peak and `memory/predicted_peak_mb` what was foreseen, `time/` the seconds of each phase. The
sweep's artifacts hold its report. Every metric is explained in docs/metrics.md.
"""


def _parent(api: Any, experiment_id: str, sweep: str, description: Mapping[str, str]) -> str:
    """The parent run of a sweep; where two commands have just made one each, both take the older one."""
    query = f"tags.kind = 'sweep' and tags.sweep = {quoted(sweep)}"

    def oldest_first() -> list[str]:
        found = api.search_runs([experiment_id], filter_string=query, max_results=50)
        return [run.info.run_id for run in sorted(found, key=lambda r: (r.info.start_time, r.info.run_id))]

    if existing := oldest_first():
        api.update_run(existing[0], status="RUNNING")
        return existing[0]
    tags = {"kind": "sweep", "sweep": sweep, **description, **source_tags(description.get("command"))}
    made = api.create_run(experiment_id, run_name=sweep, tags=tags)
    first = (oldest_first() or [made.info.run_id])[0]
    if first != made.info.run_id:
        api.delete_run(made.info.run_id)
    return first


def close_sweep(run: SweepRun, *, succeeded: bool) -> None:
    """End the parent run."""
    client(run.uri).set_terminated(run.parent_id, status="FINISHED" if succeeded else "FAILED")


def quoted(text: str) -> str:
    """A string in MLflow's filter grammar, which knows no escapes."""
    if "'" in text and '"' in text:
        raise UserError("a sweep's name cannot hold both kinds of quotes", key="sweep", value=text)
    return f'"{text}"' if "'" in text else f"'{text}'"


def in_one_line(error: BaseException) -> str:
    """An error as its class and the first line of its words, without passwords: databases print pages of SQL."""
    words = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return without_password(f"{type(error).__name__}: {words[:300]}")


def _unusable(tracking: Tracking, error: Exception) -> UserError:
    """Why a store that answers cannot be used, and what to do about it."""
    absent = _missing_driver(error)
    if absent is None:
        refused = re.search(r"error code 40[13]\b|password authentication failed|no password supplied", str(error))
        return _unreachable(tracking, in_one_line(error), fix=LOG_IN if refused else None)
    scheme = tracking.uri.partition(":")[0]
    fix = f"install the driver {absent}"
    if scheme.startswith("postgres"):
        fix = "pip install 'alignment-harness[postgres]'"
    elif "+" not in scheme:
        fix += f", or name another one: {scheme}+DRIVER://…"
    return _unreachable(tracking, f"the database's driver {absent} is not installed", fix=fix)


def _missing_driver(error: BaseException | None) -> str | None:
    while error is not None:
        if isinstance(error, ModuleNotFoundError):
            return error.name
        if found := re.search(r"No module named '([\w.]+)'", str(error)):
            return found.group(1)
        error = error.__cause__ or error.__context__
    return None


def _without_credentials(uri: str) -> str:
    """The URI without user, password and secrets in its query; what was taken out is kept for ``whole_uri``."""
    bare = without_login(uri).replace("://…@", "://")
    if bare == uri:
        return uri
    scheme, _, rest = uri.partition("://")
    login, at, _ = re.split(r"[?#]", rest)[0].rpartition("@")
    if not at:
        login = rest.rpartition("@")[0]
    user, _, password = login.partition(":")
    for secret in (password, *re.findall(r"(?i)(?:password|passwd|pwd|token|api_key)=([^&]+)", rest)):
        keep_secret(secret, unquote(secret))
    if scheme in ("http", "https"):
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(user)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(password)
    else:
        os.environ[WHOLE_URI] = uri
    return bare


def whole_uri(bare: str) -> str:
    """The URI as it was given; servers take user and password from the environment instead."""
    whole = os.environ.get(WHOLE_URI, "")
    return whole if whole and _without_credentials(whole) == bare else bare


def _unreachable(tracking: Tracking, why: str, fix: str | None = None) -> UserError:
    other = "name another store, or run without: tracking.required=false, then `harness sync`"
    return UserError(
        f"the MLflow store cannot be reached ({why})",
        key="tracking.uri",
        value=tracking.resolved_uri,
        fix=f"{fix or 'start it (mlflow server)'}; or {other}",
    )
