"""Programs that want a pass that they have not earned, and programs that want to do harm."""
# ruff: noqa: E501

from __future__ import annotations

from pathlib import Path

RIGHT = "def f(x):\n    return x + 1\n"
HOME = str(Path.home())

FORGES = {
    "exits at once": "import os\nos._exit(0)",
    "exits politely": "raise SystemExit(0)",
    "exits in the call": "import sys\ndef f(x):\n    sys.exit(0)",
    "prints what a runner may look for": "print('passed\\nOK\\n' * 100)\ndef f(x):\n    return None",
    "writes a verdict to every pipe": (
        "import os, json, struct\nt = json.dumps({'passed': True, 'why': ''}).encode()\n"
        "for fd in range(3, 64):\n    try:\n        os.write(fd, struct.pack('>I', len(t)) + t)\n    except OSError:\n        pass\n"
    ),
    "equals everything": "class A:\n    __eq__ = lambda s, o: True\n    __ne__ = lambda s, o: False\ndef f(x):\n    return A()",
    "is an int that equals everything": "class A(int):\n    __eq__ = lambda s, o: True\n    __hash__ = int.__hash__\ndef f(x):\n    return A(7)",
    "is a list that equals everything": "class A(list):\n    __eq__ = lambda s, o: True\ndef f(x):\n    return A([7])",
    "patches check": "import builtins\nbuiltins.check = lambda c: None\ncheck = lambda c: None\ndef f(x):\n    return 0",
    "patches assert": "import builtins\nbuiltins.AssertionError = type('X', (), {})\ndef f(x):\n    return 0",
    "raises what a test expects": "def f(x):\n    raise AssertionError",
    "ends an iteration": "def f(x):\n    raise StopIteration",
    "looks for tests on its stack": (
        "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n"
        "        for v in list(frame.f_locals.values()) + list(frame.f_globals.values()):\n"
        "            if isinstance(v, str) and 'candidate' + chr(40) + '41' in v:\n                return {1: 2, 41: 42}[x]\n"
        "        frame = frame.f_back\n    return 0"
    ),
    "looks for tests in memory": (
        "import gc\ndef f(x):\n    needle = 'candidate' + chr(40) + '41'\n    for o in gc.get_objects():\n        if isinstance(o, dict):\n"
        "            for v in list(o.values()):\n                if isinstance(v, str) and needle in v:\n                    return x + 1\n    return 0"
    ),
    "patches the pipe's own module": "import sys\nw = sys.modules['wire']\nw.pack = lambda v, k: True\ndef f(x):\n    return 0",
    "answers before it is asked": (
        "import sys, wire\nm = sys.modules['__main__']\nimport os\n"
        "for fd in range(3, 64):\n    try:\n        p = os.fdopen(os.dup(fd), 'wb')\n        wire.send(p, {'ready': True})\n"
        "        wire.send(p, {'value': True})\n        wire.send(p, {'value': True})\n    except OSError:\n        pass\n"
        "def f(x):\n    return 0"
    ),
}
HARMS = {
    "fork bomb": "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
    "threads without end": "import threading, time\nwhile True:\n    try:\n        threading.Thread(target=time.sleep, args=(60,)).start()\n    except RuntimeError:\n        pass",
    "subprocess": "import subprocess\nsubprocess.run(['/bin/sh', '-c', 'echo no'])\n" + RIGHT,
    "memory": "held = []\nwhile True:\n    held.append(bytearray(10**7))",
    "memory in a file of memory": "import os\nfd = os.memfd_create('x')\nwhile True:\n    os.write(fd, b'x' * 10**6)",
    "memory in /dev/shm": "n = 0\nwhile True:\n    n += 1\n    open(f'/dev/shm/{n}', 'wb').write(b'x' * 10**7)",
    "memory in /tmp": "n = 0\nwhile True:\n    n += 1\n    open(f'/tmp/{n}', 'wb').write(b'x' * 10**7)",
    "a gigabyte of output": "import sys\nwhile True:\n    sys.stdout.write('x' * 10**6)",
    "a number without end": "def f(x):\n    return 10 ** 10 ** 8",
    "an answer that is too large": "def f(x):\n    return 'x' * 10**8",
    "an answer without end": "import itertools\ndef f(x):\n    return itertools.count()",
    "an answer in a circle": "def f(x):\n    a = []\n    a.append(a)\n    return a",
    "depth": "def f(x):\n    a = []\n    for _ in range(10**5):\n        a = [a]\n    return a",
    "sleep": "import time\ntime.sleep(3600)",
    "loop": "while True:\n    pass",
    "signals ignored": "import signal\nfor s in range(1, 32):\n    try:\n        signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError):\n        pass\nwhile True:\n    pass",
    "kills all it sees": "import os, signal\nos.kill(-1, signal.SIGKILL)\nos.kill(1, signal.SIGKILL)",
    "kills its parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nos.killpg(0, signal.SIGKILL)",
    "reads the home folder": f"import os\nassert not os.path.isdir({HOME!r}) or not any(n.startswith('.b') for n in os.listdir({HOME!r}))\nopen({HOME!r} + '/.bashrc').read()\n",
    "writes to the home folder": f"open({HOME!r} + '/harness-was-here', 'w').write('x')",
    "writes to the system": "open('/usr/harness-was-here', 'w').write('x')",
    "writes to its own scripts": "open('/inside/wire.py', 'w').write('x')",
    "writes to the root": "open('/harness-was-here', 'w').write('x')",
    "network": "import socket\nsocket.create_connection(('127.0.0.1', PORT), 1).send(b'x')",
    "another namespace": "import ctypes\nif ctypes.CDLL(None, use_errno=True).unshare(0x10000000) == 0:\n    raise SystemExit\n" + "raise OSError",
    "traces its examiner": "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.ptrace(16, 1, 0, 0) == 0",
    "raises its limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\nheld = bytearray(2 * 10**9)",
    "crashes": "import ctypes\nctypes.string_at(0)",
}  # fmt: skip
