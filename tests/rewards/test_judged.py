"""A judge's verdicts as a reward: what they come to, that none is asked twice, and that no failure becomes a number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import UserError
from harness.judges.base import GRADE, Answer
from harness.judges.local import Local
from harness.judges.served import Served
from harness.judges.sums import Sums
from harness.rewards.base import Desk
from harness.rewards.judged import JudgeReward
from harness.rewards.scoring import Scorer
from harness.rewards.weighted import Part, Weighted
from harness.tasks.arithmetic import DECLINE, Arithmetic
from harness.tasks.base import TaskData
from harness.tasks.preferences import Preferences
from tests.judges.server import Planted, serving
from tests.runs import Sandbox

TASK = Preferences(path="none.jsonl")
ROWS = [{"prompt": f"question {i}?"} for i in range(4)]
DATA = TaskData(
    train_prompts=ROWS, train_pairs=[{**r, "chosen": "fair", "rejected": "poor"} for r in ROWS[:3]],
    eval_pairs={"test": [{**ROWS[3], "chosen": "a good one", "rejected": "poor"}]},
)  # fmt: skip


def desk(cache: Path | None = None) -> Desk:
    nothing: Any = None
    return Desk(nothing, nothing, list, {}, "cpu", nothing, data=DATA, cache=cache)


def scorer(reward: Any, cache: Path | None = None) -> Scorer:
    found = Scorer(reward, TASK, ROWS)
    found.use(reward.open(desk(cache)))
    return found


def test_a_completion_is_paid_for_what_both_orders_say_of_it_and_asked_about_once(tmp_path):
    with serving(planted := Planted()) as url:
        score = scorer(JudgeReward(judge=Served(url=url, model="m")), tmp_path)
        given = ["so good", "meh", "no", "poor", "so good"]
        assert score(given, [0, 1, 2, 3, 0], [True] * 5) == [1.0, 0.5, 0.5, 0.0, 1.0]
        assert score.means() == {"reward_unreadable": 0.0, "judge_asked": 8.0}
        assert score(given[:1], [0], [True]) == [1.0] and score.means()["judge_asked"] == 0.0
    again = scorer(JudgeReward(judge=Served(url=url, model="m")), tmp_path)  # nobody is there any more
    assert again(given, [0, 1, 2, 3, 0], [True] * 5) == [1.0, 0.5, 0.5, 0.0, 1.0]
    assert len(planted.asked) == 8


def test_one_that_prefers_a_place_pays_one_half():
    with serving(Planted(first=1.0)) as url:
        assert (
            scorer(JudgeReward(judge=Served(url=url, model="m")))(["so good", "poor"], [0, 3], [True] * 2) == [0.5] * 2
        )


def test_an_unreadable_answer_pays_the_stated_value_and_is_counted():
    with serving(Planted(unreadable=1.0)) as url:
        judged = JudgeReward(judge=Served(url=url, model="m"), unreadable=0.25)
        score = scorer(Weighted({"all": Part(judged, 2.0)}))
        assert score(["so good", "poor"], [0, 1], [True] * 2) == [0.5, 0.5]
        assert score.means()["reward_unreadable"] == 1.0, "of a member too"


def test_a_server_that_fails_is_an_error_and_no_number(tmp_path):
    with serving(Planted(stops_after=2)) as url:
        score = scorer(JudgeReward(judge=Served(url=url, model="m", at_once=1, retries=0)), tmp_path)
        with pytest.raises(UserError, match=r"judge\.url=.*status 400"):
            score(["so good", "poor"], [0, 1], [True] * 2)
    with serving(planted := Planted()) as url:
        score = scorer(JudgeReward(judge=Served(url=url, model="m")), tmp_path)
        assert score(["so good", "poor"], [0, 1], [True] * 2) == [1.0, 0.5] and len(planted.asked) == 2


def test_a_grade_is_a_number_between_nothing_and_one():
    class Grader(Served):
        def answers(self, questions, told):
            for i, question in enumerate(questions):
                told(i, Answer("It is. [[10]]" if "so good" in question else "[[1]]" if "meh" in question else "hm"))

    score = scorer(JudgeReward(judge=Grader(model="m"), ask="grade"))
    assert score(["so good", "meh", "what"], [0, 1, 2], [True] * 3) == [1.0, 0.0, 0.5]
    assert score.means()["reward_unreadable"] == pytest.approx(1 / 3)
    assert "[[10]]" in GRADE and "<reply>\nx {\n" in Served(model="m").asks_grade("p", "x {")


@pytest.mark.parametrize(
    ("text", "grade"),
    [("Fine. [[7]]", 7), ("[[3]], no: [[ 9 ]]", 9), ("8/10", 8), ("Grade: 10.", 10), ("[[11]]", None), ("[[0]]", None),
     ("between 3 and 4", None), ("", None)],
)  # fmt: skip
def test_a_grade_is_read_or_there_is_none(text, grade):
    assert Answer(text).grade == grade


def test_a_prompt_without_another_reply_is_refused_before_anything_trains():
    reward = JudgeReward(judge=Served(model="m"))
    assert reward.data_problems(DATA) == []
    (error,) = reward.data_problems(replace(DATA, train_pairs=()))
    assert error.key == "reward.against" and "3 of 4 prompts" in str(error)
    (held,) = reward.data_problems(replace(DATA, eval_prompts={"test": [{"prompt": "without any"}]}))
    assert "1 of 1 held-out prompts (test) have no such reply" in str(held)
    assert replace(reward, ask="grade").data_problems(replace(DATA, train_pairs=())) == []
    assert not replace(reward, against="answer").data_problems(TaskData(train_prompts=[{"prompt": "q", "answer": 3}]))
    assert not reward.data_problems(
        TaskData(train_prompts=ROWS[:1], train_unpaired=[{**ROWS[0], "completion": "yes", "label": True}])
    )


def test_two_judges_are_told_apart_in_what_is_logged_and_a_grade_takes_no_question_for_pairs():
    with serving(Planted(unreadable=1.0)) as mute, serving(Planted()) as sound:
        parts = {n: Part(JudgeReward(judge=Served(url=u, model=n)), 1.0) for n, u in (("mute", mute), ("sound", sound))}
        found = scorer(Weighted(parts))
        found(["good"] * len(ROWS), list(range(len(ROWS))), [True] * len(ROWS))
        means = found.means()
    assert (means["reward_unreadable_mute"], means["reward_unreadable_sound"]) == (1.0, 0.0)
    graded = JudgeReward(judge=Served(model="m", question="{prompt} {first} {second}"), ask="grade")
    assert [e.key for e in graded.problems(Preferences("x.jsonl"))] == ["reward.judge.question"]


def test_a_judge_that_only_compares_gives_no_grade(tmp_path):
    (wrong, grade) = JudgeReward(judge=Local(path=str(tmp_path)), ask="grade").problems(TASK)
    assert wrong.key == "judge.path" and grade.key == "reward.ask" and "judge.read=words" in str(grade)
    assert JudgeReward(judge=Served(model="m"), ask="grade").problems(TASK) == []


def test_who_judges_makes_the_identity_and_where_does_not():
    one, other = (JudgeReward(judge=Served(model=name)).contents() for name in "ab")
    assert one != other and one == JudgeReward(judge=Served(model="a", url="http://x/v1")).contents()


@pytest.mark.nightly
def test_a_trial_is_paid_by_its_judge_and_ends_with_an_error_when_that_is_gone(tmp_path, cache_dir):
    sandbox = Sandbox(tmp_path, cache_dir)
    paid = (
        "algo=grpo", "reward=judge", "judge@reward.judge=served", "reward.judge.model=planted",
        "reward.against=answer", "reward.judge.retries=0", "task.unanswerable=0",
    )  # fmt: skip
    with serving(planted := Planted(longer=1.0)) as url:
        done = sandbox.run(*paid, f"reward.judge.url={url}", "sweep=paid")
        assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = sandbox.folders("paid")
    logged = [e for e in sandbox.events(folder, "worker.jsonl") if "reward_unreadable" in str(e)]
    assert logged and planted.asked and len(planted.asked) == len(set(planted.asked))
    lost = sandbox.run(*paid, f"reward.judge.url={url}", "seed=5", "sweep=lost")
    assert lost.returncode == 1 and "judge.url" in lost.stdout + lost.stderr, lost.stdout + lost.stderr


def test_a_judge_of_the_embedded_world_pays_against_a_reply_of_the_kind_that_it_judges():
    task = Arithmetic(steps=2, unanswerable=0.3, pairs=200, eval_pairs=20, eval_prompts=20)
    data = task.load()
    reward = JudgeReward(Sums(wrong=0.0), against="worked")
    assert not reward.data_problems(data)
    assert [e.key for e in JudgeReward(Sums(), against="answer").data_problems(data)] == ["reward.against"]
    rows = [row for row in data.train_prompts if row["answer"] is not None][:20]
    hollow = [row for row in data.train_prompts if row["answer"] is None][:20]

    def pays(asked: list[dict[str, Any]], said: list[str]) -> set[float]:
        nothing: Any = None
        score = Scorer(reward, task, asked)
        score.use(reward.open(Desk(nothing, nothing, list, {}, "cpu", nothing, data=data)))
        return set(score(said, list(range(len(asked))), [True] * len(asked)))

    assert pays(rows, [row["worked"] for row in rows]) == {0.5}
    assert pays(rows, [row["answer"] for row in rows]) == {1.0}, "as right, and shorter"
    assert pays(rows, ["1=2=999"] * len(rows)) == {0.0}
    assert pays(hollow, [DECLINE] * len(hollow)) == {0.5} and pays(hollow, ["12"] * len(hollow)) == {0.0}
