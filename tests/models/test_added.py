"""A LoRA policy is sampled with sums for weights: the same policy, and a base that comes back to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from harness.models import added as module
from harness.models.added import added
from harness.models.draws import drawing, uniforms

TOKENS = 6
IDS = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 8], [9, 10, 11, 12]])


def policy(kind: str = "llama", seed: int = 0, **options: Any) -> Any:
    """A model whose adapter is no longer zero."""
    torch.manual_seed(seed)
    if kind == "llama":
        sizes: Any = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        base: Any = LlamaForCausalLM(LlamaConfig(vocab_size=40, initializer_range=0.3, eos_token_id=None, **sizes))
    else:
        base = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=2, eos_token_id=None))
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    settings |= {"fan_in_fan_out": kind == "gpt2"} | options
    model = get_peft_model(base, LoraConfig(**settings)).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def sampled(model: Any) -> torch.Tensor:
    how = model.generation_config
    how.max_new_tokens, how.pad_token_id, how.do_sample = TOKENS, 0, True
    with torch.no_grad(), drawing(model, uniforms(3, range(3), TOKENS), 1.0, chunk=2):
        return model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), generation_config=how)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])  # gpt2's weights lie the other way round
def test_it_is_the_same_policy_and_no_adapter_is_computed(kind):
    model = policy(kind)
    calls: list[int] = []
    for name, part in model.named_modules():
        if name.endswith(("lora_A.default", "lora_B.default")):
            part.register_forward_hook(lambda *_: calls.append(1))
    plain, rows = logits(model), sampled(model)
    with model.disable_adapter():
        assert (plain - logits(model)).abs().max() > 0.1  # or nothing would be shown
    calls.clear()
    with added(model) as layers:
        assert layers == sum(hasattr(part, "lora_A") for part in model.modules()) > 0
        assert torch.allclose(logits(model), plain, atol=1e-4)
        assert torch.equal(sampled(model), rows)
    assert not calls


def test_afterwards_weights_are_the_same_ones_and_the_adapter_learns():
    model = policy()
    before = {name: (parameter, parameter.detach().clone()) for name, parameter in model.named_parameters()}
    plain = logits(model)
    with pytest.raises(KeyError), added(model):
        assert any(parameter is not before[name][0] for name, parameter in model.named_parameters())
        raise KeyError
    for name, parameter in model.named_parameters():
        assert parameter is before[name][0] and torch.equal(parameter, before[name][1])
    assert torch.equal(logits(model), plain)
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "lora_" in n)


def test_a_layer_that_is_tied_to_an_adapted_one_keeps_its_weights():
    model = policy(target_modules=["q_proj", "lm_head"])
    base = model.get_base_model()
    base.model.embed_tokens.weight = base.lm_head.base_layer.weight
    tied = base.model.embed_tokens.weight.detach().clone()
    plain = logits(model)
    with added(model):
        assert torch.equal(base.model.embed_tokens.weight, tied)
        assert torch.allclose(logits(model), plain, atol=1e-4)


def as_dora(model: Any) -> Any:
    return policy(use_dora=True)


def as_half(model: Any) -> Any:
    return model.to(torch.bfloat16)


def as_base_in_half(model: Any) -> Any:
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    return model


def as_dropout(model: Any) -> Any:
    return policy(lora_dropout=0.5).train()


def as_plain(model: Any) -> Any:
    return model.unload()


def as_biased(model: Any) -> Any:
    return policy("gpt2", lora_bias=True)


def as_disabled(model: Any) -> Any:
    model.base_model.disable_adapter_layers()
    return model


def as_gated(model: Any) -> Any:
    """As X-LoRA has it: a forward pass of the layer's own object."""
    for part in model.modules():
        if hasattr(part, "lora_A"):
            part.forward = part.forward
    return model


@pytest.mark.parametrize(
    "other", [as_gated, as_dora, as_half, as_base_in_half, as_dropout, as_plain, as_biased, as_disabled]
)
def test_what_is_no_sum_in_32_bits_is_left_alone(other):
    model = other(policy())
    weights = {name: parameter for name, parameter in model.named_parameters()}
    with added(model) as layers:
        assert layers == 0
        assert all(parameter is weights[name] for name, parameter in model.named_parameters())


def test_autocast_and_a_large_model_are_left_alone(monkeypatch):
    model = policy()
    with torch.autocast("cpu", torch.bfloat16), added(model) as layers:
        assert layers == 0
    with added(model) as all_of_them:
        pass
    there = sum(part.base_layer.weight.numel() * 4 for part in model.modules() if hasattr(part, "lora_A"))
    for most, layers, found in (
        (there, None, all_of_them), (there - 1, None, 0), (there, 2, all_of_them), (there, 3, 0),
        (2 * there, 4, all_of_them),
    ):  # fmt: skip
        monkeypatch.setattr(module, "MOST", most)
        with added(model, layers=layers) as made:  # a part of the whole decides as the whole does
            assert made == found
    with added(object()) as made:  # somebody else's, which has no parts
        assert made == 0


def test_two_adapters_are_both_in_the_sum():
    model = policy()
    model.add_adapter("second", model.peft_config["default"])
    for name, parameter in model.named_parameters():
        if ".second." in name:
            torch.nn.init.normal_(parameter, std=0.3)
    one = logits(model)
    model.base_model.set_adapter(["default", "second"])
    both = logits(model)
    assert (one - both).abs().max() > 0.1
    with added(model):
        assert torch.allclose(logits(model), both, atol=1e-4)
