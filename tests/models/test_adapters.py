"""What is trained: the formulas against peft itself, on the architectures that people bring."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, Qwen2Config

from harness.base.errors import UserError
from harness.config.train import Train
from harness.models import HF, Shape
from harness.models.adapters import Adapter, Full, LoRA, QLoRA, lora_parameters, target_shapes

CONFIGS: dict[str, Any] = {
    "llama": lambda **more: LlamaConfig(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        **more,
    ),
    "qwen2": lambda **more: Qwen2Config(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        **more,
    ),
    "gpt_neox": lambda **more: GPTNeoXConfig(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        **more,
    ),
    "gpt2": lambda **more: GPT2Config(
        vocab_size=48,
        n_embd=32,
        n_inner=64,
        n_layer=2,
        n_head=4,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=0,
        **more,
    ),
}

LINEAR = {  # by hand: sum of (d_in + d_out) over the linear layers of one block
    "llama": 2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64),  # q o, k v (two of four heads), gate up down
    "qwen2": 2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64),
    "gpt_neox": (32 + 96) + (32 + 32) + 2 * (32 + 64),  # fused q k v, dense, two of the MLP
    "gpt2": (32 + 96) + (32 + 32) + 2 * (32 + 64),
}
ONE_TARGET = {"llama": "q_proj", "qwen2": "down_proj", "gpt_neox": "query_key_value", "gpt2": "c_proj"}


def build(architecture: str, **more: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[architecture](**more))


def wrap(adapter: Adapter, model: Any) -> Any:
    """The model as TRL would train it."""
    from peft import get_peft_model

    config = adapter.peft_config()
    if config is None:
        return model
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")  # peft then corrects it
        return get_peft_model(model, config)


def trainable(model: Any) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


# -- worked examples -----------------------------------------------------------------------------------


def test_a_4096_by_4096_matrix_at_rank_16_takes_131072_parameters_128_times_fewer_than_the_matrix():
    assert lora_parameters(4096, 4096, 16) == 131_072
    assert 4096 * 4096 == 16_777_216 == 128 * lora_parameters(4096, 4096, 16)


@pytest.fixture(scope="module")
def llama_7b() -> Any:
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=4096,
        intermediate_size=11_008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def test_query_and_value_of_llama_7b_at_rank_16_take_8388608_parameters(llama_7b):
    adapter = LoRA(rank=16, targets=("q_proj", "v_proj"))
    assert adapter.expected_trainable(llama_7b) == 8_388_608
    share = 8_388_608 / Full().expected_trainable(llama_7b)
    assert share == pytest.approx(0.0012, abs=5e-5)  # 0.12 %


def test_all_linear_layers_of_llama_7b_at_rank_16_take_about_40_million_parameters(llama_7b):
    found = LoRA(rank=16).expected_trainable(llama_7b)
    assert found == 32 * 16 * (4 * (4096 + 4096) + 3 * (4096 + 11_008)) == 39_976_960
    assert found / Full().expected_trainable(llama_7b) < 0.006


def test_a_rank_8_adapter_on_query_and_value_of_a_7b_model_has_4_million_parameters(llama_7b):
    assert LoRA(rank=8, targets=("q_proj", "v_proj")).expected_trainable(llama_7b) == 4_194_304


# -- the formula against peft --------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("rank", [1, 6])
def test_the_formula_for_all_linear_layers_is_what_peft_makes_trainable(architecture, rank):
    model, adapter = build(architecture), LoRA(rank=rank)
    expected = adapter.expected_trainable(model)
    assert expected == 2 * rank * LINEAR[architecture]
    assert trainable(wrap(adapter, model)) == expected


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_formula_for_named_layers_is_what_peft_makes_trainable(architecture):
    model, adapter = build(architecture), LoRA(rank=4, targets=(ONE_TARGET[architecture],))
    expected = adapter.expected_trainable(model)
    by_hand = {
        "llama": 2 * 4 * (32 + 32),
        "qwen2": 2 * 4 * (32 + 64),
        "gpt_neox": 2 * 4 * (32 + 96),
        "gpt2": 2 * 4 * (32 + 32) + 2 * 4 * (64 + 32),  # of attention and of the MLP
    }
    assert trainable(wrap(adapter, model)) == expected == by_hand[architecture]


def test_a_whole_module_path_names_that_layer_alone():
    model, adapter = build("llama"), LoRA(rank=4, targets=("model.layers.1.self_attn.k_proj",))
    assert target_shapes(model, adapter.targets) == [(32, 16)]
    assert adapter.expected_trainable(model) == trainable(wrap(adapter, model)) == 4 * (32 + 16)


def test_a_name_matches_the_end_of_a_path_only_after_a_dot():
    assert target_shapes(build("llama"), ("proj",)) == []


def test_one_name_without_a_list_means_the_same_layers_to_the_formula_and_to_peft():
    model, adapter = build("llama"), LoRA(rank=4, targets="q_proj")
    expected = adapter.expected_trainable(model)
    assert expected == 2 * 4 * (32 + 32)
    assert trainable(wrap(adapter, model)) == expected


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_full_fine_tuning_trains_every_weight_and_counts_tied_embeddings_once(architecture, tied):
    model = build(architecture, tie_word_embeddings=tied)
    expected = Full().expected_trainable(model)
    assert trainable(wrap(Full(), model)) == expected
    other = Full().expected_trainable(build(architecture, tie_word_embeddings=not tied))
    assert abs(expected - other) == 48 * 32  # one matrix of the vocabulary's size


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_output_head_is_left_out_tied_or_not(architecture, tied):
    model = build(architecture, tie_word_embeddings=tied)
    assert 48 not in {size for shape in target_shapes(model, "all-linear") for size in shape}
    assert LoRA(rank=1).expected_trainable(model) == trainable(wrap(LoRA(rank=1), model)) == 2 * LINEAR[architecture]


# -- the peft configuration ----------------------------------------------------------------------------


def test_alpha_follows_the_rank_so_that_updates_keep_their_size():
    for rank in (1, 8, 64):
        config = LoRA(rank=rank, alpha_over_rank=2.0).peft_config()
        assert (config.r, config.lora_alpha) == (rank, 2 * rank)
    assert (
        wrap(LoRA(rank=8), build("llama")).base_model.model.model.layers[0].self_attn.q_proj.scaling["default"] == 2.0
    )


def test_rslora_scales_by_alpha_over_the_root_of_the_rank():
    model = wrap(LoRA(rank=16, alpha_over_rank=1.0, rslora=True), build("llama"))
    assert model.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"] == pytest.approx(4.0)


def test_a_wrapped_model_says_what_the_bare_one_says():
    model = build("gpt2").eval()
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        assert torch.equal(wrap(LoRA(rank=4), model).eval()(input_ids=ids).logits, before)


# -- 4-bit bases ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each architecture, saved with random weights."""
    folders = {}
    for architecture in CONFIGS:
        folders[architecture] = tmp_path_factory.mktemp(architecture)
        build(architecture).save_pretrained(folders[architecture])
    return folders


def load_4bit(folder: Path, adapter: QLoRA) -> Any:
    return HF(path=str(folder)).load(
        None, dtype=torch.float32, device="cpu", quantization=adapter.quantization(torch.float32)
    )


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_formula_holds_on_a_4_bit_base(saved, architecture):
    adapter = QLoRA(rank=4)
    model = load_4bit(saved[architecture], adapter)
    expected = adapter.expected_trainable(model)
    assert expected == 2 * 4 * LINEAR[architecture]
    assert trainable(wrap(adapter, model)) == expected


def test_the_base_of_qlora_is_nf4_with_doubly_quantized_scales(saved):
    from bitsandbytes.nn import Linear4bit

    model = load_4bit(saved["llama"], QLoRA())
    layers = {n: m for n, m in model.named_modules() if isinstance(m, Linear4bit)}
    assert len(layers) == 2 * 7 and "lm_head" not in layers
    for layer in layers.values():
        state = layer.weight.quant_state
        assert (state.quant_type, state.nested, layer.compute_dtype) == ("nf4", True, torch.float32)
        assert layer.weight.numel() * 2 == layer.in_features * layer.out_features  # two values in a byte


def test_quantization_can_be_fp4_and_single(saved):
    model = load_4bit(saved["llama"], QLoRA(quant_type="fp4", double_quantization=False))
    state = model.model.layers[0].self_attn.q_proj.weight.quant_state
    assert (state.quant_type, state.nested) == ("fp4", False)


@pytest.mark.parametrize("double", [True, False], ids=["double", "single"])
def test_4_bit_weights_stay_close_to_the_weights_they_came_from(tmp_path, double):
    """Rows of 64 values: bitsandbytes 0.50 on AVX-512 scales rows wrongly that are no multiple of a block (64)."""
    import bitsandbytes.functional as bnb

    shape = Shape(config={**SIZES, "hidden_size": 64}, seed=5)
    exact = shape.load(None, dtype=torch.float32, device="cpu")
    exact.save_pretrained(tmp_path)
    adapter = QLoRA(double_quantization=double)
    from_shape = shape.load(None, dtype=torch.float32, device="cpu", quantization=adapter.quantization(torch.float32))
    for packed in (load_4bit(tmp_path, adapter), from_shape):
        for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.down_proj"):
            before = exact.get_submodule(f"model.layers.1.{name}").weight
            after = packed.get_submodule(f"model.layers.1.{name}").weight
            loss = (bnb.dequantize_4bit(after.data, after.quant_state) - before).abs().max() / before.abs().max()
            assert 0 < loss < 0.16  # half of NF4's widest gap (-1 to -0.696) is 0.152; the scale's own error


def adapter_gradients(model: Any, adapter: QLoRA, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    wrapped = wrap(adapter, model).train()
    wrapped(input_ids=ids, labels=ids).loss.backward()
    return {n: p.grad for n, p in wrapped.named_parameters() if "lora_B" in n}


def test_a_4_bit_base_that_was_scored_before_training_teaches_its_adapter_as_a_fresh_one_does():
    """bitsandbytes 0.50 on a CPU with AVX512-BF16 repacks weights for good in an eval-mode forward pass, after
    which no gradient passes through them; the worker scores the reference before it trains.
    """
    shape, adapter, ids = Shape(config={**SIZES, "hidden_size": 64}), QLoRA(rank=2), torch.tensor([[4, 5, 6, 7, 8]])
    fresh, scored = (
        shape.load(None, dtype=torch.float32, device="cpu", quantization=adapter.quantization(torch.float32)).eval()
        for _ in range(2)
    )
    with torch.no_grad():
        before = scored(input_ids=ids).logits
    expected, found = adapter_gradients(fresh, adapter, ids), adapter_gradients(scored, adapter, ids)
    assert len(expected) == 14 and all(g.any() for g in expected.values())
    assert [n for n, g in found.items() if not torch.allclose(g, expected[n], atol=1e-6)] == []
    with torch.no_grad():  # and evaluation computes in the precision of training
        assert torch.allclose(before, scored.train()(input_ids=ids).logits, atol=1e-6)


@pytest.mark.parametrize("adapter", [Full(), LoRA()], ids=lambda a: a.name)
def test_only_qlora_asks_for_quantization(adapter):
    assert adapter.quantization(torch.float32) is None and not adapter.quantized


# -- random weights at a real shape --------------------------------------------------------------------

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_shape_loads_with_seeded_random_weights_and_runs(architecture):
    shape = Shape(architecture=architecture, config=SIZES, seed=3)
    model, again = (shape.load(None, dtype=torch.float32, device="cpu") for _ in range(2))
    assert type(model).__name__.lower().startswith(architecture) and torch.get_default_dtype() == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    ids = torch.tensor([shape.tokenizer(None)("12+7=")["input_ids"]])
    assert model(input_ids=ids).logits.shape == (1, 5, 64)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_shape_loads_in_4_bits_and_runs(architecture):
    adapter = QLoRA(rank=2)
    model = Shape(architecture=architecture, config=SIZES).load(
        None, dtype=torch.float32, device="cpu", quantization=adapter.quantization(torch.float32)
    )
    state = model.model.layers[0].self_attn.q_proj.weight.quant_state
    assert (state.quant_type, state.nested) == ("nf4", True)
    assert adapter.expected_trainable(model) == 2 * 2 * LINEAR[architecture]
    wrapped = wrap(adapter, model)
    assert trainable(wrapped) == 2 * 2 * LINEAR[architecture]
    assert torch.isfinite(wrapped(input_ids=torch.tensor([[4, 5, 6]])).logits).all()


def test_a_shape_in_bfloat16_holds_bfloat16_weights_and_leaves_the_default_dtype_alone():
    model = Shape(config=SIZES).load(None, dtype=torch.bfloat16, device="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32


def test_an_impossible_shape_is_a_user_error():
    with pytest.raises(UserError, match="transformers cannot make this configuration"):
        Shape(architecture="no-such-thing", config=SIZES).configuration()


# -- 8-bit bases ---------------------------------------------------------------------------------------

EIGHT = QLoRA(rank=4, bits=8)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_formula_holds_on_an_8_bit_base(saved, architecture):
    model = load_4bit(saved[architecture], EIGHT)
    expected = EIGHT.expected_trainable(model)
    assert expected == 2 * 4 * LINEAR[architecture]
    assert trainable(wrap(EIGHT, model)) == expected


def test_8_bit_codes_are_off_by_half_a_step_of_their_row_at_most(saved):
    from bitsandbytes.nn import Linear8bitLt

    from harness.models.eight_bit import Linear8bit, unpacked

    exact, coded = build("llama"), load_4bit(saved["llama"], EIGHT)
    layers = {n: m for n, m in coded.named_modules() if isinstance(m, Linear8bitLt)}
    assert len(layers) == 2 * 7 and "lm_head" not in layers
    for name, layer in layers.items():
        assert isinstance(layer, Linear8bit) and layer.weight.dtype is torch.int8
        before = exact.get_submodule(name).weight
        step = before.abs().amax(dim=1, keepdim=True) / 127
        # bitsandbytes rounds to 16 bits on the way
        assert 0 < ((unpacked(layer) - before).abs() / step).max() < 0.6


def test_a_row_on_an_8_bit_base_is_worth_the_same_in_training_and_evaluation_alone_and_among_outliers():
    """LLM.int8 as bitsandbytes has it on a CPU: eval mode is 0.3 nats a token from training on SmolLM2."""
    shape, ids = Shape(config={**SIZES, "hidden_size": 64}), torch.tensor([[4, 5, 6, 7], [8, 9, 4, 5]])
    model = shape.load(None, dtype=torch.float32, device="cpu", quantization=EIGHT.quantization(torch.float32))
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    rows = torch.randn(6, 64)
    rows[0] *= 100  # outliers, which LLM.int8 multiplies by themselves, and their columns in all other rows
    with torch.no_grad():
        torch.testing.assert_close(layer(rows)[1:], layer(rows[1:]), atol=1e-6, rtol=1e-6)
        trained, evaluated = model.train()(input_ids=ids).logits, model.eval()(input_ids=ids).logits
        torch.testing.assert_close(evaluated, trained, atol=0, rtol=0)
        torch.testing.assert_close(model(input_ids=ids[1:]).logits, evaluated[1:], atol=1e-5, rtol=1e-5)


def test_the_gradient_through_8_bit_weights_is_that_of_what_they_stand_for():
    from harness.models.eight_bit import unpacked

    shape = Shape(config={**SIZES, "hidden_size": 64})
    model = shape.load(None, dtype=torch.float32, device="cpu", quantization=EIGHT.quantization(torch.float32))
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    x = torch.randn(2, 3, 64, requires_grad=True)
    layer(x).square().sum().backward()
    found, x.grad = x.grad, None
    (x @ unpacked(layer).T).square().sum().backward()
    torch.testing.assert_close(found, x.grad)


def test_knobs_of_4_bits_are_refused_beside_8():
    found = QLoRA(bits=8, quant_type="fp4", double_quantization=False).problems(Train())
    assert [e.key for e in found] == ["adapter.quant_type", "adapter.double_quantization"]
    assert all("adapter.bits=4 alone" in e.rule for e in found) and not EIGHT.problems(Train())
