"""A real Slurm on loopback addresses, of one node with two GPUs that are plain files."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.runs import free_port, wait_for

GPUS = ("/dev/null", "/dev/zero")
"""Stand in for devices: Slurm wants character devices, and opens none."""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
CONF = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldAddr=127.0.0.1
SlurmctldPort={ctld}
SlurmdPort={slurmd}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SchedulerParameters=sched_interval=2,batch_sched_delay=1
KillWait=30
MinJobAge=300
ReturnToService=2
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 Gres=gpu:2 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


@dataclass(frozen=True)
class Cluster:
    """A cluster that runs.

    Attributes:
        environment: what a command needs to talk to it.
    """

    root: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.root / "slurm.conf")}

    def ask(self, *command: str) -> str:
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def jobs(self) -> list[str]:
        """Those that are not over."""
        return self.ask("squeue", "--noheader", "--array", "--format=%i").split()


def missing() -> str | None:
    """Why there can be no cluster here; None where there can be one."""
    if absent := [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]:
        return (
            f"needs Slurm and munge ({', '.join(absent)} missing): apt-get install slurmctld slurmd munge slurm-client"
        )
    if os.geteuid() != 0:
        return "a Slurm of our own needs root"
    return None


@contextmanager
def cluster(root: Path) -> Iterator[Cluster]:
    """Start one, and end all of it."""
    for name in ("state", "spool"):
        (root / name).mkdir(parents=True)
    host = socket.gethostname().split(".")[0]
    (root / "slurm.conf").write_text(CONF.format(root=root, host=host, ctld=free_port(), slurmd=free_port()))
    (root / "gres.conf").write_text(f"NodeName={host} Name=gpu File={','.join(GPUS)}\n")
    key = root / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    root.chmod(0o755)
    conf = ["-f", str(root / "slurm.conf")]
    munge = ["munged", "--foreground", "--force", f"--socket={root}/munge.socket", f"--key-file={key}"]
    munge += [f"--log-file={root}/munge.log", f"--pid-file={root}/munge.pid", f"--seed-file={root}/munge.seed"]
    with ExitStack() as stack:
        for command in (munge, ["slurmctld", "-D", *conf], ["slurmd", "-D", *conf]):
            stack.enter_context(daemon(command, root / f"{command[0]}.out"))
            if command is munge:
                wait_for(lambda: (root / "munge.socket").exists(), 30, "munge")
        found = Cluster(root)
        wait_for(lambda: "idle" in status(found), 30, "the node")
        yield found
        subprocess.run(["scancel", "--user=root"], env={**os.environ, **found.environment}, capture_output=True)


def status(found: Cluster) -> str:
    done = subprocess.run(
        ["sinfo", "--noheader", "--format=%t"], env={**os.environ, **found.environment}, capture_output=True, text=True
    )
    return done.stdout


@contextmanager
def daemon(command: list[str], log: Path) -> Iterator[None]:
    path = f"{os.environ['PATH']}:/usr/sbin"
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, "PATH": path})
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
