from __future__ import annotations

import pandas as pd

from harness.report.leaderboard import PREDICTED, leaderboard, predicted
from harness.report.sections import lenses

ROW = {
    "label": "dpo|lora", "trial_id": "t", "outcome": "finished", "reason": None,
    "memory/train_peak_mb": 1500.0, "memory/train_allocated_peak_mb": 800.0, "memory/train_reserved_peak_mb": 1000.0,
    "memory/peak_mb": 1500.0, "memory/predicted_peak_mb": 1575.0,
}  # fmt: skip


def test_the_three_views_stand_beside_each_other_with_what_lies_between():
    title, words, table = lenses.section(pd.DataFrame([ROW]), "recipe")
    assert title.startswith("### ") and "fragmentation" in words
    assert table.splitlines()[-1] == "| dpo&#124;lora | train | 800 | 1,000 | 1,500 | 200 | 500 |"


def test_without_cuda_there_are_none():
    assert lenses.section(pd.DataFrame([{"label": "x", "memory/train_peak_mb": 5.0}]), "trial") == []


def test_predictions_stand_in_the_leaderboard_with_how_far_they_are_off():
    assert predicted(ROW) == "1,575 (+5 %)"
    assert predicted({**ROW, "memory/peak_mb": None}) == "1,575" and predicted({}) == "–"
    frame = pd.DataFrame([ROW])
    assert leaderboard(frame)[PREDICTED].iloc[-1] == "1,575 (+5 %)"
    assert PREDICTED not in leaderboard(frame.drop(columns="memory/predicted_peak_mb"))
