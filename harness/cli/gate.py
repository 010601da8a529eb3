"""``python -m harness gate``: fail the build where a sweep is worse than the baseline."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base.commandline import Parser
from harness.base.errors import UserError
from harness.base.formatting import count
from harness.config import identity, renamed
from harness.gate import baseline as store
from harness.gate.baseline import Baseline
from harness.gate.judge import judge, unfinished
from harness.gate.render import FORMATS
from harness.gate.rules import Rules, read_rules
from harness.report.leaderboard import succeeded
from harness.store import results

if TYPE_CHECKING:
    import pandas as pd

REGRESSION = 1


def main(argv: list[str]) -> int:
    """Judge the candidate, or write a baseline; returns the exit code.

    Raises:
        UserError: options, rules, baseline or candidate that cannot be used.
    """
    parser = Parser("gate", "Fail (exit code 1) where a sweep is worse than the baseline beyond noise and tolerance.")
    parser.add_argument(
        "--baseline", metavar="FILE|SWEEP", required=True, help="a JSON that --update wrote, or a sweep"
    )
    parser.add_argument("--candidate", metavar="SWEEP", help="the sweep under test; default: the latest")
    parser.add_argument(
        "--rules", metavar="NAME|FILE", help="conf/rules/NAME.yaml; default: the baseline's own, else 'default'"
    )
    parser.add_argument("--policy", help=argparse.SUPPRESS)  # what --rules was called
    parser.add_argument(
        "--despite", metavar="LIST", default="",
        help=f"judge although these differ, of {','.join(store.DIGESTS)}: for a change of the training data, say",
    )  # fmt: skip
    parser.add_argument("--format", metavar="LIST", default="text", help=f"of {','.join(FORMATS)}; default: text")
    parser.add_argument("--out", metavar="DIR", help="write every format there too, as a file of its own")
    parser.add_argument("--update", action="store_true", help="write the candidate's values as the baseline FILE")
    parser.add_argument("--reason", metavar="WHY", help="with --update: why the baseline changes")
    parser.add_store()
    options = parser.options(argv)
    if options is None:
        return 0
    formats = options.format.split(",")
    if unknown := [name for name in formats if name not in FORMATS]:
        raise UserError("unknown format", key="--format", value=",".join(unknown), fix=f"known: {', '.join(FORMATS)}")
    despite = [name for name in options.despite.split(",") if name]
    if unknown := [name for name in despite if name not in store.DIGESTS]:
        known = ", ".join(store.DIGESTS)
        raise UserError("unknown digest", key="--despite", value=",".join(unknown), fix=f"known: {known}")
    if options.update != bool((options.reason or "").strip()):
        raise UserError(
            "a baseline is not changed without a reason" if options.update else "belongs to --update",
            key="--reason",
            value=options.reason,
            fix="gate --update --baseline FILE --reason 'new reward model'",
        )
    if options.policy is not None:
        renamed.warn("--policy", "--rules")
        options.rules = options.rules or options.policy
    held_to = _baseline(options)
    options.rules = options.rules or (held_to.rules if held_to else "default")
    rules = read_rules(options.rules)
    frame = results.from_mlflow(options.tracking_uri, options.candidate, options.experiment)
    check_trained_here(frame, options.tracking_uri)
    if options.update:
        return _update(Path(options.baseline), options, frame, rules)
    before = held_to or results.from_mlflow(options.tracking_uri, options.baseline, options.experiment)
    if held_to is not None and _is_itself(frame, held_to, rules):
        words = f"the baseline holds the values of this very sweep ({held_to.sweep}), so the gate shows nothing"
        print(f"warning: {words}; name another with --candidate", file=sys.stderr)
    findings = judge(frame, before, rules, despite)
    of = f" (of {held_to.written}: {held_to.reason})" if held_to else ""
    title = f"sweep {frame['sweep'].iloc[0]} against {options.baseline}{of}, rules {options.rules}"
    for name in formats:
        file, form = FORMATS[name]
        words = form(findings, title)
        print(words, end="")
        if options.out:
            Path(options.out).mkdir(parents=True, exist_ok=True)
            (Path(options.out) / file).write_text(words, encoding="utf-8")
    return REGRESSION if any(f.fails for f in findings) else 0


def _is_itself(frame: pd.DataFrame, baseline: Baseline, rules: Rules) -> bool:
    """Whether a candidate is what its baseline was written from; a sweep of that name may have been run anew."""
    if set(frame["sweep"]) != {baseline.sweep}:
        return False
    own = store.records(frame, list(rules.metrics))
    return {n: r.metrics for n, r in own.items()} == {n: r.metrics for n, r in baseline.recipes.items()}


def check_trained_here(frame: pd.DataFrame, uri: str) -> None:
    """Every finished trial must have been trained and judged by this code, data and these versions: its keys prove it.

    Raises:
        UserError: naming the first that was not.
    """
    import yaml

    from harness.trial.assemble import assemble
    from harness.trial.checks import check_data
    from harness.trial.identify import identify

    for row in frame.to_dict("records"):
        if not succeeded(row["outcome"]):
            continue
        written = results.artifact_text(uri, row["run_id"], "config.yaml")
        if written is None:
            raise _elsewhere(row, "its config.yaml is not in the store")
        try:
            setup = assemble(yaml.safe_load(written))
            trial = identify(setup, check_data(setup), row["device"])  # it may have run on another machine
        except UserError as error:
            raise _elsewhere(row, str(error).splitlines()[0]) from None
        if trial.train_key != row["train_key"]:
            raise _elsewhere(row, "code, data or versions of training differ")
        if trial.eval_key != row["eval_key"]:
            raise _elsewhere(row, "code or versions of the evaluators differ")


def _elsewhere(row: Mapping[Any, Any], why: str) -> UserError:
    return UserError(
        f"{row['trial_id']} does not come from the code under test: {why}",
        key="--candidate",
        value=row["sweep"],
        fix="run the sweep again with this checkout (trials that are still valid are reused)",
    )


def _baseline(options: Any) -> Baseline | None:
    """From its file; None where a sweep is meant, or a file that is about to be written for the first time.

    A file that cannot be read is no reason not to write it anew.
    """
    path = Path(options.baseline)
    if path.suffix != ".json" and not path.exists():
        return None
    try:
        return store.read(path)
    except UserError:
        if options.update:
            return None
        raise


def _of_sweep(frame: pd.DataFrame, recipes: Mapping[str, store.Record], reason: str, options: Any) -> Baseline:
    name = str(frame["sweep"].iloc[0])
    environment = identity.environment()
    return Baseline(
        schema_version=store.SCHEMA_VERSION,
        reason=reason,
        written=datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
        sweep=name,
        command=results.sweep_command(options.tracking_uri, name, options.experiment),
        commit=", ".join(sorted({str(sha) for sha in frame["git_sha"]})),
        environment={k: environment[k] for k in ("python", "processor", "versions")},
        rules=options.rules,
        recipes=dict(recipes),
    )


def _update(path: Path, options: Any, frame: pd.DataFrame, rules: Rules) -> int:
    if path.suffix != ".json":
        raise UserError("must be a .json file", key="--baseline", value=str(path), fix="--baseline gate/baseline.json")
    if left := unfinished(frame):
        raise UserError(
            f"trials did not finish: {'; '.join(left.values())}", key="--candidate", value=str(frame["sweep"].iloc[0])
        )
    candidate = store.records(frame, list(rules.metrics))
    written = _of_sweep(frame, candidate, options.reason.strip(), options)
    store.write(path, written)
    seeds = min(len(r.seeds) for r in candidate.values())
    told = f"{path}: {count(len(candidate), 'recipe')}, {count(seeds, 'seed')}, rules {options.rules}"
    print(told + (SEEDS_WANTED if seeds < 20 else ""))
    return 0


SEEDS_WANTED = " (20 or more are better for a gate that is left on: docs/gate.md)"
