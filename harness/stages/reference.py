"""Reference log-probabilities of training rows: computed once, shared by every trial that would compute them again.

A row's value depends on the base (its weights, 4-bit or not, dtype and precision), on the row's tokens, and on the
limit at which they are cut; not on beta, rank, seed or what a loss makes of it. So DPO and IPO share theirs over all of
these. KTO's rows carry a completion of another row for its KL term, which depends on seed and micro-batch: its values
are shared over beta, weights and rank alone. Imports torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config import closure, identity
from harness.store.cache import Cache, Entry

STAGE = "reference"
KEY = "row"


@dataclass(frozen=True)
class References:
    """Where a trainer gets the reference log-probabilities of its rows.

    Attributes:
        cache: of stages.
        base: everything about the reference model that can change a value.
        note: told of the entry, and of the rows that were scored for it now.
        phase: entered while rows are scored.
        progress: told of what is done, how many rows, and of how many; None tells nobody.
    """

    cache: Cache
    base: Mapping[str, Any]
    note: Callable[[Entry, int], None]
    phase: Callable[[], AbstractContextManager[None]]
    progress: Callable[[str, int, int], None] | None = None

    def columns(self, trainer: Any, dataset: Any, batch_size: int) -> dict[str, list[float]]:
        """A value for each row of ``dataset``, by TRL's names of the columns.

        Args:
            trainer: TRL's, with a collator, ``on_device`` and ``compute_ref_log_probs``.
            dataset: rows as token ids.
            batch_size: rows per forward pass.

        Raises:
            RuntimeError: the entry of the cache lacks a row.
        """
        from pyarrow import parquet

        keys = row_keys(dataset)
        inputs = {
            **self.base,
            "rows": identity.digest(sorted(set(keys))),
            "limit": [trainer.args.max_length, getattr(trainer.args, "truncation_mode", None)],
            "code": closure.code_digest(code_of(type(trainer))),
            "versions": identity.library_versions(),
        }
        scored = 0

        def build(folder: Path) -> Mapping[str, Any]:
            nonlocal scored
            scored = len(keys)
            write(folder, keys, scores(trainer, dataset, batch_size, self.progress))
            return {"rows": float(len(keys))}

        with self.phase():
            entry = self.cache.fetch(STAGE, identity.digest(inputs), build, inputs=inputs)
        self.note(entry, scored)
        table = parquet.read_table(entry.path / "log_probs.parquet").to_pydict()
        return looked_up(table, keys)


def code_of(trainer: type) -> dict[str, Path]:
    """The code that can change a value: this stage, how models are loaded and made ready, and the trainer's classes."""
    classes = {c.__module__ for c in trainer.__mro__ if not closure.of_others(c.__module__)}
    return closure.closure([__name__, "harness.models", "harness.algorithms.trainers", *classes])


def row_keys(dataset: Any) -> list[str]:
    """A digest of each row's token ids."""
    columns = [name for name in sorted(dataset.column_names) if name.endswith("_ids")]
    taken = [dataset[name] for name in columns]
    return [hashlib.sha256(repr(ids).encode()).hexdigest()[:24] for ids in zip(*taken, strict=True)]


def looked_up(table: Mapping[str, Sequence[Any]], keys: Sequence[str]) -> dict[str, list[float]]:
    """The table's columns for the rows ``keys``, in their order."""
    place = {key: i for i, key in enumerate(table[KEY])}
    missing = [key for key in keys if key not in place]
    if missing:
        raise RuntimeError(
            f"the cache lacks {len(missing)} of {len(keys)} rows' reference log-probabilities, such as {missing[0]}; "
            "delete the entry (`python -m harness cache`) and run again"
        )
    return {name: [column[place[key]] for key in keys] for name, column in table.items() if name != KEY}


def write(folder: Path, keys: Sequence[str], columns: Mapping[str, Sequence[float]]) -> None:
    """Keep a table of values; of rows that are alike the last."""
    import pyarrow
    from pyarrow import parquet

    last = {key: i for i, key in enumerate(keys)}
    table = {KEY: list(last), **{name: [values[i] for i in last.values()] for name, values in columns.items()}}
    parquet.write_table(pyarrow.table(table), folder / "log_probs.parquet")


def scores(
    trainer: Any, dataset: Any, batch_size: int, progress: Callable[[str, int, int], None] | None = None
) -> dict[str, list[float]]:
    """Score every row with the trainer's own forward pass, in batches of similar length, the longest first."""
    names, order = column_names(dataset), longest_first(dataset)
    found = {name: [0.0] * len(dataset) for name in names}
    model = getattr(trainer, "ref_model", None) or trainer.model
    training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = trainer.on_device(trainer.data_collator([dataset[i] for i in chosen]))
            for name, values in zip(names, trainer.compute_ref_log_probs(model, batch), strict=True):
                for i, value in zip(chosen, values.float().cpu().tolist(), strict=True):
                    found[name][i] = value
            if progress is not None:
                progress("training rows", min(start + batch_size, len(order)), len(order))
    finally:
        model.train(training)
    return found


def longest_first(dataset: Any) -> list[int]:
    """Indices of the rows, those with most tokens first."""
    columns = [dataset[name] for name in dataset.column_names if name.endswith("_ids")]
    size = [sum(map(len, ids)) for ids in zip(*columns, strict=True)]
    return sorted(range(len(size)), key=lambda i: -size[i])


def column_names(dataset: Any) -> tuple[str, str]:
    """TRL's names of what ``compute_ref_log_probs`` gives, in its order."""
    if "chosen_ids" in dataset.column_names:
        return "ref_chosen_logps", "ref_rejected_logps"
    return "ref_logps", "ref_KL_logps"
