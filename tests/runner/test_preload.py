"""What the forkserver imports ahead: one that fails is told, and does not end every trial without a word."""

import subprocess
import sys

import pytest

CHILD = """
import multiprocessing, os, sys
sys.path.insert(0, {path!r})
from harness.runner import forkserver, preload

def ask(sender):
    from harness.runner import preload
    sender.send(preload.missing())

if __name__ == "__main__":
    receiver, sender = forkserver.context().Pipe(duplex=False)
    process = forkserver.start(ask, sender, name="ask")
    print(receiver.recv() if receiver.poll(120) else "no answer", end=" ")
    process.join()
    print(process.exitcode)
    forkserver.stop()
"""


@pytest.mark.slow
def test_a_preload_that_cannot_be_imported_leaves_trials_to_import_it_themselves(tmp_path):
    # lm-eval was not installed on a rented machine: every trial ended with code 1 and an empty log.
    broken = tmp_path / "path" / "lm_eval"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('one of its own needs is missing')\n")
    script = tmp_path / "script.py"
    script.write_text(CHILD.format(path=str(broken.parent)))
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "PYTHONPATH": str(broken.parent),
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=300)
    assert done.stdout.strip() == "['lm_eval.evaluator', 'lm_eval.models.huggingface'] 0", done.stderr[-2000:]


def test_a_process_that_was_forked_after_cuda_was_asked_is_not_clean(monkeypatch):
    # On an H100 an import that only counted devices took CUDA from every trial.
    import torch

    from harness.runner import preload

    assert preload.cuda_is_clean()
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    assert not preload.cuda_is_clean()
