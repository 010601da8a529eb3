"""Where a recipe peaked within its training: found, drawn, and said in the report; nothing without a curve."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from harness.base.best_of import distance
from harness.base.overoptimization import Law, Observed, fit
from harness.report import peaks
from harness.report.figures import curves, overoptimization
from harness.report.markdown import Material, compose
from harness.report.standings import find
from harness.store import results
from tests.report.test_report import trials
from tests.store.test_results import BEGAN

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
PEAKED = (0.1, 0.5, 0.8, 0.7, 0.4)
"""True reward: highest at the half."""
RISING = (0.1, 0.2, 0.3, 0.4, 0.5)
KL = (0.0, 1.0, 4.0, 9.0, 16.0)


def study(seeds: int = 3) -> pd.DataFrame:
    rows = [
        {
            "trial_id": f"{algo}-s{seed}-00000000", "run_id": f"{algo}{seed}", "algo": algo, "seed": float(seed),
            "params.algo.name": algo, "eval/true_reward": final + 0.01 * seed,
        }
        for algo, final in (("grpo", 0.4), ("dpo", 0.5)) for seed in range(seeds)
    ]  # fmt: skip
    return trials(*rows)


def series(frame: pd.DataFrame, **more: tuple[float, ...]) -> pd.DataFrame:
    """Curves: GRPO peaks, DPO rises; each seed 0.01 above the one before."""
    found = []
    for run, algo, seed in zip(frame["run_id"], frame["algo"], frame["seed"], strict=True):
        true = PEAKED if algo == "grpo" else RISING
        told = {
            "curve/share": SHARES, "curve/spent": SHARES, "curve/kl_per_sequence": KL,
            "curve/true_reward": [t + 0.01 * seed for t in true], "curve/true_reward_stderr": (0.05,) * 5,
        }  # fmt: skip
        if algo == "grpo":
            told["curve/proxy_reward"] = [0.2 + 0.1 * d for d in range(5)]
        told |= {f"curve/{name}": values for name, values in more.items()}
        found += [(run, name, 10 * i, BEGAN + i, v) for name, vs in told.items() for i, v in enumerate(vs)]
        found.append((run, "train/loss", 3, BEGAN, 1.0))
    return pd.DataFrame(found, columns=list(results.SERIES_COLUMNS))


def test_points_are_a_row_each_of_the_curves_alone():
    found = peaks.points(series(study()))
    assert len(found) == 2 * 3 * 5 and set(found["step"]) == {0, 10, 20, 30, 40}
    assert peaks.quality(found) == "curve/true_reward" and "train/loss" not in found
    nothing = peaks.points(pd.DataFrame(columns=list(results.SERIES_COLUMNS)))
    assert nothing.empty and peaks.quality(nothing) is None


def test_the_peak_is_of_the_mean_over_seeds_and_the_loss_is_held_against_the_noise_of_the_rows():
    frame = study()
    found = peaks.points(series(frame))
    by_algo = {r.label: peaks.peak(r, found, "curve/true_reward") for r in find(frame).recipes}
    peaked, rising = by_algo["grpo"], by_algo["dpo"]
    assert peaked is not None and rising is not None
    assert (peaked.share, peaked.seeds) == (0.5, 3)
    assert peaked.value == pytest.approx(0.81) and peaked.last == pytest.approx(0.41)
    assert peaked.error == pytest.approx(math.sqrt(2 * 0.05**2 / 3))
    assert peaked.beyond_noise and peaked.lost == pytest.approx(0.4)
    assert rising.share == 1.0 and rising.lost == 0.0 and not rising.beyond_noise


def test_shares_that_a_seed_lacks_do_not_count_and_a_curve_without_an_end_is_none():
    frame = study()
    found = peaks.points(series(frame))
    first = found["run_id"] == "grpo0"
    recipe = next(r for r in find(frame).recipes if r.label == "grpo")
    without_half = pd.DataFrame(found[~(first & (found[peaks.SHARE] == 0.5))])
    one = peaks.peak(recipe, without_half, "curve/true_reward")
    assert one is not None and one.share == 0.75
    assert peaks.peak(recipe, pd.DataFrame(found[~(first & (found[peaks.SHARE] == 1.0))]), "curve/true_reward") is None


def test_the_law_is_of_the_change_since_the_base_of_the_same_seed():
    """Changes of the proxy by distance 1 to 4: 0.1, 0.2, 0.3, 0.4, so that alpha is 0.1 and beta 0, in every seed."""
    frame = study()
    found = peaks.points(series(frame))
    grpo = next(r for r in find(frame).recipes if r.label == "grpo")
    proxy = peaks.law(grpo, found, "curve/proxy_reward")
    assert isinstance(proxy, Law) and proxy.points == 12 and proxy.drawn == "seeds"
    assert (proxy.alpha.mean, proxy.beta.mean) == (pytest.approx(0.1), pytest.approx(0.0, abs=1e-12))
    true = peaks.law(grpo, found, "curve/true_reward")
    assert isinstance(true, Law) and true.beta.mean > 0.1, "which bends down"
    dpo = next(r for r in find(frame).recipes if r.label == "dpo")
    assert peaks.law(dpo, found, "curve/proxy_reward") is None
    few = pd.DataFrame(found[(found["run_id"] == "grpo0") & (found[peaks.SHARE] != 0.5)])
    assert "3 of 3 points" in str(peaks.law(grpo, few, "curve/true_reward"))


def test_the_report_says_where_each_recipe_peaked_and_has_no_such_section_without_a_curve():
    frame = study()
    standings = find(frame)
    points = peaks.points(series(frame))
    words = compose(Material("sweep study", standings, "here", points=points, plots=["quality_over_budget"]))
    assert "## Over training" in words and "![Quality over the share of the training budget]" in words
    assert "| grpo | 3 | 50% of the budget | 0.810 | 0.410 | **0.400** |" in words
    assert "| dpo | 3 | the end | 0.510 | 0.510 | – |" in words
    assert "### Over-optimization" in words and "| grpo | training | proxy reward | 0.100" in words
    without = compose(Material("sweep study", standings, "here"))
    empty = compose(Material("sweep study", standings, "here", points=points.head(0)))
    assert "Over training" not in without and empty == without


NS = (1, 2, 4, 8, 16)


def choices(frame: pd.DataFrame) -> pd.DataFrame:
    """Best-of-n under GRPO's reward: the proxy's change is d (1 - 0.1 d), the true one's d (0.5 - 0.25 d)."""
    found = []
    for run in frame.loc[frame["algo"] == "grpo", "run_id"]:
        for n in NS:
            kl = distance(n)
            d = kl**0.5
            told = {"kl_per_sequence": kl, "proxy_reward": 1 + d * (1 - 0.1 * d), "true_reward": d * (0.5 - 0.25 * d)}
            found += [(run, f"best_of/{name}", n, BEGAN, value) for name, value in told.items()]
    return pd.DataFrame(found, columns=list(results.SERIES_COLUMNS))


def test_best_of_n_has_its_law_beside_that_of_training():
    frame = study()
    found = pd.concat([series(frame), choices(frame)])
    points, chosen = peaks.points(found), peaks.chosen(found)
    assert len(chosen) == 3 * len(NS) and len(points) == 2 * 3 * 5, "neither is taken for the other"
    grpo, dpo = (next(r for r in find(frame).recipes if r.label == name) for name in ("grpo", "dpo"))
    proxy = peaks.law_of_choice(grpo, chosen, "curve/proxy_reward")
    true = peaks.law_of_choice(grpo, chosen, "curve/true_reward")
    assert isinstance(proxy, Law) and isinstance(true, Law) and true.form == "best_of_n" and true.points == 12
    assert (proxy.alpha.mean, proxy.beta.mean) == (pytest.approx(1), pytest.approx(0.1))
    assert (true.alpha.mean, true.beta.mean) == (pytest.approx(0.5), pytest.approx(0.25))
    assert true.explained == pytest.approx(1.0)
    assert peaks.law_of_choice(dpo, chosen, "curve/proxy_reward") is None
    words = compose(Material("sweep study", find(frame), "here", points=points, chosen=chosen))
    assert "| grpo | best of n | true reward | 0.500" in words and "log n − (n − 1) / n" in words
    assert "best of n" not in compose(Material("sweep study", find(frame), "here", points=points))


def test_a_law_that_explains_less_than_the_mean_says_so():
    """Changes that fall with the distance and rise at the end are no such law."""
    fitted = fit("rl", [Observed("s", kl, change) for kl, change in [(1, 5), (4, 0), (9, 0), (16, 5), (25, 0)]])
    assert isinstance(fitted, Law) and fitted.explained < 0.3


def test_proxy_and_true_reward_are_drawn_by_both_ways_and_not_without_a_proxy(tmp_path: Path):
    frame = study()
    found, standings = pd.concat([series(frame), choices(frame)]), find(frame)
    points, chosen = peaks.points(found), peaks.chosen(found)
    draw = overoptimization.rewards_over_distance
    assert draw(points, chosen, standings, tmp_path / "o.png")
    assert (tmp_path / "o.svg").read_text().count('id="axes_') == 4
    assert draw(points, chosen.head(0), standings, tmp_path / "t.png")
    assert (tmp_path / "t.svg").read_text().count('id="axes_') == 2
    nothing = points.drop(columns="curve/proxy_reward"), chosen.head(0)
    assert not draw(*nothing, standings, tmp_path / "n.png") and not (tmp_path / "n.png").exists()


def test_every_recipe_is_within_the_axes_however_far_the_first_one_went(tmp_path: Path, monkeypatch):
    frame = study()
    points = peaks.points(series(frame))
    points.loc[points["run_id"].str.startswith("dpo"), peaks.KL] *= 100
    reached = []
    monkeypatch.setattr(curves, "save", lambda drawn, _: reached.append(drawn.axes[0].get_xlim()) or True)
    assert curves.quality_over_drift(points, find(frame), tmp_path / "d.png")
    assert reached[0][0] <= 0 and reached[0][1] >= 40.0


def test_quality_is_drawn_over_the_budget_and_over_the_distance_and_not_without_points(tmp_path: Path):
    frame = study()
    points, found = peaks.points(series(frame)), find(frame)
    assert curves.quality_over_budget(points, found, tmp_path / "b.png")
    assert curves.quality_over_drift(points, found, tmp_path / "d.png")
    for name in ("b", "d"):
        assert (tmp_path / f"{name}.svg").read_text().count('id="axes_') == 2, "true reward and proxy reward"
    assert not curves.quality_over_budget(points.head(0), found, tmp_path / "n.png")
    assert not curves.quality_over_drift(points.drop(columns=peaks.KL), found, tmp_path / "n.png")
    assert not (tmp_path / "n.png").exists()
