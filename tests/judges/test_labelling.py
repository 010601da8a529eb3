"""A judge as labeller: which rows come of its verdicts, what is said of it, and that no answer is asked for twice."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import UserError, UserErrors
from harness.cli.main import main
from harness.cli.rows.label import asked_from
from harness.judges.asking import Verdict
from harness.judges.base import Answer
from harness.judges.labelling import ANOTHER, JUDGE, Question, card, labelled, questions_of
from harness.judges.served import Served
from harness.tasks.preferences import Preferences
from harness.tasks.reading.files import read_table
from tests.judges.server import Planted, serving

A, B, TIE = Verdict("first", "first"), Verdict("second", "second"), Verdict("tie", "tie")
TORN, SILENT = Verdict("first", "second"), Verdict(None, "first")


def written(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def drafts(count: int) -> list[dict[str, Any]]:
    """Rows of two replies of which the second is good in every other row, and with labels of two people."""
    words = ("good", "poor")
    return [
        {
            "prompt": f"question {i}?",
            "a": f"{words[i % 2]} {i}",
            "b": f"{words[1 - i % 2]} {i}",
            "annotator1": 1 + i % 2,
            "annotator2": 1 if i < count / 2 else 2,
        }
        for i in range(count)
    ]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_only_a_verdict_of_both_orders_makes_a_row_and_what_is_dropped_is_counted():
    questions = [Question("q", "one", "two")] * 5
    found = labelled(questions, [A, B, TIE, TORN, SILENT])
    assert [row["chosen"] for row in found.rows] == ["one", "two"] and found.rows[1]["rejected"] == "one"
    assert found.dropped == {"a tie in both orders": 1, "the two orders disagree": 1, "an answer cannot be read": 1}
    assert found.facts["rows with a verdict"] == "2 of 5 (40.0%)"
    assert found.facts["dropped: a tie in both orders"] == "1 of 5 (20.0%)"
    assert found.facts["pairs with one verdict in both orders"].startswith("75.0%")
    assert "kappa with the labels" not in found.facts, "these rows have no labels"


def test_annotators_are_held_against_each_other_and_against_the_judge():
    rows = [(1, 1, A), (2, 1, B), (1, 2, A), (2, 2, B), (1, 1, TIE), (1, 1, TORN)]
    questions = [Question("q", "one", "two", votes={"ann": a, "bo": b}) for a, b, _ in rows]
    facts = labelled(questions, [v for *_, v in rows]).facts
    assert facts[f"agreement of ann and {JUDGE}"] == "Cohen κ 0.67 over 5 rows"  # 4 of 5 agree, by chance 2 of 5
    assert facts["agreement of ann and bo"] == "Cohen κ 0.25 over 6 rows"  # 4 of 6 agree, by chance 20 of 36


def test_in_labelled_rows_the_label_of_most_annotators_means_the_chosen_reply():
    question = Question("q", "one", "two", labelled=True, votes={"ann": 2, "bo": 2, "cy": 0})
    many = [question, Question("q", "three", "four", labelled=True, votes={"ann": 1, "bo": 1, "cy": 1})] * 2
    facts = labelled(many, [A, A, A, A]).facts  # the judge says 2, 1, 2, 1
    assert facts[f"agreement of ann and {JUDGE}"] == "Cohen κ 1.00 over 4 rows"
    unclear = Question("q", "one", "two", labelled=True, votes={"ann": 2, "bo": 1})
    assert (
        labelled([unclear], [A]).facts[f"agreement of ann and {JUDGE}"]
        == "no row has labels of both (the judge gave none)"
    )


@pytest.mark.parametrize("said", [{1: 1.0, 2: 2.0}, {1: "1", 2: " 2 "}, {1: 1, 2: 2}])
def test_labels_are_compared_as_what_they_say_and_an_empty_one_is_no_vote(said):
    sides = [1, 2, 1, 2]
    questions = [Question("q", "one", "two", votes={"ann": said[s], "bo": float("nan"), "cy": None}) for s in sides]
    facts = labelled(questions, [A if s == 1 else B for s in sides]).facts
    assert facts[f"agreement of ann and {JUDGE}"] == "Cohen κ 1.00 over 4 rows"
    alone = Question("q", "one", "two", labelled=True, votes={"ann": 2, "bo": None, "cy": None})
    assert "over 1 rows" in labelled([alone], [A]).facts[f"agreement of ann and {JUDGE}"]


@pytest.mark.parametrize("words", [("A", "B"), (0, 1)])
def test_of_labels_whose_meaning_is_unknown_no_agreement_with_the_judge_is_told(words):
    questions = [Question("q", "one", "two", votes={"ann": words[i % 2], "bo": words[i % 2]}) for i in range(6)]
    facts = labelled(questions, [(A, B)[i % 2] for i in range(6)]).facts
    assert f"agreement of ann and {JUDGE}" not in facts and f"{words[0]}".casefold() in facts[f"agreement with {JUDGE}"]
    assert facts["agreement of ann and bo"] == "Cohen κ 1.00 over 6 rows"


def test_a_label_of_a_row_of_three_replies_is_none_of_its_pairs_and_chosen_goes_before_lists(here):
    rows = [{"prompt": "p", "replies": ["x", "y", "z"], "ann": 3}, {"prompt": "q", "replies": ["x", "y"], "ann": 2}]
    questions, notes = questions_of(read_table(written(here, rows), key="--data"), (), ["ann"])
    assert [bool(q.votes) for q in questions] == [False, False, False, True]
    assert "1 rows have other than two replies" in notes[-1]
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "completions": ["x", "y"]}]
    (question,), _ = questions_of(read_table(written(here, rows), key="--data"))
    assert (question.first, question.second, question.labelled) == ("a", "b", True)


def test_rows_of_several_replies_give_every_pair_and_those_without_two_are_counted(here):
    rows = [
        {"prompt": "p", "replies": ["x", "y", "z", "x"]},
        {"prompt": "q", "replies": ["x", "x"]},
        {"prompt": "r", "replies": ["x", [{"role": "assistant", "content": "y"}]]},
    ]
    table = read_table(written(here, rows[:2]), key="--data")
    questions, notes = questions_of(table)
    assert [(q.first, q.second) for q in questions] == [("x", "y"), ("x", "z"), ("y", "z")]
    assert "1 row skipped, it has one reply" in notes[0] and not questions[0].labelled
    with pytest.raises(UserError, match="conversations or all be plain text"):
        questions_of(read_table(written(here, rows), key="--data"))
    with pytest.raises(UserErrors, match="must be a list of replies"):
        questions_of(read_table(written(here, [{"prompt": "p", "replies": "x"}]), key="--data"))
    with pytest.raises(UserError, match=r"--replies=a,b: no such column: b"):
        questions_of(read_table(written(here, [{"prompt": "p", "a": "x"}]), key="--data"), ("a", "b"))


def test_a_file_is_labelled_and_a_task_reads_what_came_of_it(here, capsys):
    data = written(here, drafts(40))
    with serving(Planted(first=0.3, unreadable=0.05)) as url:
        command = ["label", "--data", data, "--replies", "a,b", "--to", "out.jsonl", "--judge", "served"]
        assert main([*command, "--judge.model=m", f"--judge.url={url}"]) == 0
    said = capsys.readouterr().out
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert 10 < len(rows) < 40 and all("good" in r["chosen"] and "poor" in r["rejected"] for r in rows)
    assert "dropped: the two orders disagree" in said and "agreement of annotator1 and annotator2" in said
    assert "Cohen κ 1.00" in said.split(f"annotator1 and {JUDGE}")[1].splitlines()[0]
    page = Path("out.md").read_text()
    assert "# Labels of rows.jsonl" in page and "20 of the rows" in page
    assert page.count("| question") == 20
    loaded = Preferences(path="out.jsonl", annotators=("annotator1", "annotator2")).load()
    assert loaded.train_pairs and "good" in loaded.train_pairs[0]["chosen"]
    assert main(command) == 2 and "is there already" in capsys.readouterr().err


def test_a_second_judge_stands_in_the_table_and_makes_no_row(here, capsys):
    data = written(here, drafts(40))
    with serving(planted := Planted()) as url:
        command = [
            "label",
            "--data",
            data,
            "--replies",
            "a,b",
            "--judge",
            "served",
            "judge.model=m",
            f"judge.url={url}",
        ]
        assert main([*command, "--to", "alone.jsonl"]) == 0
        alone = capsys.readouterr().out
        assert main([*command, "--to", "both.jsonl", "--beside", "longer"]) == 0
    both = capsys.readouterr().out
    assert len(planted.asked) == 80
    assert Path("both.jsonl").read_text() == Path("alone.jsonl").read_text()
    kappas = [line.split("  ")[0].strip() for line in both.splitlines() if line.startswith("agreement of")]
    assert kappas == [
        f"agreement of {one} and {other}"
        for one, other in itertools.combinations(("annotator1", "annotator2", JUDGE, ANOTHER), 2)
    ]
    assert ANOTHER not in alone


def test_a_judge_that_dies_loses_no_answer_and_is_asked_nothing_twice(here, capsys):
    data = written(here, [{"prompt": r["prompt"], "chosen": r["a"], "rejected": r["b"]} for r in drafts(20)])
    command = ["label", "--data", data, "--to", "out.jsonl", "judge=served", "judge.model=m", "judge.retries=0"]
    with serving(broken := Planted(stops_after=15)) as url:
        assert main([*command, f"judge.url={url}"]) == 2
    assert "judge.url" in capsys.readouterr().err and not Path("out.jsonl").exists()
    with serving(whole := Planted()) as url:
        assert main([*command, f"judge.url={url}"]) == 0
    assert len(broken.asked) == 15 and len(whole.asked) == 25 and not set(broken.asked) & set(whole.asked)
    said = capsys.readouterr()
    assert "25 answers were asked for, and 15 were there already" in said.err
    assert "agreement with the labels" in said.out and "kappa with the labels" in said.out


def test_an_answer_that_was_cut_off_is_no_verdict_and_a_question_must_show_both_replies():
    cut = "I end with [[A]] if reply A is better, [[B]] if reply B is better, [[C]] if they are equ"
    assert Answer(cut).winner == "tie" and Answer(cut, whole=False).winner is None
    assert Answer("from [[1]] to [[10]]. The", whole=False).grade is None
    assert Answer("<think>[[A]]? no.</think> [[B]]").winner == "second" and Answer("<think>[[A]]").winner is None
    (error,) = Served(model="m", question="Compare {prompt}: {reply_a} / {second}").problems()
    assert error.key == "judge.question" and "must hold {first}" in error.rule


def test_what_a_command_line_names_wrongly_is_told(here, capsys):
    data = written(here, drafts(3))
    for more, words in (
        (["--to", "out.txt"], "--to=out.txt"),
        (["--to", "none/out.jsonl"], "no such folder"),
        (["--to", "out.jsonl"], "names no judge"),
        (["--to", "out.jsonl", "--judge", "nobody"], "nobody"),
        (["--to", "out.jsonl", "--judge", "longer", "algo=dpo"], "not understood"),
        (["--to", "out.jsonl", "--judge", "longer", "--annotators", "x"], "--annotators"),
        (["--to", "out.jsonl", "--judge", "local", "judge.path=./none"], "judge.path=./none"),
        (["--to", "out.jsonl", "--judge", "longer", "--beside", "local", "beside.path=./none"], "beside.path=./none"),
        (["--to", "out.jsonl", "--judge", "longer", "beside.path=./none"], "not understood"),
    ):
        assert main(["label", "--data", data, "--replies", "a,b", *more]) == 2
        assert words in capsys.readouterr().err
    overrides = ["judge.model=m", f"cache.dir={here / 'own'}"]
    roles, cache = asked_from({"judge": "served"}, overrides, None, command="label")
    assert roles["judge"].model == "m" and cache == here / "own"


def test_a_card_shows_rows_as_data(here):
    found = labelled([Question("| a | <b>", "one", "two")], [A])
    assert "&#124;" in card(found, title="x") or "\\|" in card(found, title="x")
