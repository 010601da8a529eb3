"""The script that people write instead of the harness: DPO with TRL, nothing around it.

Arguments: base folder, rows (JSON lines), steps, adapter rank (0 = full), seed, beta, learning rate.
Prints the training seconds.
"""

import json
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer


def main() -> None:
    base, rows, steps, rank, seed, beta, rate = sys.argv[1:8]
    torch.manual_seed(int(seed))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    data = Dataset.from_list([json.loads(line) for line in Path(rows).read_text().splitlines()])
    lora = LoraConfig(task_type="CAUSAL_LM", r=int(rank), lora_alpha=2 * int(rank), target_modules="all-linear")
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir="/tmp/bare_dpo",
            max_steps=int(steps),
            per_device_train_batch_size=32,
            learning_rate=float(rate),
            warmup_steps=0.1,
            beta=float(beta),
            max_length=96,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            logging_steps=10,
            logging_first_step=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=int(seed),
            optim="adamw_torch_fused",
            dataloader_pin_memory=False,
        ),
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=lora if int(rank) else None,
    )
    started = time.perf_counter()
    trainer.train()
    print(f"train_s={time.perf_counter() - started:.4f}")


main()
