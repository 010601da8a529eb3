from __future__ import annotations

import subprocess
import sys

from trl.trainer import utils

from harness.algorithms.trl_seam import IN_TORCH, TILE, as_on_cuda, narrow_tiles


def test_tiles_are_as_wide_as_the_vocabulary_and_no_wider_than_suits_the_device():
    for vocabulary, width in ((40, 40), (2048, 2048), (128_256, IN_TORCH)):
        narrow_tiles(vocabulary, "cpu")
        assert utils._CHUNKED_LOGPROB_CHUNK_SIZE == width
    with as_on_cuda():  # a rehearsal of a GPU
        for vocabulary, width in ((40, 40), (32_768, 32_768), (128_256, 32_768)):
            narrow_tiles(vocabulary, "cpu")
            assert utils._CHUNKED_LOGPROB_CHUNK_SIZE == width


def test_the_width_is_trls_own():
    script = "from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as width; print(width)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split()[-1:] == [str(TILE)]
