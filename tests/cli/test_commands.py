"""The small commands."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

from harness.cli import commands
from harness.cli.main import main
from harness.store.cache import Cache


def copied(source: Path, folder: Path) -> None:
    shutil.copy(source, folder)


def test_the_cache_lists_what_is_large_and_sums_up_what_is_small(tmp_path, capsys):
    store = Cache(tmp_path / "cache")
    for name, size in (("large", 300_000), ("small", 10), ("tiny", 5)):
        (tmp_path / f"{name}.bin").write_bytes(b"x" * size)
        store.fetch(name, name, partial(copied, tmp_path / f"{name}.bin"), inputs={})
    assert commands.cache(["--dir", str(store.root)]) == 0
    brief = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in brief] == ["large", "in", "in"] and "in 2 small ones" in brief[1]
    assert commands.cache(["--dir", str(store.root), "--all"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_data_without_a_model_shows_the_rows_and_says_to_name_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Tell me of {i}.", "chosen": "Gladly, here it is.", "rejected": "No."} for i in range(40)]
    (tmp_path / "prefs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["data", "task=preferences", "task.path=prefs.jsonl"]) == 0
    page = capsys.readouterr().out
    assert "training pairs" in page and "no model is named" in page and "model=hf model.path=" in page
    assert main(["data", "task=preferences", "task.path=prefs.jsonl", "model=tiny"]) == 2
    assert "cannot make the embedded base model" in capsys.readouterr().err
