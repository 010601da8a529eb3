"""Trials as tasks of Ray, on the GPUs of one host or of a cluster that is there."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Sequence
from typing import Any

import ray  # pyright: ignore[reportMissingImports]
from hydra.core.utils import JobReturn
from hydra_plugins.hydra_ray_launcher import _core  # pyright: ignore[reportMissingImports]
from hydra_plugins.hydra_ray_launcher.ray_launcher import (  # pyright: ignore[reportMissingImports]
    RayLauncher,
)
from omegaconf import OmegaConf, open_dict

from harness.base.errors import UserError
from harness.base.replacing import replaced
from harness.launchers.waiting import Ended, of_return, see_through
from harness.runner.display import say

LOOK_S = 1.0
REACH_S = 5.0
GONE_S = 20.0
"""For which a trial that was told to end may close its books, before its worker is killed."""
OF_A_CLUSTER_OF_OUR_OWN = ("object_store_memory", "num_cpus", "num_gpus", "include_dashboard", "_node_ip_address")
"""Settings that Ray refuses where it only joins a cluster."""

TOLD = ("HARNESS_CACHE", "HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS")
"""Variables that tasks of a standing cluster get from the driver; no passwords, since the cluster shows them."""


class Ray(RayLauncher):
    """The plugin's launcher, which waits for all tasks and cancels them when it is told to end."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """One task for each trial; a cluster that this started ends with it."""
        _start(self.ray_cfg.init)
        try:
            with open_dict(self.ray_cfg):
                self.ray_cfg.remote = suited(_plain(self.ray_cfg.remote))
            return see_through(_Tasks(super().launch), job_overrides, initial_job_idx)
        finally:
            ray.shutdown()


def _start(settings: Any) -> None:
    """Join the cluster that ``address`` or RAY_ADDRESS names, or start one; signals stay the driver's own."""
    options = _plain(settings)
    address = options.get("address") or os.environ.get("RAY_ADDRESS")
    if address not in (None, "local"):
        options = {k: v for k, v in options.items() if k not in OF_A_CLUSTER_OF_OUR_OWN}
        told = {name: os.environ[name] for name in TOLD if name in os.environ}
        options["runtime_env"] = {"env_vars": told, **options.get("runtime_env", {})}
    options = {k: v for k, v in options.items() if v is not None}
    _reach(address)
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        words = " ".join(str(error).split())
        if address in (None, "local"):
            fix = "see `ray start --head`, which says more; or run without hydra/launcher=ray"
            raise UserError(f"cannot be started ({words})", key="hydra/launcher", value="ray", fix=fix) from None
        fix = "start one (`ray start --head`), or leave the address out for one of this host's own"
        key = "hydra.launcher.ray.init.address"
        raise UserError(f"no such cluster ({words})", key=key, value=address, fix=fix) from None
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _plain(node: Any) -> dict[str, Any]:
    found: Any = OmegaConf.to_container(node, resolve=True)
    return {str(key): value for key, value in (found or {}).items()}


def _reach(address: str | None) -> None:
    """Ray itself takes minutes to find that nobody answers at ``host:port``."""
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=REACH_S).close()
    except OSError as error:
        fix = "start one (`ray start --head`), or leave the address out for one of this host's own"
        rule = f"nobody answers there ({error.strerror or error})"
        raise UserError(rule, key="hydra.launcher.ray.init.address", value=address, fix=fix) from None


def suited(remote: dict[str, Any]) -> dict[str, Any]:
    """What a task asks of the cluster: cores in place of GPUs where it has none.

    Raises:
        UserError: it has fewer GPUs than a task needs, which would wait for ever.
    """
    wanted, there = float(remote.get("num_gpus") or 0), ray.cluster_resources()
    if not wanted:
        return remote
    gpus = there.get("GPU", 0.0)
    if not gpus:
        cores = min(wanted, there.get("CPU", 1.0))
        say(f"note: this cluster has no GPU; each trial takes {cores:g} of its {there.get('CPU', 0):g} cores")
        return {**remote, "num_gpus": 0, "num_cpus": max(cores, float(remote.get("num_cpus") or 0))}
    largest = max((node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
    if wanted > largest:
        rule = f"takes a GPU for each process on one node, and no node has more than {largest:g}"
        raise UserError(rule, key="parallel.processes", value=f"{wanted:g}", fix=f"parallel.processes={largest:g}")
    return remote


class _Later:
    """Stands in for the module ``ray`` within the plugin's ``launch``, which would wait for one after the other."""

    @staticmethod
    def get(task: Any) -> Any:
        return task


class _Tasks:
    """``waiting.Jobs`` of Ray."""

    def __init__(self, launch: Any):
        self._launch = launch

    def submit(self, overrides: Sequence[Sequence[str]], first: int) -> list[Any]:
        with replaced(_core, "ray", _Later):
            return list(self._launch(overrides, first))

    def ended(self, jobs: Sequence[Any]) -> dict[int, Ended]:
        done, _ = ray.wait(list(jobs), num_returns=1, timeout=LOOK_S)
        return {place: self._result(task) for place, task in enumerate(jobs) if task in done}

    def cancel(self, jobs: Sequence[Any]) -> None:
        for task in jobs:
            ray.cancel(task)  # a KeyboardInterrupt in it: the trial's books are closed
        until, waiting = time.monotonic() + GONE_S, list(jobs)
        while waiting and time.monotonic() < until:
            _, waiting = ray.wait(waiting, num_returns=1, timeout=0.5)
        for task in waiting:
            ray.cancel(task, force=True)

    @staticmethod
    def _result(task: Any) -> Ended:
        from ray.exceptions import RayError, RayTaskError  # pyright: ignore[reportMissingImports]

        try:
            return of_return(ray.get(task))
        except RayTaskError as error:
            return Ended(why=" ".join(str(error.cause if hasattr(error, "cause") else error).split())[-300:])
        except RayError as error:  # its worker or its node is gone
            return Ended(lost=True, why=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
