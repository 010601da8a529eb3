"""Rows that begin alike, read once: the same numbers as apart, on architectures as transformers has them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)
from transformers.integrations.flex_attention import WrappedFlexAttention

from harness.algorithms.trainers import without_dropout
from harness.base.errors import UserError
from harness.models import prefixes
from harness.models.classifier import head_name, with_score
from harness.models.prefixes import Prefixes, laid_out

SIZE: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 200}
LIKE_LLAMA = SIZE | {"intermediate_size": 128, "num_key_value_heads": 2, "max_position_embeddings": 256}
WINDOW = 16
MODELS = {
    "llama": LlamaConfig(**LIKE_LLAMA),
    "qwen2": Qwen2Config(**LIKE_LLAMA),
    "qwen2-window": Qwen2Config(**LIKE_LLAMA, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen3": Qwen3Config(**LIKE_LLAMA, head_dim=16),
    "mistral": MistralConfig(**LIKE_LLAMA, sliding_window=WINDOW),
    "mixtral": MixtralConfig(**LIKE_LLAMA, sliding_window=None, num_local_experts=4),
    "gemma2": Gemma2Config(**LIKE_LLAMA, head_dim=16, sliding_window=WINDOW),
    "gemma3": Gemma3TextConfig(**LIKE_LLAMA, head_dim=16, sliding_window=WINDOW, sliding_window_pattern=2),
    "gemma4": Gemma4TextConfig(
        **LIKE_LLAMA,
        head_dim=16,
        global_head_dim=32,  # layers differ
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=200,
    ),
    "phi3": Phi3Config(**LIKE_LLAMA, sliding_window=WINDOW, pad_token_id=0),
    "gpt2": GPT2Config(n_embd=64, n_layer=3, n_head=4, vocab_size=200, n_positions=256),
    "neox": GPTNeoXConfig(**SIZE, intermediate_size=128, max_position_embeddings=256),
    "falcon": FalconConfig(**SIZE),
    "opt": OPTConfig(**SIZE, ffn_dim=128, max_position_embeddings=256, word_embed_proj_dim=64),
}
WINDOWED = ("qwen2-window", "mistral", "gemma2", "gemma3", "gemma4", "phi3")


def model_of(config: Any, attention: str) -> Any:
    torch.manual_seed(0)
    config = copy.deepcopy(config)
    config.initializer_range = 0.2  # attention that matters: a wrong mask is then far off
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    without_dropout(model)
    return model.train()


def batch(*, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Three prompts of 15 to 40 tokens with four completions each."""
    draw = torch.Generator().manual_seed(1)

    def ids(low: int, high: int) -> list[int]:
        return torch.randint(3, 200, (int(torch.randint(low, high, (1,), generator=draw)),), generator=draw).tolist()

    rows = [prompt + ids(3, 25) for prompt in (ids(15, 40) for _ in range(3)) for _ in range(4)]
    width = max(map(len, rows))
    pads = [[0] * (width - len(row)) for row in rows]
    padded = [pad + row if left else row + pad for row, pad in zip(rows, pads, strict=True)]
    marks = [
        [0] * len(p) + [1] * len(r) if left else [1] * len(r) + [0] * len(p) for r, p in zip(rows, pads, strict=True)
    ]
    return torch.tensor(padded), torch.tensor(marks)


def said(model: Any, ids: torch.Tensor, mask: torch.Tensor, **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the tokens, and the gradient of their sum."""
    model.zero_grad()
    hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False, **more).last_hidden_state
    logits = model.get_output_embeddings()(hidden).log_softmax(-1)[:, :-1]
    found = logits.gather(2, ids[:, 1:, None])[..., 0] * (mask[:, 1:] * mask[:, :-1])
    found.sum().backward()
    return found.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_log_probabilities_and_gradients_are_those_of_rows_read_apart(name, attention):
    if name == "gemma2" and attention == "sdpa":
        pytest.skip("transformers has eager attention alone for it")
    model = model_of(MODELS[name], attention)
    ids, mask = batch()
    plain, slope = said(model, ids, mask)
    found = Prefixes(model.base_model)
    together, other = said(model, ids, mask)
    assert 0 < found.computed < 0.6 * found.given
    assert torch.allclose(plain, together, atol=1e-4)
    assert (slope - other).norm() <= 1e-3 * slope.norm()


@pytest.mark.parametrize("each_token", [False, True], ids=["sequences", "tokens"])
@pytest.mark.parametrize("name", MODELS)
def test_scores_of_classifiers_and_their_gradients_are_those_of_rows_read_apart(name, each_token):
    """Transformers' classifiers hand their tokens to the body by place, and not by name."""
    causal = model_of(MODELS[name], "eager")
    causal.config.pad_token_id = 0
    try:
        shell = with_score(causal, each_token=each_token).train()
    except UserError:
        pytest.skip("transformers has no such classifier")
    without_dropout(shell)
    torch.nn.init.normal_(getattr(shell, head_name(shell)).weight)
    ids, mask = batch()

    def scored() -> tuple[torch.Tensor, torch.Tensor]:
        shell.zero_grad()
        logits = shell(input_ids=ids, attention_mask=mask, use_cache=False).logits[..., 0]
        found = logits * mask if each_token else logits
        found.sum().backward()
        return found.detach(), torch.cat([p.grad.flatten() for p in shell.parameters() if p.grad is not None])

    plain, slope = scored()
    found = Prefixes(causal.base_model)
    together, other = scored()
    assert 0 < found.computed < 0.6 * found.given
    assert torch.allclose(plain, together, atol=1e-3, rtol=1e-4) and (slope - other).norm() <= 1e-3 * slope.norm()


@pytest.mark.parametrize("name", WINDOWED)
def test_layers_that_look_at_a_window_need_a_mask_of_their_own(name, monkeypatch):
    """Else the test above would show nothing of it."""
    model = model_of(MODELS[name], "eager")
    ids, mask = batch()
    plain, _ = said(model, ids, mask)
    Prefixes(model.base_model)
    real = prefixes.masks
    monkeypatch.setattr(prefixes, "masks", lambda *a, **k: real(*a, **{**k, "window": None}))
    assert (said(model, ids, mask)[0] - plain).abs().max() > 1e-2


def test_padding_on_the_left_is_no_beginning():
    model = model_of(MODELS["llama"], "sdpa")
    ids, mask = batch(left=True)
    plain, slope = said(model, ids, mask)
    found = Prefixes(model.base_model)
    together, other = said(model, ids, mask)
    assert found.computed < 0.6 * found.given
    assert torch.allclose(plain, together, atol=1e-4) and (slope - other).norm() <= 1e-3 * slope.norm()


def test_what_is_no_plain_batch_is_left_alone():
    model = model_of(MODELS["llama"], "sdpa").eval()
    found = Prefixes(model.base_model)
    ids, mask = batch()
    body = model.base_model
    body(input_ids=ids, attention_mask=mask, use_cache=True)
    body(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
    body(input_ids=ids[:1], attention_mask=mask[:1], use_cache=False)
    body(inputs_embeds=model.get_input_embeddings()(ids), attention_mask=mask, use_cache=False)
    model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=2)
    assert found.computed == 0
    with prefixes.apart(model):
        body(input_ids=ids, attention_mask=mask, use_cache=False)
    assert found.computed == 0 and found.on
    prefixes.stop(model)
    body(input_ids=ids, attention_mask=mask, use_cache=False)
    assert found.computed == 0


def test_a_copy_of_the_body_has_hooks_of_its_own():
    model = model_of(MODELS["llama"], "sdpa")
    found = Prefixes(model.base_model)
    other = copy.deepcopy(model)
    ids, mask = batch()
    said(other, ids, mask)
    own = prefixes.of(other)
    assert own is not None and own is not found and own.computed and not found.computed


# -- the layout ----------------------------------------------------------------------------------------


def rows(*texts: str) -> list[np.ndarray]:
    return [np.array([ord(c) for c in text]) for text in texts]


def test_each_row_is_found_again_in_its_order():
    given = rows("the prompt: a", "another: xyz", "the prompt: bcd", "another: ", "the prompt: a", "alone")
    layout = laid_out(given, square=0.0)
    assert layout is not None
    for row, source in zip(given, layout.source, strict=True):
        assert layout.ids.flatten()[source].tolist() == row.tolist()
        assert layout.positions.flatten()[source].tolist() == list(range(len(row)))
    assert layout.ids.size < 0.6 * sum(map(len, given))


def test_rows_that_share_nothing_are_packed_where_padding_is_much_and_left_alone_where_it_is_little():
    long, short = "abcdefghijklmnopqrstuvwxyz", ("0", "1", "2", "3", "4", "5")
    layout = laid_out(rows(long, *short), square=0.0)
    assert layout is not None and layout.ids.shape == (1, 32)
    assert laid_out(rows("abc", "def", "ghi"), square=0.0) is None
    assert laid_out(rows("abc"), square=0.0) is None and laid_out([], square=0.0) is None


def test_rows_of_like_length_are_put_side_by_side_in_longer_ones_and_not_where_attention_is_dear():
    lengths = (131, 139, 141, 156, 160, 161, 181, 200)
    given = rows(*(chr(97 + i) * n for i, n in enumerate(lengths)))
    layout = laid_out(given, square=3e-4)  # a model of 135 M
    assert layout is not None and layout.ids.size < 0.9 * 8 * 200 and layout.ids.shape[1] <= 2 * 200
    assert sum((layout.group == k).any(1).sum() for k in range(8)) == 8, "nobody is torn apart"
    assert laid_out(given, square=1e-2) is None
    assert laid_out(given, square=3e-4, room=200) is None


def test_padding_that_came_with_the_rows_is_a_reason_to_lay_them_out():
    given = rows("abcdefgh", "ijklmnop")
    assert laid_out(given, square=0.0) is None
    layout = laid_out(given, square=0.0, width=12)  # prompts padded on their left, completions on their right
    assert layout is not None and layout.ids.size == 16


def test_no_row_is_laid_out_beyond_the_room_that_there_is():
    given = rows(*("p" * 30 + c * 10 for c in "abcdefgh"))
    layout = laid_out(given, square=0.0, room=64)
    assert layout is not None and layout.ids.shape[1] <= 64 and len(layout.ids) > 1
    whole = laid_out(given, square=0.0)
    assert whole is not None and whole.ids.shape == (1, 110)


def test_long_completions_are_not_put_into_one_row_where_attention_would_cost_more_than_it_saves():
    long = rows(*("p" + c * 400 for c in "abcdefgh"))
    assert laid_out(long, square=0.01) is None
    shared = rows(*("p" * 400 + c for c in "abcdefgh"))
    assert laid_out(shared, square=0.01) is not None


def test_a_layer_that_looks_at_a_window_by_another_name_is_found_out_at_its_length():
    """GPT-Neo's local layers mask by the place in the row, which a laid-out row changes."""
    size = {"hidden_size": 64, "num_heads": 4, "vocab_size": 200, "max_position_embeddings": 512}
    config = GPTNeoConfig(**size, num_layers=2, attention_types=[[["global", "local"], 1]], window_size=40)
    model = model_of(config, "eager")
    found = Prefixes(model.base_model)
    assert found.near(500) == 40 and found.near(30) == 0
    assert not prefixes.agrees(model, found, longest=500, device="cpu", precision="fp32")
    assert not found.on and found.why


@pytest.mark.parametrize("name", ["gpt-neo", "mistral"])
def test_in_bf16_too_a_window_over_places_of_the_row_is_told_from_one_over_positions(name):
    """Completions that stand behind one as long as the window lose their whole prompt to a window over places."""
    size = {"hidden_size": 64, "num_heads": 4, "vocab_size": 200, "max_position_embeddings": 512}
    neo = GPTNeoConfig(**size, num_layers=2, attention_types=[[["local"], 2]], window_size=100)
    windowed = MistralConfig(**LIKE_LLAMA, sliding_window=100)
    model = model_of(neo if name == "gpt-neo" else windowed, "eager")
    found = Prefixes(model.base_model)
    alike = prefixes.agrees(model, found, longest=500, device="cpu", precision="bf16")
    assert alike is (name == "mistral"), found.why


# -- whether to -----------------------------------------------------------------------------------------


def test_it_is_off_and_says_why_where_the_numbers_would_be_others(monkeypatch):
    model = model_of(MODELS["mistral"], "sdpa")
    found = Prefixes(model.base_model)
    options: dict[str, Any] = {"longest": 64, "device": "cpu", "precision": "fp32"}
    assert prefixes.agrees(model, found, **options) and found.on and not found.why
    real = prefixes.masks
    monkeypatch.setattr(prefixes, "masks", lambda *a, **k: real(*a, **{**k, "window": None}))
    assert not prefixes.agrees(model, found, **options)
    assert not found.on and "nats a token" in found.why and model.training
    with pytest.raises(UserError, match="train.share_prefix=True"):
        found.refuse(True)
    found.refuse("auto")


def test_attention_that_takes_no_mask_is_never_given_one():
    """Flash attention would read numbers of the mask as places of tokens: on CUDA nothing computes after that."""
    model = model_of(MODELS["llama"], "sdpa")
    found = Prefixes(model.base_model)
    found.attention = "flash_attention_2"
    model.base_model.forward = lambda **_: pytest.fail("was asked")
    assert not prefixes.agrees(model, found, longest=64, device="cpu", precision="fp32")
    assert not found.on and "flash_attention_2 takes no mask" in found.why


@pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")
@pytest.mark.parametrize("name", ["llama", "qwen2-window", "mistral", "gemma3"])
def test_blocks_of_flex_attention_see_what_masks_let_see(name, monkeypatch):
    """Forward passes alone: on a CPU there is no other. Not compiled, which would take a minute."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(WrappedFlexAttention, "_instance", None)
    ids, mask = batch()
    with torch.no_grad():
        plain = model_of(MODELS[name], "sdpa").base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
        model = model_of(MODELS[name], "flex_attention")
        found = Prefixes(model.base_model)
        together = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
        assert 0 < found.computed < 0.6 * found.given
        assert torch.allclose(plain[mask.bool()], together[mask.bool()], atol=1e-4)
        assert prefixes.agrees(model, found, longest=64, device="cpu", precision="fp32"), found.why


def test_a_model_whose_batches_are_left_alone_shares_nothing():
    """Else rollouts would be sampled in chunks from a cache that knows no such thing."""
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = model_of(
        Lfm2Config(**small, num_key_value_heads=2, vocab_size=200, layer_types=["conv", "full_attention"]), "eager"
    )
    found = Prefixes(model.base_model)
    assert not prefixes.agrees(model, found, longest=64, device="cpu", precision="fp32")
    assert not found.on and "rows as they come" in found.why


def test_an_architecture_that_cannot_take_such_a_mask_says_so():
    model = model_of(BloomConfig(hidden_size=64, n_layer=2, n_head=4, vocab_size=200), "eager")
    found = Prefixes(model.base_model)
    assert not prefixes.agrees(model, found, longest=64, device="cpu", precision="fp32")
    assert not found.on and "Error" in found.why
    ids, mask = batch()
    said(model, ids, mask)  # as before


def test_models_share_unless_told_otherwise():
    model = model_of(MODELS["llama"], "sdpa")
    assert prefixes.share(model, False) is None and prefixes.of(model) is None
    assert prefixes.share(model, "auto") is prefixes.of(model) is not None


@pytest.mark.parametrize("placed", ["aLoRA", "prefix"])
def test_an_adapter_that_counts_tokens_from_the_start_of_a_row_reads_rows_as_they_come(placed):
    """Rows that are put together start elsewhere; aLoRA had ended in an error, and learned tokens would be lost."""
    from peft import LoraConfig, PrefixTuningConfig, get_peft_model

    model = model_of(MODELS["llama"], "sdpa")
    found = prefixes.ready(model, "auto", longest=64, device="cpu", precision="fp32")
    assert found is not None and prefixes.can(model)
    plain = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    assert prefixes.can(get_peft_model(copy.deepcopy(model), plain))
    config: Any = PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    if placed == "aLoRA":
        config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", alora_invocation_tokens=[5])
    policy = get_peft_model(model, config)
    assert not prefixes.can(policy)
    ids, mask = batch()
    with prefixes.together(policy), torch.no_grad():
        assert not found.on
        policy(input_ids=ids, attention_mask=mask)
