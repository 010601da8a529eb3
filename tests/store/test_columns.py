"""One declaration of a row's texts: MLflow's tags and a folder's row say the same."""

from __future__ import annotations

from harness.base.records import Event
from harness.store.columns import COLUMNS, TEXTS, tags_from, tags_of, texts_of

TRIAL = {
    "trial_id": "t", "sweep": "s", "train_key": "k", "digests": {"dataset": "d", "evaluators": "e"},
    "config": {"algo": {"name": "dpo"}, "adapter": {"name": "lora"}, "model": {"name": "tiny"}, "task": None},
    "environment": {"git_sha": None, "trial_command": "python -m harness"},
}  # fmt: skip


def test_tags_and_a_rows_texts_say_the_same():
    events = [
        Event(0.0, "device", {"device": "cpu", "name": None, "precision": "fp32"}),
        Event(1.0, "training", {"reference": "base", "quantized": True}),
        Event(2.0, "device", {"device": "cuda", "name": "H100", "precision": "bf16"}),
        Event(3.0, "note", {"message": "-"}),
    ]
    row = texts_of(TRIAL, events)
    tags = tags_of(TRIAL)
    for event in events:
        tags |= tags_from(event)
    assert tags == {name: str(value) for name, value in row.items() if value is not None}
    assert (row["device_name"], row["reference"], row["reference_quantized"]) == ("H100", "base", "True")
    assert (row["git_sha"], row["task"], row["memory_lens"]) == ("unknown", None, None)


def test_each_column_is_declared_once_and_has_one_source():
    assert len(TEXTS) == len(set(TEXTS)) == len(COLUMNS) + 3
    assert all((column.about is None) == (column.event is not None) for column in COLUMNS)
