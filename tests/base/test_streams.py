"""What a command prints may be lost; what it does and how it ends may not."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys

import pytest

from harness.base import errors
from harness.base.streams import Lossy, unbreakable
from harness.cli import main as cli
from harness.cli.main import main

SCRIPT = (
    "import sys\nfrom harness.cli import main as cli\nfrom harness.base.streams import occupy_closed\n"
    "def command(arguments):\n"
    "    for i in range(20000): print('line', i)\n"
    "    print('still here', file=sys.stderr, flush=True)\n"
    "    open(arguments[0], 'w').write('done')\n"
    "    return 1\n"
    "cli._command = lambda name: command\n"
    "sys.argv = ['harness', 'gate', sys.argv[1]]\n"
    "cli.start()\n"
)


@pytest.mark.parametrize(
    "plumbing", ["| head -1", ">&-", "2>&- | head -1", ">&- 2>&- <&-", "2>&1 | head -1", ">/dev/full"]
)
def test_a_command_whose_reader_goes_away_runs_to_its_end_and_keeps_its_exit_code(tmp_path, plumbing):
    done = tmp_path / "done"
    shell = f"set -o pipefail; '{sys.executable}' -c \"$SCRIPT\" {done} {plumbing}; echo code $? >{tmp_path}/code"
    subprocess.run(["bash", "-c", shell], env={**os.environ, "SCRIPT": SCRIPT}, capture_output=True, check=True)
    assert done.read_text() == "done"
    assert (tmp_path / "code").read_text() == "code 1\n"


def test_a_stream_that_breaks_takes_everything_and_complains_of_nothing():
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    stream = Lossy(Broken())
    assert stream.write("text") == 4
    stream.flush()
    assert not stream.isatty()


def test_what_an_encoding_lacks_is_shown_as_its_code():
    raw = io.BytesIO()
    stream = Lossy(io.TextIOWrapper(raw, encoding="ascii"))
    stream.write("β \ud800")
    stream.flush()
    assert raw.getvalue() == rb"\u03b2 \ud800"


def test_a_password_in_use_is_not_printed(capsys, monkeypatch):
    monkeypatch.setattr(errors, "_secrets", {})
    errors.keep_secret("s3cr3t")
    with unbreakable():
        print("POST http://anna:s3cr3t@host and the word s3cr3t alone")
    assert capsys.readouterr().out == "POST http://…@host and the word … alone\n"


def test_the_exit_code_of_a_wrong_command_line_is_two_even_where_nobody_hears_why(monkeypatch):
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    assert main(["cache", "--prune-to", "many"]) == 2


def test_a_disk_that_is_full_is_one_line_and_other_faults_keep_their_traceback(monkeypatch, capsys):
    def fail(number: int):
        def command(arguments: list[str]) -> int:
            raise OSError(number, os.strerror(number))

        return lambda name: command

    monkeypatch.setattr(cli, "_command", fail(errno.ENOSPC))
    assert main(["cache"]) == 1
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device; what was written by then is kept\n"
    monkeypatch.setattr(cli, "_command", fail(errno.ENOENT))
    with pytest.raises(FileNotFoundError):
        main(["cache"])


def test_what_a_library_prints_meanwhile_is_dropped_and_what_we_say_afterwards_is_not():
    script = """
import os
from harness.base.streams import quiet
print("before")
try:
    with quiet(1, 2):
        os.write(1, b"chatter")
        print("buffered chatter")
        os.write(2, b"more of it")
        raise RuntimeError
except RuntimeError:
    print("after")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("before\nafter\n", "")
