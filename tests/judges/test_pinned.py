"""A judge from the hub is the commit that its key names: before its first download, and whatever the hub has since."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForSequenceClassification

from harness.base.errors import UserError
from harness.config import identity
from harness.judges.asking import Interview, ask
from harness.judges.base import Longer, Pair
from harness.judges.local import Local
from harness.judges.principles import Constitution
from harness.rewards.as_judge import RewardModel
from harness.rewards.judged import JudgeReward
from harness.rewards.model import ModelReward
from tests.judges.small import save_small

PAIRS = [Pair(f"question {i}?", "yes " * (i + 1), "no, never") for i in range(4)]


class Hub:
    """Commits of one model, and what is downloaded of them: all of it with the first file."""

    def __init__(self, cache: Path):
        self.cache, self.commits, self.main, self.asked = cache / "models--org--m", {}, "", 0

    def add(self, folder: Path) -> str:
        self.main = f"{len(self.commits):x}" * 40
        self.commits[self.main] = folder
        return self.main

    def download(self, path: str, name: str, *, revision: str | None = None) -> str:
        self.asked += 1
        if path != "org/m":
            raise OSError("404: no such repository")
        (self.cache / "refs").mkdir(parents=True, exist_ok=True)
        (self.cache / "refs" / (revision or "main")).write_text(self.main)
        shutil.copytree(self.commits[self.main], self.cache / "snapshots" / self.main)
        return str(self.cache / "snapshots" / self.main / name)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    found = Hub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", found.download)
    return found


def classifier(folder: Path, seed: int) -> Path:
    save_small(folder)
    shell = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    torch.manual_seed(seed)
    torch.nn.init.normal_(shell.score.weight)
    shell.save_pretrained(folder)
    return folder


def test_the_key_is_that_of_the_commit_before_anything_was_downloaded(hub, tmp_path):
    hub.add(save_small(tmp_path / "a"))
    judge, cache = Local(path="org/m", least=0.0, device="cpu"), tmp_path / "cache"
    with Interview(judge, cache) as interview:
        first, before = interview.verdicts(PAIRS)[0], interview.kept.folder
    with Interview(judge, cache) as again:
        assert again.kept.folder == before and again.verdicts(PAIRS)[1].asked == 0
    assert ask(Local(path=str(tmp_path / "a"), least=0.0, device="cpu"), PAIRS)[0] == first
    assert hub.asked == 1, "what the cache of the hub knows is not asked again"


def test_answers_of_one_commit_are_not_taken_for_those_of_another(hub, tmp_path):
    hub.add(save_small(tmp_path / "a"))
    judge, cache = Local(path="org/m", least=0.0, device="cpu"), tmp_path / "cache"
    ask(judge, PAIRS, cache)
    shutil.rmtree(hub.cache)  # as on a new machine, with the harness's cache carried over
    hub.add(save_small(tmp_path / "b", seed=1))
    verdicts, bill = ask(judge, PAIRS, cache)
    assert bill.asked == 8
    assert verdicts == ask(Local(path=str(tmp_path / "b"), least=0.0, device="cpu"), PAIRS)[0]


@pytest.mark.parametrize("kind", [Local, RewardModel])
def test_what_is_loaded_is_the_commit_that_the_key_names(hub, tmp_path, kind):
    make = save_small if kind is Local else classifier
    hub.add(make(tmp_path / "a", seed=3))
    options = {"least": 0.0, "device": "cpu"} if kind is Local else {}
    with Interview(kind(path="org/m", **options)) as interview:
        hub.add(make(tmp_path / "b", seed=4))
        hub.download("org/m", "config.json")  # by another program, in the meantime
        answers, _ = interview.answers([interview.judge.asks(pair) for pair in PAIRS])
    told = {}
    kind(path=str(tmp_path / "a"), **options).answers([interview.judge.asks(pair) for pair in PAIRS], told.__setitem__)
    assert answers == [told[i] for i in range(len(PAIRS))]


def test_trials_and_made_rows_are_known_by_the_commit_from_the_start(hub, tmp_path):
    commit = hub.add(classifier(tmp_path / "a", seed=3))
    (tmp_path / "p.txt").write_text("One?\nTwo?\n")
    local = Local(path="org/m", read="words")
    task = Constitution(prompts=str(tmp_path / "p.txt"), principles=str(tmp_path / "p.txt"), writer=local, judge=local)

    def keys() -> list[object]:
        rewards = [JudgeReward(judge=local), JudgeReward(judge=RewardModel(path="org/m")), ModelReward(path="org/m")]
        return [task.fingerprint(), *(reward.contents() for reward in rewards)]

    before, asked = keys(), hub.asked
    assert keys() == before and asked == hub.asked == 1
    assert before[-1] == {"path": f"org/m@{commit}"}
    assert Longer().settled() == Longer()


def test_a_hub_that_does_not_answer_is_said_before_there_is_a_key(hub, tmp_path):
    for judge in (Local(path="org/none"), RewardModel(path="org/none")):
        with pytest.raises(UserError, match=r"judge\.path=org/none: .*which commit.*404"):
            Interview(judge, tmp_path)
    with pytest.raises(UserError, match=r"task\.writer\.path=org/none"):
        Constitution(prompts="p", principles="p", writer=Local(path="org/none"), judge=Longer()).fingerprint()
    assert identity.pinned("./none", "x", key="judge.path") == "x", "a folder that is not there is asked of nobody"
