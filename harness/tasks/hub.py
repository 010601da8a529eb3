"""A data set by name, through ``datasets.load_dataset``: preferences, unpaired completions, or prompts."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Le, Lt

from harness.base.errors import UserError
from harness.config.closure import content_digest, files_below
from harness.tasks.base import TaskData
from harness.tasks.curating.applying import Curated, columns_read, with_columns
from harness.tasks.prompts import Prompts
from harness.tasks.reading.annotators import with_annotations
from harness.tasks.reading.checking import Checked, check
from harness.tasks.reading.formats import KNOWN, recognised
from harness.tasks.reading.rows import COLUMNS, Column, Kind, Table, layout_of, pair, unescaped, unpaired
from harness.tasks.reading.splits import Overlap, assemble


@dataclass(frozen=True)
class Hub(Curated):
    """A data set of the Hugging Face hub, or a local folder or file that ``datasets`` can load.

    Attributes:
        name: ``owner/name`` on the hub, or a local folder or file.
        subset: the data set's configuration.
        revision: branch, tag or commit on the hub; a commit makes the data reproducible.
        split: what to train on; slices such as ``train[:1000]`` work.
        eval_split: a held-out split; null holds prompts of ``split`` out.
        kind: what the rows are: paired preferences, unpaired completions, or prompts (for online algorithms).
        columns: our column -> the data set's, where the names differ.
        prompt_end: where a text prompt shared by chosen and rejected ends (the last such marker); null takes
            their longest common beginning, as TRL does.
        held_out: share of the prompts held out where ``eval_split`` is null. One half of them is for
            validation, one for test; ``eval_split`` is halved in the same way.
        seed: governs the split.
        overlap: ``drop`` leaves out training rows whose prompt is in ``eval_split``, ``error`` refuses.
        allow_skipped: share of the rows that may be unusable (empty, chosen equal to rejected).
        max_rows: read only so many rows, from the top of each split.
        annotators: columns that hold the label each of several people gave; their agreement stands in the data card.
        answer_column: prompts only; handed on as ``answer``, to verifiers.
        answer_pattern: regular expression whose first group in the answer column is the answer (last match).
        prompt_template: prompts only; makes the prompt of ``{column}`` fields.
        system_prompt: prompts only; makes the prompt a conversation that this system message opens.
        length_cost: true reward lost per character, where a true reward is known (``HubVerifiable``).
    """

    shape_rows: ClassVar[frozenset[str]] = Curated.shape_rows | {
        "name", "subset", "revision", "split", "eval_split", "kind", "columns", "prompt_end", "held_out", "seed",
        "overlap", "allow_skipped", "max_rows", "annotators", "answer_column", "answer_pattern", "prompt_template",
        "system_prompt",
    }  # fmt: skip

    name: str
    subset: str | None = None
    revision: str | None = None
    split: str = "train"
    eval_split: str | None = None
    kind: Kind = "preferences"
    columns: dict[Column, str] = field(default_factory=dict)
    prompt_end: str | None = None
    held_out: Annotated[float, Gt(0), Lt(1)] = 0.1
    seed: Annotated[int, Ge(0)] = 0
    overlap: Overlap = "drop"
    allow_skipped: Annotated[float, Ge(0), Le(1)] = 0.05
    max_rows: Annotated[int, Gt(0)] | None = None
    annotators: tuple[str, ...] = ()
    answer_column: str | None = None
    answer_pattern: str | None = None
    prompt_template: str | None = None
    system_prompt: str | None = None
    length_cost: Annotated[float, Ge(0)] = 0.0

    def __post_init__(self) -> None:
        """Check what fields demand of each other; ``ValueError`` is what ``build()`` collects."""
        super().__post_init__()
        alone = ("answer_column", "answer_pattern", "prompt_template", "system_prompt")
        if self.kind != "prompts" and (set_ := [name for name in alone if getattr(self, name) is not None]):
            raise ValueError(f"{', '.join(set_)} need kind=prompts, and kind is {self.kind}")
        self._prompts().check()

    def _prompts(self) -> Prompts:
        return Prompts(self.columns, self.answer_column, self.answer_pattern, self.prompt_template, self.system_prompt)

    def load(self) -> TaskData:
        """Fetch (or find in the cache), check and split the rows."""
        train = self._checked(self.split, "task.split")
        held = None if self.eval_split is None else self._checked(self.eval_split, "task.eval_split")
        return assemble(
            train,
            held,
            share=self.held_out,
            seed=self.seed,
            overlap=self.overlap,
            eval_key="task.eval_split",
            curate=self.curate,
        )

    def fingerprint(self) -> str:
        """Of a local folder or file its content; what the hub's cache holds under a name does not change by itself."""
        place = Path(self.name).expanduser()
        if not place.exists():
            return ""
        return content_digest(files_below(place) if place.is_dir() else [place])

    def _checked(self, split: str, key: str) -> Checked:
        table = self._table(split, key)
        notes, dropped = (), None
        if self.kind == "prompts":
            parse = self._prompts().parser(table)
        else:
            found = recognised(table, self.columns)
            table, notes = found.table, found.notes
            layout = layout_of(table, self.columns, kind=self.kind, prompt_end=unescaped(self.prompt_end))
            parse = partial({"preferences": pair, "unpaired": unpaired}[self.kind], layout=layout)
            dropped = layout.dropped
        parse = with_annotations(table, self.annotators, parse)
        parse = with_columns(table, self.curate, parse, held_out=key == "task.eval_split")
        return check(table, self.kind, parse, allow_skipped=self.allow_skipped, dropped=dropped, notes=notes)

    def _table(self, split: str, key: str) -> Table:
        found = load_split(self.name, self.subset, self.revision, split, key=key)
        if self.max_rows is not None:
            found = found.select(range(min(self.max_rows, len(found))))
        # Columns that nobody reads may be images or other large things.
        read = {self.columns.get(ours, ours) for ours in COLUMNS} | (KNOWN if self.kind != "prompts" else set())
        read |= {*self._prompts().read, *self.annotators, *columns_read(self.curate, found.column_names)}
        rows = found.select_columns([c for c in found.column_names if c in read]).to_list()
        if not rows and len(found):
            rows = [{}] * len(found)  # none of the columns is there; ``layout_of`` says so
        name = f"{self.name}[{split}]"
        return Table(name, key, found.column_names, rows, range(1, len(rows) + 1), encoded=True)


def load_split(name: str, subset: str | None, revision: str | None, split: str, *, key: str) -> Any:
    """One ``datasets.Dataset``; whatever goes wrong on the way is a ``UserError`` that says what to do."""
    import datasets
    from datasets.exceptions import DatasetsError
    from huggingface_hub.utils import httpx  # whichever HTTP client the installed version uses

    local = Path(name).expanduser()
    try:
        if local.is_file():
            builder = _BUILDERS.get(local.suffix.lower())
            if builder is None:
                raise UserError(
                    f"a file must end in one of {', '.join(_BUILDERS)}",
                    key="task.name",
                    value=name,
                    fix="convert it",
                )
            options: dict[str, Any] = {"sep": "\t"} if local.suffix.lower() == ".tsv" else {}
            files = {split.split("[")[0]: str(local)}
            return datasets.load_dataset(builder, data_files=files, split=split, **options)
        if (local / "dataset_dict.json").is_file() or (local / "state.json").is_file():
            return _saved(datasets.load_from_disk(str(local)), name, split, key)
        source = str(local) if local.is_dir() else name
        return datasets.load_dataset(source, subset, revision=revision, split=split)
    except (OSError, ValueError, RuntimeError, DatasetsError, httpx.HTTPError) as error:
        raise _explained(error, name, subset, split, key) from error


def _saved(found: Any, name: str, split: str, key: str) -> Any:
    """A split of what ``save_to_disk`` wrote: one data set (whatever the split's name) or several."""
    if not isinstance(found, dict):
        return found
    if split not in found:
        raise UserError(f"{name} has the splits {', '.join(found)}", key=key, value=split)
    return found[split]


def _explained(error: Exception, name: str, subset: str | None, split: str, key: str) -> UserError:
    from huggingface_hub.utils import httpx

    text = " ".join(str(error.__cause__ or error).split())
    if isinstance(error, ConnectionError | httpx.TransportError):
        text = " ".join(str(error).split())
        call = ", ".join(repr(part) for part in (name, subset) if part is not None)
        return UserError(
            f"the hub cannot be reached from here, and the data set is not in its cache ({text})",
            key="task.name",
            value=name,
            fix=f'on a machine with network run python -c "import datasets; datasets.load_dataset({call})'
            f".save_to_disk('data')\", copy the folder here and set task.name=data;"
            " or use task=preferences task.path=FILE",
        )
    if text.startswith(("Unknown split", "Bad split")):
        return UserError(text, key=key, value=split, fix=f"{key}=NAME, with a split that exists")
    if "BuilderConfig" in text or "Config name is missing" in text:
        return UserError(text, key="task.subset", value=subset, fix="task.subset=NAME")
    fix = "check the spelling; a private data set needs `hf auth login`; a local folder must hold data files"
    return UserError(f"the data set cannot be loaded: {text}", key="task.name", value=name, fix=fix)


_BUILDERS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
