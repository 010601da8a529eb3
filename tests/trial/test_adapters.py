"""Whole trials under adapters beyond LoRA: judged as they were trained, by scores that can be had another way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftModel
from pyarrow import parquet

from harness.trial.assemble import assemble
from tests.inside import plain_config, tell
from tests.toys import build_model, conversational_rows, write_jsonl

LOHA = "adapter.config={peft_type:LOHA,r:4,target_modules:[q_proj,v_proj]}"
KINDS = {
    "dora": (), "rslora": (), "pissa": (), "ia3": (), "prompt": ("adapter.virtual_tokens=4",),
    "prefix": ("adapter.virtual_tokens=4",), "peft": (LOHA,),
}  # fmt: skip


@pytest.mark.parametrize("adapter", KINDS)
def test_a_trial_under_an_adapter_is_judged_by_what_it_saved(tmp_path, adapter):
    base = build_model(tmp_path / "base", "llama")
    data = write_jsonl(tmp_path / "prefs.jsonl", conversational_rows(40))
    line = (
        "algo=dpo", f"adapter={adapter}", *KINDS[adapter], "model=hf", f"model.path={base}", "task=preferences",
        f"task.path={data}", "train.steps=2", "train.learning_rate=0.01", "train.batch_size=8",
        "train.micro_batch_size=8", "train.gradient_checkpointing=false", "~eval.evaluators.lm_eval",
    )  # fmt: skip
    told = tell(tmp_path / "t", tmp_path / "cache", *line, sizes=())
    assert told.metrics["eval/preference_accuracy"] >= 0 and told.metrics["params/trainable"] > 0
    folder = tmp_path / "t" / "artifacts"
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "model")
    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder / "model")).eval()
    ratio = parquet.read_table(folder / "examples" / "eval_pairs.parquet").to_pydict()["chosen_logratio"][0]
    setup = assemble(plain_config(*line, sizes=()))
    pair = setup.task.load().eval_pairs[setup.eval.split][0]
    prompt = tokenizer.apply_chat_template(pair["prompt"], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*pair["prompt"], *pair["chosen"]], tokenize=False)
    before = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    ids = torch.tensor([tokenizer(whole, add_special_tokens=False)["input_ids"]])

    def said(model: Any) -> float:
        with torch.no_grad():
            found = model(input_ids=ids).logits[:, -ids.shape[1] :].log_softmax(-1)[0, :-1]
        return found.gather(1, ids[0, 1:, None])[before - 1 :, 0].sum().item()

    with policy.disable_adapter():
        off = said(policy)
    assert said(policy) - off == pytest.approx(ratio, abs=2e-3)
