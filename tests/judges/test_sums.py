"""A judge that reckons, and errs as often as it is told to; the measures of a judge's faults find those it has."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.judges.asking import ask
from harness.judges.base import Pair
from harness.judges.biases import biases
from harness.judges.sums import Sums

SOUND = Sums(wrong=0.0)


@pytest.mark.parametrize(
    ("prompt", "first", "second", "winner"),
    [
        ("12+7-3=", "16", "15", "first"),
        ("12+7-3=", "19-3=15", "19-3=16", "second"),
        ("12+7-3=", "19-3=16", "16", "second"),  # both right: the shorter one
        ("12+7-3=", "14", "15", "tie"),
        ("12+7-3=", "16", "16", "tie"),
        ("5+8=", "well, the answer is 13.", "14", "first"),
        ("5+?=", "13", "there is no answer.", None),
    ],
)
def test_it_reckons(prompt, first, second, winner):
    from harness.tasks.arithmetic import DECLINE

    second = DECLINE if winner is None else second
    (verdict,), _ = ask(SOUND, [Pair(prompt, first, second)])
    assert verdict.consistent and verdict.straight == ("second" if winner is None else winner)


PAIRS = [Pair(f"{a}+{b}=", str(a + b), f"well, the answer is {a + b + 1}.") for a in range(40) for b in range(9)]


def test_its_faults_are_as_frequent_as_they_were_asked_for():
    verdicts, _ = ask(Sums(wrong=0.1), PAIRS)
    errs = sum((v.straight == "second") + (v.turned == "second") for v in verdicts) / (2 * len(PAIRS))
    assert errs == pytest.approx(0.1, abs=0.03)
    assert ask(Sums(wrong=0.1), PAIRS)[0] == verdicts and ask(Sums(wrong=0.1, seed=1), PAIRS)[0] != verdicts
    placed, _ = ask(Sums(wrong=0.0, first=0.4), PAIRS)
    found = biases(PAIRS, placed)
    assert sum(found.consistent) / len(PAIRS) == pytest.approx(0.6, abs=0.06)
    lengthy, _ = ask(Sums(wrong=0.0, longer=0.3), PAIRS)  # the longer one is always the wrong one
    assert sum(v.straight == "second" for v in lengthy) / len(PAIRS) == pytest.approx(0.3, abs=0.06)


def test_it_reads_no_other_question():
    (error,) = replace(SOUND, question="{prompt}{first}{second}").problems()
    assert error.key == "judge.question" and not SOUND.writes
    assert len({SOUND.key, Sums().key, Sums(seed=1).key}) == 3
