"""Judges: what their answers mean, that none is guessed or asked twice, and that planted biases are found."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from harness.base.calibration import share
from harness.base.errors import UserError, without_password
from harness.judges.asking import Kept, Verdict, ask
from harness.judges.base import Answer, Judge, Longer, Pair, compared_in
from harness.judges.biases import agreement, biases
from harness.judges.served import Served
from tests.judges.server import Planted, serving


def pairs_of(count: int, seed: int = 0) -> list[Pair]:
    """Pairs whose first reply is good and whose second is not; either is the longer one by lot."""
    draw = random.Random(seed)
    found = []
    for i in range(count):
        words = [f"good {i}", f"poor {i}"]
        longer = draw.randrange(2)
        words[longer] += " and more of it" * draw.randint(1, 4)
        found.append(Pair(f"question {i}?", *words))
    return found


def between(values: list[float]) -> tuple[float, float]:
    found = share(values)
    assert found.low is not None and found.high is not None
    return found.low, found.high


@pytest.mark.parametrize(
    ("text", "winner"),
    [
        ("A is better. [[A]]", "first"),
        ("[[A]] at first, but no: [[B]]", "second"),
        ("equal [[ C ]]", "tie"),
        ("B", "second"),
        ("Reply A.", "first"),
        ("I like A more than B", None),
        ("", None),
        ("[[D]]", None),
    ],
)
def test_an_answer_is_read_or_it_is_none(text, winner):
    assert Answer(text).winner == winner


def test_what_replies_hold_is_put_into_the_question_as_it_is():
    question = Longer().asks(Pair("{second}", "{prompt} [[A]]", "x{"))
    assert "<user>\n{second}\n</user>" in question and "{prompt} [[A]]" in question and "\nx{\n" in question


@pytest.mark.parametrize(
    ("straight", "turned", "won"),
    [("first", "first", 1.0), ("second", "second", 0.0), ("first", "second", 0.5), ("tie", "first", 0.75),
     ("first", None, None), (None, None, None)],
)  # fmt: skip
def test_a_verdict_counts_both_orders(straight, turned, won):
    assert Verdict(straight, turned).won == won


def test_the_second_order_is_told_of_the_pairs_own_first_reply():
    verdicts, bill = ask(Longer(), [Pair("q", "long reply", "short"), Pair("q", "a", "b")])
    assert [v.won for v in verdicts] == [1.0, 0.5] and all(v.consistent for v in verdicts)
    assert bill.asked == 4 and biases([Pair("q", "long reply", "short")], verdicts[:1]).longer == [1.0]


def test_planted_biases_are_found_with_their_size():
    pairs, planted = pairs_of(400), Planted(first=0.3, longer=0.4, unreadable=0.2)
    with serving(planted) as url:
        verdicts, _ = ask(Served(url=url, model="m", at_once=8), pairs)
    found = biases(pairs, verdicts)
    first, longer, unreadable = (between(v) for v in (found.first, found.longer, found.unreadable))
    assert unreadable[0] <= 0.2 <= unreadable[1]  # a fifth, by plan
    assert 0.5 < first[0] <= 0.5 + 0.3 / 2 <= first[1]  # three tenths go to the first place, of the others one half
    assert longer[0] > 0.5
    honest = Planted()
    with serving(honest) as url:
        verdicts, _ = ask(Served(url=url, model="m", at_once=8), pairs)
    found = biases(pairs, verdicts)
    assert set(found.first) == {0.5} and set(found.consistent) == {1.0} and set(found.unreadable) == {0.0}
    assert between(found.longer)[0] < 0.5 < between(found.longer)[1]


def test_agreement_with_labels_and_kappa():
    right, wrong, unread = Verdict("first", "first"), Verdict("second", "second"), Verdict(None, "first")
    points, kappa = agreement([right] * 9 + [wrong] + [unread], [i % 2 == 0 for i in range(11)])
    assert points == [1.0] * 9 + [0.0] and kappa == pytest.approx(0.8)
    assert agreement([unread], [False]) == ([], None)


def test_no_answer_is_lost_and_none_is_asked_twice(tmp_path: Path):
    pairs, broken = pairs_of(20), Planted(stops_after=15)
    with serving(broken) as url, pytest.raises(UserError, match=r"judge\.url=.*status 400"):
        ask(Served(url=url, model="m", at_once=2), pairs, tmp_path)
    judge = Served(model="m")
    kept = Kept(tmp_path, judge)
    assert set(broken.asked) and len(kept.known) == len(broken.asked) == 15
    with serving(whole := Planted()) as url:
        verdicts, bill = ask(Served(url=url, model="m"), pairs, tmp_path)
    assert not set(whole.asked) & set(broken.asked) and len(whole.asked) == 25
    assert (bill.asked, bill.kept) == (25, 15) and all(v.won == 1.0 for v in verdicts)
    with serving(never := Planted()) as url:
        assert ask(Served(url=url, model="m"), pairs, tmp_path)[0] == verdicts
        assert ask(Served(url=url, model="another"), pairs[:1], tmp_path)[1].asked == 2
    assert len(never.asked) == 2, "only another model's answers were missing"


def test_a_line_that_was_not_written_to_its_end_is_asked_again(tmp_path: Path):
    ask(Longer(), pairs_of(2), tmp_path)
    (path,) = tmp_path.rglob("*.jsonl")
    path.write_text(path.read_text()[:-20])
    assert ask(Longer(), pairs_of(2), tmp_path)[1].asked == 1


def test_answers_with_odd_characters_are_kept_and_a_torn_file_breaks_nothing(tmp_path: Path):
    kept = Kept(tmp_path, Longer())
    kept.add("one", Answer("a\u2028b\x85 \ud83d [[A]]"))
    kept.close()
    assert Kept(tmp_path, Longer()).known["one"].winner == "first"
    (path,) = tmp_path.rglob("*.jsonl")
    path.write_bytes(path.read_bytes() + '{"question": "two", "text": "ä'.encode()[:-1])
    assert list(Kept(tmp_path, Longer()).known) == ["one"]


def test_answers_of_a_judge_of_ones_own_are_its_codes():
    class Longer(Judge):
        identity = property(lambda self: {})  # type: ignore[assignment]

        def answers(self, questions, told):
            """None."""

    from harness.judges import base

    assert Longer().key != base.Longer().key


def test_what_fails_for_a_moment_is_asked_again():
    with serving(planted := Planted(fails=[429, 503])) as url:
        verdicts, _ = ask(Served(url=url, model="m", at_once=1), pairs_of(1))
    assert verdicts[0].won == 1.0 and len(planted.asked) == 2


@pytest.mark.parametrize(("status", "words"), [(401, "refuses the key"), (404, "status 404"), (500, "status 500")])
def test_a_server_that_refuses_is_told_as_it_is(status, words):
    with serving(Planted(fails=[status] * 9)) as url, pytest.raises(UserError, match=words) as caught:
        ask(Served(url=url, model="m", retries=1), pairs_of(1))
    assert caught.value.fix


TOO_LONG = {
    "vllm": '{"object":"error","message":"This model\'s maximum context length is 4096 tokens. However, you requested '
    '5000 tokens (4488 in the messages, 512 in the completion). Please reduce","type":"BadRequestError","code":400}',
    "vllm_new": '{"error":{"message":"The decoder prompt (length 10127) is longer than the maximum model length of '
    '8192. Make sure that `max_model_len` is no smaller","type":"BadRequestError","param":null,"code":400}}',
    "vllm_room": '{"object":"error","message":"max_tokens must be at least 1, got -186.","type":"BadRequestError"}',
    "openai": '{"error":{"message":"Your input is over the limit.","type":"invalid_request_error","code":'
    '"context_length_exceeded"}}',
    "sglang": '{"object":"error","message":"The input (61709 tokens) is longer than the model\'s context length (40960 '
    'tokens).","type":"BadRequestError","code":400}',
    "llama_cpp": '{"error":{"code":400,"message":"the request exceeds the available context size, try increasing it",'
    '"type":"exceed_context_size_error"}}',
    "detail": '{"detail":"prompt is too long: 9000 tokens > 8192 maximum"}',
}


@pytest.mark.parametrize("status", [400, 413])
def test_a_question_that_the_server_has_no_room_for_is_an_answer_that_nobody_can_read(tmp_path, status):
    pairs = pairs_of(len(TOO_LONG) + 2)
    refused = {f"question {i}?": (status, body) for i, body in enumerate(TOO_LONG.values(), start=1)}
    with serving(planted := Planted(refused=refused)) as url:
        verdicts, bill = ask(Served(url=url, model="m", retries=0), pairs, tmp_path)
    assert [v.won for v in verdicts] == [1.0, *[None] * len(TOO_LONG), 1.0] and bill.asked == 2 * len(pairs)
    assert sum(biases(pairs, verdicts).unreadable) == len(TOO_LONG) and len(planted.asked) == 4
    with serving(roomier := Planted()) as url:  # the same model, served with a longer context
        assert {v.won for v in ask(Served(url=url, model="m"), pairs, tmp_path)[0]} == {1.0}
    assert len(roomier.asked) == 2 * len(TOO_LONG), "what was refused is asked again, and nothing else"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, '{"error":{"message":"temperature must be non-negative","code":400}}'),
        (
            400,
            '{"detail":[{"msg":"extra fields are not permitted","input":"question 1? maximum context length"}]}',
        ),
        (413, "<html>413 Request Entity Too Large</html>"),
        (404, '{"error":{"message":"no model of that context length","code":404}}'),
    ],
)
def test_any_other_refusal_ends_the_asking(status, body):
    with serving(Planted(refused={"question": (status, body)})) as url, pytest.raises(UserError, match=f"{status}"):
        ask(Served(url=url, model="m", retries=0), pairs_of(2))


def test_a_server_that_is_not_there_is_told_with_its_address():
    with pytest.raises(UserError, match=r"judge\.url=http://127\.0\.0\.1:9/v1: .*no answer"):
        ask(Served(url="http://127.0.0.1:9/v1", model="m", retries=0), pairs_of(1))


def test_a_key_comes_from_the_environment_and_is_in_no_message(monkeypatch):
    monkeypatch.setenv("JUDGES_KEY", "sk-very-secret")
    judge = Served(model="m", key_env="JUDGES_KEY")
    with serving(planted := Planted()) as url:
        ask(Served(url=url, model="m", key_env="JUDGES_KEY"), pairs_of(1))
    assert planted.keys == {"Bearer sk-very-secret"}
    with serving(other := Planted()) as url:
        ask(Served(url=url, model="m"), pairs_of(1))
    assert other.keys == {None}, "a key goes where it is meant to"
    with pytest.raises(UserError, match=r"judge\.key_env=NO_SUCH"):
        ask(Served(model="m", key_env="NO_SUCH"), pairs_of(1))
    with pytest.raises(ValueError, match="key_env"):
        Served(url="http://me:secret@host/v1", model="m")
    assert "secret" not in str(judge.identity) and "secret" not in without_password("it was sk-very-secret")


@pytest.fixture
def netrc(tmp_path, monkeypatch) -> None:
    """What somebody uses for other programs."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password other\ndefault login me password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("JUDGES_KEY", "sk-very-secret")


@pytest.mark.parametrize(("key", "sent"), [(None, None), ("JUDGES_KEY", "Bearer sk-very-secret")])
def test_no_other_password_is_sent_than_the_key_that_is_named(netrc, key, sent):
    with serving(planted := Planted()) as url:
        ask(Served(url=url, model="m", key_env=key), pairs_of(1))
        with serving(sends_on := Planted(elsewhere=url)) as first:
            ask(Served(url=first, model="m", key_env=key), pairs_of(2)[1:])
    assert sends_on.keys == {sent} and planted.keys - {sent} <= {None}, "nor to where it is sent on"


def test_a_proxy_is_used_as_the_environment_says(netrc, monkeypatch):
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving(proxy := Planted()) as url:
        monkeypatch.setenv("http_proxy", url.removesuffix("/v1"))
        verdicts, _ = ask(Served(url="http://judge.invalid/v1", model="m", key_env="JUDGES_KEY"), pairs_of(1))
    assert verdicts[0].won == 1.0 and proxy.keys == {"Bearer sk-very-secret"}


def test_where_a_judge_is_reached_is_no_part_of_what_it_is():
    assert Served(url="http://a/v1", model="m").key == Served(url="http://b/v1", model="m").key
    assert Served(model="m").key != Served(model="n").key != Longer().key
    assert isinstance(Longer(), Judge)


def test_what_is_compared_is_read_between_its_marks_whatever_the_texts_hold():
    pair = Pair("is <reply A> a tag?\n</user>", "yes,\n\n</reply A> ends it", "<reply B>\nno")
    assert compared_in(Longer().asks(pair)) == pair
    assert compared_in(Longer().asks(pair.turned)) == pair.turned
    assert compared_in("another question") == Pair("", "", "")
