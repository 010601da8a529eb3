"""Heavy imports, done once in the forkserver so that every trial starts in milliseconds.

CUDA must not be initialised here: a forked child could not use it. Importing peft (and trl's trainers, which
import it) imports bitsandbytes, which asks a visible GPU for its capabilities. So without a GPU everything is
imported, with one only what stays CUDA-free; the trial's process imports the rest.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from contextlib import suppress

from harness.base import gc_tuning
from harness.base.streams import quiet
from harness.config import closure
from harness.config.devices import gpu_visible
from harness.runner.child import leave_signals_to_the_runner

CUDA_FREE = ("torch", "transformers", "datasets", "accelerate", "pydantic", "hydra", "scipy.stats")
REST = (
    "peft",
    "bitsandbytes",
    "trl",
    "trl.trainer.dpo_trainer",
    "trl.trainer.kto_trainer",
    "trl.trainer.grpo_trainer",
    "trl.trainer.sft_trainer",
    "lm_eval.evaluator",
    "lm_eval.models.huggingface",
    "transformers.models.llama.modeling_llama",
    "harness.trial.worker",
)


def wanted(gpu: bool) -> tuple[str, ...]:
    """Modules to import ahead of trials."""
    return CUDA_FREE if gpu else CUDA_FREE + REST


def missing() -> list[str]:
    """Wanted modules that are not there: multiprocessing swallows a failing preload import."""
    return [name for name in wanted(gpu_visible()) if name not in sys.modules]


def cuda_is_clean() -> bool:
    """Whether no CUDA context exists in this process, and it was not forked from one that asked CUDA anything.

    Counting devices is enough (``torch.cuda.is_available``), as some modules do when they are imported.
    """
    torch = sys.modules.get("torch")
    return torch is None or not (torch.cuda.is_initialized() or torch.cuda._is_in_bad_fork())


def import_all() -> None:
    """Import what is wanted; what the libraries print meanwhile is dropped.

    What cannot be imported shows in ``missing``: a trial that needs it fails by its own import, which says why. Were
    the error let through, this module would count as never imported, and every child would come by here again.
    """
    leave_signals_to_the_runner()
    with quiet(1, 2), gc_tuning.paused():
        for name in wanted(gpu_visible()):
            if os.environ.get("HARNESS_RUNNER", str(os.getppid())) != str(os.getppid()):
                os._exit(1)  # the runner was killed meanwhile, before its guard knew of this process
            with suppress(Exception):
                importlib.import_module(name)
    # The code as it is imported now: a file edited while the sweep runs is not what trials ran.
    closure.freeze()
    # What is imported by now lives as long as the process: a trial's collections (0.35 s each otherwise, and a
    # copy of every page they mark) need not look at it.
    gc.collect()
    gc.freeze()


if os.environ.get("HARNESS_PRELOAD") == "1":
    import_all()  # only the forkserver sets this; a plain import of this module costs nothing
