"""The rows of a task, read once per process, and what the audits of words and of token ids say of them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from harness.base.errors import UserError, UserErrors
from harness.config import closure, identity
from harness.models import context_length
from harness.store.cache import Cache, cache_dir
from harness.tasks.audit import Audit, audit
from harness.tasks.base import Row, Task, TaskData, digest_of
from harness.tasks.contract import check_contract
from harness.tasks.conversation import Style, is_conversational, style_of
from harness.tasks.ids import Found, Limits, look
from harness.tasks.preamble import preamble_of
from harness.tasks.reading.copies import copies
from harness.tasks.reading.files import fingerprint_of
from harness.tasks.reading.kept import keeping
from harness.tasks.reading.replay import KEY as REPLAY_KEY
from harness.tasks.reading.replay import replay_rows

if TYPE_CHECKING:
    from harness.trial.assemble import Setup

REPLAYED = 2_000
"""Rows like those that the embedded base learned from, of which replay takes its own."""
REPLAY_FIX = "train.replay.path=general.jsonl, rows of prompt and completion that the model is to keep"
FORMS = "docs/data.md says which forms are read"
KEPT = 8
"""Tasks whose rows and audit are remembered."""
_FOUND: dict[tuple[int, str], tuple[TaskData, Any]] = {}


def cache_of(setup: Setup) -> Cache:
    """The stage cache of a trial."""
    return Cache(cache_dir(setup.plain))


def audited(data: TaskData) -> Audit:
    """The audit of these rows; made once for the same object."""
    return _once(data, "audit", lambda: audit(data))


def shown_in_training(data: TaskData, texts: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Texts that a training prompt of these rows shows -> how, the text, the prompt; looked for once."""
    return _once(data, digest_of(list(texts)), lambda: copies(texts, data.training_prompts()))


def _once(data: TaskData, what: str, find: Callable[[], Any]) -> Any:
    """What ``find`` gives, found once for the same object."""
    key = id(data), what
    if key not in _FOUND:
        if len(_FOUND) >= KEPT:
            _FOUND.clear()
        _FOUND[key] = data, find()  # the data is kept too, so that its id stays its own
    return _FOUND[key][1]


def looked_at(
    setup: Setup, data: TaskData, tokenizer: Any, style: Style, cache: Cache | None, source: Path | None
) -> Found:
    """What the audit of token ids finds in a trial's rows; looked at once per data, tokenizer and limits.

    Args:
        setup: the trial's components.
        data: its rows.
        tokenizer: the model's.
        style: how its rows are rendered.
        cache: of stages; None looks anew.
        source: folder of a model that was made first.
    """
    config: Any = setup.model.configuration(source)
    limits, stops = limits_of(setup, config), setup.model.stops(tokenizer, config, source)

    def build(_: Path) -> dict[str, Any]:
        return asdict(look(data, tokenizer, style, limits, stops))

    if cache is None:
        return Found(**build(Path()))
    inputs = {
        "data": data.digest,
        "model": setup.model.recipe_digest(setup.task),
        "style": asdict(style),
        "limits": asdict(limits),
        "stops": list(stops),
        "code": closure.code_digest(closure.closure(["harness.tasks.ids", "harness.models"])),
        "versions": identity.library_versions(),
    }
    entry = cache.fetch("ids", identity.digest(inputs), build, inputs=inputs)
    return Found(**cast(dict[str, Any], cache.note(entry)))


def limits_of(setup: Setup, config: Any) -> Limits:
    """The trial's limits, in tokens; ``config`` is the model's transformers configuration."""
    text = None if config is None else config.get_text_config()
    return Limits(
        train=setup.train.max_length,
        rollout=setup.train.max_completion_length if setup.algo.family == "online" else 0,
        scored=setup.eval.max_length,
        sampled=setup.eval.max_completion_length,
        context=None if config is None else context_length(config),
        vocabulary=getattr(text, "vocab_size", None),
    )


def usable(
    setup: Setup,
    data: TaskData,
    tokenizer: Any,
    style: Style,
    cache: Cache | None = None,
    source: Path | None = None,
) -> tuple[TaskData, Found]:
    """The rows that a trial can use, and what the audit found.

    Raises:
        UserErrors: too many rows mean nothing to this model, or those that are left are too few for the algorithm.
    """
    found = looked_at(setup, data, tokenizer, style, cache, source)
    if errors := found.problems(setup.task.allow_skipped):
        raise UserErrors(errors)
    kept = found.kept(data)
    if found.dropped and (errors := setup.algo.problems(setup.task, kept, setup.train)):
        raise UserErrors(errors)
    return kept, found


def load_data(task: Task, cache: Cache) -> TaskData:
    """The task's rows; read once per process for equal tasks and unchanged files.

    Args:
        task: whose rows.
        cache: keeps what takes long to find in them.
    """
    key = f"{type(task).__module__}.{type(task).__qualname__}{json.dumps(asdict(task), sort_keys=True)}"
    with keeping(cache):
        try:
            return _load_keyed(_Keyed(task, key + task.fingerprint()))
        except UserErrors:
            raise
        except UserError as error:
            if error.fix:
                raise
            raise error.with_fix(f"mend the rows, or leave them out of the file; {FORMS}") from None


def load_replay(setup: Setup) -> list[Row]:
    """The rows that training replays; empty where it replays none.

    Raises:
        UserError: the file cannot be read, or none is named and the task has no rows of what came before.
    """
    replay = setup.train.replay
    if not replay.share or not setup.algo.trains:
        return []
    if replay.path is not None:
        return _read_replay(replay.path, setup.task.allow_skipped, fingerprint_of({REPLAY_KEY: replay.path}))
    if not setup.model.embedded:
        raise UserError("a model of your own needs rows to replay", key="train.replay.path", value=None, fix=REPLAY_FIX)
    return list(setup.task.base_rows(REPLAYED))


@functools.lru_cache(maxsize=KEPT)
def _read_replay(path: str, allow_skipped: float, fingerprint: str) -> list[Row]:
    """Read once per process for an unchanged file."""
    return list(replay_rows(path, allow_skipped=allow_skipped))


class _Keyed:
    """A task that hashes by its content, for the cache below (dataclasses with dictionaries do not hash)."""

    def __init__(self, task: Task, key: str):
        self.task, self.key = task, key

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Keyed) and other.key == self.key


@functools.lru_cache(maxsize=KEPT)
def _load_keyed(keyed: _Keyed) -> TaskData:
    return check_contract(keyed.task, keyed.task.load())


def style_for(setup: Setup, data: TaskData, tokenizer: Any) -> Style:
    """How the trial's rows are rendered: messages always by a template, a plain one if need be.

    Raises:
        UserError: the examples of ``prompt.shots`` are not there.
    """
    some = data.train_pairs or data.train_unpaired or data.train_prompts or data.retention
    wanted = setup.model.chat_template == "auto"
    style = style_of(tokenizer, conversational=is_conversational(some), wanted=wanted)
    task = setup.task
    before = preamble_of(
        setup.prompt, data, allow_skipped=task.allow_skipped, chat=style.chat, embedded=type(task).embedded
    )
    return replace(style, preamble=before)
