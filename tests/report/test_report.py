"""Leaderboard, plots and the markdown report, from the store that ``test_results`` makes."""

from __future__ import annotations

import math
import os
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from harness.base import formatting
from harness.base.errors import UserError
from harness.base.stats import Interval
from harness.cli.report import main, price_of
from harness.report.gather import write_report
from harness.report.html import page
from harness.report.intervals import gap_of, interval, measured, short_interval
from harness.report.leaderboard import Price, labels, leaderboard, ranked
from harness.report.markdown import SHOWN, Material, compose, summary
from harness.report.recipes import recipe_labels
from harness.report.sections import uses
from harness.report.sections.evaluation import evaluations
from harness.report.sections.provenance import shown_command
from harness.report.sources import Folder, Stored
from harness.report.standings import find
from harness.report.table import render_markdown, render_terminal
from harness.store import results
from tests.store.test_results import INJECTION, STUDY, study_root

GOLDEN_REPORT = Path(__file__).parents[1] / "golden" / "report.md"
PNG = b"\x89PNG\r\n\x1a\n"
RUN = {"base_digest": "b", "dataset_digest": "d", "algo": "dpo", "adapter": "lora", "reason": None, "seed": 0.0}

GOLDEN = """\
| trial | outcome | pref. acc. | true reward | Δ true reward | correct | peak MB | train s | tokens/s | hours | note |
| :--- | :--- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | :--- |
| base (before training) | – | – | 0.125 [0.084, 0.166] | – | 0.250 [0.213, 0.291] | – | – | – | – |  |
| length alone (shorter wins) | – | 0.640 [0.595, 0.683] | – | – | – | – | – | – | – |  |
| grpo-qlora-b0.1-r16-s0 | finished | 0.625 [0.588, 0.661] | 0.500 [0.449, 0.551] | +0.375 | \
0.500 [0.442, 0.558] | 640 | 25.0 | 5,109 | 0.036 |  |
| dpo-lora-b0.1-r16-s0 | finished | 0.812 [0.773, 0.846] | 0.375 [0.324, 0.426] | +0.250 | \
0.500 [0.442, 0.558] | 577 | 25.0 | 5,109 | 0.036 |  |
| kto-lora-b0.1-r16-s0 | failed | – | – | – | – | – | – | – | – | ValueError: no rows |
| dpo-full-b0.1-s0 | oom | – | – | – | – | 79,900 | – | – | – | \
OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB &#124; &lt;b&gt;now&lt;/b&gt; |"""


@pytest.fixture
def uri(tmp_path_factory) -> str:
    return f"sqlite:///{study_root(tmp_path_factory.getbasetemp()) / 'mlflow.db'}"


@pytest.fixture
def study(uri) -> pd.DataFrame:
    return results.from_mlflow(uri, "study")


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    root = study_root(tmp_path_factory.getbasetemp())
    return write_report(Stored(f"sqlite:///{root / 'mlflow.db'}", "study"), root / "report").path


def trials(*rows: dict) -> pd.DataFrame:
    return pd.DataFrame(
        [{**RUN, "trial_id": f"t{i}", "run_id": f"run{i}", "outcome": "finished", **r} for i, r in enumerate(rows)]
    )


def cells(line: str) -> list[str]:
    """A table row as a markdown reader splits it: at every pipe that has no backslash before it."""
    return [c.strip() for c in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


# -- leaderboard ---------------------------------------------------------------------------------------


def test_the_leaderboard_in_markdown_is_the_golden_one(study):
    assert render_markdown(study) == GOLDEN


def test_a_folder_gives_the_same_leaderboard(study, tmp_path_factory):
    folder = study_root(tmp_path_factory.getbasetemp()) / "outputs" / "study"
    assert render_markdown(results.from_folder(folder)) == render_markdown(study)


def test_the_note_column_is_there_only_if_a_row_has_one(study):
    assert "note" in leaderboard(study)
    assert "note" not in leaderboard(study[study["reason"].isna()])


def test_without_true_reward_preference_accuracy_ranks():
    frame = trials({"eval/preference_accuracy": 0.6}, {"eval/preference_accuracy": 0.8}, {"outcome": "timeout"})
    assert list(ranked(frame)["trial_id"]) == ["t1", "t0", "t2"]


def test_a_base_row_needs_trials_that_share_base_and_figures():
    alike = {"eval/true_reward": 0.5, "baseline/true_reward": 0.1}
    assert leaderboard(trials(alike, alike))["trial"].tolist() == ["base (before training)", "t0", "t1"]
    assert len(leaderboard(trials(alike, {**alike, "base_digest": "other"}))) == 2
    assert len(leaderboard(trials(alike, {**alike, "baseline/true_reward": 0.2}))) == 2


def test_training_time_includes_rollouts():
    board = leaderboard(trials({"time/train_s": 100.0, "time/rollout_s": 20.4}, {"time/train_s": 1.25}))
    assert list(board["train s"]) == ["120", "1.2"]


def test_namesakes_are_told_apart_by_the_settings_in_which_they_differ():
    frame = trials(
        {"trial_id": "dpo-s0-0123abcd", "params.train.learning_rate": "0.1", "params.eval.split": "a"},
        {"trial_id": "dpo-s0-4567abcd", "params.train.learning_rate": "0.2", "params.eval.split": "b"},
        {"trial_id": "kto-s0-4567abcd", "params.train.learning_rate": "0.2", "params.eval.split": "b"},
    )
    assert labels(frame) == ["dpo-s0 learning_rate=0.1", "dpo-s0 learning_rate=0.2", "kto-s0"]
    assert labels(frame.drop(columns="params.train.learning_rate"))[:2] == ["dpo-s0-0123abcd", "dpo-s0-4567abcd"]


def test_of_a_part_that_some_lack_what_was_set_is_told():
    replay = [(None, None, None), ("Replay", None, 0.25), ("Replay", None, 0.5)]
    rows = [
        {"trial_id": f"dpo-s0-{i}123abcd", "params.train.replay.class": kind, "params.train.replay.path": path,
         "params.train.replay.share": share}
        for i, (kind, path, share) in enumerate(replay)
    ]  # fmt: skip
    assert labels(pd.DataFrame(rows)) == ["dpo-s0", "dpo-s0 replay.share=0.25", "dpo-s0 replay.share=0.5"]


def test_one_recipe_of_two_sweeps_is_named_by_them():
    rows = [{"trial_id": "dpo-s0-0123abcd", "sweep": sweep, "params.train.steps": "9"} for sweep in ("monday", "today")]
    assert labels(pd.DataFrame(rows)) == ["dpo-s0 sweep=monday", "dpo-s0 sweep=today"]
    assert labels(pd.DataFrame([*rows, rows[1]]))[:2] == [f"dpo-s0-0123abcd sweep={s}" for s in ("monday", "today")]


def test_settings_come_before_sweeps_however_many_it_takes():
    names = ("a", "b", "c", "d")
    rows = [
        {
            "trial_id": f"dpo-s0-0123abc{i}",
            "sweep": sweep,
            **{f"params.train.{n}": f"{i}" if n == "d" else own for n in names},
        }
        for i, (sweep, own) in enumerate((("monday", "1"), ("today", "1"), ("today", "2")))
    ]
    assert labels(pd.DataFrame(rows))[:2] == ["dpo-s0 a=1 b=1 c=1 d=0", "dpo-s0 a=1 b=1 c=1 d=1"]
    assert "sweep" not in " ".join(recipe_labels(pd.DataFrame(rows)))


def test_namesakes_with_another_component_are_told_apart_by_its_name_alone():
    frame = trials(
        {"trial_id": "ppo-s0-0123abcd", "params.reward.name": "verifier"},
        {"trial_id": "ppo-s0-4567abcd", "params.reward.name": "modelreward", "params.reward.steps": "800"},
    )
    assert labels(frame) == ["ppo-s0 reward=verifier", "ppo-s0 reward=modelreward"]
    assert labels(frame.drop(columns="params.reward.name")) == ["ppo-s0", "ppo-s0 steps=800"]


def test_the_terminal_table_fits_100_columns_and_has_no_colours_in_a_pipe(study):
    shown = render_terminal(study)
    assert "\x1b" not in shown
    table, _, notes = shown.partition("\nfailed: ")
    assert max(map(len, table.splitlines())) <= 100
    assert re.search(r"^grpo-qlora-b0.1-r16-s0 +finished +0.625±0.037 +0.500±0.051 +\+0.375", table, re.M)
    assert notes.startswith("kto-lora-b0.1-r16-s0: ValueError: no rows\noom: dpo-full-b0.1-s0: OutOfMemoryError")


def test_a_narrow_terminal_drops_columns_and_never_the_trial(study):
    shown = render_terminal(study, width=60)
    assert max(map(len, shown.splitlines())) <= 60
    assert "grpo-qlora-b0.1" in shown and "0.500±0.051" in shown and "tokens" not in shown


def test_the_terminal_shows_control_characters_and_markup_of_names_as_text():
    shown = render_terminal(trials({"trial_id": "[red]x\x1b[31m", "outcome": "failed", "reason": "a\x1b[2J"}))
    assert "[red]x" in shown and "\\x1b[31m" in shown.replace("\n", "") and "a\\x1b[2J" in shown


# -- text ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.8125, "0.812"), (-0.0001, "0.000"), (11.25, "11.2"), (1234.5, "1,234"), (float("nan"), "–"), (None, "–")],
)
def test_numbers_have_as_many_decimals_as_matter(value, shown):
    assert formatting.number(value) == shown


def test_an_interval_has_the_decimals_of_its_mean_and_plus_minus_is_half_of_it():
    found, alone = Interval(11.26, 10.9, 11.5, 1, "t"), Interval(0.5, None, None, 1, "one value")
    assert interval(found) == "11.3 [10.9, 11.5]" and short_interval(found) == "11.3±0.4"  # of the wider side
    assert interval(alone) == short_interval(alone) == "0.500"


def test_a_share_stays_between_0_and_1_and_other_figures_do_not():
    row = {"eval/correct": 0.95, "eval/correct_stderr": 0.05, "eval/true_reward": 0.95, "eval/true_reward_stderr": 0.05}
    share, reward = measured(row, "eval/correct"), measured(row, "eval/true_reward")
    n, z = 0.95 * 0.05 / 0.05**2, 1.96  # Wilson by hand, for 19 independent values
    centre, reach = (0.95 + z**2 / 2 / n) / (1 + z**2 / n), z / (1 + z**2 / n) * math.sqrt(0.0475 / n + z**2 / 4 / n**2)
    assert share is not None and (share.low, share.high) == pytest.approx((centre - reach, centre + reach))
    assert reward is not None and reward.high == pytest.approx(0.95 + 1.96 * 0.05)
    told = measured(row | {"eval/correct_low": 0.7, "eval/correct_high": 0.99}, "eval/correct")
    assert told is not None and (told.low, told.high) == (0.7, 0.99)


@pytest.mark.parametrize(("name", "bounds"), [("eval/win_rate", (-1.0, 1.0)), ("eval/true_reward", (-1.6, 1.3))])
def test_two_shares_are_at_most_1_apart(name, bounds):
    found = gap_of(Interval(-0.2, -1.6, 1.3, 3, "t"), name)
    assert (found.mean, found.low, found.high) == (-0.2, *bounds)


def test_escaped_text_is_one_line_without_anything_that_markdown_acts_on():
    escaped = formatting.escape("a|b`c`\n<i>*_x_* [l](u) @me $x$ \u202e y_z")
    assert not set("|`\n<>*[]@$\u202e") & set(escaped)
    assert "y_z" in escaped and "\\" not in escaped.replace("&#92;", "")


# -- report --------------------------------------------------------------------------------------------


def test_every_image_of_the_report_is_a_png_that_is_there(report):
    links = re.findall(r"!\[[^]]*\]\(([^)]*)\)", report.read_text(encoding="utf-8"))
    drawn = ("quality_against_memory", "learning_curves", "memory_by_phase", "memory_over_time", "reliability")
    assert links == [f"{name}.png" for name in drawn]
    for link in links:
        content = (report.parent / link).read_bytes()
        assert content.startswith(PNG) and len(content) > 5_000


def test_every_table_has_rows_of_one_width(report):
    for block in report.read_text(encoding="utf-8").split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(cells(line)) for line in lines}) <= 1, block


def test_model_text_is_data(report):
    written = report.read_text(encoding="utf-8")
    row = next(line for line in written.splitlines() if line.startswith("| 1+1= |"))
    assert "<script" not in written and "`ticks`" not in written
    attack = "&lt;/td&gt;&lt;script&gt;alert(1)&lt;/script&gt; &#124; &#96;ticks&#96;↵second line (0.250)"
    assert cells(row) == ["1+1=", "18 (0.250)", attack, attack]
    assert INJECTION not in written


def test_a_long_completion_ends_in_an_ellipsis(report):
    assert all(len(line) < 1_000 for line in report.read_text(encoding="utf-8").splitlines())
    assert formatting.escape("x" * 10_000, 160) == "x" * 159 + "…"


def head_of(frame: pd.DataFrame) -> str:
    return summary(find(frame))


def test_the_head_names_the_best_the_cheapest_and_the_limits(study):
    assert head_of(study) == (
        "2 of 4 trials finished. On the held-out rows of one seed **grpo-qlora-b0.1-r16** is higher than the base "
        "(0.125): difference in true reward +0.375. On the held-out rows of one seed **grpo-qlora-b0.1-r16** is "
        "lower than length alone (0.640, shorter wins): difference in preference accuracy -0.015. Highest mean true "
        "reward: **grpo-qlora-b0.1-r16** with 0.500 [0.449, 0.551]. The runner-up, **dpo-lora-b0.1-r16** (0.375 "
        "[0.324, 0.426]), is 0.125 behind; the two were not compared row by row. Lowest peak memory: "
        "**dpo-lora-b0.1-r16** with 577 MB. Each recipe was trained with one seed: no proof of a difference, since "
        "held-out rows say nothing of the luck of a seed. A second is missing."
    )


def test_the_head_says_so_if_nothing_finished():
    assert head_of(trials({"outcome": "oom"})) == "No trial finished (of 1)."


def test_two_seeds_per_recipe_end_the_warning():
    def row(seed: int) -> dict:
        name = {"trial_id": f"a-s{seed}", "seed": float(seed), "params.seed": str(seed), "params.algo.beta": "0.1"}
        return {**name, "eval/true_reward": 0.5}

    assert "one seed" in head_of(trials(row(0)))
    assert "one seed" not in head_of(trials(row(0), row(1)))


def test_memory_and_time_are_split_by_phase(report):
    written = report.read_text(encoding="utf-8")
    assert "| trial | train | evaluate | peak |\n" in written
    assert "| dpo-lora-b0.1-r16-s0 | 577 | 477 | 577 |\n" in written
    assert "| dpo-full-b0.1-s0 | 79,900 | – | 79,900 |\n" in written
    assert "| dpo-lora-b0.1-r16-s0 | 25.0 | 3.5 | 130 |\n" in written


def test_other_evaluations_show_the_change(report):
    written = report.read_text(encoding="utf-8")
    assert "| base (before training) | 1.000 |\n" in written
    assert "| dpo-lora-b0.1-r16-s0 | 0.975 [0.943, 0.989] (-0.025) |\n" in written


def test_unfinished_trials_environment_and_commands_are_there(report):
    written = report.read_text(encoding="utf-8")
    assert "| kto-lora-b0.1-r16-s0 | failed | ValueError: no rows |" in written
    assert "| torch | 2.13.0+cpu |" in written and "| commit | abc123 |" in written
    assert "```sh\npython -m harness -m algo=dpo,grpo sweep=study\n```" in written
    assert "python -m harness report --sweep study --tracking-uri sqlite:///" in written


def test_a_recorded_command_is_shown_as_one_types_it():
    assert shown_command("/srv/harness/__main__.py -m algo=dpo") == "python -m harness -m algo=dpo"
    assert shown_command("/srv/.venv/bin/harness algo=dpo") == "harness algo=dpo"


# -- command -------------------------------------------------------------------------------------------


def test_the_command_writes_the_latest_sweep_below_reports_and_prints_where(uri, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([f"tracking.uri={uri}"]) == 0
    told = capsys.readouterr()
    assert told.out == "reports/study/report.md\n"
    assert told.err.startswith("advice:  ") and "Highest mean" in told.err
    assert (tmp_path / "reports/study/report.md").read_text(encoding="utf-8").startswith("# Sweep study\n")


def test_the_command_reads_a_folder_without_mlflow(tmp_path_factory, tmp_path, capsys):
    folder = study_root(tmp_path_factory.getbasetemp()) / "outputs" / "study"
    assert main(["--from-folder", str(folder), "--out", str(tmp_path / "r")]) == 0
    written = (tmp_path / "r" / "report.md").read_text(encoding="utf-8")
    assert GOLDEN in written.replace(" ◆", "")
    assert "learning_curves.png" in written and "| torch | 2.13.0+cpu |" in written


def test_a_report_from_folders_is_the_one_from_mlflow(tmp_path_factory, uri, tmp_path):
    root = study_root(tmp_path_factory.getbasetemp())
    folder, stored = Folder(root / "outputs" / "study"), Stored(uri, "study")
    words = {}
    for name, source in (("folder", folder), ("stored", stored)):
        written = write_report(source, tmp_path / name, ("md", "csv"))
        words[name] = written.path.read_text(encoding="utf-8")
    assert "learning_curves.png" in words["stored"] and "samples" in words["stored"].lower()
    for one in (source.words for source in (folder, stored)):
        words = {name: text.replace(one, "SOURCE") for name, text in words.items()}
    pairs = zip(words["folder"].splitlines(), words["stored"].splitlines(), strict=True)
    assert [theirs for mine, theirs in pairs if mine != theirs and "harness report" not in theirs] == []
    drawn = {name: sorted(p.name for p in (tmp_path / name).glob("*.png")) for name in words}
    assert drawn["folder"] == drawn["stored"] != []
    best = str(stored.frame["trial_id"].iloc[0])
    run = dict(zip(stored.frame["trial_id"], stored.frame["run_id"], strict=True))[best]
    columns = ["name", "step", "value"]
    names = ["train/loss", "system/system_memory_usage_megabytes"]
    mine, theirs = folder.series([best], names), stored.series([run], names)
    assert mine[columns].values.tolist() == theirs[columns].values.tolist() != []
    assert (tmp_path / "folder" / "results.csv").read_text().splitlines()[0].startswith("trial_id,sweep,run_id")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sweep", "other"], "known, newest first: study, older"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["algo=dpo"], "report=algo=dpo: not understood"),
        (["--from-folder", "x", "--sweep", "y"], "--sweep=y: --from-folder says already"),
        (["--runs", "0" * 32], "there is no such run"),
        (["--price", "cheap"], "no amount of money"),
        (["--price", "-1"], "no amount of money"),
        (["--price", "2,50"], "no amount of money"),
        (["--price", "1e3"], "no amount of money"),
        (["--experiment", "mine"], "no such MLflow experiment"),
    ],
)
def test_wrong_input_is_a_user_error(uri, arguments, message):
    with pytest.raises(UserError, match=message):
        main([f"--tracking-uri={uri}", *arguments])


def test_help_is_not_an_error(capsys):
    assert main(["--help"]) == 0
    assert "--from-folder" in capsys.readouterr().out


def test_an_earlier_report_leaves_no_stale_plot(uri, tmp_path):
    stale = tmp_path / "learning_curves.png"
    stale.write_bytes(b"old")
    write_report(Stored(uri, "older"), tmp_path)  # a sweep without series
    assert not stale.exists()


def test_the_study_has_the_trials_these_tests_count_on():
    assert [f.outcome for f in STUDY] == ["finished", "finished", "oom", "failed"]


def test_the_whole_report_is_the_golden_one(uri, study):
    """``UPDATE_GOLDEN=1`` writes it anew; read the difference before you commit it."""
    material = Material(
        "sweep study", find(study), "a test", price=Price(2.5, "EUR"), plots=("quality_against_memory",),
        samples={"dpo": results.tables(uri, study["run_id"].iloc[1])},
        environment={"python": "3.11.7", "versions": {"torch": "2.13.0+cpu"}},
        command="python -m harness -m sweep=study", card="# Data of arithmetic\n\nContent digest `0`.\n",
    )  # fmt: skip
    written = compose(material)
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN_REPORT.write_text(written, encoding="utf-8")
    assert written == GOLDEN_REPORT.read_text(encoding="utf-8")


# -- what a reader wants of it ---------------------------------------------------------------


def test_the_markdown_has_nothing_that_a_linter_complains_of(report):
    from pymarkdown.api import PyMarkdownApi

    linter = PyMarkdownApi().disable_rule_by_identifier("md013")  # rows of tables are long
    found = linter.scan_path(str(report))
    assert [f"{f.line_number}: {f.rule_id} {f.rule_description}" for f in found.scan_failures] == []


def test_skills_that_were_lost_are_told_by_recipe(report):
    written = report.read_text(encoding="utf-8")
    section = written.partition("## Forgetting\n\n")[2].partition("\n\n## ")[0]
    assert section.startswith("| recipe | Δ letters/exact_match |\n")
    assert "| base (before training) | 1.000 |" in section
    assert "| dpo-lora-b0.1-r16 | **-0.025 [-0.047, -0.003]** |" in section


def test_a_loss_over_seeds_is_bold_where_it_is_beyond_noise_and_one_seed_has_its_documents_error():
    from harness.report.sections import forgetting

    def row(seed: int, change: float, **more: float) -> dict:
        name = {"trial_id": f"a-s{seed}", "seed": float(seed), "params.algo.beta": "0.1"}
        return {**name, "eval/true_reward": 0.5, "delta/letters/acc": change, "delta/letters/exact_match": 0.0, **more}

    def told(*rows: dict) -> str:
        found = find(trials(*rows))
        return "\n".join(forgetting.section(found.frame, found.recipes, 10))

    lost = told(row(0, -0.05), row(1, -0.06), row(2, -0.055))
    assert "Δ letters/acc |" in lost and "exact_match" not in lost
    assert "**-0.055 [-0.067, -0.043]**" in lost
    assert "| -0.050 [" in told(row(0, -0.05), row(1, 0.05), row(2, -0.15))  # and not bold
    alone = {"eval/letters/acc_stderr": 0.03, "baseline/letters/acc_stderr": 0.04}
    assert "-0.200 [-0.298, -0.102]" in told(row(0, -0.2, **alone))
    assert "| -0.025 [-0.123, 0.073]" in told(row(0, -0.025, **alone), row(1, -0.025, **alone))  # documents are shared


def test_data_card_and_a_command_per_row_are_there(report):
    written = report.read_text(encoding="utf-8")
    assert "## Data\n\nData of arithmetic.\n\n### Notes\n\n- made by a test" in written
    assert "# kto-lora-b0.1-r16-s0\npython -m harness algo=kto adapter=lora\n" in written


def test_hours_are_told_and_with_a_price_what_they_cost(study):
    written = compose(Material("sweep study", find(study), "a test", price=Price(2.5, "EUR")))
    assert "| hours | cost (EUR) |" in written
    assert "All trials together had the device for 0.072 hours, 0.181 EUR." in written
    on_gpu = compose(Material("sweep study", find(study.assign(device="cuda:0")), "a test"))
    assert "| GPU-h |" in on_gpu and "cost" not in on_gpu


@pytest.mark.parametrize(("price", "words"), [(Price(1_500_000, "VND"), "1500000 VND"), (Price(2.5), "2.5")])
def test_a_price_is_written_as_it_is_read(price, words):
    assert str(price) == words and price_of(words) == price


def test_runs_of_any_sweep_and_a_whole_experiment_can_be_reported_on(uri, tmp_path, monkeypatch, capsys):
    frame = results.from_mlflow(uri, "study")
    best, older = frame["run_id"].iloc[0], results.from_mlflow(uri, "older")["run_id"].iloc[0]
    assert main([f"--tracking-uri={uri}", "--runs", best, older, best, "--out", str(tmp_path / "runs")]) == 0
    assert (tmp_path / "runs/report.md").read_text(encoding="utf-8").startswith("# 2 runs of 2 sweeps\n")
    monkeypatch.chdir(tmp_path)
    assert main(["--runs", best, f"tracking.uri={uri}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "reports/one_run_of_sweep_study/report.md"  # not the sweep's own
    assert main([f"--tracking-uri={uri}", "--experiment=harness", "--out", str(tmp_path / "all")]) == 0
    written = (tmp_path / "all/report.md").read_text(encoding="utf-8")
    assert written.startswith("# Experiment harness\n\n3 of 5 trials finished.")
    parent = results.client(uri).get_run(best).data.tags["mlflow.parentRunId"]
    with pytest.raises(UserError, match="is no run of a trial"):
        main([f"--tracking-uri={uri}", "--runs", parent])


def test_of_many_trials_the_best_are_shown_and_a_file_has_all(study):
    n = SHOWN + 20
    many = pd.concat([study.iloc[[1]].assign(trial_id=f"t{i:04}", seed=float(i)) for i in range(n)])
    lost = pd.concat([study.iloc[[3]].assign(trial_id=f"x{i:04}") for i in range(n)])
    written = compose(Material("sweep many", find(pd.concat([many, lost], ignore_index=True)), "a test"))
    board = written.partition("## Trials")[2].partition("## ")[0]
    assert sum(line.startswith("| t") for line in board.splitlines()) == SHOWN + 1  # and the heading
    assert f"The best {SHOWN} of {2 * n} trials are shown" in board and "20 more are in the table" in written


def test_the_example_of_reading_results_runs_as_it_is_written(uri, tmp_path, monkeypatch, capsys):
    words = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
    example = words.partition("## Reading results")[2].partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    shutil.copy(uri.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    exec(compile(example.replace('"monday"', '"older"'), "extending.md", "exec"), {})
    said = capsys.readouterr().out
    assert said.startswith("# What we did today\n") and said.splitlines()[-1] == "[]"  # one seed fails nothing


# -- what ranks, and what is charged to whom -------------------------------------------------------------


def test_another_metric_ranks_where_it_is_asked_for_and_has_a_column(study):
    found = find(study, rank_by="preference_accuracy")
    assert [r.label for r in found.recipes][:1] == ["dpo-lora-b0.1-r16"] and found.ranked_by
    by_task = find(study, rank_by="eval/letters/exact_match")
    written = compose(Material("x", by_task, "a DataFrame"))
    assert "| trial | outcome | letters/exact_match |" in written and "Highest letters/exact match" in written


def test_a_report_says_where_the_policy_is_and_why_figures_are_missing():
    frame = trials(
        {"folder": "outputs/s/t0", "params.train.save": "adapter", "eval/true_reward": 0.5},
        {"folder": "outputs/s/t1", "params.train.save": "none", "eval/true_reward": 0.4},
    ).assign(**{"absent.eval/win_rate": ["no judge was named", None], "absent.eval/ece": ["it has no choices"] * 2})
    found = find(frame)
    assert "is in `outputs/s/t0/artifacts/model`" in uses.policy(found.recipes, found.metric)
    assert uses.policy(found.recipes[1:], found.metric) == "" == uses.policy([], None)
    title, lines = uses.absent(found.frame)
    assert title == "## Not measured" and "- `ece`: it has no choices" in lines
    assert "- `win_rate` (1 of 2 trials): no judge was named" in lines
    measured = found.frame.assign(**{"eval/ece": [0.1, float("nan")]})  # of one, by a later attempt
    assert "- `ece` (1 of 2 trials): it has no choices" in uses.absent(measured)[1]
    assert uses.absent(frame.drop(columns=["absent.eval/win_rate", "absent.eval/ece"])) == []


def test_a_metric_that_cannot_rank_is_refused_with_those_that_can(study, uri, tmp_path):
    for wrong in ("nonsense", "eval/length_only_accuracy", "memory/peak_mb"):
        with pytest.raises(UserError, match="is no metric that can rank") as refused:
            main(["--sweep", "study", "--rank-by", wrong, "--tracking-uri", uri, "--out", str(tmp_path)])
        assert refused.value.key == "--rank-by" and "eval/true_reward" in str(refused.value.fix)


def test_what_a_trial_built_for_all_is_charged_to_nobody():
    rows = [
        {"trial_id": "a-s0", "eval/true_reward": 0.5, "time/total_s": 3600.0, "time/shared_s": 1800.0},
        {"trial_id": "b-s0", "eval/true_reward": 0.4, "time/total_s": 1800.0, "time/shared_s": 0.0},
    ]
    board = leaderboard(trials(*rows), Price(2.0, "EUR"))
    assert list(board["hours"]) == ["0.500", "0.500"] and list(board["cost (EUR)"]) == ["1.000", "1.000"]
    written = compose(Material("x", find(trials(*rows)), "a DataFrame", price=Price(2.0, "EUR")))
    assert "All trials together had the device for 1.000 hours, 2.000 EUR." in written
    assert "charged to no recipe: 0.500 hours, 1.000 EUR." in written


def test_a_trial_that_did_not_finish_is_not_held_against_its_prediction():
    died = {"trial_id": "a", "outcome": "failed", "memory/predicted_peak_mb": 902.0, "memory/peak_mb": 100.0}
    whole = {"trial_id": "b", "eval/true_reward": 0.5, "memory/predicted_peak_mb": 110.0, "memory/peak_mb": 100.0}
    assert list(leaderboard(trials(died, whole))["predicted MB"]) == ["110 (+10 %)", "902"]


def test_a_metric_that_cannot_rank_is_refused_with_what_was_meant(study):
    with pytest.raises(UserError) as caught:
        find(study, rank_by="preference_acuracy")
    assert "did you mean preference_accuracy?" in str(caught.value)
    frame = trials({"eval/letters/truncated": 0.1, "eval/true_reward": 0.5})
    with pytest.raises(UserError) as caught:
        find(frame, rank_by="letters/truncated")  # of which less is better
    assert "letters/truncated" not in str(caught.value).partition("known:")[2]


def test_a_win_rate_is_held_against_one_half():
    frame = trials({"eval/win_rate": 0.28}, {"eval/win_rate": 0.31, "algo": "ipo"})
    found = find(frame, rank_by="win_rate")
    assert found.base is not None and found.base.value == 0.5
    assert "Keep the base" in compose(Material("x", found, "a DataFrame"))


def test_a_figure_without_an_interval_says_why():
    bare = trials({"eval/preference_accuracy": 0.67})
    known = trials({"eval/preference_accuracy": 0.67, "eval/preference_accuracy_stderr": 0.05})
    told = "comes from held-out rows of one prompt"
    assert told in compose(Material("x", find(bare), "a DataFrame"))
    assert told not in compose(Material("x", find(known), "a DataFrame"))


def test_on_a_narrow_page_a_figure_breaks_before_its_brackets_alone():
    table = "| a | b |\n| :-- | --: |\n| x [y z] | +0.1 [0.0, 0.2] (of 3) |"
    shown = page(table, "t")
    assert "<span>+0.1</span> <span>[0.0, 0.2]</span> <span>(of 3)</span>" in shown and "x [y z]" in shown


def test_metrics_over_ones_own_prompts_stand_under_the_label_of_their_evaluator():
    frame = trials(
        {"eval/refusals/unwanted": 0.25, "eval/refusals/unwanted_low": 0.1, "eval/refusals/unwanted_high": 0.4,
         "delta/refusals/unwanted": 0.125, "eval/refusals/too_long": 0.0, "eval/letters/exact_match": 1.0,
         "eval/mine/fiction/attack_success": 0.5, "eval/long_context/accuracy_4096": 0.75, "label": "dpo"},
    )  # fmt: skip
    text = "\n".join(evaluations(frame))
    tables = {part.splitlines()[0]: part for part in text.split("### ")[1:]}
    assert list(tables) == [
        "Own prompts: refusals", "Own prompts: mine", "Own prompts: long_context", "lm-eval tasks"
    ]  # fmt: skip
    assert "0.250 [0.100, 0.400] (+0.125)" in tables["Own prompts: refusals"]
    assert "too_long" not in text and "letters" in tables["lm-eval tasks"]
