"""A reward model as a judge: the reply with the higher score wins, in both orders, and beside people in one card."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from harness.base.errors import UserError
from harness.cli.main import main
from harness.judges.asking import ask
from harness.judges.base import Pair
from harness.rewards.as_judge import RewardModel
from tests.judges.small import save_small

PAIRS = [Pair(f"question {i}?", "yes " * (i + 1), "no, never") for i in range(6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = save_small(tmp_path_factory.mktemp("rm"))
    shell = AutoModelForSequenceClassification.from_pretrained(place, num_labels=1)
    torch.manual_seed(3)
    torch.nn.init.normal_(shell.score.weight)
    shell.save_pretrained(place)
    return place


def test_the_reply_that_it_scores_higher_wins_in_both_orders(folder):
    verdicts, bill = ask(judge := RewardModel(path=str(folder), batch_size=4), PAIRS)
    assert all(v.consistent for v in verdicts) and bill.asked == 12 and not judge.writes
    tokenizer = AutoTokenizer.from_pretrained(folder)
    shell = AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def score(prompt: str, reply: str) -> float:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
        ids = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            return float(shell(torch.tensor([ids])).logits)

    for pair, verdict in zip(PAIRS, verdicts, strict=True):
        won = "first" if score(pair.prompt, pair.first) > score(pair.prompt, pair.second) else "second"
        assert verdict.straight == won
    assert len({v.straight for v in verdicts}) == 2, "or the test says nothing"


def test_it_stands_beside_annotators_in_one_card(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": p.prompt, "chosen": p.first, "rejected": p.second, "annotator1": 1, "annotator2": 1 + i % 2}
            for i, p in enumerate(PAIRS)]  # fmt: skip
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = f"label --data pairs.jsonl --to out.jsonl --judge reward_model judge.path={folder} cache.dir={tmp_path}/c"
    assert main(command.split()) == 0
    said = capsys.readouterr().out
    assert "kappa with the labels" in said and "agreement of annotator1 and the judge" in said


def test_what_is_no_reward_model_is_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="judge.path"):
        ask(RewardModel(path=str(tmp_path / "empty")), PAIRS)
    (error,) = replace(RewardModel(path=str(folder)), question="{prompt}{first}{second}").problems()
    assert error.key == "judge.question"
