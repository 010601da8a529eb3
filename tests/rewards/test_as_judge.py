"""A reward model as a judge: the reply with the higher score wins, in both orders, and beside people in one card."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from harness.base.errors import UserError
from harness.cli.main import main
from harness.judges.asking import ask
from harness.judges.base import Pair
from harness.judges.biases import biases
from harness.rewards.as_judge import RewardModel
from harness.rewards.base import Desk
from harness.rewards.model import ModelReward
from harness.tasks.base import text_of
from harness.tasks.conversation import SIDES, style_of
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


TURNS = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "What?"},
         {"role": "assistant", "content": "How so?"}, {"role": "user", "content": "So."}]  # fmt: skip


def reply(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_a_conversation_is_read_as_the_reward_reads_it(folder):
    sides = (("yes yes", "no, never"), ("so it is", "maybe"), ("a", "b b"), ("who", "me"))
    rows = [{"prompt": TURNS[:n], "chosen": reply(a), "rejected": reply(b)} for n in (2, 4) for a, b in sides]
    rows.append({"prompt": "question 1?", "chosen": "yes", "rejected": "no"})
    pairs = [Pair.of(row["prompt"], row["chosen"], row["rejected"]) for row in rows]
    verdicts, bill = ask(RewardModel(path=str(folder)), pairs)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    style = style_of(tokenizer, conversational=True, wanted=True)
    score = ModelReward(path=str(folder)).open(Desk(None, tokenizer, style.rows, {}, "cpu", torch.float32))
    chosen, rejected = (list(score(rows, [text_of(row[k]) for row in rows], [True] * len(rows))) for k in SIDES)
    expected = ["first" if a > b else "second" for a, b in zip(chosen, rejected, strict=True)]
    assert [v.straight for v in verdicts] == expected and all(v.consistent for v in verdicts) and bill.asked == 18
    flat, _ = ask(RewardModel(path=str(folder)), [Pair(pair.prompt, pair.first, pair.second) for pair in pairs])
    assert [v.straight for v in flat] != expected, "or the test says nothing"


def test_conversations_are_refused_where_the_model_has_no_template_for_them(folder, tmp_path):
    bare = Path(shutil.copytree(folder, tmp_path / "bare"))
    tokenizer = AutoTokenizer.from_pretrained(bare)
    tokenizer.chat_template = None
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(bare)
    assert all(v.readable for v in ask(RewardModel(path=str(bare)), PAIRS)[0])
    with pytest.raises(UserError, match=r"judge\.path=.*no chat template"):
        ask(RewardModel(path=str(bare)), [Pair.of(TURNS, reply("a"), reply("b"))])


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_no_finite_number_is_an_answer_that_cannot_be_read(folder, monkeypatch, number):
    def opened(self, device):
        return lambda rows, texts, ended: [number if "yes " * 3 == text else float(len(text)) for text in texts]

    monkeypatch.setattr(RewardModel, "_opened", opened)
    verdicts, _ = ask(RewardModel(path=str(folder)), PAIRS)
    assert [v.readable for v in verdicts] == [i != 2 for i in range(len(PAIRS))]
    assert biases(PAIRS, verdicts).unreadable[2] == 1.0


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
    (error,) = replace(RewardModel(path=str(folder)), criterion="Be kind.").problems()
    assert error.key == "judge.criterion"
