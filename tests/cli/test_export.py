"""What ``export`` writes loads without the harness and says what the trial said; what it cannot write it refuses."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from pyarrow import parquet
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig

from harness.cli import export
from harness.models.loading import trainable
from harness.store import modelcard
from harness.tasks.arithmetic import Arithmetic
from tests.runs import Sandbox
from tests.toys import CHAT

pytestmark = pytest.mark.slow

QUIET = [f"eval.evaluators.{name}=null" for name in ("true_reward", "win_rate", "behaviour", "calibration")]
PAIRS = Arithmetic(pairs=64, eval_pairs=24, eval_prompts=12).load().eval_pairs["test"]
FOUR_BITS = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
)


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Sandbox:
    """A finished sweep whose adapters moved the policy, judged merged too."""
    made = Sandbox(tmp_path_factory.mktemp("export"), cache_dir)
    merge = ("+evaluator@eval.evaluators.merge=merge", "eval.evaluators.merge.speed_tokens=0")
    options = (*QUIET, *merge, "train.learning_rate=0.02", "train.gradient_checkpointing=false")
    done = made.run("-m", "algo=dpo", "adapter=lora,qlora,prompt", "sweep=monday", *options, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return made


def trial(box: Sandbox, adapter: str) -> Path:
    (found,) = (folder for folder in box.folders("monday") if f"-{adapter}-" in folder.name)
    return found


def recorded(folder: Path, name: str, column: str) -> list[float]:
    return parquet.read_table(folder / "artifacts" / "examples" / f"eval_{name}.parquet").to_pydict()[column]


def sums(model: Any, tokenizer: Any, side: str) -> torch.Tensor:
    """Log-probability of each pair's side, one sequence at a time."""
    found = []
    for pair in PAIRS:
        prompt = tokenizer(pair["prompt"])["input_ids"]
        ids = torch.tensor([[*prompt, *tokenizer(pair[side])["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            said = model(input_ids=ids).logits.float().log_softmax(-1)[0, :-1]
        found.append(said.gather(1, ids[0, 1:, None])[len(prompt) - 1 :].sum())
    return torch.stack(found)


def ratios(policy: Any, start: Any, tokenizer: Any, side: str) -> list[float]:
    return (sums(policy, tokenizer, side) - sums(start, tokenizer, side)).tolist()


# -- what is written says what the trial said ------------------------------------------------------------


def test_a_merged_model_in_plain_transformers_gives_the_recorded_ratios(box, tmp_path):
    lora = trial(box, "lora")
    done = box.call("export", lora.name, "--merge", "--to", str(tmp_path / "whole"), "--dtype", "float32")
    assert done.returncode == 0 and done.stdout.strip() == str(tmp_path / "whole"), done.stderr
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval()
    (base,) = (lora.parent / "bases").iterdir()
    start, tokenizer = AutoModelForCausalLM.from_pretrained(base).eval(), AutoTokenizer.from_pretrained(base)
    own = AutoTokenizer.from_pretrained(tmp_path / "whole")
    for side in ("chosen", "rejected"):
        expected = recorded(lora, "pairs", f"{side}_logratio")
        assert max(map(abs, expected)) > 0.1, "a policy that did not move agrees with everything"
        assert ratios(policy, start, own, side) == pytest.approx(expected, abs=1e-4)
    assert own("12+7=") == tokenizer("12+7=") and not (tmp_path / "whole" / "adapter_config.json").exists()


@pytest.mark.parametrize("adapter", ["lora", "qlora"])
def test_an_adapter_in_plain_peft_gives_the_recorded_ratios(box, tmp_path, adapter):
    folder, target = trial(box, adapter), tmp_path / "adapter"
    done = box.call("export", f"monday/{folder.name}", "--adapter", "--to", str(target))
    assert done.returncode == 0, done.stderr
    quantized = {"quantization_config": FOUR_BITS, "device_map": {"": "cpu"}} if adapter == "qlora" else {}
    policy: Any = AutoPeftModelForCausalLM.from_pretrained(target, **quantized)
    policy = trainable(policy, FOUR_BITS).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(target)
    for side in ("chosen", "rejected"):
        said = sums(policy, tokenizer, side)
        with policy.disable_adapter():
            found = (said - sums(policy, tokenizer, side)).tolist()
        assert found == pytest.approx(recorded(folder, "pairs", f"{side}_logratio"), abs=1e-4)


def test_a_merged_qlora_says_what_the_evaluator_said_of_it(box, tmp_path):
    qlora, target = trial(box, "qlora"), tmp_path / "whole"
    done = box.call("export", str(qlora), "--merge", "--to", str(target), "--dtype=float32")
    assert done.returncode == 0, done.stderr
    (base,) = (qlora.parent / "bases").iterdir()
    options: Any = {"quantization_config": FOUR_BITS, "device_map": {"": "cpu"}}
    start, policy = AutoModelForCausalLM.from_pretrained(base, **options), AutoModelForCausalLM.from_pretrained(target)
    start, tokenizer = trainable(start, FOUR_BITS), AutoTokenizer.from_pretrained(target)
    chosen, rejected = (ratios(policy.eval(), start.eval(), tokenizer, side) for side in ("chosen", "rejected"))
    margins = [a - b for a, b in zip(chosen, rejected, strict=True)]
    assert margins == pytest.approx(recorded(qlora, "merge", "merged_dequantized_logratio_margin"), abs=1e-4)
    assert margins != pytest.approx(recorded(qlora, "merge", "merged_logratio_margin"), abs=1e-4)
    metrics = box.results("monday")[qlora.name]["metrics"]
    accuracy = sum(m > 0 for m in margins) / len(margins)
    assert accuracy == pytest.approx(metrics["eval/merged_dequantized_preference_accuracy"])
    assert "quantization_config" not in json.loads((target / "config.json").read_text())
    page = (target / "README.md").read_text()
    assert "merged into the values that the 4-bit weights of its base stand for, in float32" in page


def test_by_default_the_merged_weights_are_stored_in_16_bits_with_all_that_serves_them(box, tmp_path):
    done = box.call("export", trial(box, "lora").name, "--merge", "--to", str(tmp_path / "whole"))
    assert done.returncode == 0, done.stderr
    with safe_open(tmp_path / "whole" / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118 no mapping
    own = GenerationConfig.from_pretrained(tmp_path / "whole")
    (base,) = (trial(box, "lora").parent / "bases").iterdir()
    assert own.eos_token_id == GenerationConfig.from_pretrained(base).eos_token_id is not None
    page = (tmp_path / "whole" / "README.md").read_text()
    assert "merged into the base, in float32; stored in bfloat16." in page
    assert "## What merging costs" in page and "| `preference_accuracy` |" in page and "content digest" in page
    assert "held-out" in (tmp_path / "whole" / "data_card.md").read_text()


def test_the_chat_template_goes_along(box, tmp_path):
    shutil.copytree(trial(box, "lora"), tmp_path / "trial")
    kept: Any = AutoTokenizer.from_pretrained(tmp_path / "trial" / "artifacts" / "model")
    kept.chat_template = CHAT
    kept.save_pretrained(tmp_path / "trial" / "artifacts" / "model")
    for kind in ("--merge", "--adapter"):
        assert box.call("export", str(tmp_path / "trial"), kind, "--to", str(tmp_path / kind)).returncode == 0
        assert AutoTokenizer.from_pretrained(tmp_path / kind).chat_template == CHAT


def test_a_prompt_adapter_is_exported_as_an_adapter(box, tmp_path):
    done = box.call("export", trial(box, "prompt").name, "--adapter", "--to", str(tmp_path / "adapter"))
    assert done.returncode == 0, done.stderr
    assert isinstance(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter"), PeftModel)


PAGE = (Path(__file__).parents[2] / "docs" / "deploying.md").read_text()
COMMANDS = re.findall(r"^python -m harness (export .*)$", PAGE, flags=re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_page_run_and_write_what_they_say(box, command):
    own = re.sub(r"\bdpo-(q?lora)-\S+", lambda found: trial(box, found.group(1)).name, command)
    done = box.call(*shlex.split(own))
    assert done.returncode == 0, done.stderr
    target = Path(done.stdout.strip())
    assert target.parent.resolve() == box.cwd.resolve() and (target / "README.md").is_file()
    assert (target / ("adapter_config.json" if "--adapter" in command else "config.json")).is_file()


def test_the_page_has_commands_of_both_kinds():
    assert {kind for kind in ("--adapter", "--merge") if any(kind in c for c in COMMANDS)} == {"--adapter", "--merge"}


def test_where_all_weights_were_trained_they_are_the_export_and_there_is_no_adapter(box, tmp_path):
    shutil.copytree(trial(box, "lora"), tmp_path / "trial")
    own = tmp_path / "trial" / "artifacts" / "model"
    shutil.rmtree(own)
    (base,) = (trial(box, "lora").parent / "bases").iterdir()
    shutil.copytree(base, own)  # a whole model, as full fine-tuning keeps it
    done = box.call("export", str(tmp_path / "trial"), "--merge", "--to", str(tmp_path / "whole"), "--dtype", "float32")
    assert done.returncode == 0, done.stderr
    before, after = (AutoModelForCausalLM.from_pretrained(p).state_dict() for p in (own, tmp_path / "whole"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert "All weights were trained; stored in float32." in (tmp_path / "whole" / "README.md").read_text()
    said = refused(box, str(tmp_path / "trial"), "--adapter", "--to", str(tmp_path / "x"))
    assert "there is no adapter" in said and "--merge" in said


# -- which trial -----------------------------------------------------------------------------------------


def test_a_trial_is_known_by_its_folder_its_id_and_its_run(box, monkeypatch):
    monkeypatch.chdir(box.cwd)
    lora = trial(box, "lora")
    (run,) = (r.info.run_id for r in box.runs("monday") if r.data.tags["trial_id"] == lora.name)
    store, outputs = "sqlite:///mlflow.db", Path("outputs")
    for name in (str(lora), lora.name, f"monday/{lora.name}", run):
        assert export.trial_of(name, outputs, None, store).resolve() == lora.resolve()
    assert export.trial_of(lora.name, outputs, "monday", store).resolve() == lora.resolve()


def test_a_trial_that_is_not_there_or_there_twice_is_named(box, tmp_path):
    lora = trial(box, "lora").name
    near = box.call("export", lora[:-1], "--merge", "--to", str(tmp_path / "x"))
    assert near.returncode == 2 and "no such trial" in near.stderr and lora in near.stderr
    unknown = box.call("export", "0" * 32, "--merge", "--to", str(tmp_path / "x"))
    assert unknown.returncode == 2 and "there is no such run" in unknown.stderr and "RUN=" in unknown.stderr
    shutil.copytree(trial(box, "lora"), box.cwd / "outputs" / "tuesday" / lora)
    try:
        twice = box.call("export", lora, "--adapter", "--to", str(tmp_path / "x"))
        assert twice.returncode == 2 and "monday, tuesday" in twice.stderr
        assert box.call("export", lora, "--adapter", "--to", str(tmp_path / "x"), "sweep=tuesday").returncode == 0
    finally:
        shutil.rmtree(box.cwd / "outputs" / "tuesday")


# -- what is refused -------------------------------------------------------------------------------------


def refused(box: Sandbox, *arguments: str) -> str:
    """What ``export`` says while it refuses with exit code 2 and without a traceback."""
    done = box.call("export", *arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "fix:" in done.stderr, done.stderr
    return done.stderr


def test_a_folder_that_holds_something_is_left_alone(box, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("precious")
    for kind in ("--merge", "--adapter"):
        assert "nothing is overwritten" in refused(box, trial(box, "lora").name, kind, "--to", str(tmp_path / "full"))
        assert "nothing is overwritten" in refused(
            box, trial(box, "lora").name, kind, "--to", str(tmp_path / "full" / "mine")
        )
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    done = box.call("export", trial(box, "lora").name, "--adapter", "--to", str(tmp_path / "empty"))
    assert done.returncode == 0 and (tmp_path / "empty" / "adapter_model.safetensors").is_file()


def test_an_export_that_breaks_off_leaves_nothing(box, tmp_path, monkeypatch):
    def full_disk(*_: Any, **__: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(modelcard, "card", full_disk)
    for kind in ("--merge", "--adapter"):
        said = refused(box, trial(box, "lora").name, kind, "--to", str(tmp_path / "new"))
        assert "No space left" in said and "--to=" in said
    assert list(tmp_path.iterdir()) == []


def test_learned_tokens_are_not_merged(box, tmp_path):
    said = refused(box, trial(box, "prompt").name, "--merge", "--to", str(tmp_path / "x"))
    assert "learned tokens before the prompt" in said and "--adapter" in said and not (tmp_path / "x").exists()


def test_a_trial_that_kept_nothing_or_is_under_way_is_refused(box, tmp_path):
    shutil.copytree(trial(box, "lora"), tmp_path / "trial")
    shutil.rmtree(tmp_path / "trial" / "artifacts" / "model")
    target = str(tmp_path / "x")
    assert "left no policy" in refused(box, str(tmp_path / "trial"), "--merge", "--to", target)
    result = json.loads((tmp_path / "trial" / "result.json").read_text())
    result["config"]["train"]["save"] = "none"
    (tmp_path / "trial" / "result.json").write_text(json.dumps(result))
    assert "train.save=none" in refused(box, str(tmp_path / "trial"), "--adapter", "--to", target)
    del result["config"]["train"]
    (tmp_path / "trial" / "result.json").write_text(json.dumps(result))
    assert "nothing was trained" in refused(box, str(tmp_path / "trial"), "--merge", "--to", target)
    lines = (tmp_path / "trial" / "runner.jsonl").read_text().splitlines()
    begun = [line for line in lines if json.loads(line)["kind"] != "outcome"]
    (tmp_path / "trial" / "runner.jsonl").write_text("\n".join(begun) + "\n")
    assert "has not ended" in refused(box, str(tmp_path / "trial"), "--merge", "--to", target)


def test_a_base_that_is_gone_is_named(box, tmp_path):
    shutil.copytree(trial(box, "lora"), tmp_path / "trial")
    config = tmp_path / "trial" / "artifacts" / "model" / "adapter_config.json"
    named = json.loads(config.read_text())
    for base, words in ((str(tmp_path / "gone"), "is gone"), (None, "random weights")):
        config.write_text(json.dumps(named | {"base_model_name_or_path": base}))
        for kind in ("--merge", "--adapter"):
            said = refused(box, str(tmp_path / "trial"), kind, "--to", str(tmp_path / "x"))
            assert words in said and "base_model_name_or_path" in said


def test_a_journal_that_does_not_say_in_which_numbers_is_refused(box, tmp_path):
    shutil.copytree(trial(box, "lora"), tmp_path / "trial")
    lines = (tmp_path / "trial" / "worker.jsonl").read_text().splitlines()
    others = [line for line in lines if json.loads(line)["kind"] != "device"]
    (tmp_path / "trial" / "worker.jsonl").write_text("\n".join(others) + "\n")
    assert "in which numbers" in refused(box, str(tmp_path / "trial"), "--merge", "--to", str(tmp_path / "x"))


def test_options_that_are_wrong_are_told(box, tmp_path):
    lora, target = trial(box, "lora").name, str(tmp_path / "x")
    assert "bfloat16, float16, float32" in refused(box, lora, "--merge", "--to", target, "--dtype", "int3")
    assert "--merge --adapter" in refused(box, lora, "--to", target)
    assert "not allowed with" in refused(box, lora, "--merge", "--adapter", "--to", target)
