"""What is merged is the policy, also where weights of the base are tied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from harness.models.merging import merged

SIZE: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
    "intermediate_size": 128, "initializer_range": 0.2,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning", "ignore:.*save_embedding_layers:UserWarning")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("targets", [["q_proj", "embed_tokens"], ["q_proj"]])
def test_an_adapter_on_an_embedding_does_not_change_the_head_it_is_tied_to(tmp_path: Path, tied: bool, targets: Any):
    torch.manual_seed(0)
    base: Any = AutoModelForCausalLM.from_config(LlamaConfig(**SIZE, tie_word_embeddings=tied))
    base.save_pretrained(tmp_path / "base")
    policy: Any = get_peft_model(base, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")).eval()
    for name, weight in policy.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.3)
    policy.save_pretrained(tmp_path / "adapter")
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        wanted = policy(input_ids=ids).logits
        fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        whole = merged(fresh, tmp_path / "adapter")
        assert torch.allclose(whole(input_ids=ids).logits, wanted, atol=1e-3)
        whole.save_pretrained(tmp_path / "whole")
        again: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
        assert torch.allclose(again(input_ids=ids).logits, wanted, atol=1e-3)
        assert again.config.tie_word_embeddings is (tied and "embed_tokens" not in targets)
