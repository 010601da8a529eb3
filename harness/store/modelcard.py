"""What lies beside a trained policy, for whoever takes it from here: what it is, what it scored, how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.base import formatting
from harness.base.records import TrialResult

FOLDERS = ("model", "merged")
"""Below ``artifacts/``: the policy as it was trained, and the adapter merged into its base."""
TOLD = ("true_reward", "correct", "preference_accuracy", "likelihood_accuracy", "win_rate", "kl_per_sequence")
MERGED = {
    "merged": "the base",
    "merged_dequantized": "the base that its quantized weights stand for",
    "merged_4bit": "the same, in 4 bits again",
    "merged_8bit": "the same, in 8 bits again",
}
"""What the evaluator ``merge`` calls the ways of merging, and what an adapter is merged into."""
KNOBS = ("learning_rate", "steps", "epochs", "batch_size", "micro_batch_size", "max_length", "scheduler", "optimizer")


def write_card(folder: Path, result: TrialResult) -> list[Path]:
    """Write the cards of a trial's folder; those of models that are there."""
    written = []
    for name in FOLDERS:
        model = folder / "artifacts" / name
        if model.is_dir():
            (model / "README.md").write_text(card(model, result), encoding="utf-8")
            written.append(model / "README.md")
    return written


def card(model: Path, result: TrialResult, *, about: str = "") -> str:
    """The card of one folder, with the front matter that the hub reads; ``about`` says how the folder came about."""
    config, metrics = result.config, result.metrics
    base, adapter = base_of(model, config), is_adapter(model)
    algo, kind = config["algo"]["name"], config["adapter"]["name"]
    front = ["---", f"library_name: {'peft' if adapter else 'transformers'}", "pipeline_tag: text-generation"]
    front += [f"base_model: {json.dumps(base)}"] if base else []
    front += ["tags:", f"- {algo}", *([f"- {kind}"] if adapter else []), "---"]
    train = config.get("train") or {}
    knobs = {k: train[k] for k in KNOBS if train.get(k) is not None}
    knobs |= {k: config[k] for k in ("beta", "rank", "seed") if config.get(k) is not None}
    rows = []
    for name in TOLD:
        after = metrics.get(f"eval/{name}")
        if after is not None:
            before = metrics.get(f"baseline/{name}")
            rows.append(
                [
                    f"`{name}`",
                    formatting.number(after),
                    formatting.number(before),
                    formatting.number(metrics.get(f"delta/{name}")),
                ]
            )
    peak, seconds = metrics.get("memory/peak_mb"), metrics.get("time/train_s")
    cost = [f"peak memory {formatting.whole(peak)} MB"] if peak is not None else []
    cost += [f"{formatting.seconds(seconds)} s of training"] if seconds is not None else []
    versions = (result.environment.get("versions") or {}) if isinstance(result.environment, Mapping) else {}
    lines = "\n".join(["```python", *how_to_load(model, beside=True), "```"]) if whole(model) else f"{BASELESS}."
    parts = [
        "\n".join(front),
        f"# {formatting.escape(result.trial_id)}",
        f"{formatting.escape(str(base or 'A base model'))}, aligned by {algo.upper()} ({kind}) on the task "
        f"`{config['task']['name']}`.",
        about,
        "## Load\n\n" + lines,
        VIRTUAL if _has_virtual_tokens(model) else "",
        "## Recipe\n\n"
        + formatting.table(
            ["knob", "value"], [[f"`{k}`", formatting.escape(str(v))] for k, v in knobs.items()], left=2
        ),
        f"Data: content digest `{result.digests.get('dataset', '–')}`.",
    ]
    if rows:
        parts.append("## Held-out results\n\n" + formatting.table(["metric", "after", "before", "Δ"], rows))
    parts.append(_cost_of_merging(metrics))
    parts.append("; ".join(cost) + "." if cost else "")
    used = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "transformers", "trl", "peft") if versions.get(name)
    )
    parts.append(f"Made with the alignment harness; {used}." if used else "Made with the alignment harness.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _cost_of_merging(metrics: Mapping[str, float]) -> str:
    """What the evaluator ``merge`` measured; empty where it did not."""
    rows = []
    for way, words in MERGED.items():
        kl = metrics.get(f"eval/{way}_kl_per_token")
        if kl is None:
            continue
        name = f"eval/{way}_preference_accuracy_change"
        change, low, high = (metrics.get(f"{name}{end}") for end in ("", "_low", "_high"))
        bounds = "" if low is None or high is None else f" [{formatting.number(low)}, {formatting.number(high)}]"
        speed, size = metrics.get(f"eval/{way}_tokens_per_s"), metrics.get(f"eval/{way}_mb")
        shown = f"{formatting.number(change, signed=True)}{bounds}"
        rows.append([words, f"{kl:.2g}", shown, formatting.number(size), formatting.whole(speed)])
    if not rows:
        return ""
    size, speed = (metrics.get(f"eval/{name}") for name in ("adapter_mb", "unmerged_tokens_per_s"))
    rows.append(["not merged", "0", formatting.number(0.0), formatting.number(size), formatting.whole(speed)])
    columns = ["merged into", "KL, nats per token", "Δ preference accuracy", "MB", "tokens/s"]
    return "## What merging costs\n\n" + formatting.table(columns, rows)


def way_to(trial: Path, note: str) -> str:
    """Lines that say where the policy of a trial's folder is, and how to load it; nothing where none was kept.

    ``note`` says which trial it is.
    """
    folders = (trial / "artifacts" / name for name in FOLDERS)
    if (model := next((p for p in folders if p.is_dir()), None)) is None:
        return ""
    head = f"\npolicy:  {model}   ({note}; README.md there says what it is)"
    lines = [line for line in how_to_load(model) if line] if whole(model) else [f"# {BASELESS}"]
    return "\n".join([head, *lines]) + "\n"


def how_to_load(model: Path, *, beside: bool = False) -> list[str]:
    """The lines of Python that load the model and its tokenizer from a folder; ``beside``: for a file in it."""
    where = "folder" if beside else json.dumps(str(model), ensure_ascii=False)
    kind = "AutoPeftModelForCausalLM" if is_adapter(model) else "AutoModelForCausalLM"
    first = [f"from peft import {kind}", "from transformers import AutoTokenizer"]
    if not is_adapter(model):
        first = [f"from transformers import {kind}, AutoTokenizer"]
    return [
        *first,
        "",
        *(['folder = "."  # the one that this file is in', ""] if beside else []),
        f"model = {kind}.from_pretrained({where})",
        f"tokenizer = AutoTokenizer.from_pretrained({where})",
    ]


BASELESS = "An adapter on random weights that were kept nowhere: there is no model to load"


VIRTUAL = """With peft 0.21 and transformers 5, `model.generate` does not see the learned tokens as training did: a
prefix not at all, a prompt at other positions. A forward pass does. What is said here was sampled as follows:

```python
from harness.models.virtual_tokens import seen_by_generate

with seen_by_generate(model):
    completion = model.generate(**tokenizer("...", return_tensors="pt"), max_new_tokens=64)
```"""


def _has_virtual_tokens(model: Path) -> bool:
    """Whether the folder's adapter puts learned tokens before the prompt."""
    return is_adapter(model) and "num_virtual_tokens" in json.loads((model / "adapter_config.json").read_text("utf-8"))


def whole(model: Path) -> bool:
    """Whether the folder can be loaded: an adapter of a shape has a base of random weights, which nobody keeps."""
    return not is_adapter(model) or _base_of_adapter(model) is not None


def is_adapter(model: Path) -> bool:
    """Whether the folder holds an adapter, which its base must be loaded with."""
    return (model / "adapter_config.json").is_file()


def base_of(model: Path, config: Mapping[str, Any]) -> str | None:
    """The base by its path or hub id: what the user named, else what the adapter is on."""
    named = (config.get("model") or {}).get("path")
    if named:
        return str(named)
    if not is_adapter(model):
        return None
    return _base_of_adapter(model)


def _base_of_adapter(model: Path) -> str | None:
    """What an adapter is on by its own file; None, which peft writes as a word, where that has no name."""
    name = json.loads((model / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    return None if name in (None, "", "None") else str(name)
