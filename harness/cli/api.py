"""The harness from Python: run a sweep, read what was tracked, predict, report and judge.

    import harness

    trials = harness.run("algo=dpo,grpo", "seed=0,1,2", "sweep=monday")   # as ``python -m harness -m ...``
    print(trials[["trial_id", "outcome", "eval/true_reward", "memory/peak_mb"]])
    harness.write_report("monday")

Every function raises ``harness.UserError`` where its input is wrong. Scripts need no ``if __name__ == "__main__"``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from harness.gate.decide import Finding


def run(*overrides: str, config_dir: str | Path | None = None) -> pd.DataFrame:
    """Run a sweep, as ``python -m harness -m OVERRIDES`` does, from the main thread; returns when all trials ended.

    Args:
        overrides: such as ``"algo=dpo,grpo"``; a comma makes a choice. ``"sweep=monday"`` names the sweep.
        config_dir: a folder with YAML of your own.

    Returns:
        a row per trial, as ``runs`` gives them; those that did not finish have their ``outcome`` and ``reason``.
    """
    from harness.cli.launch import swept
    from harness.store import results

    flags = [word for folder in _folders(config_dir) for word in ("--config-dir", folder)]
    return results.from_folder(swept(["-m", *flags, *overrides])[1].folder)


def runs(sweep: str | None = None, *, store: str | None = None, experiment: str | None = None) -> pd.DataFrame:
    """What MLflow has of a sweep: a row per trial, with parameters, metrics and tags as columns.

    Args:
        sweep: its name; None is the latest.
        store: MLflow's URI; None is ``mlflow.db`` in the working directory.
        experiment: MLflow's; None is the usual one.
    """
    from harness.store import results

    where = _tracking(store)
    return results.from_mlflow(where.resolved_uri, sweep, experiment or where.experiment)


def write_report(
    sweep: str | None = None,
    *,
    out: str | Path | None = None,
    store: str | None = None,
    formats: Sequence[str] = ("md",),
) -> Path:
    """Write a sweep's report and its plots; returns the path of ``report.md``.

    Args:
        sweep: its name; None is the latest.
        out: the folder to write to; None is ``reports/<sweep>``.
        store: as in ``runs``.
        formats: of ``md``, ``html``, ``csv``, ``parquet``.
    """
    from harness.report.gather import write_report as written
    from harness.report.sources import Stored

    where = _tracking(store)
    return written(Stored(where.resolved_uri, sweep, where.experiment), out, formats).path


def judge(
    candidate: pd.DataFrame,
    baseline: pd.DataFrame | str | Path,
    rules: str = "ci",
    despite: Sequence[str] = (),
    *,
    policy: str | None = None,
) -> list[Finding]:
    """Hold trials against a baseline, as ``python -m harness gate`` does.

    Args:
        candidate: trials, as ``run`` and ``runs`` give them.
        baseline: other trials, or the file that ``gate --update`` wrote.
        rules: what may get worse: a name or a YAML file.
        despite: digests that may differ, such as ``dataset``.
        policy: what ``rules`` was called; for one release.

    Returns:
        what was found; one that ``fails`` fails a build.
    """
    from harness.gate import baseline as kept
    from harness.gate.judge import judge as decide
    from harness.gate.rules import read_rules

    if policy is not None:
        from harness.config import renamed

        renamed.warn("judge(policy=...)", "judge(rules=...)")
        rules = policy
    before: Any = kept.read(Path(baseline)) if isinstance(baseline, str | Path) else baseline
    return decide(candidate, before, read_rules(rules), despite)


def predict(*overrides: str, gpu: str | None = None, config_dir: str | Path | None = None) -> pd.DataFrame:
    """Predicted peak memory of every trial of a sweep, as ``python -m harness plan -m OVERRIDES``; needs no GPU.

    Args:
        overrides: as for ``run``.
        gpu: a name (``h100``) or a size (``24GB``) to fit into; None is the one present.
        config_dir: as for ``run``.

    Returns:
        a row per trial: ``trial``, ``peak_gb``, ``phase`` (that sets the peak), ``fits`` (None without a GPU),
        ``problem`` (why there is no prediction).
    """
    import pandas as pd

    from harness.cli.plan import plan

    _, rows, device, _ = plan(overrides, gpu, _folders(config_dir))
    table = []
    for row in rows:
        found = row.prediction
        table.append(
            {
                "trial": row.label,
                "peak_gb": None if found is None else found.peak / 1e9,
                "phase": None if found is None else found.phase,
                "fits": None if found is None or device is None else device.fits(found.peak),
                "problem": row.problem or None,
            }
        )
    return pd.DataFrame(table)


def _folders(config_dir: str | Path | None) -> list[str]:
    return [] if config_dir is None else [str(config_dir)]


def _tracking(store: str | None) -> Any:
    from harness.store.mlflow_store import Tracking

    return Tracking() if store is None else Tracking(uri=store)


__all__ = ["UserError", "judge", "predict", "run", "runs", "write_report"]
