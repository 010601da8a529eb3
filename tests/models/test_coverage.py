"""What an adapter reaches of architectures as they ship, by their own classes at a toy's size."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from harness.models.adapters import LoRA
from harness.models.coverage import note

SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 100, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16}


def wrapped(kind: str, **more: Any) -> Any:
    config = AutoConfig.for_model(kind, **{**SIZES, **more})
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        return LoRA(rank=4).wrapped_empty(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {}),
        ("phi3", {}),  # fused projections
        ("gpt2", {"n_embd": 64, "n_head": 4, "n_layer": 2}),
        ("mixtral", {"num_local_experts": 4}),
        ("qwen3_moe", {"num_experts": 4, "moe_intermediate_size": 32, "head_dim": 16}),
        ("bamba", MAMBA),  # hybrid: its convolutions are left out
    ],
)
def test_where_all_is_reached_nothing_is_said(kind, more):
    assert note(wrapped(kind, **more)) is None


@pytest.mark.parametrize(
    ("kind", "more", "share", "names"),
    [
        (
            "gpt_oss",
            {"num_local_experts": 4, "head_dim": 16},
            "11.1%",
            ["mlp.experts.gate_up_proj", "mlp.experts.down"],
        ),
        (
            "granitemoehybrid",
            {**MAMBA, "num_local_experts": 4, "layer_types": ["mamba", "attention"]},
            "68.7%",
            ["block_sparse_moe.experts.gate_up_proj"],
        ),
        (
            "deepseek_v3",
            {"n_routed_experts": 4, "first_k_dense_replace": 1, "moe_intermediate_size": 32}
            | {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 2},
            "99.2%",
            ["mlp.shared_experts.gate_proj"],
        ),
    ],
)
def test_experts_that_peft_leaves_out_are_named_with_the_share_that_is_reached(kind, more, share, names):
    told = note(wrapped(kind, **more))
    assert told is not None and f"reaches {share}" in told and all(name in told for name in names)
    assert "target_parameters" in told and "embed_tokens" not in told and "lm_head" not in told


def test_another_roles_adapter_beside_the_policys_is_nothing_that_was_missed():
    policy = wrapped("llama")
    with torch.device("meta"):
        policy.add_adapter("critic", LoRA(rank=4).peft_config())
    policy.set_adapter("default")
    assert note(policy) is None
