"""A trial in another process than its driver, or on another machine: what it finds, and what it says is missing."""

from __future__ import annotations

import json
import os
import signal
import socket
from types import SimpleNamespace

import pytest

from harness.base.errors import Preempted, UserError
from harness.launchers import elsewhere


@pytest.fixture
def sweep(tmp_path):
    folder = tmp_path / "outputs" / "wide"
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text("{}")
    return folder


@pytest.fixture
def handlers():
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def config(folder):
    return SimpleNamespace(outputs=str(folder.parent), sweep=folder.name)


def test_a_job_goes_to_where_its_sweep_was_started(sweep, tmp_path, monkeypatch, handlers):
    monkeypatch.chdir("/")
    monkeypatch.setenv(elsewhere.FROM, str(tmp_path))
    elsewhere.arrive(SimpleNamespace(outputs="outputs", sweep="wide"))
    assert os.getcwd() == str(tmp_path)


def test_a_machine_without_the_folders_is_told(sweep, tmp_path, monkeypatch):
    monkeypatch.setenv(elsewhere.FROM, str(tmp_path / "home"))
    with pytest.raises(UserError, match=f"is not there on {socket.gethostname()}"):
        elsewhere.arrive(config(sweep))
    monkeypatch.setenv(elsewhere.FROM, str(tmp_path))
    (sweep / "sweep.json").unlink()
    with pytest.raises(UserError, match="outputs=.*is not shared"):
        elsewhere.arrive(config(sweep))


def test_what_ends_a_job_comes_to_nothing_a_second_time(sweep, tmp_path, monkeypatch, handlers):
    monkeypatch.setenv(elsewhere.FROM, str(tmp_path))
    requeued = []
    signal.signal(signal.SIGUSR2, lambda *_: requeued.append(1))
    elsewhere.arrive(config(sweep))
    with pytest.raises(Preempted), elsewhere.given_back():
        os.kill(os.getpid(), signal.SIGUSR2)
    assert requeued == [1], "once all is closed, a scheduler's own handler puts it back into the queue"
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGUSR2)
    assert requeued == [1]


def test_the_machine_of_the_driver_lacks_nothing(sweep, tmp_path):
    cache = tmp_path / "cache"
    with elsewhere.probes(sweep, cache):
        elsewhere.look_around(sweep, cache)
        assert elsewhere.what_hosts_lack(sweep) == []
    assert [p for p in cache.iterdir()] == [], "nothing is left in the cache"


def test_another_machine_says_what_it_does_not_share(sweep, tmp_path, monkeypatch):
    cache, other = tmp_path / "cache", tmp_path / "other"
    other.mkdir()
    with elsewhere.probes(sweep, cache):
        monkeypatch.setattr(socket, "gethostname", lambda: "node7")
        elsewhere.look_around(sweep, cache)
        assert elsewhere.what_hosts_lack(sweep) == [], "it has the cache, and cannot get the driver's lock"
        elsewhere.look_around(sweep, other)
        (lack,) = elsewhere.what_hosts_lack(sweep)
        assert lack.startswith("node7 does not share the cache")
        (sweep / f"{elsewhere.PROBE}.lock").unlink()  # as where locks are each machine's own
        elsewhere.look_around(sweep, cache)
        (lack,) = elsewhere.what_hosts_lack(sweep)
        assert lack.startswith("node7 does not see locks")


def test_a_sweep_of_an_older_driver_has_no_probe(sweep, tmp_path):
    elsewhere.look_around(sweep, tmp_path)
    assert not (sweep / elsewhere.HOSTS).exists()


def test_two_drivers_of_one_sweep_do_not_wait_for_each_other(sweep, tmp_path):
    with elsewhere.probes(sweep, tmp_path), elsewhere.probes(sweep, tmp_path):
        assert json.loads((sweep / elsewhere.PROBE).read_text())["host"] == socket.gethostname()


def test_paths_are_quoted_for_hydra(tmp_path):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    path = tmp_path / "it's, a [folder]"
    (found,) = OverridesParser.create().parse_overrides([f"outputs={elsewhere.quoted(path)}"])
    assert found.value() == str(path)
