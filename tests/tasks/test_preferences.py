"""The user's own preference file: formats, checks, and a split by prompt that does not leak."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import pytest

from harness.base.errors import UserError, UserErrors
from harness.tasks.base import prompt_key
from harness.tasks.preferences import Preferences
from harness.tasks.reading.rows import shared_prefix, shared_turns
from harness.tasks.reading.splits import hold_out, loose_key


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def write(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


YES, NO = [assistant("yes")], [assistant("no")]


def preference(prompt, chosen, rejected):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def load(folder: Path, rows, **fields):
    """The data of a JSON Lines file with these rows."""
    return Preferences(write(folder / "d.jsonl", rows), **fields).load()


def pairs(count: int, start: int = 0):
    return [preference(f"q{i}", f"yes {i}", f"no {i}") for i in range(start, start + count)]


def sides(data):
    """Loose keys of the prompts per side."""
    train = {loose_key(r["prompt"]) for r in [*data.train_pairs, *data.train_unpaired]}
    held = {name: {loose_key(r["prompt"]) for r in rows} for name, rows in data.eval_prompts.items()}
    return train, held["validation"], held["test"]


def every_pair(data):
    rows = [*data.train_pairs, *data.eval_pairs["validation"], *data.eval_pairs["test"]]
    return sorted(rows, key=lambda row: prompt_key(row["prompt"]))


# -- formats -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"])
def test_every_suffix_yields_the_same_rows(tmp_path, suffix):
    rows = [*pairs(5), preference('a "quoted", cell', "two\nlines", "NA")]
    path = tmp_path / f"data{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="," if suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    elif suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        write(path, rows)
    data = Preferences(str(path)).load()
    assert every_pair(data) == sorted(rows, key=lambda row: row["prompt"])
    assert data.train_unpaired == ()


def test_json_lines_under_the_suffix_json_are_read_too(tmp_path):
    assert len(every_pair(Preferences(write(tmp_path / "data.json", pairs(4))).load())) == 4


def test_conversations_with_a_prompt_stay_conversations(tmp_path):
    rows = [preference([user(f"q{i}")], YES, NO) for i in range(4)]
    assert every_pair(load(tmp_path, rows)) == rows


def test_the_prompt_of_two_conversations_is_their_common_leading_messages(tmp_path):
    heads = [[user(f"{i}"), assistant("hello"), user("and?")] for i in range(3)]
    rows = [{"chosen": head + YES, "rejected": head + NO} for head in heads]
    assert every_pair(load(tmp_path, rows)) == [preference(head, YES, NO) for head in heads]


@pytest.mark.parametrize(
    "form",
    [
        lambda head: preference(head[0]["content"], head + YES, head + NO),  # as UltraFeedback has it
        lambda head: preference(head[0]["content"], YES, NO),
        lambda head: preference(head, head + YES, head + NO),
        lambda head: preference(head, "yes", "no"),
    ],
)
def test_prompt_and_completions_that_mix_or_repeat_messages_come_out_as_one_conversation(tmp_path, form):
    heads = [[user(f"q{i}")] for i in range(3)]
    loaded = every_pair(load(tmp_path, [form(head) for head in heads]))
    assert loaded == [preference(head, YES, NO) for head in heads]


def test_messages_in_csv_are_json_and_a_text_that_begins_with_a_bracket_stays_text(tmp_path):
    path = tmp_path / "d.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "chosen", "rejected"])
        for i in range(3):
            writer.writerow([f"q{i}", json.dumps([assistant(f"[{i}]")]), json.dumps([assistant("[1, 2]")])])
    loaded = every_pair(Preferences(str(path)).load())
    assert loaded[0] == preference([user("q0")], [assistant("[0]")], [assistant("[1, 2]")])
    path.write_text('prompt,chosen,rejected\n[1],"[1, 2]",[x\n[2],b,c\n[3],b,c\n')
    assert every_pair(Preferences(str(path)).load())[0] == preference("[1]", "[1, 2]", "[x")


def test_messages_written_by_repr_are_refused_and_not_trained_on(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text("prompt,chosen,rejected\n" + "q,\"[{'role': 'assistant', 'content': 'a'}]\",b\n")
    with pytest.raises(UserErrors, match=r"line 2, chosen=.*\n?.*not JSON"):
        Preferences(str(path)).load()


def test_columns_may_have_other_names(tmp_path):
    rows = [{"question": f"q{i}", "good": "yes", "bad": "no"} for i in range(4)]
    names = {"prompt": "question", "chosen": "good", "rejected": "bad", "label": "label"}
    loaded = every_pair(load(tmp_path, rows, columns=names))
    assert loaded[0] == preference("q0", "yes", "no")


# -- the implicit prompt -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "rejected", "cut"),
    [
        ("The sky is blue.", "The sky is green.", 10),  # "The sky is" | " blue."
        ("a.b.", "a.b.c", 3),  # one begins with the other: the last character stays with it
        ("it is 19", "it is 17", 5),  # never within a word
        ("ab", "abcd", 0),
        ("xa", "ya", 0),
        ("x ", "y ", 0),  # trl looks at index -1 here, a space, and takes a prompt that is not shared
    ],
)
def test_the_shared_prefix_is_the_longest_and_leaves_both_completions_something(chosen, rejected, cut):
    assert shared_prefix(chosen, rejected) == cut


@pytest.mark.parametrize(
    "rejected", [[user("q"), assistant("b")], [user("q"), assistant("a"), user("r"), assistant("b")]]
)
def test_the_shared_turns_leave_both_conversations_a_reply(rejected):
    assert shared_turns([user("q"), assistant("a")], rejected) == 1


def test_the_shared_prefix_agrees_with_trl_but_within_words():
    data_utils = pytest.importorskip("trl.data_utils")
    texts = [
        "Human: hi Assistant: yes",
        "Human: hi Assistant: yes sir",
        "Human: hello",
        "Human: hi",
        "Human: hi ",
    ]
    for chosen in texts:
        for rejected in texts:
            if chosen != rejected:
                expected = data_utils.extract_prompt({"chosen": chosen, "rejected": rejected})["prompt"]
                ours = chosen[: shared_prefix(chosen, rejected)]
                within = expected[-1:].isalnum() and chosen[len(expected) : len(expected) + 1].isalnum()
                assert expected.startswith(ours) and len(ours) < len(expected) if within else ours == expected


def test_prompt_end_keeps_shared_first_words_in_the_answers(tmp_path):
    head = "\n\nHuman: {}\n\nAssistant:"
    rows = [{"chosen": head.format(i) + " I can.", "rejected": head.format(i) + " I cannot."} for i in range(3)]
    rows.append({"chosen": head.format(0), "rejected": head.format(0) + " Hm."})
    path = write(tmp_path / "d.jsonl", rows)
    data = Preferences(path, prompt_end="\n\nAssistant:", allow_skipped=0.5).load()
    assert every_pair(data)[0] == preference(head.format(0), " I can.", " I cannot.")
    assert data.notes == [f"{path}: 1 row skipped, a completion is empty (line 4)"]


# -- unpaired ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("good", "bad"), [(True, False), (1, 0), ("true", "False"), ("1", "0"), (1.0, 0.0)])
def test_labels_are_booleans_zeros_and_ones_or_words(tmp_path, good, bad):
    rows = [{"prompt": f"q{i}", "completion": "a", "label": good if i % 2 else bad} for i in range(20)]
    data = load(tmp_path, rows)
    assert data.train_pairs == ()
    assert {(int(row["prompt"][1:]) % 2 == 1, row["label"]) for row in data.train_unpaired} == {
        (True, True),
        (False, False),
    }


def test_unpaired_rows_yield_held_out_pairs_where_a_prompt_has_both_labels(tmp_path):
    held = [
        {"prompt": "x", "completion": "good 1", "label": True},
        {"prompt": "x", "completion": "good 2", "label": True},
        {"prompt": "x", "completion": "bad 1", "label": False},
        {"prompt": "y", "completion": "good", "label": True},
    ]
    train = [{"prompt": "t", "completion": "c", "label": True}]
    data = Preferences(write(tmp_path / "t.jsonl", train), write(tmp_path / "h.jsonl", held)).load()
    assert data.train_unpaired == train
    found = [*data.eval_pairs["validation"], *data.eval_pairs["test"]]
    assert found == [preference("x", "good 1", "bad 1")]
    assert data.notes == ["1 of 2 held-out prompts have completions of both labels, and give pairs"]


def test_unpaired_rows_without_both_labels_say_that_there_is_no_preference_accuracy(tmp_path):
    rows = [{"prompt": f"q{i}", "completion": "a", "label": True} for i in range(20)]
    data = load(tmp_path, rows)
    assert data.eval_pairs == {"validation": [], "test": []}
    assert data.notes == [
        "none of the 2 held-out prompts has both a desirable and an undesirable completion: no preference accuracy"
    ]


def test_the_prompt_of_an_unpaired_conversation_is_all_but_its_last_reply(tmp_path):
    rows = [{"completion": [user(f"{i}"), assistant("a"), user("b"), assistant("c")], "label": 1} for i in range(3)]
    row = load(tmp_path, rows).train_unpaired[0]
    assert row["prompt"][1:] == [assistant("a"), user("b")]
    assert row["completion"] == [assistant("c")]


def test_unpaired_text_needs_a_prompt_column(tmp_path):
    with pytest.raises(UserError, match=r"need a prompt column\n  fix: task.columns.prompt=NAME"):
        load(tmp_path, [{"completion": "a", "label": 1}])


# -- the split -----------------------------------------------------------------------------------------


def test_the_split_is_by_prompt_and_each_side_gets_its_share(tmp_path):
    rows = [{"prompt": f"q{i % 100}", "chosen": f"yes {i}", "rejected": "no"} for i in range(300)]
    data = load(tmp_path, rows)
    train, validation, test = sides(data)
    assert (len(train), len(validation), len(test)) == (90, 5, 5)
    assert not train & validation and not train & test and not validation & test
    assert len(data.train_pairs) == 270 and len(data.eval_pairs["test"]) == 15
    assert len(data.train_prompts) == 90 and set(data.train_prompts[0]) == {"prompt"}
    assert data.notes == []


def test_prompts_that_differ_in_case_and_white_space_alone_are_on_one_side(tmp_path):
    rows = [preference(form, "a", "b") for i in range(20) for form in (f"say q{i}", f"Say  q{i} ", f"say\nQ{i}")]
    data = load(tmp_path, rows, held_out=0.3)
    train, validation, test = sides(data)
    assert len(train | validation | test) == 20
    assert len(train) + len(validation) + len(test) == 20
    assert len(data.eval_pairs["test"]) == 3 * len(test)


def test_the_split_depends_on_seed_and_content_and_not_on_order(tmp_path):
    forward, backward = write(tmp_path / "f.jsonl", pairs(50)), write(tmp_path / "b.jsonl", pairs(50)[::-1])
    assert sides(Preferences(forward).load()) == sides(Preferences(backward).load())
    assert sides(Preferences(forward).load()) != sides(Preferences(forward, seed=1).load())
    assert Preferences(forward).load().digest == Preferences(forward).load().digest


def test_three_prompts_give_one_to_each_side_and_two_cannot_be_split(tmp_path):
    assert [len(s) for s in sides(load(tmp_path, pairs(3)))] == [1, 1, 1]
    with pytest.raises(UserError, match="2 distinct prompts cannot be split"):
        load(tmp_path, pairs(2))


def test_holding_out_everything_halves_it_and_one_prompt_goes_to_the_test():
    split = hold_out("abcde", 1.0, 0)
    assert (len(split.validation), len(split.test)) == (2, 3)
    assert hold_out("a", 1.0, 0).test == {"a"}


def test_an_eval_file_is_halved_by_prompt_and_all_of_the_other_is_trained_on(tmp_path):
    data = Preferences(write(tmp_path / "t.jsonl", pairs(5)), write(tmp_path / "e.jsonl", pairs(4, 5))).load()
    assert [len(side) for side in sides(data)] == [5, 2, 2]


def test_prompts_in_both_files_are_an_error_that_counts_them_and_shows_one(tmp_path):
    held = [preference(" Q3 ", "a", "b"), *pairs(3, 4)]
    task = Preferences(write(tmp_path / "t.jsonl", pairs(5)), write(tmp_path / "e.jsonl", held))
    with pytest.raises(UserError, match=r"task.eval_path=.*2 prompts are both in .* such as 'q3'"):
        task.load()


def test_overlap_drop_leaves_the_shared_prompts_out_of_training_and_says_so(tmp_path):
    paths = write(tmp_path / "t.jsonl", pairs(5)), write(tmp_path / "e.jsonl", pairs(3, 3))
    data = Preferences(*paths, overlap="drop").load()
    assert [row["prompt"] for row in data.train_pairs] == ["q0", "q1", "q2"]
    assert "2 prompts are both" in data.notes[0] and data.notes[0].endswith("2 training rows dropped")
    with pytest.raises(UserError, match="no other prompt is left"):
        Preferences(paths[0], paths[0], overlap="drop").load()


def test_max_rows_reads_the_top_of_the_file_and_no_further(tmp_path):
    path = tmp_path / "d.jsonl"
    write(path, pairs(5))
    path.write_text(path.read_text() + "{broken\n")
    assert len(every_pair(Preferences(str(path), max_rows=4).load())) == 4


# -- rows that are left out ----------------------------------------------------------------------------


def test_unusable_rows_are_counted_by_reason_with_the_first_lines(tmp_path):
    rows = [
        *pairs(90),
        *(preference("e", "same", "same") for _ in range(4)),
        preference("e", " ", "x"),
        preference("", "a", "b"),
    ]
    path = write(tmp_path / "d.jsonl", rows)
    assert Preferences(path, allow_skipped=0.1).load().notes == [
        f"{path}: 4 rows skipped, chosen equals rejected (lines 91, 92, 93, …)",
        f"{path}: 1 row skipped, a completion is empty (line 95)",
        f"{path}: 1 row skipped, the prompt is empty (line 96)",
    ]


def test_too_many_unusable_rows_are_an_error_with_the_share_to_allow(tmp_path):
    rows = [*pairs(9), preference("e", "same", "same")]
    path = write(tmp_path / "d.jsonl", rows)
    with pytest.raises(UserError) as caught:
        Preferences(path).load()
    assert "task.allow_skipped=0.05: 1 of 10 rows" in str(caught.value)
    assert "1: chosen equals rejected (line 10)" in str(caught.value)
    assert caught.value.fix == "mend the rows, or task.allow_skipped=0.1"
    assert len(every_pair(Preferences(path, allow_skipped=0.1).load())) == 9


def test_a_file_without_a_usable_row_is_an_error_whatever_is_allowed(tmp_path):
    path = write(tmp_path / "d.jsonl", [preference("e", "s", "s")] * 3)
    with pytest.raises(UserError, match="no usable row among 3"):
        Preferences(path, allow_skipped=1.0).load()


def test_conversations_that_part_at_the_users_turn_are_no_comparison_of_replies(tmp_path):
    rows = [{"chosen": [user(f"{i}"), *YES], "rejected": [user(f"{i}"), *NO]} for i in range(3)]
    rows.append({"chosen": [user("q"), *YES, user("b"), *YES], "rejected": [user("q"), *YES, user("c"), *NO]})
    data = load(tmp_path, rows, allow_skipped=0.3)
    assert "does not begin with the assistant's turn (line 4)" in data.notes[0]


# -- errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.jsonl", None, r"task.path=.*absent.jsonl: the file does not exist\n  fix: "),
        ("data.xlsx", "x", r"the suffix must be one of .jsonl, .ndjson, .json, .parquet, .csv, .tsv"),
        ("data.jsonl", "", r"the file is empty"),
        ("data.jsonl", "\n\n", r"holds no rows"),
        ("data.csv", "prompt,chosen,rejected\n", r"holds no rows"),
        ("data.json", "[]", r"holds no rows"),
        ("data.json", '{"a":\n 1}', r"must hold an array of rows"),
        ("data.json", '[{"prompt": 1},\n {"prompt" 2}]', r"line 2, character 12 is not JSON"),
        ("data.parquet", "not parquet", r"the file cannot be read"),
        ("data.csv", "a,a\n1,2\n", r"column names repeat"),
        ("data.csv", 'prompt,chosen,rejected\nq,a,b\nq,"a"b,c\n', r"the row that begins in line 3"),
        ("data.csv", "prompt,chosen,rejected\nq,a,b,c\n", r"line 2: must have 3 cells as the header, not 4"),
        ("data.jsonl", '{"better": "a"}\n', r"chosen \+ rejected or completion \+ label are needed"),
        ("data.jsonl", '{"better": "a"}\n', r"found: better\n  fix: .*task.columns.chosen=NAME"),
        ("data.jsonl", '{"prompt": "q", "completion": "a"}\n', r"and label is not there"),
        ("data.jsonl", '{"prompt": \n', r"data.jsonl, line 1: is not JSON"),
        ("data.jsonl", "[1]\n", r"line 1=\[1\]: must be an object"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        Preferences(str(tmp_path / name)).load()


def test_a_file_in_another_encoding_is_said_to_be_so(tmp_path):
    (tmp_path / "d.csv").write_bytes("prompt,chosen,rejected\nq,é,b\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        Preferences(str(tmp_path / "d.csv")).load()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "chosen": "a"}, "line 4, rejected: is missing"),
        (preference("q", "a", None), "line 4, rejected: is null"),
        (preference("q", 7, "b"), "line 4, chosen=7: must be text or a list of messages, not int"),
        (preference("q", "a", NO), "line 4, rejected: must be text where chosen is"),
        (preference([{"role": "narrator", "content": "q"}], "a", "b"), "prompt=narrator: the role must be one of"),
        (preference([{"by": "human", "value": "q"}], "a", "b"), "must have role and content"),
        (preference("q", ["a", "b"], "c"), "chosen=a: is a list of texts, and nothing says which of them is better"),
        (preference([{"role": "user", "content": None}], "a", "b"), "content must be text, not NoneType"),
    ],
)
def test_a_malformed_row_is_named_by_line_and_field(tmp_path, row, message):
    with pytest.raises(UserErrors, match=message):
        load(tmp_path, [*pairs(3), row])


def test_a_label_that_is_neither_true_nor_false_is_an_error(tmp_path):
    rows = [{"prompt": "q", "completion": "a", "label": "maybe"}]
    with pytest.raises(UserErrors, match="line 1, label=maybe: must be true or false"):
        load(tmp_path, rows)


def test_malformed_rows_are_listed_together_up_to_ten(tmp_path):
    rows = [*pairs(3), *(preference("q", i, "b") for i in range(12))]
    with pytest.raises(UserErrors) as caught:
        load(tmp_path, rows)
    assert len(caught.value.errors) == 11
    assert "and 2 more malformed rows" in str(caught.value.errors[-1])


def test_conversations_mixed_with_text_are_an_error_that_names_a_line_of_each(tmp_path):
    rows = [*pairs(3), preference([user("q")], YES, NO)]
    with pytest.raises(UserError, match=r"1 are lists of messages .* line 4\), 3 are text .* line 1\)"):
        load(tmp_path, rows)


def test_an_eval_file_in_the_other_format_is_an_error(tmp_path):
    held = [preference([user("q")], YES, NO)]
    task = Preferences(write(tmp_path / "t.jsonl", pairs(3)), write(tmp_path / "e.jsonl", held))
    with pytest.raises(UserError, match="both hold conversations or both plain text"):
        task.load()


def test_a_prompt_column_that_was_named_must_exist(tmp_path):
    path = write(tmp_path / "d.jsonl", [{"chosen": "q a", "rejected": "q b"}])
    with pytest.raises(UserError, match="the columns question are needed and question is not there"):
        Preferences(path, columns={"prompt": "question"}).load()


# -- identity ------------------------------------------------------------------------------------------


def test_the_fingerprint_follows_the_bytes_of_both_files(tmp_path):
    train, held = write(tmp_path / "t.jsonl", pairs(3)), write(tmp_path / "e.jsonl", pairs(3, 3))
    before = Preferences(train, held).fingerprint()
    digest = hashlib.sha256(Path(train).read_bytes()).digest()
    assert Preferences(train).fingerprint() == hashlib.sha256(digest).hexdigest()[:16]
    assert before == Preferences(train, held, seed=1).fingerprint() != Preferences(train).fingerprint()
    write(tmp_path / "e.jsonl", pairs(4, 3))
    assert Preferences(train, held).fingerprint() != before
    with pytest.raises(UserError, match="does not exist"):
        Preferences(str(tmp_path / "absent.jsonl")).fingerprint()
