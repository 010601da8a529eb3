from __future__ import annotations

import pandas as pd

from harness.report.sections import merging
from harness.report.sections.evaluation import evaluations


def row(label: str, **values: float) -> dict[str, object]:
    return {"label": label, **{f"eval/{name}": value for name, value in values.items()}}


def costs(way: str, kl: float, change: float, reach: float, mb: float) -> dict[str, float]:
    accuracy = f"{way}_preference_accuracy_change"
    return {
        f"{way}_kl_per_token": kl, f"{way}_kl_per_token_stderr": kl / 10, f"{way}_preference_accuracy": 0.9,
        accuracy: change, f"{accuracy}_low": change - reach, f"{accuracy}_high": change + reach, f"{way}_mb": mb,
        f"{way}_tokens_per_s": 300.0,
    }  # fmt: skip


QLORA = row(
    "dpo | qlora", adapter_mb=0.62, unmerged_tokens_per_s=200.0, multi_adapter_tokens_per_s=150.0,
    **costs("merged", 0.02, -0.03, 0.01, 4.5), **costs("merged_dequantized", 1e-7, 0.0, 0.001, 4.5),
    **costs("merged_4bit", 0.01, -0.01, 0.02, 1.5),
)  # fmt: skip


def test_each_way_of_merging_is_a_row_and_a_loss_beyond_noise_is_bold():
    head, words, table = merging.section(pd.DataFrame([row("full", preference_accuracy=0.8), QLORA]), "recipe")
    assert head == "### Merging" and "not merged" in table and "full" not in table
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]
    assert [line[1] for line in lines] == [
        "not merged", "into the base", "into the base that its quantized weights stand for",
        "into the same, in 4 bits again", "two adapters by request",
    ]  # fmt: skip
    assert lines[1][3].startswith("**-0.03") and lines[1][2].startswith("0.02")
    assert not lines[3][3].startswith("**")
    assert [line[4] for line in lines] == ["0.620", "4.500", "4.500", "1.500", "0.620"]
    assert [line[5] for line in lines] == ["200", "300", "300", "300", "150"]


def test_nothing_merged_is_no_section_and_what_is_there_is_told_once():
    assert merging.section(pd.DataFrame([row("full", preference_accuracy=0.8)]), "recipe") == []
    assert "merged" not in "\n".join(evaluations(pd.DataFrame([QLORA])))
