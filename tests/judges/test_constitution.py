"""Rows from principles: what comes of a model's replies, critiques and revisions, and that no answer is lost."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.base.errors import UserError
from harness.cli.main import main
from harness.judges.base import Longer
from harness.judges.constitution import write
from harness.judges.principles import Constitution, principles_of, prompts_of
from harness.judges.served import Served
from harness.judges.sums import Sums
from harness.rewards.as_judge import RewardModel
from harness.tasks.preferences import Preferences
from harness.tasks.reading.splits import hold_out, loose_key
from tests.judges.server import Planted, serving


@dataclass(frozen=True)
class Lengthy(Longer):
    """The longer reply, whatever the principle: said to read it."""

    reads_criterion = True


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
        all_, _ = write(PROMPTS, PRINCIPLES, writer, Lengthy(), here)
        some, asked = write(PROMPTS[5:8], PRINCIPLES, writer, Lengthy(), here)
        other, _ = write(PROMPTS, PRINCIPLES, writer, Lengthy(), here, seed=1)
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
    made, _ = write(prompts, PRINCIPLES, Parrot(model="w"), Lengthy(), None)
    (row,) = made.revisions
    assert row["prompt"] == prompts[0] and row["completion"][0]["role"] == "assistant"
    assert made.pairs.facts["left out: the revision is the reply"] == "1"
    nothing, _ = write(prompts[1:], PRINCIPLES, Parrot(model="w"), Lengthy(), None)
    assert nothing.revisions == [] and nothing.pairs.rows == []


def test_what_was_cut_off_or_could_not_be_read_is_no_row_and_is_counted(here):
    class Short(Served):
        def answers(self, questions, told):
            from harness.judges.base import Answer

            for i, question in enumerate(questions):
                told(i, Answer(f"{len(question)} characters", whole="question 1" not in question))

    for folder in (None, here, here):  # the last time from the kept answers
        made, _ = write(PROMPTS[:2], PRINCIPLES, Short(model="w"), Lengthy(), folder)
        assert [row["prompt"] for row in made.revisions] == PROMPTS[:1]
        assert [v for k, v in made.pairs.facts.items() if k.startswith("left out: an answer was cut off")] == ["1"]


def test_a_prompt_that_a_server_has_no_room_for_is_counted_and_holds_up_nothing(here, capsys):
    body = '{"object": "error", "message": "This model\'s maximum context length is 4096 tokens."}'
    with serving(Planted(refused={"question 3?": (400, body)})) as url:
        assert main([*COMMAND, f"writer.url={url}", f"judge.url={url}"]) == 0
    said = capsys.readouterr().out
    assert "11 of 12" in said and "left out: an answer was cut off, or its question too long" in said


def test_a_judge_that_does_not_see_the_principle_is_refused(here):
    blind = Served(model="m", question="{prompt} {first} {second}")
    with pytest.raises(UserError, match="does not see the principle"):
        write(PROMPTS, PRINCIPLES, Served(model="w"), blind, None)


@pytest.mark.parametrize("judge", [Longer(), Sums(), RewardModel(path="rm")])
def test_a_judge_that_reads_no_principle_is_refused(here, monkeypatch, judge):
    with pytest.raises(UserError, match="reads no principle"):
        write(PROMPTS, PRINCIPLES, Served(model="w"), judge, None)
    monkeypatch.setattr("harness.config.identity.pinned", lambda path, revision, key: revision)
    with pytest.raises(UserError, match="task.judge: .*reads no principle") as error:
        task_at("http://127.0.0.1:1/v1", judge=judge).load()
    assert "judge@task.judge=local task.judge.path=FOLDER" in str(error.value)


def test_a_question_that_a_rule_does_not_read_is_refused():
    for judge in (Longer(question="{prompt}, {first} or {second}?"), Longer(criterion="Be kind.")):
        (error,) = judge.problems()
        assert "is not read by Longer" in error.rule


def test_files_and_roles_that_are_none_are_refused(here):
    Path("list.yaml").write_text("- Be kind.\n- Be brief.\n")
    assert principles_of("list.yaml") == PRINCIPLES[:2] and prompts_of("prompts.txt", 3) == PROMPTS[:3]
    Path("rows.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "a"}\n')
    assert prompts_of("rows.jsonl", None) == ["a", "b"]
    Path("bad.yaml").write_text("kind: true")
    for path in ("bad.yaml", "none.txt"):
        with pytest.raises(UserError, match=f"task.principles={path}"):
            principles_of(path)
    with pytest.raises(UserError, match="only compares"):
        write(PROMPTS, PRINCIPLES, Longer(), Lengthy(), None)
    Path("made").mkdir()
    Path("made/here").touch()
    assert main(COMMAND) == 2


def test_lines_end_at_line_breaks_alone_and_no_mark_of_the_file_is_in_a_text(here):
    Path("odd.txt").write_bytes("\ufeffOne\u2028more?\r\n \n  Two\x85 and\x0bthree?\n".encode())
    assert prompts_of("odd.txt") == ["One\u2028more?", "Two\x85 and\x0bthree?"] == principles_of("odd.txt")
    Path("wide.txt").write_bytes("One?\nTwo?".encode("utf-16"))
    assert prompts_of("wide.txt") == ["One?", "Two?"]
    Path("odd.yaml").write_bytes("\ufeff- Be kind.\n".encode())
    assert principles_of("odd.yaml") == ["Be kind."]
    Path("latin.txt").write_bytes("à la carte".encode("latin1"))
    for read, key in ((prompts_of, "prompts"), (principles_of, "principles")):
        with pytest.raises(UserError, match=rf"task\.{key}=latin.txt: is no text in UTF-8"):
            read("latin.txt")


def test_rows_are_those_of_what_was_read_and_not_of_a_files_bytes(here):
    lines = '{"prompt": "a"}\n{"prompt": "b"}\n'
    for name in ("rows.jsonl", "rows.txt"):
        Path(name).write_text(lines)
    Path("list.yaml").write_text("- Be kind.\n- Be brief.\n")
    Path("list.txt").write_text("- Be kind.\n- Be brief.\n")

    def key(prompts: str, principles: str) -> str:
        return Constitution(prompts, principles, Served(model="w"), Lengthy()).fingerprint()

    assert len({key(p, q) for p in ("rows.jsonl", "rows.txt") for q in ("list.yaml", "list.txt")}) == 4
    Path("same.txt").write_bytes(b"\xef\xbb\xbfBe kind.\r\n\r\nBe brief.")
    assert key("rows.jsonl", "list.yaml") == key("rows.jsonl", "same.txt")


def task_at(url: str, **fields) -> Constitution:
    writer, judge = Served(url=url, model="w", retries=0), Served(url=url, model="m", retries=0)
    given = {"writer": writer, "judge": judge, "held_out": 0.5, **fields}
    return Constitution(prompts="prompts.txt", principles="principles.txt", **given)


def test_a_task_makes_its_rows_once_and_keeps_its_answers(here, capfd):
    with serving(broken := Planted(stops_after=30)) as url, pytest.raises(UserError, match="judge.url"):
        task_at(url).load()
    with serving(whole := Planted()) as url:
        data = task_at(url).load()
        assert len(whole.asked) == 60 - 30 and not set(whole.asked) & set(broken.asked)
        assert data.train_pairs and all("good" in row["chosen"] for row in data.train_pairs)
        assert "constitution · critique · 12/12" in capfd.readouterr().err
        rows = task_at(url, rows="revisions").load()
        assert len(whole.asked) == 30, "both kinds of rows are of one making"
        assert rows.train_unpaired and not rows.train_pairs
        assert task_at(url).fingerprint() == task_at(url, held_out=0.2).fingerprint()
    (note,) = [note for note in data.notes if "card.md" in note]
    assert "verdicts for the revision" in Path(note.split("; ")[1].split(" says")[0]).read_text()
    assert task_at("http://127.0.0.1:1/v1").load().digest == data.digest, "nobody is asked again"
    Path("principles.txt").write_text("Be another.")
    with pytest.raises(UserError, match="gives no answer"):
        task_at("http://127.0.0.1:1/v1").load()


class Heavy(Served):
    """Has no room for its model."""

    def answers(self, questions, told):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_memory_that_runs_out_is_said_with_what_to_do(here, capsys, monkeypatch):
    with pytest.raises(UserError, match="memory ran out") as error:
        task_at("http://127.0.0.1:1/v1", writer=Heavy(model="w")).load()
    assert error.value.key == "task" and "task.writer.batch_size" in str(error.value)
    monkeypatch.setattr(Served, "answers", Heavy.answers)
    assert main(COMMAND) == 2
    assert "memory ran out" in (said := capsys.readouterr().err) and "(writer.batch_size" in said
    Path("pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    assert main("label --data pairs.jsonl --to out.jsonl --judge served judge.model=m".split()) == 2
    assert "memory ran out" in capsys.readouterr().err


def test_two_samples_of_the_writer_are_judged_by_the_principle(here):
    with serving(planted := Planted(longer=1.0)) as url:
        writer = Served(url=url, model="w", temperature=1.0)
        made, asked = write(PROMPTS, PRINCIPLES, writer, Lengthy(), here, between="samples")
        assert len(planted.asked) == 24 and {"0", "1"} == {str(seed) for seed in planted.seeds}
        assert asked.startswith("48 answers were asked for"), "24 of the writer, 24 of the judge"
        assert made.revisions == [] and made.pairs.facts["pairs of samples"] == "12 of 12 (100.0%)"
        assert all(row["chosen"] != row["rejected"] and row["principle"] in PRINCIPLES for row in made.pairs.rows)
    with pytest.raises(UserError, match="says the same each time"):
        write(PROMPTS, PRINCIPLES, Served(model="w"), Lengthy(), None, between="samples")


def test_the_judge_is_held_against_pairs_that_people_labelled(here):
    rows = [{"prompt": f"question {i}?", "chosen": "a good one", "rejected": "poor"} for i in range(10)]
    rows += [{"prompt": f"question {i}?", "chosen": "poor", "rejected": "a good one"} for i in range(20, 25)]
    Path("people.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serving(Planted()) as url:
        task = task_at(url, people="people.jsonl")
        made = here / "made"
        made.mkdir()
        facts, _ = task.write(made, here)
    assert facts["people's pairs: agreement with the labels"].startswith("66.7%")
    assert "κ" in facts["people's pairs: kappa with the labels"] and "κ" in (made / "card.md").read_text()


def test_what_cannot_be_made_is_refused_by_the_name_of_its_field(here):
    with pytest.raises(UserError, match=r"task.writer.*says the same") as error:
        task_at("http://127.0.0.1:1/v1", between="samples").load()
    assert "task.writer.temperature" in str(error.value)
    with pytest.raises(ValueError, match="none is a revision"):
        task_at("", between="samples", rows="revisions")
    with pytest.raises(UserError, match="task.writer"):
        task_at("http://127.0.0.1:1/v1", writer=Longer()).load()
    with serving(Planted()) as url, pytest.raises(UserError, match="no row") as error:
        task_at(url, judge=Served(url=url, model="m", question="{criterion}{prompt}{first}{second} question 1")).load()
    assert "card.md" in str(error.value)


def test_held_out_prompts_without_rows_are_told_and_a_split_of_them_alone_is_refused(here):
    prompts = [f"question {i}?" for i in range(12)]
    rows = [{"prompt": p, "chosen": "good", "rejected": "poor"} for p in prompts]
    keys = hold_out(map(loose_key, prompts), 0.5, 0)

    def loaded(lost: set[str]) -> list[str]:
        left = [row for row in rows if row["prompt"] not in lost]
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in left))
        return list(Preferences(path="rows.jsonl", held_out=0.5).loaded(among=prompts).notes)

    assert "6 of 6 held-out prompts have rows" in loaded(set())
    assert "4 of 6 held-out prompts have rows" in loaded({min(keys.test), min(keys.validation)})
    for name in ("test", "validation"):
        with pytest.raises(UserError, match=f"none of the 3 prompts that are held out for {name} has a row") as error:
            loaded(set(getattr(keys, name)))
        assert error.value.key == "task.held_out" and error.value.fix


def test_a_prompt_is_held_out_or_not_whatever_becomes_of_the_others(here):
    with serving(Planted()) as url:
        whole = task_at(url).load()
    with serving(Planted(first=0.5)) as url:
        judge = Served(url=url, model="another", retries=0)
        some = task_at(url, judge=judge).load()

    def prompts(data, split):
        return {row["prompt"] for row in data.eval_pairs[split]}

    lost = {row["prompt"] for row in whole.train_pairs} - {row["prompt"] for row in some.train_pairs}
    assert lost or any(prompts(some, split) < prompts(whole, split) for split in ("validation", "test"))
    assert {row["prompt"] for row in some.train_pairs} <= {row["prompt"] for row in whole.train_pairs}
    for split in ("validation", "test"):
        assert prompts(some, split) <= prompts(whole, split)
