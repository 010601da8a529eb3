"""Rows from principles: what comes of a model's replies, critiques and revisions, and that no answer is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.base.errors import UserError
from harness.cli.main import main
from harness.cli.rows.constitution import principles_of, prompts_of
from harness.judges.base import Longer
from harness.judges.constitution import write
from harness.judges.served import Served
from harness.tasks.preferences import Preferences
from tests.judges.server import Planted, serving

PROMPTS = [f"question {i}?" for i in range(12)]
PRINCIPLES = ["Be kind.", "Be brief.", "Be honest."]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    Path("prompts.txt").write_text("\n".join([*PROMPTS, "", PROMPTS[0]]))
    Path("principles.txt").write_text("\n".join(PRINCIPLES))
    return tmp_path


COMMAND = (
    "constitution --prompts prompts.txt --principles principles.txt --to made --writer served writer.model=w "
    "--judge served judge.model=m writer.retries=0"
).split()


def test_both_stages_give_rows_with_their_principle_and_a_card(here, capsys):
    with serving(planted := Planted(first=0.3)) as url:
        assert main([*COMMAND, f"writer.url={url}", f"judge.url={url}"]) == 0
    said = capsys.readouterr().out
    revisions, pairs = (
        [json.loads(line) for line in Path("made", f"{name}.jsonl").read_text().splitlines()]
        for name in ("revisions", "pairs")
    )
    assert [r["prompt"] for r in revisions] == PROMPTS, "each once"
    assert all(r["completion"].startswith("a good answer") and r["label"] for r in revisions)
    assert len({r["principle"] for r in revisions}) > 1 and {r["principle"] for r in revisions} <= set(PRINCIPLES)
    assert 0 < len(pairs) < 12 and all("good" in p["chosen"] and "poor" in p["rejected"] for p in pairs)
    assert "rows of revisions                        12 of 12" in said and "dropped: the two orders disagree" in said
    page = Path("made/card.md").read_text()
    assert f"{len(pairs)} of the rows" in page and "Be " in page and "verdicts for the revision" in page
    judged = [q for q in planted.asked if "<reply A>" in q]
    assert len(judged) == 24 and all(sum(p in q for p in PRINCIPLES) == 1 for q in judged), "by the row's principle"
    assert Preferences(path="made/revisions.jsonl").load().train_unpaired
    assert Preferences(path="made/pairs.jsonl", held_out=0.5).load().train_pairs


def test_a_server_that_dies_loses_no_answer_and_is_asked_nothing_twice(here, capsys):
    with serving(broken := Planted(stops_after=30)) as url:
        assert main([*COMMAND, f"writer.url={url}", f"judge.url={url}"]) == 2
    assert "judge.url" in capsys.readouterr().err and not Path("made").exists()
    with serving(whole := Planted()) as url:
        assert main([*COMMAND, f"writer.url={url}", f"judge.url={url}"]) == 0
    assert len(broken.asked) == 30 and len(whole.asked) == 3 * 12 + 2 * 12 - 30
    assert not set(broken.asked) & set(whole.asked)


def test_the_principle_of_a_prompt_does_not_depend_on_the_others(here):
    with serving(Planted()) as url:
        writer = Served(url=url, model="w")
        all_, _ = write(PROMPTS, PRINCIPLES, writer, Longer(), here)
        some, asked = write(PROMPTS[5:8], PRINCIPLES, writer, Longer(), here)
        other, _ = write(PROMPTS, PRINCIPLES, writer, Longer(), here, seed=1)
    assert [d.principle for d in some.drafts] == [d.principle for d in all_.drafts[5:8]]
    assert asked.startswith("0 answers were asked for")
    assert [d.principle for d in other.drafts] != [d.principle for d in all_.drafts]


def test_messages_stay_messages_and_what_was_not_changed_is_left_out(here):
    class Parrot(Served):
        def answers(self, questions, told):
            from harness.judges.base import Answer

            for i, question in enumerate(questions):
                told(i, Answer("the same" if "question 1" in question else f"{len(question)} characters"))

    prompts = [[{"role": "user", "content": text}] for text in PROMPTS[:2]]
    made, _ = write(prompts, PRINCIPLES, Parrot(model="w"), Longer(), None)
    (row,) = made.revisions
    assert row["prompt"] == prompts[0] and row["completion"][0]["role"] == "assistant"
    assert made.pairs.facts["left out: the revision is the reply"] == "1"
    nothing, _ = write(prompts[1:], PRINCIPLES, Parrot(model="w"), Longer(), None)
    assert nothing.revisions == [] and nothing.pairs.rows == []


def test_what_was_cut_off_or_could_not_be_read_is_no_row_and_is_counted(here):
    class Short(Served):
        def answers(self, questions, told):
            from harness.judges.base import Answer

            for i, question in enumerate(questions):
                told(i, Answer(f"{len(question)} characters", whole="question 1" not in question))

    for folder in (None, here, here):  # the last time from the kept answers
        made, _ = write(PROMPTS[:2], PRINCIPLES, Short(model="w"), Longer(), folder)
        assert [row["prompt"] for row in made.revisions] == PROMPTS[:1]
        assert [v for k, v in made.pairs.facts.items() if k.startswith("left out: an answer was cut off")] == ["1"]


def test_a_judge_that_does_not_see_the_principle_is_refused(here):
    blind = Longer(question="{prompt} {first} {second}")
    with pytest.raises(UserError, match="does not see the principle"):
        write(PROMPTS, PRINCIPLES, Served(model="w"), blind, None)


def test_files_and_roles_that_are_none_are_refused(here):
    Path("list.yaml").write_text("- Be kind.\n- Be brief.\n")
    assert principles_of("list.yaml") == PRINCIPLES[:2] and prompts_of("prompts.txt", 3) == PROMPTS[:3]
    Path("rows.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "a"}\n')
    assert prompts_of("rows.jsonl", None) == ["a", "b"]
    Path("bad.yaml").write_text("kind: true")
    for path in ("bad.yaml", "none.txt"):
        with pytest.raises(UserError, match=f"--principles={path}"):
            principles_of(path)
    with pytest.raises(UserError, match="only compares"):
        write(PROMPTS, PRINCIPLES, Longer(), Longer(), None)
    Path("made").mkdir()
    Path("made/here").touch()
    assert main(COMMAND) == 2
