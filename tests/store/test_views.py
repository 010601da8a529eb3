"""The link to a sweep's trials in MLflow's UI."""

from __future__ import annotations

import json

from harness.store.mlflow_store import Tracking, client, open_sweep
from harness.store.views import TAG, share


def test_the_view_of_a_sweep_is_a_tag_that_its_link_names(tmp_path):
    run = open_sweep(Tracking(uri=f"sqlite:///{tmp_path}/m.db"), "it's mine")
    api = client(run.uri)
    link = share(api, run, "it's mine")
    assert link == share(api, run, "it's mine")
    place, _, key = link.partition("?workflowType=machine_learning&viewStateShareKey=")
    assert place == f"/#/experiments/{run.experiment_id}/runs"
    state = json.loads(api.get_experiment(run.experiment_id).tags[TAG + key])
    assert state["searchFilter"] == "tags.sweep = \"it's mine\" and tags.kind = 'trial'"
    assert (
        state["selectedColumns"][0] == "params.`algo.name`" and "metrics.`memory/peak_mb`" in state["selectedColumns"]
    )
    assert state["orderByKey"] == "metrics.`eval/true_reward`"
    assert state["columnOrder"] == state["selectedColumns"]
    sections = {s["uuid"] for s in state["compareRunSections"]}
    cards = state["compareRunCharts"]
    assert len({c["uuid"] for c in cards}) == len(cards) and {c["metricSectionId"] for c in cards} == sections
    assert {"eval/true_reward", "train/loss"} <= {c["displayName"] for c in cards}
    assert [r.info.run_id for r in api.search_runs([run.experiment_id], state["searchFilter"])] == []
