"""Programming problems: what rows become, which program a reply holds, and that tests judge it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.base.errors import UserError, UserErrors
from harness.sandbox import jail
from harness.tasks.code import Code, program_of

START = 'import math\n\ndef area(r):\n    """Of a circle."""\n'
BODY = "    return math.pi * r * r\n"
HUMAN_EVAL = {
    "task_id": "T/0", "prompt": START, "entry_point": "area", "canonical_solution": BODY,
    "test": "def check(candidate):\n    assert abs(candidate(1) - 3.14159) < 1e-4\n",
}  # fmt: skip
MBPP = {
    "task_id": 1, "text": "Write a function to double a number.", "code": "def twice(x):\n    return 2 * x",
    "test_list": ["assert twice(2) == 4", "assert twice(0) == ZERO"], "test_setup_code": "ZERO = 0",
}  # fmt: skip
sandboxed = pytest.mark.skipif(jail.problem("bubblewrap") is not None, reason=f"{jail.problem('bubblewrap')}")


def file_of(folder: Path, *rows: object) -> str:
    path = folder / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def human_evals() -> list[dict[str, object]]:
    return [{**HUMAN_EVAL, "prompt": f"# {i}\n{START}"} for i in range(12)]


@pytest.mark.parametrize(
    ("reply", "program"),
    [
        (BODY, START + BODY),
        (BODY + "\nprint(area(2))\n# more", START + BODY.rstrip("\n") + "\n"),
        (BODY + "\ndef other():\n    pass\n", START + BODY),
        ("def area(r):\n    return 3\n", "import math\n\ndef area(r):\n    return 3\n"),
        ("So:\n```python\ndef area(r):\n    return 3\n```\nDone.", "import math\n\ndef area(r):\n    return 3"),
        ("```\nx = 1\n```\nand\n```py\ndef area(r):\n    return 4\n```", "import math\n\ndef area(r):\n    return 4"),
        ("```python\ndef area(r):\n    return 5", "import math\n\ndef area(r):\n    return 5"),
        ("I do not know.", START + "I do not know."),
    ],
)  # fmt: skip
def test_the_program_of_a_reply(reply, program):
    assert program_of(reply, start=START, entry="area").strip() == program.strip()


def test_a_program_that_is_written_from_nothing_is_the_reply_or_its_code():
    assert program_of("def f():\n    pass", start="", entry=None) == "def f():\n    pass"
    assert program_of("So:\n```python\ndef f():\n    pass\n```", start="", entry=None) == "def f():\n    pass"


def test_rows_of_both_formats(tmp_path):
    row = Code(path=file_of(tmp_path, *human_evals()), sandbox="none").load().train_prompts[0]
    assert row["prompt"] == row["start"] and row["entry_point"] == "area" and "candidate(1)" in row["tests"]
    rows = [{**MBPP, "text": f"{MBPP['text']} ({i})"} for i in range(12)]
    row = Code(path=file_of(tmp_path, *rows), sandbox="none", system_prompt="code only").load().train_prompts[0]
    assert row["prompt"][0]["role"] == "system" and "assert twice(2) == 4" in row["prompt"][1]["content"]
    assert row["tests"].startswith("ZERO = 0\n") and row["start"] == "" and row["entry_point"] is None


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "p"}, "tests stand in one of tests, test, test_list"),
        ({"prompt": 3, "tests": "assert f(1)"}, "must be text"),
        ({"prompt": "p", "tests": [1]}, "text or a list of texts"),
        ({"prompt": "p", "tests": "assert f(1)", "entry_point": "not a name"}, "the name of a function"),
    ],
)
def test_a_row_that_is_none_is_named(tmp_path, row, words):
    with pytest.raises((UserError, UserErrors)) as found:
        Code(path=file_of(tmp_path, row), sandbox="none").load()
    assert words in str(found.value) and "line 1" in str(found.value)


@sandboxed
def test_replies_are_judged_in_the_sandbox_each_once(tmp_path, monkeypatch):
    loaded = Code(path=file_of(tmp_path, *human_evals()))
    row = loaded.load().train_prompts[0]
    asked: list[int] = []
    from harness.tasks import code

    one = code.Hall.one
    monkeypatch.setattr(code.Hall, "one", lambda self, paper: asked.append(1) or one(self, paper))
    found = loaded.scores([row] * 4, [BODY, "    return 3\n", BODY, "```python\ndef area(r):\n    return 3.14159\n```"])
    assert [score.reward for score in found] == [1.0, 0.0, 1.0, 1.0] and sum(asked) == 3
    assert [score.correct for score in found] == [True, False, True, True]


def test_a_machine_without_a_sandbox_is_refused_before_anything_runs(tmp_path, monkeypatch):
    jail.problem.cache_clear()
    monkeypatch.setattr(jail.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"task\.sandbox=bubblewrap: .*not installed"):
        Code(path=file_of(tmp_path, HUMAN_EVAL)).load()
    jail.problem.cache_clear()
