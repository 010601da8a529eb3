"""Data as people have it: read, or refused with the right fix; what is dropped is counted by name."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import UserError, UserErrors
from harness.tasks.base import TaskData
from harness.tasks.preferences import Preferences
from harness.tasks.problems import Problems
from harness.tasks.reading.files import read_table
from harness.tasks.reading.messages import Malformed
from harness.tasks.reading.transcripts import parsed


def user(words: str) -> dict[str, str]:
    return {"role": "user", "content": words}


def assistant(words: str) -> dict[str, str]:
    return {"role": "assistant", "content": words}


def written(folder: Path, rows: list[Any], name: str = "d.jsonl") -> str:
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(path)


def all_rows(data: TaskData) -> list[dict[str, Any]]:
    held = [row for part in data.eval_pairs.values() for row in part]
    rows = [*data.train_pairs, *data.train_unpaired, *held]
    return sorted((dict(row) for row in rows), key=lambda row: json.dumps(row["prompt"]))


def load(folder: Path, make: Any, count: int = 6, **fields: Any) -> tuple[list[dict[str, Any]], str]:
    """The rows that a file of ``count`` rows gives, by prompt, and its notes."""
    data = Preferences(written(folder, [make(i) for i in range(count)]), **fields).load()
    return all_rows(data), "\n".join(data.notes)


PAIR = {"prompt": [user("ask 0")], "chosen": [assistant("good 0")], "rejected": [assistant("bad 0")]}
TEXT_PAIR = {"prompt": "ask 0", "chosen": "good 0", "rejected": "bad 0"}


@pytest.mark.parametrize(
    ("make", "first", "said"),
    [
        (
            lambda i: {
                "conversations": [{"from": "human", "value": f"ask {i}"}],
                "chosen": {"from": "gpt", "value": f"good {i}"},
                "rejected": {"from": "gpt", "value": f"bad {i}"},
            },
            PAIR,
            "prompts are the column conversations",
        ),
        (
            lambda i: {"instruction": "ask", "input": str(i), "chosen": f"good {i}", "rejected": f"bad {i}"},
            {**TEXT_PAIR, "prompt": "ask\n0"},
            "prompts are the column instruction and input",
        ),
        (
            lambda i: {
                "system": "Be kind.",
                "history": [["hi", "hello"]],
                "prompt": f"ask {i}",
                "chosen": f"good {i}",
                "rejected": f"bad {i}",
            },
            {
                **PAIR,
                "prompt": [{"role": "system", "content": "Be kind."}, user("hi"), assistant("hello"), user("ask 0")],
            },
            "the columns system and history stand before the prompts",
        ),
        (
            lambda i: {
                "prompt": [{"role": "user", "content": [{"type": "text", "text": "ask "}, {"text": str(i)}]}],
                "chosen": [assistant(f"good {i}")],
                "rejected": [assistant(f"bad {i}")],
            },
            PAIR,
            "",
        ),
        (
            lambda i: {"prompt": f"ask {i}", "responses": [f"fair {i}", f"bad {i}", f"good {i}"], "ratings": [3, 1, 5]},
            TEXT_PAIR,
            "the best and the worst by ratings are a pair",
        ),
        (
            lambda i: {"prompt": f"ask {i}", "answers": [f"fair {i}", f"good {i}", f"bad {i}"], "ranks": [2, 1, 3]},
            TEXT_PAIR,
            "the best and the worst by ranks are a pair",
        ),
        (
            lambda i: {
                "instruction": f"ask {i}",
                "completions": [
                    {"response": f"bad {i}", "overall_score": 2.5},
                    {"response": f"good {i}", "overall_score": 8},
                ],
            },
            TEXT_PAIR,
            "by their own ratings",
        ),
        (
            lambda i: {"prompt": f"ask {i}", "response_a": f"bad {i}", "response_b": f"good {i}", "winner": "b"},
            TEXT_PAIR,
            "winner says which of response_a and response_b is chosen",
        ),
        (
            lambda i: {
                "prompt": f"ask {i}",
                "response_0": f"good {i}",
                "response_1": f"bad {i}",
                "better_response_id": 0,
            },
            TEXT_PAIR,
            "better_response_id says",
        ),
        (
            lambda i: {
                "prompt": f"Please tell me about thing {i}",
                "chosen": f"Please tell me about thing {i} good",
                "rejected": f"Please tell me about thing {i} bad",
            },
            {"prompt": "Please tell me about thing 0", "chosen": " good", "rejected": " bad"},
            "",
        ),
        (
            lambda i: {
                "chosen": f"\n\nHuman: ask {i}\n\nAssistant: yes\n\nHuman: more\n\nAssistant: good {i}",
                "rejected": f"\n\nHuman: ask {i}\n\nAssistant: yes\n\nHuman: more\n\nAssistant: gone {i}",
            },
            {
                "prompt": [user("ask 0"), assistant("yes"), user("more")],
                "chosen": [assistant("good 0")],
                "rejected": [assistant("gone 0")],
            },
            "",
        ),
        (
            lambda i: {
                "prompt": f"\n\nHuman: ask {i}\n\nAssistant:",
                "chosen": f" good {i}",
                "rejected": f" bad {i}",
            },
            {"prompt": [user("ask 0")], "chosen": [assistant(" good 0")], "rejected": [assistant(" bad 0")]},
            "",
        ),
        (
            lambda i: {
                "prompt": f"ask {i}", "response_0": f"bad {i}", "response_1": f"good {i}", "score_0": 1,
                "score_1": "2.5",
            },
            TEXT_PAIR,
            "score_0 and score_1 say which of response_0 and response_1 is chosen; ties are left out",
        ),
        (
            lambda i: {
                "prompt": f"ask {i}", "answer_a": f"good {i}", "answer_b": f"bad {i}", "answer_a_rating": 4,
                "answer_b_rating": 2,
            },
            TEXT_PAIR,
            "answer_a_rating and answer_b_rating say",
        ),
        (
            lambda i: {"history": f"ask {i}", "human_ref_A": f"bad {i}", "human_ref_B": f"good {i}", "labels": 0},
            TEXT_PAIR,
            "labels says which of human_ref_A and human_ref_B is chosen",
        ),
        (
            lambda i: {
                "context": [user(f"ask {i}")], "response1": f"good {i}", "response2": f"bad {i}",
                "overall_preference": -2,
            },
            PAIR,
            "prompts are the column context",
        ),
        (
            lambda i: {"instruction": "ask", "context": str(i), "chosen": f"good {i}", "rejected": f"bad {i}"},
            {**TEXT_PAIR, "prompt": "ask\n0"},
            "prompts are the column instruction and context",
        ),
    ],
    ids=["sharegpt", "alpaca", "system and history", "parts", "ratings", "ranks", "records", "winner", "numbered",
         "repeated prompt", "transcripts", "transcript prompts", "marks", "marks after", "shp", "helpsteer", "dolly"],
)  # fmt: skip
def test_pairs_are_read_as_people_write_them(tmp_path, make, first, said):
    rows, notes = load(tmp_path, make)
    assert rows[0] == first and len(rows) == 6
    assert said in notes


@pytest.mark.parametrize("labels", [("yes", "no"), (1, -1), ("good", "bad"), (True, False), ("1", "0")])
def test_labels_in_many_words(tmp_path, labels):
    rows, _ = load(tmp_path, lambda i: {"prompt": f"ask {i}", "completion": f"say {i}", "label": labels[i % 2]}, 40)
    assert {row["label"] for row in rows if "label" in row} == {True, False}


def test_a_score_in_place_of_a_label_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(UserErrors, match="turn the score into a label"):
        load(tmp_path, lambda i: {"prompt": f"ask {i}", "completion": "x", "label": 0.5 + i})


def test_instructions_with_an_output_alone_are_for_imitation(tmp_path):
    rows, notes = load(tmp_path, lambda i: {"instruction": f"ask {i}", "input": "", "output": f"good {i}"})
    assert rows[0] == {"prompt": "ask 0", "completion": "good 0", "label": True}
    assert "all completions count as desirable" in notes


def test_conversations_alone_end_with_the_completion(tmp_path):
    rows, _ = load(tmp_path, lambda i: {"messages": [user(f"ask {i}"), assistant("hm"), user("so"), assistant("yes")]})
    assert rows[0]["completion"] == [assistant("yes")] and rows[0]["prompt"][-1] == user("so")


def test_pairs_whose_scores_say_otherwise_are_left_out_and_counted(tmp_path):
    scores = [(5, 1), (1, 5), (3, 3)]

    def make(i: int) -> dict[str, Any]:
        high, low = scores[0 if i > 1 else i + 1]
        return {"prompt": f"ask {i}", "chosen": "a", "rejected": "b", "score_chosen": high, "score_rejected": low}

    rows, notes = load(tmp_path, make, 40)
    assert len(rows) == 38
    assert "1 row skipped, chosen is rated below rejected" in notes
    assert "1 row skipped, the two sides are rated alike" in notes


def test_ties_state_no_preference_and_count_as_no_unusable_rows(tmp_path):
    def make(i: int) -> dict[str, Any]:
        said = "tie" if i % 2 else "model_b"
        return {"prompt": f"ask {i}", "response_a": f"bad {i}", "response_b": f"good {i}", "winner": said}

    rows, notes = load(tmp_path, make, 40)
    assert len(rows) == 20 and "20 rows skipped, the two sides are rated alike" in notes
    with pytest.raises(UserError, match="no usable row among 20"):
        load(tmp_path, lambda i: make(2 * i + 1), 20)


def test_a_transcript_without_a_last_answer_is_an_empty_completion(tmp_path):
    def make(i: int) -> dict[str, Any]:
        asked = f"\n\nHuman: ask {i}\n\nAssistant:"
        return {"chosen": f"{asked} good", "rejected": f"{asked} bad" if i else f"{asked} "}

    rows, notes = load(tmp_path, make, 40)
    assert len(rows) == 39 and "1 row skipped, a completion is empty" in notes


def test_tool_calls_stay_and_columns_that_are_not_read_are_counted_by_name(tmp_path):
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    calls = {"role": "assistant", "content": None, "tool_calls": [call], "weight": 1}
    rows, notes = load(
        tmp_path,
        lambda i: {
            "prompt": [user(f"ask {i}")],
            "chosen": [calls, {"role": "tool", "content": "3", "name": "add"}, assistant("3")],
            "rejected": [assistant("4")],
            "tools": [{"name": "add"}],
        },
    )
    assert rows[0]["chosen"][0] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert "the column tools is not read (6 rows have it)" in notes and "6 × weight of messages not read" in notes


def test_a_message_with_an_image_is_left_out_and_counted(tmp_path):
    def make(i: int) -> dict[str, Any]:
        parts = [{"type": "image", "image": "x"}] if i == 0 else [{"type": "text", "text": f"ask {i}"}]
        return {"prompt": [{"role": "user", "content": parts}], "chosen": "a", "rejected": "b"}

    rows, notes = load(tmp_path, make, 30)
    assert len(rows) == 29 and "a message holds a part of type image" in notes


# -- files ---------------------------------------------------------------------------------------------


def test_a_csv_with_semicolons_is_read(tmp_path):
    lines = ["prompt;chosen;rejected", *(f"ask, {i};good;bad" for i in range(5))]
    (tmp_path / "d.csv").write_text("\n".join(lines))
    assert all_rows(Preferences(str(tmp_path / "d.csv")).load())[0]["prompt"] == "ask, 0"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["d.jsonl", "d.csv", "d.json"])
def test_a_file_in_utf_16_is_read(tmp_path, name, encoding):
    rows = [{"prompt": f"frag {i}ä", "chosen": "gut", "rejected": "schlecht"} for i in range(5)]
    lines = {
        "d.jsonl": "\n".join(json.dumps(r, ensure_ascii=False) for r in rows),
        "d.json": json.dumps(rows, ensure_ascii=False),
        "d.csv": "prompt,chosen,rejected\n" + "\n".join(",".join(r.values()) for r in rows),
    }
    (tmp_path / name).write_text(lines[name], encoding=encoding)
    assert all_rows(Preferences(str(tmp_path / name)).load())[0]["prompt"] == "frag 0ä"


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.JSON.GZ", "rows.csv.gz"])
def test_a_packed_file_is_read_as_what_is_in_it(tmp_path, name):
    rows = [{"prompt": f"q{i}", "chosen": "ä", "rejected": "b"} for i in range(3)]
    lines = "prompt,chosen,rejected\n" + "".join(f"q{i},ä,b\n" for i in range(3))
    text = lines if "csv" in name else "".join(json.dumps(row) + "\n" for row in rows)
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()))
    table = read_table(str(path), key="task.path")
    assert [dict(row) for row in table.rows if not isinstance(row, Malformed)] == rows
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="no whole gzip file"):
        read_table(str(path), key="task.path")


def test_half_a_character_is_a_malformed_row_by_its_line(tmp_path):
    rows = [json.dumps({"prompt": f"ask {i}", "chosen": "a", "rejected": "b"}) for i in range(5)]
    rows[2] = '{"prompt": "ask \\ud83d", "chosen": "a", "rejected": "b"}'
    (tmp_path / "d.jsonl").write_text("\n".join(rows))
    with pytest.raises(UserError, match="d.jsonl, line 3, prompt: holds half a character"):
        Preferences(str(tmp_path / "d.jsonl")).load()
    rows[2] = '{"prompt": "ask \\ud83d\\ude00", "chosen": "a", "rejected": "b"}'  # both halves
    (tmp_path / "d.jsonl").write_text("\n".join(rows))
    assert len(all_rows(Preferences(str(tmp_path / "d.jsonl")).load())) == 5


def test_escapes_can_be_written_on_the_command_line(tmp_path):
    head = "### Q\n{}\n### A\n"
    rows, _ = load(
        tmp_path,
        lambda i: {"chosen": head.format(i) + "I can", "rejected": head.format(i) + "I cannot"},
        prompt_end=r"\n### A\n",
    )
    assert rows[0] == {"prompt": head.format(0), "chosen": "I can", "rejected": "I cannot"}


# -- problems ------------------------------------------------------------------------------------------


def test_problems_of_a_file_are_scored_by_their_answers(tmp_path):
    rows = [{"question": f"{i}+1?", "answer": f"We add. #### {i + 1:,}"} for i in range(1000, 1020)]
    task = Problems(written(tmp_path, rows))
    data = task.load()
    row = data.train_prompts[0]
    assert row["answer"].isdigit() and str(row["prompt"]).endswith("+1?")
    assert task.score(row, f"It is {int(row['answer']):,}.").correct and not task.score(row, "It is 7").correct
    assert sum(len(part) for part in data.eval_prompts.values()) == 2


def test_a_file_without_answers_is_refused_with_its_columns(tmp_path):
    with pytest.raises(UserError, match="the columns answer are not there; found: question, level"):
        Problems(written(tmp_path, [{"question": "q", "level": 1}] * 5)).load()


def test_transcripts_are_parsed_by_their_marks():
    text = "\n\nHuman: one\n\nstill one\n\nHuman: two\n\nAssistant: three: Human: no\n\nAssistant:"
    assert parsed(text) == [user("one\n\nstill one\n\ntwo"), assistant("three: Human: no")]
    assert parsed("Assistant: first") is None and parsed("no marks") is None and parsed("x\n\nHuman: y") is None
