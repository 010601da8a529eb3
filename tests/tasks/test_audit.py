"""Leaks are caught and named, clean data raises nothing, and the card says what is in the rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import UserError, UserErrors
from harness.tasks.arithmetic import Arithmetic
from harness.tasks.audit import audit, card, few_prompts, one_answer
from harness.tasks.base import TaskData
from harness.tasks.preferences import Preferences
from harness.tasks.reading.copies import tight_key
from harness.trial.checks import check_data
from tests.inside import tell

CLEAN = Arithmetic(pairs=400, eval_pairs=60, eval_prompts=60).load()
STORY = "once upon a time there was a small red barn near the river where two old birds lived"


def pair(prompt: Any, chosen: str = "yes", rejected: str = "no") -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def data(train: list[Any], held: list[Any]) -> TaskData:
    return TaskData(train_pairs=[pair(p) for p in train], eval_pairs={"test": [pair(p) for p in held]})


def test_clean_data_raises_nothing():
    found = audit(CLEAN)
    assert found.leaked == 0.0 and list(found.leaks) == []


def test_thirty_planted_prompts_with_other_spacing_and_case_are_caught_and_named():
    held = sorted({row["prompt"] for row in CLEAN.eval_prompts["test"]})[:30]
    planted = [pair(f"  {p.replace('+', ' + ').replace('-', ' -').upper()} ") for p in held]
    found = audit(replace(CLEAN, train_pairs=[*CLEAN.train_pairs, *planted]))
    assert {leak.held_out for leak in found.leaks if leak.where == "test prompts"} == set(held)
    assert found.leaked >= 30 / len({row["prompt"] for row in CLEAN.eval_prompts["test"]})
    assert all(leak.how == "the same but for spacing and case" for leak in found.leaks)


def test_a_prompt_in_other_words_at_the_ends_is_a_copy_and_one_that_shares_a_phrase_is_not():
    (leak,) = audit(data([f"please: {STORY} so it is said"], [STORY])).leaks
    assert leak.how == "11 of 11 runs of 8 words" and leak.training.startswith("please")
    assert audit(data(["once upon a time there was a small dog"], [STORY])).leaks == []


def test_half_of_the_runs_must_occur_in_one_training_prompt():
    words = STORY.split()
    assert len(audit(data([" ".join(words[:13])], [STORY])).leaks) == 1  # 6 of 11
    assert audit(data([" ".join(words[:12]), " ".join(words[6:])], [STORY])).leaks == []  # 5 of 11 in each


def test_short_prompts_that_differ_in_a_digit_are_no_copies():
    assert audit(data(["12+7="], ["12+8=", "2+17="])).leaks == []


def test_conversations_are_read_by_their_words():
    prompt = [{"role": "user", "content": "Say  CHEESE"}]
    assert len(audit(data(["say cheese"], [prompt])).leaks) == 1


def test_a_prompt_is_its_letters():
    assert tight_key(" Ａ b\tC ") == tight_key("abc")


def test_every_kind_of_training_row_is_looked_at():
    for field, row in (
        ("train_unpaired", {"prompt": "x", "completion": "y", "label": True}),
        ("train_prompts", {"prompt": "x"}),
    ):
        found = audit(TaskData(**{field: [row]}, eval_prompts={"test": [{"prompt": "X"}, {"prompt": "other"}]}))
        assert found.leaked == 0.5 and [leak.where for leak in found.leaks] == ["test prompts"]


def test_pairs_are_counted():
    rows = [pair("a", "long", "s"), pair("a", "long", "s"), pair("b", "x", "x"), pair("a", "s", "long")]
    facts = audit(TaskData(train_pairs=rows)).facts
    assert facts["training pairs"] == "4, of 2 different prompts"
    assert facts["chosen is longer"] == "62.5% of pairs (ties count one half)"
    assert facts["pairs whose sides are identical"] == "1 (25.0%)"
    assert facts["pairs that occur more than once"] == "1 (25.0%)"
    assert facts["preferences that occur both ways"] == "1"
    labels = [{"prompt": "a", "completion": "b", "label": i < 3} for i in range(4)]
    assert audit(TaskData(train_unpaired=labels)).facts["desirable completions"] == "3 (75.0%)"


def test_an_answer_that_is_right_for_many_prompts_is_told_with_its_share():
    """Of family relationships a third are sons: GRPO gained 0.12 by saying so always (experiments/real_math)."""
    answers = ["son"] * 32 + [f"cousin {i}" for i in range(68)]
    rows = [{"prompt": f"who is {i}?", "answer": answer} for i, answer in enumerate(answers)]
    found = TaskData(eval_prompts={"test": rows, "validation": rows[32:]})
    facts = audit(found).facts
    assert facts["commonest answer, test"] == "'son', 32 (32.0%)" and "commonest answer, validation" not in facts
    (said,) = one_answer(found, "test")
    assert said.startswith("32% of the 100 held-out prompts have one answer, 'son'")
    assert one_answer(found, "validation") == []
    few = TaskData(eval_prompts={"test": [{"prompt": "a"}, {"prompt": "b", "answer": "1"}]})
    assert one_answer(few, "test") == [] and not any("commonest" in fact for fact in audit(few).facts)


def test_no_rows_are_no_error():
    assert audit(TaskData()).leaked == 0.0


def test_the_card_lists_leaks_and_is_not_broken_by_what_prompts_hold():
    written = card(audit(data(["<b>|x"], ["<B> |X"])), title="t", digest="d", notes=["*note*"])
    assert "&lt;b&gt;&#124;x" in written and "100.0% of the worst split" in written and "<b>" not in written
    assert "No held-out prompt was found" in card(audit(CLEAN), title="t", digest="d")


def test_a_leak_stops_a_trial_before_it_starts_unless_it_is_allowed(assemble, tmp_path, monkeypatch):
    words = [f"{STORY} number {i}" for i in range(40)]
    train, held = tmp_path / "train.jsonl", tmp_path / "held.jsonl"
    train.write_text("\n".join(json.dumps(pair(f"please, {w}")) for w in words))
    held.write_text("\n".join(json.dumps(pair(w)) for w in words[:10]))
    line = ["task=preferences", f"task.path={train}", f"task.eval_path={held}", "model=shape/llama-10m"]
    with pytest.raises(UserErrors) as caught:
        check_data(assemble(*line))
    (error,) = caught.value.errors
    assert "100.0% of the held-out prompts are shown in training" in str(error) and "eval.max_leaked=1" in str(error)
    check_data(assemble(*line, "eval.max_leaked=1"))
    check_data(assemble(*line, "eval=none"))


def test_a_file_of_prompts_that_training_shows_is_a_leak_too(assemble, tmp_path):
    words = [f"{STORY} number {i}" for i in range(60)]
    train, own = tmp_path / "train.jsonl", tmp_path / "own.jsonl"
    train.write_text("\n".join(json.dumps(pair(w)) for w in words))
    line = [
        "task=preferences", f"task.path={train}", "model=shape/llama-10m", "eval.max_leaked=0.3", "task.held_out=0.1",
        "+evaluator@eval.evaluators.refusals=refusals", f"eval.evaluators.refusals.path={own}",
    ]  # fmt: skip

    def asking(prompts: list[str]) -> None:
        own.write_text("\n".join(json.dumps({"prompt": p, "should": "answer"}) for p in prompts))

    trained = [row["prompt"] for row in check_data(assemble(*line[:5], "eval=none")).train_pairs]
    asking([f" {trained[0].upper()}", "one", "two"])
    with pytest.raises(UserErrors) as caught:
        check_data(assemble(*line))
    (error,) = caught.value.errors
    assert error.key == "eval.evaluators.refusals.path" and "33.3% of the prompts of its file" in str(error)
    check_data(assemble(*line, "eval.max_leaked=0.4"))
    asking([trained[0], "one", "two", "three"])
    check_data(assemble(*line))


# -- annotators ----------------------------------------------------------------------------------------


def labelled(folder: Path, labels: list[tuple[Any, Any]], **fields: Any) -> TaskData:
    file = folder / "labelled.jsonl"
    rows = [{**pair(f"question {i}"), "ann": a, "bob": b} for i, (a, b) in enumerate(labels)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Preferences(str(file), annotators=("ann", "bob"), held_out=0.1, **fields).load()


def test_the_card_gives_cohens_kappa_of_annotators(tmp_path):
    # of 40 training rows or so half agree by chance: say a, a / a, b / b, a / b, b in turn
    chance = audit(labelled(tmp_path, [("a", "a"), ("a", "b"), ("b", "a"), ("b", "b")] * 25)).facts
    kappa = float(chance["agreement of ann and bob"].split("κ ")[1].split()[0])
    assert abs(kappa) < 0.2
    (same,) = [v for k, v in audit(labelled(tmp_path, [("a", "a"), ("b", "b")] * 20)).facts.items() if "agreement" in k]
    assert same.startswith("Cohen κ 1.00 over 3")
    constant = audit(labelled(tmp_path, [("a", "a")] * 20)).facts["agreement of ann and bob"]
    assert "by chance too" in constant
    absent = audit(labelled(tmp_path, [("a", None)] * 20)).facts["agreement of ann and bob"]
    assert absent == "no row has labels of both (bob gave none)"
    apart = audit(labelled(tmp_path, [("a", None), (None, "a")] * 20)).facts["agreement of ann and bob"]
    assert apart == "no row has labels of both"


def test_labels_of_annotators_do_not_reach_the_model_and_change_nothing_else(tmp_path):
    data = labelled(tmp_path, [("a", "b")] * 20)
    plain = Preferences(str(tmp_path / "labelled.jsonl")).load()
    assert [{k: v for k, v in r.items() if k != "annotations"} for r in data.train_pairs] == list(plain.train_pairs)


def test_annotators_that_are_not_there_or_alone_are_refused_by_name(tmp_path):
    labelled(tmp_path, [("a", "b")] * 20)
    for names, words in ((("ann", "eve"), "no such column: eve; found: prompt, chosen"), (("ann",), "two annotators")):
        with pytest.raises(UserError, match=words):
            Preferences(str(tmp_path / "labelled.jsonl"), annotators=names).load()
    with pytest.raises(UserErrors, match="a label must be text"):
        labelled(tmp_path, [(["a"], "b")] * 20)


# -- lengths -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ["dpo", "kto"])
def test_the_data_card_of_a_trial_says_how_long_its_rows_are(tmp_path, algo):
    tell(tmp_path / "t", tmp_path / "cache", f"algo={algo}", "eval=none", "adapter=lora")
    page = (tmp_path / "t" / "artifacts" / "data_card.md").read_text()
    assert "training pairs: cut at 96 tokens | 0 (0.0%); the longest has" in page
    assert "held-out pairs, test: cut at 96 tokens" in page
    assert "## What the model sees" in page and "⟧" in page


def test_few_held_out_prompts_are_told_however_many_pairs_they_have():
    pairs = [{"prompt": f"p{i % 2}", "chosen": "a", "rejected": "b"} for i in range(6)]
    prompts = [{"prompt": f"q{i}"} for i in range(30)]
    (said,) = few_prompts(TaskData(eval_pairs={"test": pairs}, eval_prompts={"test": prompts}), "test")
    assert "the 6 held-out pairs have 2 different prompts" in said
    assert few_prompts(TaskData(), "test") == []
    (said,) = few_prompts(TaskData(eval_prompts={"test": prompts[:1]}), "test")
    assert "one prompt only (held out: prompt rows: 1)" in said and "there will be none" in said
