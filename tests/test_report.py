"""Leaderboard, plots and the markdown report, from the store that ``test_results`` makes."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from harness import results, text
from harness.errors import UserError
from harness.report import plots, recipes
from harness.report.command import main
from harness.report.leaderboard import labels, leaderboard, quality_name, ranked, render_markdown, render_terminal
from harness.report.markdown import shown_command, summary, write_report
from tests.test_results import BEGAN, INJECTION, STUDY, study_root

PNG = b"\x89PNG\r\n\x1a\n"
RUN = {"base_digest": "b", "dataset_digest": "d", "algo": "dpo", "adapter": "lora", "reason": None, "seed": 0.0}

GOLDEN = """\
| trial | outcome | pref. acc. | true reward | Δ true reward | correct | peak MB | train s | tokens/s | note |
| :--- | :--- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | :--- |
| base (before training) | – | – | 0.125 ± 0.021 | – | 0.250 ± 0.020 | – | – | – |  |
| length alone (longer wins) | – | 0.360 ± 0.022 | – | – | – | – | – | – |  |
| grpo-qlora-b0.1-r16-s0 | finished | 0.625 ± 0.019 | 0.500 ± 0.026 | +0.375 | 0.500 ± 0.030 | 640 | 25.0 | 5,109 |  |
| dpo-lora-b0.1-r16-s0 | finished | 0.812 ± 0.019 | 0.375 ± 0.026 | +0.250 | 0.500 ± 0.030 | 577 | 25.0 | 5,109 |  |
| kto-lora-b0.1-r16-s0 | failed | – | – | – | – | – | – | – | ValueError: no rows |
| dpo-full-b0.1-s0 | oom | – | – | – | – | 79,900 | – | – | \
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
    return write_report(f"sqlite:///{root / 'mlflow.db'}", "study", root / "report")


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
    assert re.search(r"^grpo-qlora-b0.1-r16-s0 +finished +0.625±0.019 +0.500±0.026 +\+0.375", table, re.M)
    assert notes.startswith("kto-lora-b0.1-r16-s0: ValueError: no rows\noom: dpo-full-b0.1-s0: OutOfMemoryError")


def test_a_narrow_terminal_drops_columns_and_never_the_trial(study):
    shown = render_terminal(study, width=60)
    assert max(map(len, shown.splitlines())) <= 60
    assert "grpo-qlora-b0.1" in shown and "0.500±0.026" in shown and "tokens" not in shown


def test_the_terminal_shows_control_characters_and_markup_of_names_as_text():
    shown = render_terminal(trials({"trial_id": "[red]x\x1b[31m", "outcome": "failed", "reason": "a\x1b[2J"}))
    assert "[red]x" in shown and "\\x1b[31m" in shown.replace("\n", "") and "a\\x1b[2J" in shown


# -- text ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.8125, "0.812"), (-0.0001, "0.000"), (11.25, "11.2"), (1234.5, "1,234"), (float("nan"), "–"), (None, "–")],
)
def test_numbers_have_as_many_decimals_as_matter(value, shown):
    assert text.number(value) == shown


def test_value_and_error_have_the_same_decimals():
    assert text.with_error(11.26, 0.317) == "11.3 ± 0.3"
    assert text.with_error(0.5, None) == "0.500"


def test_escaped_text_is_one_line_without_anything_that_markdown_acts_on():
    escaped = text.escape("a|b`c`\n<i>*_x_* [l](u) @me $x$ \u202e y_z")
    assert not set("|`\n<>*[]@$\u202e") & set(escaped)
    assert "y_z" in escaped and "\\" not in escaped.replace("&#92;", "")


# -- plots ---------------------------------------------------------------------------------------------


def test_a_plot_without_data_is_not_drawn(tmp_path):
    frame = trials({"outcome": "failed"})
    nothing = pd.DataFrame(columns=list(results.SERIES_COLUMNS))
    assert not plots.quality_against_memory(frame, tmp_path / "q.png")
    assert not plots.learning_curves(nothing, frame, tmp_path / "l.png")
    assert not plots.memory_over_time(nothing, frame, tmp_path / "m.png")
    assert list(tmp_path.iterdir()) == []


def test_many_trials_can_be_plotted(tmp_path):
    rows = [
        {"eval/true_reward": i / 40, "memory/peak_mb": 500.0 + i % 7, "eval/true_reward_stderr": 0.02}
        for i in range(40)
    ]
    frame = trials(*rows)
    series = pd.DataFrame(
        [(f"run{i}", "train/loss", s, BEGAN + s, 1 / (s + 1)) for i in range(40) for s in range(4)],
        columns=list(results.SERIES_COLUMNS),
    )
    assert plots.quality_against_memory(frame, tmp_path / "q.png")
    assert plots.learning_curves(series, frame, tmp_path / "l.png")


def drifting(*betas: float, algos: str = "dpo") -> pd.DataFrame:
    rows = [
        {
            "trial_id": f"{algo}-b{beta:g}-s{seed}-00000000", "algo": algo, "beta": beta, "seed": seed,
            "params.algo.name": algo, "params.algo.beta": str(beta),
            "eval/true_reward": 0.3 + beta, "eval/kl_per_sequence": 0.5 / beta * (1 + 0.1 * seed),
        }
        for algo in algos.split(",") for beta in betas for seed in range(3)
    ]  # fmt: skip
    return trials(*rows)


def test_quality_is_drawn_against_drift_with_a_line_over_beta(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn: list[tuple[list[float], list[float]]] = []
    plot = Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda self, xs, ys, *a, **o: (drawn.append((list(xs), list(ys))), plot(self, xs, ys, *a, **o))[1]
    )
    assert plots.quality_against_drift(drifting(0.5, 0.1, algos="dpo,kto"), tmp_path / "d.png")
    assert len(drawn) == 2
    for xs, ys in drawn:
        assert xs == pytest.approx([5.5, 1.1]) and ys == pytest.approx([0.4, 0.8])  # by beta, means over seeds


def test_one_recipe_or_none_with_a_measured_drift_is_no_plot(tmp_path):
    assert not plots.quality_against_drift(drifting(0.5), tmp_path / "d.png")
    assert not plots.quality_against_drift(drifting(0.5, 0.1).drop(columns="eval/kl_per_sequence"), tmp_path / "d.png")


# -- report --------------------------------------------------------------------------------------------


def test_every_image_of_the_report_is_a_png_that_is_there(report):
    links = re.findall(r"!\[[^]]*\]\(([^)]*)\)", report.read_text(encoding="utf-8"))
    assert links == ["quality_against_memory.png", "learning_curves.png", "memory_over_time.png"]
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
    assert text.escape("x" * 10_000, 160) == "x" * 159 + "…"


def head_of(frame: pd.DataFrame, examples: recipes.Examples | None = None) -> str:
    found = recipes.recipes(frame, quality_name(frame))
    return summary(ranked(frame), found, recipes.compared(found, quality_name(frame), examples or {}))


def test_the_head_names_the_best_the_cheapest_and_the_limits(study):
    assert head_of(study) == (
        "2 of 4 trials finished. Best mean true reward: **grpo-qlora-b0.1-r16** with 0.500 [0.449, 0.551] "
        "(base: 0.125). The runner-up, **dpo-lora-b0.1-r16** (0.375 [0.324, 0.426]), is 0.125 behind; the two were not "
        "compared row by row. Lowest peak memory: **dpo-lora-b0.1-r16** with 577 MB. Each recipe was trained with one "
        "seed: no proof of a difference, since held-out rows say nothing of the luck of a seed."
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
    assert "| dpo-lora-b0.1-r16-s0 | 0.975 ± 0.011 (-0.025) |\n" in written


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
    assert capsys.readouterr().out == "reports/study/report.md\n"
    assert (tmp_path / "reports/study/report.md").read_text(encoding="utf-8").startswith("# Sweep study\n")


def test_the_command_reads_a_folder_without_mlflow(tmp_path_factory, tmp_path, capsys):
    folder = study_root(tmp_path_factory.getbasetemp()) / "outputs" / "study"
    assert main(["--from-folder", str(folder), "--out", str(tmp_path / "r")]) == 0
    written = (tmp_path / "r" / "report.md").read_text(encoding="utf-8")
    assert GOLDEN in written
    assert "learning_curves.png" not in written and "left out, no training series" in written
    assert "| torch | 2.13.0+cpu |" in written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sweep", "other"], "known, newest first: study, older"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["algo=dpo"], "report=algo=dpo: not understood"),
        (["--from-folder", "x", "--sweep", "y"], "the folder names the sweep already"),
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
    write_report(uri, "older", tmp_path)  # a sweep without series
    assert not stale.exists()


def test_the_study_has_the_trials_these_tests_count_on():
    assert [f.outcome for f in STUDY] == ["finished", "finished", "oom", "failed"]
