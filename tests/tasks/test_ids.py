"""The audit of token ids: what is left out, what is refused, what is told."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from harness.tasks.base import Row, TaskData
from harness.tasks.conversation import style_of
from harness.tasks.ids import EMPTY, EQUAL, FILLS, NOTHING, Found, Limits, look
from tests.tasks.test_renderings import CHATML, MISTRAL, QUESTION, shipped, tokenizer_of

WIDE = Limits(train=500, rollout=0, scored=500, sampled=50, context=600, vocabulary=1000)


def reply(words: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": words}]


def pair(chosen: str = "Paris is the capital.", rejected: str = "It always was.", prompt: Any = QUESTION) -> Any:
    return {"prompt": prompt, "chosen": reply(chosen), "rejected": reply(rejected)}


def chatml() -> Any:
    return tokenizer_of(CHATML, bos="<|im_start|>", eos="<|im_end|>")


def audit(rows: list[Any], tokenizer: Any, limits: Limits = WIDE, stops: list[int] | None = None) -> Found:
    style = style_of(tokenizer, conversational=isinstance(rows[0]["prompt"], list), wanted=True)
    stops = [tokenizer.eos_token_id] if stops is None else stops
    data = TaskData(train_pairs=rows, train_prompts=[{"prompt": r["prompt"]} for r in rows])
    return Found(**asdict(look(data, tokenizer, style, limits, stops)))


def test_sound_rows_pass_and_three_of_them_are_shown_with_what_is_trained_marked():
    other = [pair(prompt=[{"role": "user", "content": f"What is {i}?"}]) for i in range(3)]
    found = audit([pair(), pair(), *other], chatml())
    assert found.dropped == {} and found.refusals == [] and found.notes == []
    assert len(found.examples) == 3 and "What is 1?" in found.examples[2]
    assert found.examples[0] == (
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
        "⟦Paris is the capital.<|im_end|>\n⟧"
    )
    assert found.facts["completions that end with a stop token"] == "10 of 10 ('<|im_end|>' 10)"
    assert found.facts["training pairs: cut at 500 tokens"].startswith("0 (0.0%); the longest has ")


def test_pairs_that_differ_only_in_what_the_template_strips_are_left_out_and_all_of_them_are_refused():
    thinks = [pair(f"<think>{w}</think>Paris", "<think>x</think>Paris") for w in ("a", "b")]
    tokenizer = tokenizer_of(shipped("qwen3"), bos=None, eos="<|im_end|>")
    tokenizer.chat_template = tokenizer.chat_template.replace("loop.last or", "false or")  # strips in every turn
    some = audit([*thinks, *[pair()] * 98], tokenizer)
    assert some.dropped == {"train_pairs": {EQUAL: [0, 1]}}
    assert some.problems(0.05) == [] and "2 of 100 training pairs left out" in some.notes[0]
    (error,) = audit(thinks, tokenizer).problems(1.0)
    assert "2 of 2 training pairs cannot be used" in error.rule and EQUAL in error.rule


def test_training_rows_of_which_many_are_cut_are_told_with_the_key():
    rows = [pair(), pair("Paris, " * 40), pair("Was it, " * 40)]
    narrow = Limits(train=60, rollout=0, scored=60, sampled=10, context=None, vocabulary=None)
    (note,) = audit(rows, chatml(), narrow).notes
    assert (
        note.startswith("2 of 3 training pairs are cut at 60 tokens, the longest has ") and "train.max_length" in note
    )
    assert audit([pair()] * 20 + rows[1:], chatml(), narrow).notes == []  # one in eleven is no rule


def test_what_a_trial_keeps_is_the_rest_in_order():
    rows = [pair(), pair("", "x"), pair("Was it?")]
    data = TaskData(train_pairs=rows, eval_pairs={"test": rows})
    found = look(data, chatml(), style_of(chatml(), conversational=True, wanted=True), WIDE, [5])
    assert found.dropped["train_pairs"] == {EMPTY: [1]}
    kept = found.kept(data)
    assert list(kept.train_pairs) == [rows[0], rows[2]] == list(kept.eval_pairs["test"])


def test_one_prompt_of_three_hundred_beyond_the_limit_is_left_out_and_counted_by_tokens():
    wide = [{"role": "user", "content": "漢字" * 40}]  # few characters, many tokens
    rows = [*[pair() for _ in range(299)], pair(prompt=wide)]
    found = audit(rows, chatml(), Limits(100, 0, 100, 10, None, None))
    assert found.dropped == {"train_pairs": {FILLS: [299]}} and found.problems(0.05) == []
    (error,) = audit(rows[-5:], chatml(), Limits(100, 0, 100, 10, None, None)).problems(0.05)
    assert error.key == "task.allow_skipped" and "a larger train.max_length" in str(error.fix)


def test_a_long_row_that_falls_into_a_small_split_counts_among_the_rows_of_all_splits():
    long, narrow = pair(prompt=[{"role": "user", "content": "漢字" * 40}]), Limits(100, 0, 100, 10, None, None)

    def problems(test: list[Row]) -> list[str]:
        data = TaskData(train_pairs=[pair()] * 80, eval_pairs={"validation": [pair()] * 6, "test": test})
        style = style_of(chatml(), conversational=True, wanted=True)
        return [str(e) for e in look(data, chatml(), style, narrow, [5]).problems(0.05)]

    assert problems([*[pair()] * 5, long]) == []  # one of 92, and of six
    (told,) = problems([pair(), *[long] * 4])  # four of 91, and of five: no chance
    assert "4 of 5 held-out pairs, test cannot be used" in told
    (told,) = problems([long])  # nothing is left to judge by
    assert "1 of 1 held-out pairs, test cannot be used" in told


def test_the_data_card_names_every_reason_for_which_rows_are_left_out():
    wide = [{"role": "user", "content": "漢字" * 40}]
    rows = [*[pair() for _ in range(97)], pair("", "x"), pair(prompt=wide), pair("Was it?", "Was it?")]
    found = audit(rows, chatml(), Limits(100, 0, 100, 10, None, None))
    told = found.facts["training pairs: left out"]
    assert told == f"1, {EMPTY}; 1, {FILLS}; 1, {EQUAL}"
    assert all(any(reason in note for note in found.notes) for reason in (EMPTY, FILLS, EQUAL))


@pytest.mark.parametrize(("template", "told"), [(CHATML, True), (shipped("qwen3"), False)], ids=["chatml", "qwen3"])
def test_tool_calls_that_a_template_leaves_out_are_told(template, told):
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    asked = [*QUESTION, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "3"}]
    found = audit([pair(prompt=asked), pair()], tokenizer_of(template, bos=None, eos="<|im_end|>"))
    assert ("the chat template leaves out the tool calls of 1 of 2 rows" in found.notes) is told


def test_a_prompt_must_leave_room_for_a_sampled_completion():
    rows = [pair()]
    length = len(chatml().apply_chat_template(QUESTION, add_generation_prompt=True)["input_ids"])
    assert audit(rows, chatml(), Limits(length + 8, 8, 500, 8, None, None)).dropped == {}
    assert audit(rows, chatml(), Limits(length + 8, 9, 500, 8, None, None)).dropped == {"train_prompts": {FILLS: [0]}}


def test_one_row_that_the_template_refuses_is_left_out_with_the_templates_words():
    odd = pair(prompt=[*QUESTION, *QUESTION])
    gemma = tokenizer_of(shipped("gemma"), bos="<bos>", eos="<end_of_turn>")
    found = audit([*[pair()] * 39, odd], gemma)
    (reason,) = found.dropped["train_pairs"]
    assert "Conversation roles must alternate" in reason and found.dropped["train_pairs"][reason] == [39]
    assert found.problems(0.05) == []
    (error,) = audit([odd] * 3, gemma).problems(0.05)
    assert "roles must alternate" in error.rule and "rows in the form that the template wants" in str(error.fix)


def test_a_system_message_that_the_template_refuses_is_folded_and_told():
    rows = [pair(prompt=[{"role": "system", "content": "Be kind."}, *QUESTION])]
    found = audit(rows, tokenizer_of(MISTRAL, bos="<s>", eos="</s>"))
    assert found.dropped == {} and "Be kind.\n\nWhat is" in found.examples[0]
    assert any("refuses system messages" in note for note in found.notes)


def test_a_template_whose_turns_end_with_another_token_is_told_with_the_fix():
    tokenizer = tokenizer_of(CHATML, bos=None, eos="<|endoftext|>")
    (note,) = audit([pair()], tokenizer).notes
    assert "2 of 2 completions do not end with a token that ends a reply ('<|endoftext|>')" in note
    assert "model.stop_tokens" in note
    end = tokenizer.get_vocab()["<|im_end|>"]
    assert audit([pair()], tokenizer, stops=[tokenizer.eos_token_id, end]).notes == []


def test_a_template_without_an_end_is_told():
    tokenizer = tokenizer_of("{% for m in messages %}{{ m['content'] }} {% endfor %}", bos=None, eos="</s>")
    assert any("do not end with a token that ends a reply" in note for note in audit([pair()], tokenizer).notes)


def test_a_template_that_leaves_out_the_begin_token_is_told():
    tokenizer = tokenizer_of(CHATML, bos="<s>", eos="<|im_end|>", adds="bos")
    (note,) = audit([pair()], tokenizer).notes
    assert "1 of 1 sequences lack the begin token '<s>'" in note


def test_ids_beyond_the_embedding_matrix_are_refused_with_both_sizes():
    found = audit([pair()], chatml(), Limits(500, 0, 500, 50, None, 100))
    (error,) = found.problems(0.05)
    assert "the model's embedding matrix has 100 rows" in error.rule and str(max_id(found)) not in ("", None)


def max_id(found: Found) -> str:
    return found.refusals[0]["rule"].split("gives the id ")[1].split(",")[0]


def test_a_tokenizer_that_knows_nothing_is_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    empty = Tokenizer(models.BPE())
    nothing: Any = PreTrainedTokenizerFast(tokenizer_object=empty, eos_token="</s>", pad_token="</s>")
    rows = [{"prompt": "What is", "chosen": " this", "rejected": " that"}] * 3
    found = audit(rows, nothing)
    assert found.dropped == {"train_pairs": {NOTHING: [0, 1, 2]}}
    assert any("makes nothing of any text" in error.rule for error in found.problems(1.0))

    unknown = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "What": 2}, unk_token="<unk>"))
    knows_one: Any = PreTrainedTokenizerFast(
        tokenizer_object=unknown, eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )
    rows = [{"prompt": "What", "chosen": "This", "rejected": "That"}] * 3
    assert any("unknown to its tokenizer" in e.rule for e in audit(rows, knows_one, stops=[1]).problems(1.0))


def test_a_users_turn_within_a_completion_is_told():
    row = pair()
    row["chosen"] = [*row["chosen"], *QUESTION, *reply("No.")]
    (note, *_) = [n for n in audit([row], chatml()).notes if "user's turn" in n]
    assert note.startswith("1 of 1 rows")


def test_a_prompt_that_is_rendered_otherwise_before_a_reply_is_told():
    template = CHATML.replace(
        "<|im_start|>assistant\n' }}{% endif %}", "<|im_start|>assistant\n<think>\n' }}{% endif %}"
    )
    found = audit([pair()], tokenizer_of(template, bos=None, eos="<|im_end|>"))
    assert any("rendered otherwise before a reply" in note for note in found.notes)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_share_that_may_be_left_out_is_the_users(share):
    found = audit([pair(), pair("", "x")], chatml())
    assert (found.problems(share) == []) and len(found.problems(0.4)) == 1
