"""The README is short, and every command of it and of the pages that go on from it runs."""

from __future__ import annotations

import math
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import QUICK
from tests.runs import Sandbox, free_port, wait_for
from tests.toys import build_model, conversational_rows, write_jsonl

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [README, *((ROOT / "docs" / f"{name}.md").read_text() for name in ("sweeps", "rewards"))]
COMMANDS = [
    line.split("  #")[0].strip()
    for page in PAGES
    for block in re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
MOST_WORDS = 900


def trains(command: str) -> bool:
    return bool(re.match(r"python -m harness (-m|algo=)", command))


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Sandbox:
    """A user's folder: a model, data, and one finished sweep named monday."""
    cwd = tmp_path_factory.mktemp("readme")
    build_model(cwd / "my-model", "qwen2")
    write_jsonl(cwd / "my-prefs.jsonl", conversational_rows(40))
    box = Sandbox(cwd, cache_dir)
    done = box.run("-m", "algo=dpo,grpo", "sweep=monday")
    assert done.returncode == 0, done.stderr
    return box


def test_the_readme_has_the_commands_that_matter() -> None:
    assert {"make demo", "make test", "mlflow ui"} <= set(COMMANDS)
    assert any(trains(c) for c in COMMANDS)


def test_the_readme_is_read_in_five_minutes() -> None:
    head, _, _ = README.partition("## More")
    assert len([word for word in head.split() if re.search(r"\w", word)]) <= MOST_WORDS


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_make_knows_the_target(command: str) -> None:
    done = subprocess.run([*shlex.split(command), "-n"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_make_demo_runs_the_command_that_the_readme_says() -> None:
    done = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "python -m harness -m algo=dpo,grpo" in done.stdout


LONG = ("plan", "validate")
"""Commands that train nothing and take a quarter of a minute or more."""


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(c, marks=[pytest.mark.slow] if c.split()[3] in LONG else [])
        for c in COMMANDS
        if c.startswith("python -m harness") and not trains(c)
    ],
)
def test_a_command_that_trains_nothing_succeeds(sandbox: Sandbox, command: str) -> None:
    done = sandbox.run(*shlex.split(command)[3:], quick=False)
    assert done.returncode == 0, done.stdout + done.stderr


def speed(command: str) -> pytest.MarkDecorator:
    """A sweep of a dozen trials, or a reward model of full length, takes minutes, and walks where shorter ones do."""
    trials = math.prod(word.count(",") + 1 for word in command.split() if "=" in word)
    return (
        pytest.mark.nightly
        if trials > 12 or re.search("reward=verifier,(model|process)", command)
        else pytest.mark.slow
    )


@pytest.mark.parametrize("command", [pytest.param(c, marks=speed(c)) for c in COMMANDS if trains(c)])
def test_a_command_that_trains_finishes(sandbox: Sandbox, command: str) -> None:
    own = ("train.steps=2", "train.batch_size=4", "train.max_length=64", "train.micro_batch_size=4")
    extra = own if "model=hf" in command else QUICK
    shorter = ("train.steps=null", "train.budget.tokens=2000") if "train.budget" in command else ()
    done = sandbox.run(*shlex.split(command)[3:], *extra, *shorter, quick=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_bare_mlflow_ui_opens_the_store(sandbox: Sandbox) -> None:
    port = free_port()
    ui = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "ui", "--port", str(port)],
        cwd=sandbox.cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        from mlflow.tracking import MlflowClient

        def runs() -> object:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)):
                    return None
            client = MlflowClient(f"http://127.0.0.1:{port}")
            ids = [e.experiment_id for e in client.search_experiments()]
            return client.search_runs(ids, "tags.sweep = 'monday' and tags.kind = 'trial'")

        assert len(wait_for(runs, 90, "the UI")) == 2  # type: ignore[arg-type]
    finally:
        import os
        import signal

        os.killpg(ui.pid, signal.SIGKILL)
        ui.wait()
