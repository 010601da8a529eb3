"""Families of prompts, and splits that hold them out whole: nothing leaks that we split ourselves."""

from __future__ import annotations

import random
from typing import Any

import pytest

from harness.store.cache import Cache
from harness.tasks.audit import audit
from harness.tasks.base import text_of
from harness.tasks.reading.checking import Checked
from harness.tasks.reading.copies import near, showing
from harness.tasks.reading.families import families
from harness.tasks.reading.kept import keeping, kept
from harness.tasks.reading.splits import assemble, hold_out

WORDS = [f"w{i}" for i in range(3000)]


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(WORDS, k=count))


def conversation(turns: list[str]) -> list[dict[str, str]]:
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": t} for i, t in enumerate(turns)]


def rows(prompts: list[Any]) -> Checked:
    made = [{"prompt": p, "chosen": f"yes {i}", "rejected": f"no {i}"} for i, p in enumerate(prompts)]
    return Checked("f", "task.path", "preferences", made, isinstance(prompts[0], list))


def split(prompts: list[Any], seed: int = 0) -> Any:
    return assemble(rows(prompts), None, share=0.1, seed=seed, eval_key="task.eval_path")


@pytest.mark.parametrize("seed", range(3))
def test_conversations_that_share_their_beginning_are_held_out_whole(seed):
    rng = random.Random(seed)
    prompts = []
    for _ in range(60):  # every conversation is in the data after its first, second and third turn
        turns = [words(rng, rng.choice([3, 25])) for _ in range(5)]
        prompts += [conversation(turns[:n]) for n in (1, 3, 5)]
    data = split(prompts, seed)
    found = audit(data)
    assert found.leaked == 0
    opened = {n: {p["prompt"][0]["content"] for p in part} for n, part in data.eval_pairs.items()}
    trained = {row["prompt"][0]["content"] for row in data.train_pairs}
    assert not trained & (opened["test"] | opened["validation"]) and not opened["test"] & opened["validation"]
    held = sum(len(part) for part in data.eval_pairs.values())
    assert 15 <= held <= 21 and len(data.train_pairs) == len(prompts) - held
    assert any("180 prompts are 60 families" in note for note in data.notes)


def test_text_prompts_with_a_passage_in_common_are_one_family():
    rng = random.Random(1)
    passage = words(rng, 40)
    asked = [f"{passage} {words(rng, 4)}" for _ in range(4)]
    others = [words(rng, 30) for _ in range(60)]
    found = families([*asked, *others])
    assert len(set(found.of[:4])) == 1 and found.largest == 4 and found.cut == []
    assert len(set(found.of)) == 61


def test_a_system_prompt_that_all_rows_have_joins_nothing_and_is_no_leak():
    rng = random.Random(2)
    system = {"role": "system", "content": words(rng, 60)}
    prompts = [[system, {"role": "user", "content": words(rng, 12)}] for _ in range(300)]
    assert families(prompts).largest == 1
    data = split(prompts)
    assert audit(data).leaked == 0 and len(data.train_pairs) == 270


def test_boilerplate_of_the_text_joins_nothing():
    rng = random.Random(3)
    head = words(rng, 30)
    prompts = [f"{head} {words(rng, 9)}" for _ in range(200)]
    assert families(prompts).largest == 1


def test_a_family_that_is_too_large_to_hold_out_is_taken_apart_and_counted():
    rng = random.Random(4)
    chain = [words(rng, 16) for _ in range(42)]
    prompts = [" ".join(chain[i : i + 3]) for i in range(40)]  # each shares most of its words with the next one
    others = [words(rng, 20) for _ in range(160)]
    found = families([*prompts, *others])
    assert found.cut == [40] and found.largest == 1
    data = split([*prompts, *others])
    assert any("a family of 40 prompts (20.0%) was taken apart" in note for note in data.notes)
    assert audit(data).leaked == 0  # training rows that show a held-out prompt are gone
    assert any("training rows left out: their prompts show held-out ones" in note for note in data.notes)


def test_single_prompts_are_split_as_ever():
    keys = [f"prompt {i}" for i in range(100)]
    alone = hold_out(keys, 0.1, 7)
    assert alone == hold_out(reversed(keys), 0.1, 7, {key: i for i, key in enumerate(keys)})
    assert len(alone.validation) == len(alone.test) == 5


def test_two_families_cannot_be_split_into_three():
    from harness.base.errors import UserError

    with pytest.raises(UserError, match="8 distinct prompts in 2 families"):
        hold_out([str(i) for i in range(8)], 0.5, 0, {str(i): i % 2 for i in range(8)})


def test_a_copy_by_words_is_found_both_ways_and_boilerplate_is_none():
    rng = random.Random(5)
    held = words(rng, 30)
    training = [words(rng, 30), f"{words(rng, 3)} {held} {words(rng, 3)}", words(rng, 12)]
    assert showing([held], training) == {1}
    assert near([held], training)[0, 1] == (23, 23)
    head = words(rng, 30)
    assert showing([f"{head} a"], [f"{head} {i}" for i in range(30)]) == set()


def test_a_hundred_thousand_runs_take_no_time():
    rng = random.Random(6)
    prompts = [words(rng, 100) for _ in range(1000)]
    found = families(prompts)
    assert found.largest == 1 and len(found.of) == 1000
    assert text_of(prompts[0]) == prompts[0]


def test_families_of_many_prompts_are_found_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.tasks.reading.kept.MANY", 3)
    calls: list[str] = []

    def once(asked: list[Any]) -> dict[str, Any]:
        return kept("families", [asked], lambda: calls.append("looked") or {"of": [0, 1, 1], "cut": []})

    with keeping(Cache(tmp_path)):
        assert once(["a", "b", "c"]) == once(["a", "b", "c"]) == {"of": [0, 1, 1], "cut": []}
        assert calls == ["looked"]
        once(["a", "b", "d"])
        once(["a", "bc", ""])  # the same letters, parted otherwise
        assert len(calls) == 3
        once(["a", "b"])
        assert len(calls) == 4 and len(list((tmp_path / "families").glob("*/"))) == 3
    once(["a", "b", "c"])
    assert len(calls) == 5


def test_a_cache_that_cannot_be_written_keeps_nothing_and_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.tasks.reading.kept.MANY", 1)
    (tmp_path / "file").write_text("")
    with keeping(Cache(tmp_path / "file")):
        assert kept("families", [["a"]], lambda: {"of": [0], "cut": []}) == {"of": [0], "cut": []}
