"""What a sandboxed process may not ask of the kernel: another process, memory that no limit counts, a way out.

A program of classic BPF, as ``bwrap --seccomp`` takes it. A process that cannot fork is the only one there is, so the
limits of one process bound all of it, as root too and without cgroups.
"""

from __future__ import annotations

import platform
import struct

ERRNO, ALLOW, KILL = 0x00050000, 0x7FFF0000, 0x80000000
EPERM = 1
LOAD, JUMP_EQUAL, JUMP_ABOVE, RETURN = 0x20, 0x15, 0x35, 0x06
NUMBER_AT, MACHINE_AT = 0, 4
X32 = 0x40000000
"""Numbers of another table on the same machine; none of them is needed."""

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
DENIED = {
    "x86_64": {
        "clone": 56, "fork": 57, "vfork": 58, "clone3": 435, "ptrace": 101, "shmget": 29, "memfd_create": 319,
        "memfd_secret": 447, "unshare": 272, "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155,
        "chroot": 161, "bpf": 321, "userfaultfd": 323, "perf_event_open": 298, "io_uring_setup": 425, "keyctl": 250,
        "add_key": 248, "request_key": 249, "process_vm_readv": 310, "process_vm_writev": 311, "kexec_load": 246,
        "init_module": 175, "finit_module": 313, "open_by_handle_at": 304, "fsopen": 430, "move_mount": 429,
        "msgget": 68, "mq_open": 240, "personality": 135, "socket": 41, "socketpair": 53,
    },
    "aarch64": {
        "clone": 220, "clone3": 435, "ptrace": 117, "shmget": 194, "memfd_create": 279, "memfd_secret": 447,
        "unshare": 97, "setns": 268, "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "bpf": 280,
        "userfaultfd": 282, "perf_event_open": 241, "io_uring_setup": 425, "keyctl": 219, "add_key": 217,
        "request_key": 218, "process_vm_readv": 270, "process_vm_writev": 271, "kexec_load": 104, "init_module": 105,
        "finit_module": 273, "open_by_handle_at": 265, "fsopen": 430, "move_mount": 429, "msgget": 186,
        "mq_open": 180, "personality": 92, "socket": 198, "socketpair": 199,
    },
}  # fmt: skip


def program(machine: str | None = None) -> bytes | None:
    """The filter for this kind of processor; None where its numbers are not known here."""
    machine = machine or platform.machine()
    if machine not in MACHINES:
        return None
    denied = sorted(DENIED[machine].values())
    lines = [
        _line(LOAD, 0, 0, MACHINE_AT),
        _line(JUMP_EQUAL, 1, 0, MACHINES[machine]),
        _line(RETURN, 0, 0, KILL),
        _line(LOAD, 0, 0, NUMBER_AT),
        _line(JUMP_ABOVE, len(denied) + 1, 0, X32),
    ]
    for place, number in enumerate(denied):
        lines.append(_line(JUMP_EQUAL, len(denied) - place, 0, number))
    return b"".join([*lines, _line(RETURN, 0, 0, ALLOW), _line(RETURN, 0, 0, ERRNO | EPERM)])


def _line(code: int, if_true: int, if_false: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
