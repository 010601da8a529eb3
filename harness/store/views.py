"""A view of a sweep in MLflow's UI: its trials, with the columns and charts that decide, behind a link.

MLflow keeps a view that somebody shares as a tag of the experiment; a link names the tag. Seen to work in 3.17.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from harness.base.errors import without_login
from harness.store.mlflow_store import SweepRun, Tracking, client, quoted

TAG = "mlflow.sharedViewState."
PARAMETERS = ("algo.name", "adapter.name", "beta", "rank", "seed")
METRICS = (
    "eval/true_reward", "eval/preference_accuracy", "delta/true_reward", "memory/peak_mb", "memory/predicted_peak_mb",
    "time/train_s",
)  # fmt: skip
SERIES = ("train/loss", "train/reward", "train/kl", "train/rewards/accuracies", "system/system_memory_usage_megabytes")
LINE = {
    "lineSmoothness": 0, "xAxisKey": "step", "xAxisScaleType": "linear", "scaleType": "linear", "range": {},
    "selectedXAxisMetricKey": "", "yAxisKey": "metric", "yAxisExpressions": [], "ignoreOutliers": False,
    "useGlobalXaxisKey": True, "useGlobalLineSmoothing": True,
}  # fmt: skip
"""What MLflow's UI keeps of a line chart, at its defaults."""
SHOWN = 30
"""Runs of a chart."""
WIDTHS = {"params": 76, "metrics": 112}
"""Of columns, in pixels."""


def share(api: Any, sweep: SweepRun, name: str, ranked_by: str | None = None) -> str:
    """Write the view of a sweep; returns the part of the link after the server's address. Safe to repeat.

    Args:
        api: MLflow's client.
        sweep: where its runs hang.
        name: of the sweep.
        ranked_by: the metric that ranks; None is true reward.
    """
    metric = ranked_by or METRICS[0]
    shown = [*(("params", p) for p in PARAMETERS), ("metrics", metric), *(("metrics", m) for m in METRICS)]
    columns = [column(*one) for one in dict.fromkeys(shown)]
    state = {
        "searchFilter": f"tags.sweep = {quoted(name)} and tags.kind = 'trial'",
        "orderByKey": column("metrics", metric),
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {one: WIDTHS[one.partition(".")[0]] for one in columns},
        **charts(metric),
        "runsExpanded": {sweep.parent_id: True},
        "runsPinned": [],
        "runsHidden": [],
        "runsHiddenMode": "FIRST_10_RUNS",
        "groupBy": None,
        "groupsExpanded": {},
    }
    key = hashlib.sha256(name.encode()).hexdigest()[:12]
    api.set_experiment_tag(sweep.experiment_id, TAG + key, json.dumps(state))
    return f"/#/experiments/{sweep.experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={key}"


def charts(metric: str) -> dict[str, Any]:
    """Charts of the view: bars of what decides, quality over memory, and the first series."""
    sections = {name: _id(name) for name in ("What decides", "While it trained")}
    first, second = sections.values()
    bars = [_card("BAR", first, name, metricKey=name) for name in dict.fromkeys((metric, *METRICS))]
    axes = {axis: {"key": name, "type": "METRIC"} for axis, name in (("xaxis", "memory/peak_mb"), ("yaxis", metric))}
    plane = _card("SCATTER", first, f"{metric} over memory/peak_mb", **axes)
    lines = [_card("LINE", second, name, metricKey=name, selectedMetricKeys=[name], **LINE) for name in SERIES]
    return {
        "compareRunCharts": [plane, *bars, *lines],
        "compareRunSections": [
            {"uuid": key, "name": name, "display": True, "isReordered": False, "deleted": False, "isGenerated": False}
            for name, key in sections.items()
        ],
        "isAccordionReordered": True,  # else sections stand by the alphabet
        "hideEmptyCharts": True,
    }


def _card(kind: str, section: str, title: str, **fields: Any) -> dict[str, Any]:
    return {
        "uuid": _id(kind + title),
        "type": kind,
        "metricSectionId": section,
        "displayName": title,
        "runsCountToCompare": SHOWN,
        "deleted": False,
        "isGenerated": False,
        **fields,
    }


def _id(words: str) -> str:
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def column(kind: str, name: str) -> str:
    """A column as MLflow's UI names it."""
    return f"{kind}.`{name}`"


def link_to(run: SweepRun, name: str, address: str = "http://127.0.0.1:5000") -> str:
    """The address at which MLflow's UI shows the trials of a sweep; its first page where the store takes no view."""
    try:
        return (run.uri.rstrip("/") if run.uri.startswith("http") else address) + share(client(run.uri), run, name)
    except Exception:  # of the store: the link is a convenience
        return address


def ui_command(tracking: Tracking) -> str:
    """The line that opens the MLflow UI on the store in use."""
    default = Tracking().uri
    return "mlflow ui" if tracking.uri == default else f"mlflow ui --backend-store-uri {without_login(tracking.uri)}"
