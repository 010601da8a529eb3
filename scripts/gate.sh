#!/usr/bin/env bash
# What CI runs: train the small sweep, hold it against the committed baseline, write the report. Exit code: the gate's,
# to which a trial that did not finish is missing.
#
#   bash scripts/gate.sh                  # overrides of the sweep may follow
#   PYTHON=.venv/bin/python SWEEP=ci BASELINE=experiments/ci/baseline.json bash scripts/gate.sh
set -euo pipefail
PYTHON=${PYTHON:-python}
SWEEP=${SWEEP:-ci}
BASELINE=${BASELINE:-experiments/ci/baseline.json}
OUT=${OUT:-reports/$SWEEP}

"$PYTHON" -m harness -m experiment=ci "sweep=$SWEEP" "$@" || {
    code=$?
    [ "$code" -eq 1 ] || exit "$code" # 1: a trial did not finish, and the report says which
}
"$PYTHON" -m harness report --sweep "$SWEEP" --out "$OUT" --format md,html,csv

status=0
"$PYTHON" -m harness gate --baseline "$BASELINE" --candidate "$SWEEP" \
    --format text,markdown,junit --out "$OUT" >"$OUT/gate.log" || status=$?
if [ "$status" -eq 2 ]; then
    exit 2 # the message is on standard error
fi
cat "$OUT/gate.txt"
if [ -n "${GITHUB_STEP_SUMMARY:-}" ]; then
    { cat "$OUT/gate.md"; grep -v '^!\[' "$OUT/report.md"; } >>"$GITHUB_STEP_SUMMARY" # a summary shows no files beside it
    "$PYTHON" -m harness gate --baseline "$BASELINE" --candidate "$SWEEP" --format github || true
fi
exit "$status"
