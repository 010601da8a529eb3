"""Every worked example of docs/extending.md is sound, and ``validate`` finds what is wrong with a user's folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.runs import Sandbox

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"`((?:my_package|my_conf)/[\w/.]+)`:\n\n```\w+\n(.*?)```", PAGE, flags=re.DOTALL))
KINDS = ("adapter", "algo", "curate", "evaluator", "model", "reward", "task")

TRIED = ("tensors without data", "toy models", "rows sifted")


@pytest.fixture
def sandbox(tmp_path: Path, cache_dir: Path) -> Sandbox:
    """The page's package and folder, in a working directory of their own."""
    for name, text in {"my_package/__init__.py": "", **EXAMPLES}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return Sandbox(tmp_path, cache_dir)


def test_there_is_an_example_of_every_kind():
    assert tuple(sorted({name.split("/")[1] for name in EXAMPLES if name.startswith("my_conf/")})) == KINDS


@pytest.mark.slow
def test_every_example_passes_and_is_tried(sandbox):
    shown = sandbox.run("validate", "--config-dir", "my_conf", "plugins=[my_package]", quick=False)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    own = [line for line in shown.stdout.splitlines() if any(words in line for words in TRIED)]
    assert sorted(line.split()[1].partition("=")[0] for line in own) == list(KINDS)
    begun = [line for line in shown.stderr.splitlines() if line.startswith("trying ")]  # said before each of them
    assert len(begun) == len(shown.stdout.splitlines()) - 1 and begun[-1].endswith(f"({len(begun)} of {len(begun)})")


BROKEN = {
    "my_conf/reward/short.yaml": ("my_package/short.py", "len(text) for", "len(txt) for", "NameError: name 'txt'"),
    "my_conf/task/echo.yaml": ("my_package/echo.py", '"rejected": str', '"wrong": str', "lacks 'rejected'"),
    "my_conf/evaluator/vocabulary.yaml": (
        "my_package/vocabulary.py", "s.text.split()", "s.txt.split()",
        "evaluate() failed at vocabulary.py:20 (AttributeError",
    ),
    "my_conf/algo/slic.yaml": ("my_package/slic.py", '"hinge"', '"hing"', "hing"),
    "my_conf/adapter/biased.yaml": ("my_conf/adapter/biased.yaml", "rank: null", "rang: null", "rang"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", [
    pytest.param(kind, marks=() if "reward" in kind or "task" in kind else pytest.mark.nightly, id=kind.split("/")[1])
    for kind in BROKEN
])  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(sandbox, kind):
    file, right, wrong, words = BROKEN[kind]
    for other in BROKEN.keys() | {"my_conf/model/scratch.yaml"}:
        if other != kind:
            (sandbox.cwd / other).unlink()
    text = (sandbox.cwd / file).read_text()
    assert right in text
    (sandbox.cwd / file).write_text(text.replace(right, wrong))
    shown = sandbox.run("validate", "--config-dir", "my_conf", "plugins=[my_package]", quick=False)
    assert shown.returncode == 2 and "1 wrong" in shown.stdout, shown.stdout + shown.stderr
    assert words in shown.stdout.partition("WRONG")[2], shown.stdout


@pytest.mark.slow
def test_a_folder_without_yaml_or_with_one_that_is_none_is_told(sandbox):
    (sandbox.cwd / "bare").mkdir()
    shown = sandbox.run("validate", "--config-dir", "bare", quick=False)
    assert shown.returncode == 2 and "nothing to validate there" in shown.stderr
    for name, text in {"a": "_target_: [", "b": "_target_: harness.rewards.rules.Length"}.items():
        (sandbox.cwd / "bare" / "reward").mkdir(exist_ok=True)
        (sandbox.cwd / "bare" / "reward" / f"{name}.yaml").write_text(text)
    shown = sandbox.run("validate", "--config-dir", "bare", quick=False)
    assert shown.returncode == 2 and "Traceback" not in shown.stderr, shown.stderr
    assert "WRONG reward=a" in shown.stdout and "is no YAML" in shown.stdout and "ok  reward=b" in shown.stdout


def test_a_folder_that_is_not_there_is_refused(sandbox):
    shown = sandbox.run("validate", "--config-dir", "nowhere", quick=False)
    assert shown.returncode == 2 and "--config-dir" in shown.stderr


@pytest.mark.slow
def test_a_reward_that_fails_is_told_before_anything_trains(sandbox):
    """Also where memory is not predicted, which would try a step."""
    path = sandbox.cwd / "my_package" / "short.py"
    path.write_text(path.read_text().replace("len(text) for", "len(txt) for"))
    done = sandbox.run(
        "algo=grpo", "reward=short", "--config-dir", "my_conf", "plugins=[my_package]", "runner.predict=false"
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "NameError: name 'txt'" in done.stderr and "it must return a list of one finite number" in done.stderr
    assert not (sandbox.cwd / "outputs").exists() and "Traceback" not in done.stderr
