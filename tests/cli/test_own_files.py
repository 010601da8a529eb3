"""Files of a configuration folder that cannot be read, or that nothing reads: each named, and no other one hidden."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.base.errors import UserError, UserErrors
from harness.cli.own_files import problem, sound_part
from harness.cli.validate import _foreign

GOOD = "_target_: my_package.Mine\n"


def made(folder: Path, name: str, content: str | bytes = GOOD) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("reward/latin.yaml", "# café\n".encode("latin-1"), "is not UTF-8"),
        ("reward/mine.yml", GOOD, "call it reward/mine.yaml"),
        ("reward/length.yaml", GOOD, "has the name of one of harness's own"),
        ("reward/empty.yaml", "# nothing yet\n", "is empty"),
        ("reward/list.yaml", "- a\n", "must hold keys and values"),
        ("reward/none.yaml", "bonus: 1\n", "names no class"),
        ("reward/a,b.yaml", GOOD, "no command line can choose"),
        ("top.yaml", GOOD, "stands in no group"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_and_the_others_are_looked_at(tmp_path, name, content, words):
    made(tmp_path, "reward/fine.yaml")
    made(tmp_path, name, content)
    with sound_part(tmp_path) as (part, told):
        assert [file for file, _ in told] == [name] and words in str(told[0][1]) and "fix: " in str(told[0][1])
        assert [p.relative_to(part).as_posix() for p in part.rglob("*.yaml")] == ["reward/fine.yaml"]
    assert (tmp_path / name).exists() and not (part != tmp_path and part.exists())


def test_links_to_nowhere_and_folders_with_the_name_of_a_file(tmp_path):
    made(tmp_path, "reward/fine.yaml")
    (tmp_path / "reward" / "gone.yaml").symlink_to(tmp_path / "nowhere.yaml")
    (tmp_path / "reward" / "sub.yaml").mkdir()
    with sound_part(tmp_path) as (_, told):
        assert {file: str(error).splitlines()[0] for file, error in told} == {
            "reward/gone.yaml": f"reward/gone.yaml: points to {tmp_path}/nowhere.yaml, which is not there",
            "reward/sub.yaml": "reward/sub.yaml: is a folder",
        }


def test_a_folder_in_which_nothing_is_wrong_is_itself(tmp_path):
    made(tmp_path, "reward/fine.yaml")
    made(tmp_path, "experiment/mine.yaml", "# @package _global_\ndefaults:\n  - override /algo: dpo\n")
    made(tmp_path, "notes.txt", "yes")
    made(tmp_path, ".git/config.yaml", "")
    with sound_part(tmp_path) as (part, told):
        assert part == tmp_path and told == []
    assert problem(tmp_path, Path("notes.txt")) is None


def test_other_surroundings_are_tried_where_the_fault_may_be_theirs():
    assert not _foreign(UserError("unknown key", key="train.learning_rat"), "algo")
    assert not _foreign(UserError("unknown key", key="reward.bonsu"), "reward")
    assert _foreign(UserError("cannot make the base", key="model", value="tiny"), "task")
    assert not _foreign(UserError("cannot be used", key="task.allow_skipped"), "task")
    assert _foreign(UserErrors([UserError("raised KeyError: 'mine'", key="reward")]), "reward")
