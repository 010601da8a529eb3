"""What only a model's own files can tell, asked before a sweep begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import UserError
from harness.cli.doctor import model_findings
from harness.sweep import deep_checks
from harness.sweep.deep_checks import find_problems
from tests.toys import build_model, conversational_rows, write_jsonl

LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}x"
FORBIDDEN = "{{ ''.__class__.__mro__ }}"
COMPLAINS = "{{ raise_exception('roles must alternate user/assistant') }}"
SUMS = "{{ 'a' + 1 }}"
TOO_FAR = "{% for a in range(10 ** 9) %}{% endfor %}"


@pytest.fixture
def plain(tmp_path: Path, compose: Any) -> dict[str, Any]:
    build_model(tmp_path / "model", "qwen2", chat=True)
    write_jsonl(tmp_path / "prefs.jsonl", conversational_rows(20))
    return compose(
        "model=hf", f"model.path={tmp_path / 'model'}", "task=preferences", f"task.path={tmp_path / 'prefs.jsonl'}",
        "train.max_length=64",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (LOOPS, "takes more than 0.2 s"),
        (FORBIDDEN, "SecurityError"),
        (COMPLAINS, "roles must alternate user/assistant"),
        (SUMS, "can only concatenate str"),
        (TOO_FAR, "OverflowError"),
        ("{% for %}", "TemplateSyntaxError"),
    ],
)
def test_a_chat_template_that_loops_or_fails_is_named_with_its_own_words(plain, monkeypatch, template, words):
    (Path(plain["model"]["path"]) / "chat_template.jinja").write_text(template)
    monkeypatch.setattr(deep_checks._in_time, "__defaults__", (0.2,))
    (error,) = find_problems(plain)
    assert isinstance(error, UserError) and error.key == "model.chat_template"
    assert words in error.rule


def test_a_model_whose_files_are_sound_has_no_problem(plain):
    assert find_problems(plain) == []


def test_the_doctor_says_whether_the_model_or_the_data_is_ill(plain, tmp_path):
    model, task = plain["model"]["path"], ("task=preferences", f"task.path={tmp_path / 'prefs.jsonl'}")
    (well,) = model_findings(model, [*task, "train.max_length=64"])
    assert (well.name, well.state) == ("model", "ok") and "qwen2" in well.text
    write_jsonl(tmp_path / "prefs.jsonl", [{"prompt": "a", "chosen": "b"}] * 20)
    (ill,) = model_findings(model, [*task, "train.max_length=64"])
    assert (ill.name, ill.state) == ("data", "wrong") and "task.columns.rejected" in ill.fix
    (gone,) = model_findings(str(tmp_path / "nowhere"), [])
    assert (gone.name, gone.state) == ("model", "wrong")
