"""What a trial leaves on disk of its policy, and how it comes back."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import closure, identity
from harness.audit import card
from harness.conversation import encode, encode_pairs
from harness.data import audited, lengths
from harness.journal import Journal

if TYPE_CHECKING:
    from harness.ground import Ground

DATA_CARD = "data_card.md"


def keep(ground: Ground, model: Any, journal: Journal) -> None:
    """Save what was trained as safetensors: the adapter, or all weights; ``full`` adds a merged copy."""
    save = ground.setup.train.save
    if save == "none":
        return
    target = ground.folder / "artifacts" / "model"
    model.save_pretrained(target)
    ground.tokenizer.save_pretrained(target)
    journal.write("artifact", path="model")
    if save == "full" and ground.setup.adapter.peft_config() is not None:
        if ground.setup.adapter.quantized:
            journal.write(
                "note",
                message="train.save=full: 4-bit weights are not merged (it would cost precision); the adapter is kept",
            )
            return
        merged = copy.deepcopy(model).merge_and_unload()
        merged.save_pretrained(ground.folder / "artifacts" / "merged")
        ground.tokenizer.save_pretrained(ground.folder / "artifacts" / "merged")
        journal.write("artifact", path="merged")


def keep_examples(ground: Ground, name: str, columns: Mapping[str, Sequence[Any]], journal: Journal) -> None:
    """One evaluator's results per example, as Parquet: trials are compared example by example."""
    import pyarrow
    from pyarrow import parquet

    path = Path("examples") / f"{name}.parquet"
    target = ground.folder / "artifacts" / path
    target.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(dict(columns)), target)
    journal.write("artifact", path=str(path))


def keep_data_card(ground: Ground, journal: Journal) -> None:
    """One page about the data the trial was given."""
    setup, data = ground.setup, ground.data
    target = ground.folder / "artifacts" / DATA_CARD
    target.parent.mkdir(parents=True, exist_ok=True)
    limit = setup.train.max_length
    inputs = {"data": data.digest, "base": ground.base_key, "chat": ground.chat, "limit": limit}
    inputs["code"] = closure.code_digest(closure.closure(["harness.data", "harness.conversation", __name__]))
    entry = ground.cache.fetch(
        "lengths", identity.digest(inputs), lambda _: lengths(data, partial(_tokens, ground), limit), inputs=inputs
    )
    title, more = type(setup.task).__name__.lower(), dict(ground.cache.note(entry) or {})
    page = card(audited(data), title=title, digest=data.digest, more=more, notes=data.notes)
    target.write_text(page, encoding="utf-8")
    journal.write("artifact", path=DATA_CARD)


def _tokens(ground: Ground, rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Tokens of each row, prompt and completion; of a pair those of the longer side."""
    rows = ground.rows(rows)
    if "chosen" in rows[0]:
        ids = encode_pairs(ground.tokenizer, rows)
        sides = zip(ids["prompt_ids"], ids["chosen_ids"], ids["rejected_ids"], strict=True)
        return [len(prompt) + max(len(chosen), len(rejected)) for prompt, chosen, rejected in sides]
    return [sum(map(len, encode(ground.tokenizer, row["prompt"], row["completion"]))) for row in rows]


def load_trained(ground: Ground, base: Any) -> Any:
    """The policy that an earlier attempt saved."""
    folder = ground.folder / "artifacts" / "model"
    if ground.setup.adapter.peft_config() is None:
        from harness.loading import load_pretrained

        return load_pretrained(
            str(folder),
            dtype=ground.dtype,
            device=ground.device,
            quantization=None,
            attention=ground.setup.model.attention,
        ).eval()
    from peft import PeftModel

    # Adapters are trained in 32 bits, and come back in 32 bits: without peft's cast they would take the base's bf16.
    return PeftModel.from_pretrained(base, str(folder), autocast_adapter_dtype=True).eval()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a killed trial."""
    found = [p for p in folder.glob("checkpoint-*") if (p / "trainer_state.json").is_file()]
    return max(found, key=lambda p: int(p.name.split("-")[1]), default=None)
