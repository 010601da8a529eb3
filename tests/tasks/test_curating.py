"""Curation: each rule on rows made by hand, what looks alike and must stay, order, counts, keys and refusals."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from harness.base.errors import UserError, UserErrors
from harness.cli.rows.showing import shown
from harness.config import rules
from harness.config.compose import compose as compose_now
from harness.config.compose import conf_dir, hydra_config
from harness.tasks.arithmetic import Arithmetic
from harness.tasks.base import TaskData
from harness.tasks.curating.applying import by_margin, held_sifted, rules_of, sifted, uncurated
from harness.tasks.curating.base import BESIDE, MarginRule, RowRule, Sifted, split_by
from harness.tasks.curating.both_bad import BothBad
from harness.tasks.curating.cap import Cap
from harness.tasks.curating.disagreement import Disagreement
from harness.tasks.curating.flips import Flips
from harness.tasks.curating.identical import Identical
from harness.tasks.curating.near_duplicates import NearDuplicates
from harness.tasks.curating.personal import PATTERNS, luhn, masked
from harness.tasks.curating.personal_data import PersonalData
from harness.tasks.curating.too_easy import TooEasy
from harness.tasks.hub import Hub
from harness.tasks.preferences import Preferences
from harness.trial.assemble import assemble
from harness.trial.checks import check_data
from harness.trial.identify import identify
from harness.trial.keys import judging_code, training_code
from tests.runs import Sandbox

FEW = ("sweep=test", "task.pairs=120", "task.eval_pairs=6", "task.eval_prompts=6")


def pair(prompt: Any, chosen: Any = "yes", rejected: Any = "no", **columns: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **({BESIDE: columns} if columns else {})}


def prompts(rows: Any) -> list[Any]:
    return [row["prompt"] for row in rows]


def write(path: Path, rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# -- personal data -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to bob.smith+x@mail.co.uk now", "write to [EMAIL] now"),
        ("call +49 30 901820, (415) 555-2671 or 415.555.2671", "call [PHONE], [PHONE] or [PHONE]"),
        ("+1-800-555-0199 and +493090182000", "[PHONE] and [PHONE]"),
        ("from 84.12.9.33:8080 and http://84.12.9.34/x", "from [IP]:8080 and http://[IP]/x"),
        ("at 2001:4860:4860::8888.", "at [IP]."),
        ("card 4111 1111 1111 1111, 378282246310005", "card [CARD], [CARD]"),
        ("to DE89 3704 0044 0532 0130 00 AND then GB82WEST12345698765432", "to [IBAN] AND then [IBAN]"),
        ("ssn 123-45-6789", "ssn [SSN]"),
    ],
)
def test_personal_data_of_every_pattern_is_masked(text, expected):
    assert masked(text, PATTERNS)[0] == expected


@pytest.mark.parametrize(
    "text",
    [
        "version 84.12.9.33 and v10.20.30.40, a==11.20.30.40",  # versions
        "Chrome/120.12.60.71",
        "section 3.1.4.1, 1.2.3.4 and 8.8.8.8",
        "192.168.0.1 10.0.0.7 127.0.0.1 fe80::1",  # nobody's in particular
        "84.12.9.33.5 and 300.1.1.1",
        "std::vector at 12:34:56",
        "order 1234567812345678",  # no issuer, and Luhn fails
        "order 4111111111111112",  # an issuer's prefix; Luhn fails
        "4012888888881882",
        "3.1415926535897932384",
        "user@example.com @dataclass a@b git@github.com:a/b.git",
        "DE88 3704 0044 0532 0130 00",  # checksum
        "XX89 3704 0044 0532 0130 00",  # no country
        "000-12-3456 912-34-5678 123-00-6789 123-45-67890",
        "2021-05-17, 2010-2020, 555-1234, 1234567890",
        "x = 3 +12345678 and 12 +34567890",  # sums
        "ISBN 978-3-16-148410-0",
    ],
)
def test_what_only_looks_like_personal_data_stays(text):
    assert masked(text, PATTERNS) == (text, set())


def test_luhn_by_the_example_of_the_standard():
    assert luhn("79927398713") and not any(luhn(f"7992739871{d}") for d in "012456789")


def test_personal_data_drops_rows_or_masks_them_in_messages_and_calls_of_tools():
    call = [{"id": "+493090182000", "function": {"name": "dial", "arguments": '{"to": "+493090182000"}'}}]
    talk = [{"role": "user", "content": "I am a.b@mail.de"}]
    rows = [
        pair(
            talk, [{"role": "assistant", "content": "", "tool_calls": call}], [{"role": "assistant", "content": "no"}]
        ),
        pair("q", "mine is a@mail.de", "mine is b@mail.de"),
        pair("what is 2.0.1?"),
    ]
    found = PersonalData(least=1).sift(rows)
    assert found.rows[0]["prompt"][0]["content"] == "I am [EMAIL]"
    (made,) = found.rows[0]["chosen"][0]["tool_calls"]
    assert made == {"id": "+493090182000", "function": {"name": "dial", "arguments": '{"to": "[PHONE]"}'}}
    assert found.rows[1:] == [rows[2]] and rows[0]["prompt"] == talk  # what was read is left as it is
    assert (found.removed, found.changed, found.changed_rows) == (
        {"the sides are equal once masked": 1}, {"email": 1, "phone": 1}, 1,
    )  # fmt: skip
    found = PersonalData(patterns=("phone",), action="drop").sift(rows)
    assert (found.rows, found.removed) == (rows[1:], {"phone": 1})


# -- labels --------------------------------------------------------------------------------------------


def test_flips_leave_out_all_rows_of_a_pair_or_those_against_the_majority():
    rows = [pair("q", "a", "b"), pair("q", "a", "b"), pair("q", "b", "a"), pair("q", "a", "c"), pair("r", "a", "b")]
    rows += [pair("s", "a", "b"), pair("s", "b", "a")]
    found = Flips().sift(rows)
    assert (found.rows, found.removed) == (rows[3:5], {"labelled both ways": 5})
    found = Flips(action="majority").sift(rows)
    assert found.rows == [*rows[:2], *rows[3:5]]
    assert found.removed == {"against the majority of its labels": 1, "labelled both ways": 2}


def test_two_people_who_disagree_are_no_flip_of_either():
    rows = [pair("q", "a", "b", who="x"), pair("q", "b", "a", who="y"), pair("q", "a", "b", who="y")]
    assert Flips(annotator="who").sift(rows).rows == rows[:1]
    assert Flips().sift(rows).rows == []
    unknown = [pair("q", "a", "b", who=None), pair("q", "b", "a", who=None)]
    found = Flips(annotator="who").sift(unknown)
    assert found.rows == unknown and found.kept_blind == 2


def test_a_completion_that_is_labelled_both_ways_flips_too():
    rows = [{"prompt": "q", "completion": c, "label": label} for c, label in (("a", True), ("a", False), ("b", True))]
    assert Flips().sift(rows).rows == rows[2:]


def test_disagreement_counts_who_agrees_with_the_majority_or_with_a_column():
    votes = [(1, 1, 1), (2, 2, 1), (0, 1, 2), (1.0, "1", None), (None, None, 2)]
    rows = [pair(f"q{i}", annotator1=a, annotator2=b, annotator3=c, said=2) for i, (a, b, c) in enumerate(votes)]
    assert prompts(Disagreement().sift(rows).rows) == ["q0", "q3"]
    found = Disagreement(share=0.67).sift(rows)
    assert prompts(found.rows) == ["q0", "q1", "q3"]  # two of three are 0.67
    assert found.removed == {"less than 0.67 of the annotators agree": 1, "fewer than 2 annotators gave a label": 1}
    assert prompts(Disagreement(share=0.5, label="said").sift(rows).rows) == ["q1"]
    with pytest.raises(UserError, match="two annotators or more"):
        Disagreement().columns(["prompt", "annotator1", "annotation"])


def test_pairs_of_two_bad_sides_go_and_a_bar_is_good_enough():
    rows = [
        pair(f"q{i}", score_chosen=a, score_rejected=b) for i, (a, b) in enumerate([(1, 1), (3, 1), (2, 0), ("", 1)])
    ]
    found = BothBad(bar=3).sift(rows)
    assert (prompts(found.rows), found.kept_blind) == (["q1", "q3"], 1)
    assert prompts(
        BothBad(bar=2, scores=("ratings",)).sift([pair("a", ratings=[1, 1.5]), pair("b", ratings=[0, 2])]).rows
    ) == ["b"]
    with pytest.raises(UserError, match="no number") as caught:
        BothBad(bar=3, scores=("x",)).sift([pair("a", x="high")])
    assert caught.value.key == "scores"
    assert BothBad(bar=1).columns(["prompt", "response_a_score", "response_b_score"]) == (
        "response_a_score", "response_b_score",
    )  # fmt: skip
    with pytest.raises(UserError, match="needs scores"):
        BothBad(bar=1).columns(["prompt", "chosen", "rejected"])


# -- texts ---------------------------------------------------------------------------------------------


def test_one_score_is_not_taken_for_those_of_both_sides_and_lists_may_be_written_as_text():
    with pytest.raises(UserError, match="holds one score, and a pair has two"):
        BothBad(bar=1).sift([pair("q", score=0.9)])
    rows = [pair("q", ratings="[1.0, 2.0]"), pair("r", ratings="[5.0, 1.0]")]
    assert prompts(BothBad(bar=3).sift(rows).rows) == ["r"]


def test_equal_sides_go_and_alike_ones_where_it_is_asked():
    long = " ".join(f"w{i}" for i in range(30))
    rows = [pair("a", "Yes,  it is.", "yes, it\nis."), pair("b", f"{long} 18", f"{long} 19"), pair("c", "19", "18")]
    assert prompts(Identical().sift(rows).rows) == ["b", "c"]
    assert prompts(Identical(ignore_case=False).sift(rows).rows) == ["a", "b", "c"]
    found = Identical(similarity=0.9).sift(rows)
    assert (prompts(found.rows), found.removed["the sides are at least 0.9 alike"]) == (["c"], 1)


def varied(seed: int, count: int = 20) -> list[str]:
    rng = random.Random(seed)
    return [f"w{rng.randrange(5000)}" for _ in range(count)]


def test_near_duplicates_of_prompts_go_and_all_rows_of_one_prompt_stay():
    first, other = varied(0), varied(1)
    near = [*first[:-1], "changed"]  # 17 of 19 runs
    rows = [pair(" ".join(first), "a"), pair(" ".join(first), "b"), pair(" ".join([*near, "x"])), pair(" ".join(other))]
    rows += [pair("Hi  there"), pair("hi there"), pair("12+7="), pair("12+8=")]
    found = NearDuplicates().sift(rows)
    assert found.rows == [*rows[:2], *rows[3:5], *rows[6:]]
    assert sum(found.removed.values()) == 2
    longest = NearDuplicates(keep="longest").sift(rows)
    assert longest.rows == [*rows[2:5], *rows[6:]]
    assert NearDuplicates(threshold=0.95).sift(rows[:4]).rows == rows[:4]


def test_near_duplicates_are_those_that_comparing_all_with_all_finds():
    rng = random.Random(3)
    texts = [varied(i, 12) for i in range(40)]
    for _ in range(80):
        made = list(rng.choice(texts))
        for _ in range(rng.randrange(4)):
            made[rng.randrange(len(made))] = f"w{rng.randrange(5000)}"
        texts.append(made)
    rows = [pair(" ".join(words)) for words in dict.fromkeys(map(tuple, texts))]

    def runs_of(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}

    for threshold in (0.3, 0.5, 0.7):
        kept: list[set[tuple[str, ...]]] = []
        expected = []
        for row in rows:
            own = runs_of(row["prompt"])
            if not any(len(own & other) >= threshold * len(own | other) - 1e-9 for other in kept):
                kept.append(own)
                expected.append(row)
        assert NearDuplicates(threshold=threshold, boilerplate=1.0).sift(rows).rows == expected
        assert len(expected) < len(rows)


def test_questions_under_one_system_prompt_are_no_near_duplicates():
    system = " ".join(varied(9, 100))
    rows = [pair(f"{system} {' '.join(varied(i, 6))}") for i in range(300)]
    assert NearDuplicates().sift(rows).rows == rows
    assert len(NearDuplicates(boilerplate=1.0).sift(rows).rows) == 1


# -- caps ----------------------------------------------------------------------------------------------


def test_a_cap_keeps_so_many_of_each_stratum_whatever_the_order_and_smaller_ones_are_nested():
    rows = [pair(f"q{i}", source="ab"[i % 3 == 0]) for i in range(60)]
    kept = Cap(rows=10, by="source").sift(rows).rows
    assert [sum(row[BESIDE]["source"] == s for row in kept) for s in "ab"] == [10, 10]
    again = Cap(rows=10, by="source").sift(rows[::-1]).rows
    assert sorted(prompts(again)) == sorted(prompts(kept)) and prompts(kept) == [
        q for q in prompts(rows) if q in prompts(kept)
    ]
    assert set(prompts(Cap(rows=5, by="source").sift(rows).rows)) < set(prompts(kept))
    assert prompts(Cap(rows=10, seed=1).sift(rows).rows) != prompts(Cap(rows=10).sift(rows).rows)
    shares = Cap(share=0.2, by="source").sift(rows).rows  # 12 of 60
    assert [sum(row[BESIDE]["source"] == s for row in shares) for s in "ab"] == [12, 12]
    several = [pair("q", str(i)) for i in range(5)] + [pair("r")]
    assert prompts(Cap(rows=2, by="prompt").sift(several).rows) == ["q", "q", "r"]


# -- the base's margin ---------------------------------------------------------------------------------


def test_pairs_beyond_the_bars_of_the_margin_go_with_the_prompts_that_have_no_other():
    rows = [pair("p", "a"), pair("p", "b"), pair("q"), pair("r")]
    data = TaskData(train_pairs=rows, train_prompts=[{"prompt": p} for p in "pqr"], curation={"removed_by_cap": 3})
    left = by_margin(data, {"too_easy": TooEasy(above=0.5, below=-1.0, least=1)}, [0.5, 0.6, -1.5, 0.0])
    assert left.train_pairs == [rows[0], rows[3]] and prompts(left.train_prompts) == ["p", "r"]
    assert left.curation == {"removed_by_cap": 3, "removed_by_too_easy": 2}
    assert "2 of 4 training rows removed" in left.notes[-1]
    with pytest.raises(UserError, match="2 of 4 training rows are left"):
        by_margin(data, {"too_easy": TooEasy(above=0.5, below=-1.0)}, [0.5, 0.6, -1.5, 0.0])


# -- applied -------------------------------------------------------------------------------------------


def test_rules_come_in_a_stated_order_whatever_the_order_of_the_mapping():
    @dataclass(frozen=True)
    class Told(RowRule):
        """Says that it was asked."""

        name: str = ""
        asked: ClassVar[list[str]] = []

        def sift(self, rows: Any) -> Sifted:
            self.asked.append(self.name)
            return Sifted(rows)

    rows = [pair(f"q{i}", f"yes {i}") for i in range(20)]
    rules = {"z": Told(name="z"), "cap": Cap(rows=12), "a": Told(name="a"), "identical": Identical()}
    left = sifted(rows, rules)
    assert Told.asked == ["a", "z"]
    assert list(left.counts) == ["removed_by_identical", "removed_by_a", "removed_by_z", "removed_by_cap"]
    places = [
        rule.place for rule in (PersonalData, Identical, BothBad, Disagreement, Flips, NearDuplicates, Cap, TooEasy)
    ]
    assert places == sorted(set(places))


def test_a_rule_that_leaves_too_few_rows_is_refused_with_the_counts():
    rows = [pair("q", "a", "b"), pair("q", "b", "a"), *[pair(f"r{i}") for i in range(30)]]
    with pytest.raises(UserError) as caught:
        sifted(rows, {"flips": Flips(), "cap": Cap(rows=5, least=8)})
    error = caught.value
    assert (error.key, error.value) == ("task.curate.cap.least", 8)
    assert "5 of 32 training rows are left (removed by flips: 2, removed by cap: 25)" in error.rule
    assert "task.curate.cap.least=5" in str(error.fix)


def test_a_rule_that_miscounts_is_refused():
    @dataclass(frozen=True)
    class Wrong(RowRule):
        """Loses a row."""

        def sift(self, rows: Any) -> Sifted:
            return Sifted(rows[1:])

    with pytest.raises(UserError, match=r"task.curate.w=.*must give a Sifted"):
        sifted([pair("q")] * 30, {"w": Wrong()})


def test_pairs_alone_can_be_compared():
    rows = [{"prompt": f"q{i}", "completion": "a", "label": True} for i in range(20)]
    with pytest.raises(UserError, match=r"task.curate.identical=Identical: compares chosen with rejected.*unpaired"):
        sifted(rows, {"identical": Identical()}, kind="unpaired")
    assert len(sifted(rows, {"cap": Cap(rows=5)}, kind="unpaired").rows) == 5


def test_held_out_rows_stay_as_they_are_but_for_a_rule_that_is_told_to_look_at_them():
    held = {"test": [pair("I am a@mail.de"), pair("q", "a", "a b")], "validation": []}
    assert held_sifted(held, {"p": PersonalData(), "i": Identical()}) == (held, [])
    found, notes = held_sifted(held, {"p": PersonalData(held_out=True), "c": Cap(rows=1)})
    assert prompts(found["test"]) == ["I am [EMAIL]", "q"]
    assert "held-out rows (test)" in notes[0]
    with pytest.raises(UserError, match="none of 1 held-out rows"):
        held_sifted({"test": held["test"][:1]}, {"p": PersonalData(held_out=True, action="drop")})


def test_what_a_mask_makes_alike_is_on_one_side_of_the_split_alone(tmp_path):
    rows = [pair(f"Contact u{i}@corp{i}.com now", f"yes {i}", f"no {i}") for i in range(40)]
    rows += [pair(f"question {i} {' '.join(varied(i, 8))}", f"yes {i}", f"no {i}") for i in range(40)]
    path = write(tmp_path / "d.jsonl", rows)
    data = Preferences(path, held_out=0.3, curate={"p": PersonalData(held_out=True)}).load()
    held = {split: set(prompts(rows)) for split, rows in data.eval_pairs.items()}
    assert "Contact [EMAIL] now" in held["validation"] | held["test"]
    assert not (held["validation"] | held["test"]) & set(prompts(data.train_pairs))
    assert not held["validation"] & held["test"]
    assert any("their prompts show held-out ones" in note for note in data.notes)


# -- files ---------------------------------------------------------------------------------------------


def table(count: int = 60) -> list[dict[str, Any]]:
    return [
        {"prompt": f"question {i} {' '.join(varied(i, 8))}", "chosen": f"yes {i}", "rejected": f"no {i}",
         "source": "ab"[i % 2], "score_chosen": 1 + i % 5, "score_rejected": 0,
         "annotator1": 1, "annotator2": 1 + i % 2}
        for i in range(count)
    ]  # fmt: skip


def test_columns_that_rules_read_live_until_curation_has_run(tmp_path):
    path = write(tmp_path / "d.jsonl", table())
    plain = Preferences(path).load()
    rules = {"cap": Cap(rows=9, by="source"), "both_bad": BothBad(bar=2), "disagreement": Disagreement(share=0.5)}
    data = Preferences(path, curate=rules).load()
    assert data.eval_pairs == plain.eval_pairs and data.digest != plain.digest
    assert all(set(row) == {"prompt", "chosen", "rejected"} for row in [*data.train_pairs, *data.eval_pairs["test"]])
    assert len(data.train_pairs) == 18 == len(data.train_prompts)
    assert sum(data.curation.values()) + 18 == len(plain.train_pairs)
    loaded = Hub(path, curate=rules, overlap="error").load()
    assert loaded.train_pairs == data.train_pairs and loaded.digest == data.digest


def test_a_held_out_file_may_lack_the_columns(tmp_path):
    path = write(tmp_path / "d.jsonl", table())
    held = write(tmp_path / "h.jsonl", [pair(f"other {i} {' '.join(varied(100 + i))}") for i in range(6)])
    assert len(Preferences(path, eval_path=held, curate={"cap": Cap(rows=3, by="source")}).load().train_pairs) == 6
    with pytest.raises(
        UserError, match=r"task.curate.cap=Cap: reads a column that is not there: nowhere; found: prompt"
    ):
        Preferences(path, curate={"cap": Cap(rows=3, by="nowhere")}).load()
    with pytest.raises(UserError, match=r"task.curate.b.scores=.*needs scores.*found: prompt, chosen, rejected"):
        Preferences(held, curate={"b": BothBad(bar=1)}).load()


def test_the_page_about_data_counts_what_each_rule_removed(tmp_path):
    path = write(tmp_path / "d.jsonl", table())
    page, _ = shown(
        ["task=preferences", f"task.path={path}", "task.curate.cap.rows=20", "task.curate.too_easy.above=1",
         f"cache.dir={tmp_path}"], None, markdown=True,
    )  # fmt: skip
    assert "| removed by cap | 34 (63.0%) |" in page
    assert "34 of 54 training rows removed (34: beyond 20 rows)" in page and "too_easy is applied in the trial" in page


# -- keys ----------------------------------------------------------------------------------------------


def composed(*overrides: str) -> dict[str, Any]:
    with hydra_config():
        return compose_now([*FEW, *overrides])


@pytest.fixture(scope="module")
def plain(cache_dir) -> dict[str, Any]:
    return composed(f"cache.dir={cache_dir}")


@pytest.fixture
def setup(plain) -> Any:
    """``setup(cap={"rows": 3})`` -> the components of a trial with these rules."""

    def made(settings: Any = None, plugins: tuple[str, ...] = (), **rules: Any) -> Any:
        changed = {"plugins": plugins, "eval": {**plain["eval"], **(settings or {})}}
        return assemble({**plain, **changed, "task": {**plain["task"], "curate": rules}})

    return made


def known(setup: Any) -> Any:
    return identify(setup, check_data(setup), "cpu")


def test_without_rules_a_trial_is_what_it_was(setup):
    trials = [known(s) for s in (setup(), setup(cap=None))]
    assert trials[0].train_key == trials[1].train_key and trials[0].trial_id == trials[1].trial_id
    assert "curate" not in json.dumps(trials[0].config)


def test_a_cap_is_swept_like_any_knob_and_is_part_of_the_keys(setup):
    twenty, forty, plain = (known(setup(**node)) for node in ({"cap": {"rows": 20}}, {"cap": {"rows": 40}}, {}))
    assert len({t.trial_id for t in (twenty, forty, plain)}) == len({t.train_key for t in (twenty, forty, plain)}) == 3
    assert len({t.digests["dataset"] for t in (twenty, forty, plain)}) == 3
    assert len({t.digests["base"] for t in (twenty, forty, plain)}) == 1
    assert len({t.digests["evaluators"] for t in (twenty, forty, plain)}) == 1
    assert len(check_data(setup(cap={"rows": 20})).train_pairs) == 20


def test_a_rule_is_switched_on_by_a_setting_or_by_its_yaml():
    wanted = {**yaml.safe_load((conf_dir() / "curate" / "cap.yaml").read_text()), "rows": 20}
    chosen = composed("+curate@task.curate.cap=cap", "task.curate.cap.rows=20")["task"]
    assert chosen["curate"] == {"cap": wanted}
    named, errors = rules.named(composed("task.curate.cap.rows=20")["task"], conf_dir())
    assert named["curate"] == {"cap": wanted} and errors == []
    assert rules.arguments(["task.curate={}", "+task.curate.a=1", "task.curated=1"]) == [
        "++task.curate={}", "+task.curate.a=1", "task.curated=1",
    ]  # fmt: skip


def test_the_code_of_a_rule_counts_for_training_and_not_for_judging(setup):
    plain, capped, easy = setup(), setup(cap={"rows": 20}), setup(too_easy={"above": 1})
    name, scoring = "harness.tasks.curating.cap", "harness.evaluators.scoring"
    assert name in training_code(capped) and name not in training_code(plain)
    assert name not in judging_code(capped.eval.active.values(), capped.task)
    assert scoring in training_code(easy) and scoring not in training_code(plain)
    assert rules_of(easy.task, MarginRule) and uncurated(capped.task) == plain.task
    assert known(easy).train_key != known(setup({"max_length": 40}, too_easy={"above": 1})).train_key


OWN = f"{__name__}.Own"
PLUGIN = __name__.split(".")[0]


@pytest.mark.parametrize(
    ("node", "key", "words"),
    [
        ({"capp": {"rows": 3}}, "capp", "did you mean cap?"),
        ({"cap": 3}, "cap", "must be a rule's settings"),
        ({"cap": {"rowz": 3}}, "cap.rowz", "known keys of task.curate.cap: rows, share, by, seed, least"),
        ({"cap": {"rows": 0}}, "cap.rows", "greater than 0"),
        ({"cap": {}}, "cap", "give rows or share"),
        ({"both_bad": {}}, "both_bad", "needs a bar in the unit of the scores"),
        ({"too_easy": {}}, "too_easy", "needs a bar"),
        ({"personal_data": {"patterns": ["fax"]}}, "personal_data.patterns.0", "'email'"),
        ({"own": {"_target_": "harness.tasks.curating.base.Rule"}}, "own._target_", "cannot be built"),
        ({"own": {"_target_": OWN}}, "own._target_", f"plugins=[{PLUGIN}]"),
    ],
)
def test_a_wrong_rule_or_setting_is_refused_by_key(setup, node, key, words):
    with pytest.raises(UserErrors) as caught:
        setup(**node)
    (error,) = caught.value.errors
    assert error.key == f"task.curate.{key}" and words in str(error)


def test_what_is_no_rule_is_refused(setup):
    with pytest.raises(UserErrors, match="task.curate.own"):
        setup(own={"_target_": "harness.rewards.rules.Length"})


@dataclass(frozen=True)
class Own(RowRule):
    """A rule of a user's."""

    longest: int = 2

    def sift(self, rows: Any) -> Sifted:
        return split_by(rows, ["chosen is long" if len(row["chosen"]) > self.longest else None for row in rows])


def test_a_rule_of_ones_own_is_found_by_its_class(setup):
    made = setup(plugins=(PLUGIN,), own={"_target_": OWN, "longest": 3})
    data = check_data(made)
    assert all(len(row["chosen"]) <= 3 for row in data.train_pairs) and data.curation["removed_by_own"] > 0
    assert known(made).config["task"]["curate"]["own"] == {"class": "Own", "longest": 3, "least": 10}
    assert __name__ in training_code(made)


def test_the_embedded_base_is_the_same_under_any_curation():
    assert Arithmetic(curate={"cap": Cap(rows=5)}).base_recipe() == Arithmetic().base_recipe()


@pytest.mark.slow
def test_the_base_scores_training_pairs_once_for_all_bars(tmp_path, cache_dir):
    sandbox = Sandbox(tmp_path, cache_dir)
    line = ("-m", "task.curate.too_easy.above=0,0.1", "task.curate.too_easy.least=1", "sweep=easy")
    done = sandbox.run(*line)
    assert done.returncode == 0, done.stdout + done.stderr
    removed, hits = {}, []
    for folder in sandbox.folders("easy"):
        events = sandbox.events(folder, "worker.jsonl")
        (values,) = [
            e["values"] for e in events if e["kind"] == "metrics" and "data/removed_by_too_easy" in e["values"]
        ]
        removed[folder] = int(values["data/removed_by_too_easy"])
        hits += [e["hit"] for e in events if e["kind"] == "stage" and e["stage"] == "margins"]
        card = (folder / "artifacts" / "data_card.md").read_text()
        assert f"| removed by too_easy | {removed[folder]} (" in card
        assert f"| training pairs | {64 - removed[folder]}, of" in card
    assert sorted(hits) == [False, True]
    few, many = sorted(removed.values())
    assert 0 < few < many < 64
