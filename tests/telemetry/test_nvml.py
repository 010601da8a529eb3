"""GPU memory of a process, read through a stand-in for the driver."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from harness.telemetry.host import SampleMissed
from harness.telemetry.inventory import Device, LensUnavailable, device_levels, first_visible, visible_gpus
from harness.telemetry.nvml import NvmlLens
from tests.telemetry.driver import GB, Driver, Gpu, NVMLError

ME = os.getpid()


def lens_on(driver: Driver, env: dict[str, str] | None = None, **options) -> NvmlLens:
    return NvmlLens(ME, env=env or {}, nvml=driver, **options)


def devices(*uuids: str, models: str = "") -> list[Device]:
    return [Device(uuid, model, None) for uuid, model in zip(uuids, models or "x" * len(uuids), strict=True)]


def test_the_process_own_memory_is_taken_where_the_driver_tells_it():
    gpu = Gpu("GPU-a", used=9 * GB)
    gpu.processes = {ME: 2 * GB, 999_999_999: 6 * GB}
    sample = lens_on(Driver(gpu)).sample(now=5.0)
    assert (sample.time, sample.used_mb, sample.lens) == (5.0, 2000.0, "nvml_process")
    assert (sample.utilisation_percent, sample.power_w) == (50.0, 300.0)


def test_a_process_that_is_not_visible_falls_back_to_the_rise_of_the_device():
    gpu = Gpu("GPU-a", used=3 * GB)
    lens = lens_on(Driver(gpu))
    gpu.processes = {4_000_000: 4 * GB}  # the pid that the host gave us, which means nothing in here
    gpu.used = 7 * GB
    sample = lens.sample(now=0.0)
    assert (sample.used_mb, sample.lens) == (4000.0, "nvml_device_delta")
    gpu.used = 2 * GB
    assert lens.sample(now=0.1).used_mb == 0.0


@pytest.mark.parametrize("untold", [None, 0])
def test_a_process_listed_without_its_memory_falls_back_too(untold):
    gpu = Gpu("GPU-a", used=1 * GB)
    lens = lens_on(Driver(gpu))
    gpu.processes, gpu.used = {ME: untold}, 3 * GB
    sample = lens.sample(now=0.0)
    assert (sample.used_mb, sample.lens) == (2000.0, "nvml_device_delta")


def test_a_level_taken_before_the_worker_started_is_the_baseline():
    gpu = Gpu("GPU-a", used=1 * GB)
    driver = Driver(gpu)
    levels = device_levels(driver)
    gpu.used = 4 * GB  # the worker was quick
    assert lens_on(driver, levels=levels).sample(now=0.0).used_mb == 3000.0


def test_a_process_seen_once_holds_nothing_when_it_is_listed_no_more():
    gpu = Gpu("GPU-a", used=1 * GB)
    lens = lens_on(Driver(gpu))
    gpu.processes = {ME: 2 * GB}
    lens.sample(now=0.0)
    gpu.processes, gpu.used = {}, 8 * GB  # a neighbour's
    sample = lens.sample(now=0.1)
    assert (sample.used_mb, sample.lens) == (0.0, "nvml_process")


def test_memory_that_is_told_no_more_is_missed_rather_than_guessed():
    gpu = Gpu("GPU-a")
    lens = lens_on(Driver(gpu))
    gpu.processes = {ME: 2 * GB}
    lens.sample(now=0.0)
    gpu.processes = {ME: None}
    with pytest.raises(SampleMissed, match="without its memory"):
        lens.sample(now=0.1)


def test_the_memory_of_descendants_is_counted(monkeypatch):
    monkeypatch.setattr("harness.telemetry.nvml.process_tree", lambda pid: [pid, 77])
    gpu = Gpu("GPU-a")
    gpu.processes = {ME: 2 * GB, 77: 1 * GB, 78: 5 * GB}
    assert lens_on(Driver(gpu)).sample(now=0.0).used_mb == 3000.0


def test_the_gpu_that_lists_the_process_is_followed_whatever_its_index():
    first, second = Gpu("GPU-a", "T400"), Gpu("GPU-b", "H200")  # CUDA's device 0 is NVML's 1
    driver = Driver(first, second)
    lens = lens_on(driver, {"CUDA_VISIBLE_DEVICES": "0"})
    second.processes, second.power_mw = {ME: 5 * GB}, 600_000
    sample = lens.sample(now=0.0)
    assert (sample.used_mb, sample.lens, sample.power_w) == (5000.0, "nvml_process", 600.0)


def test_memory_on_several_gpus_is_added_up():
    gpus = [Gpu("GPU-a"), Gpu("GPU-b"), Gpu("GPU-c")]
    gpus[0].processes, gpus[2].processes = {ME: 1 * GB}, {ME: 2 * GB}
    gpus[0].utilisation, gpus[2].utilisation = 20, 60
    sample = lens_on(Driver(*gpus)).sample(now=0.0)
    assert (sample.used_mb, sample.power_w, sample.utilisation_percent) == (3000.0, 600.0, 40.0)


def test_an_index_names_no_device_for_sure_among_several_models():
    first, second = Gpu("GPU-a", "T400"), Gpu("GPU-b", "H200")
    lens = lens_on(Driver(first, second), {"CUDA_VISIBLE_DEVICES": "0"})
    second.used = 6 * GB
    with pytest.raises(SampleMissed, match="GPUs of several models"):
        lens.sample(now=0.0)


@pytest.mark.parametrize("reported", ["GPU-b", "b", "GPU-B"])
def test_the_uuid_that_the_worker_reports_takes_precedence_over_the_index(reported):
    first, second = Gpu("GPU-a"), Gpu("GPU-b")
    lens = lens_on(Driver(first, second), {"CUDA_VISIBLE_DEVICES": "0"})
    first.used, second.used = 9 * GB, 6 * GB
    assert lens.sample(now=0.0).used_mb == 8000.0
    lens.use_gpu(reported)
    assert lens.sample(now=0.1).used_mb == 5000.0


def test_a_uuid_that_the_driver_does_not_list_changes_nothing():
    gpu = Gpu("GPU-a")
    lens = lens_on(Driver(gpu))
    lens.use_gpu("GPU-elsewhere")
    gpu.used = 2 * GB
    assert lens.sample(now=0.0).used_mb == 1000.0


def test_a_uuid_in_cuda_visible_devices_chooses_its_gpu():
    first, second = Gpu("GPU-aa11", "T400"), Gpu("GPU-bb22", "H200")
    lens = lens_on(Driver(first, second), {"CUDA_VISIBLE_DEVICES": "GPU-bb"})
    first.used, second.used = 9 * GB, 3 * GB
    assert lens.sample(now=0.0).used_mb == 2000.0


@pytest.mark.parametrize(
    ("mask", "visible"),
    [
        (None, ["GPU-a1", "GPU-a2", "GPU-b"]),
        ("2,0", ["GPU-b", "GPU-a1"]),
        (" 1 ", ["GPU-a2"]),
        ("0,-1,1", ["GPU-a1"]),
        ("1,7,0", ["GPU-a2"]),
        ("GPU-B", ["GPU-b"]),
        ("GPU-b,GPU-a", ["GPU-b"]),  # GPU-a begins two UUIDs: it names none, and ends the list
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(mask, visible):
    env = {} if mask is None else {"CUDA_VISIBLE_DEVICES": mask}
    found = visible_gpus(devices("GPU-a1", "GPU-a2", "GPU-b"), env)
    assert (list(found.uuids), found.certain) == (visible, True)


@pytest.mark.parametrize("mask", ["", "-1", "NoDevFiles", "9", "GPU-", "b"])
def test_a_mask_that_names_no_device_means_no_gpu(mask):
    with pytest.raises(LensUnavailable, match="shows no GPU"):
        visible_gpus(devices("GPU-a", "GPU-b"), {"CUDA_VISIBLE_DEVICES": mask})


def test_an_empty_mask_needs_no_driver():
    driver = Driver(Gpu("GPU-a"))
    driver.failing = "Driver Not Loaded"
    with pytest.raises(LensUnavailable, match="CUDA_VISIBLE_DEVICES='' shows no GPU"):
        lens_on(driver, {"CUDA_VISIBLE_DEVICES": ""})


def test_indices_follow_the_pci_bus_among_several_models_when_cuda_is_told_so():
    env = {"CUDA_VISIBLE_DEVICES": "1"}
    mixed = devices("GPU-a", "GPU-b", models="xy")
    assert not visible_gpus(mixed, env).certain
    told = visible_gpus(mixed, {**env, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
    assert (list(told.uuids), told.certain) == (["GPU-b"], True)


def test_the_first_gpu_is_the_one_that_cuda_shows_first():
    small, large = Gpu("GPU-a"), Gpu("GPU-b")
    small.total = 24 * GB
    driver = Driver(small, large)
    assert first_visible({}, driver) == ("H200", 24 * GB)
    assert first_visible({"CUDA_VISIBLE_DEVICES": "1,0"}, driver) == ("H200", 80 * GB)
    assert first_visible({"CUDA_VISIBLE_DEVICES": ""}, driver) is None
    large.model = "T400"
    assert first_visible({"CUDA_VISIBLE_DEVICES": "1"}, driver) is None, "CUDA may number these two otherwise"
    assert first_visible({"CUDA_VISIBLE_DEVICES": "GPU-b"}, driver) == ("T400", 80 * GB)
    assert not driver.open, "the driver is let go"
    driver.failing = "Driver Not Loaded"
    assert first_visible({}, driver) is None


def test_mig_slices_are_refused_with_the_reason():
    with pytest.raises(LensUnavailable, match="MIG slices are not supported"):
        visible_gpus(devices("GPU-a"), {"CUDA_VISIBLE_DEVICES": "MIG-1234"})
    sliced = Gpu("GPU-a")
    sliced.mig = 1
    driver = Driver(sliced)
    with pytest.raises(LensUnavailable, match="GPU-a is sliced by MIG"):
        lens_on(driver)
    assert driver.open == 0


def test_of_a_sliced_gpu_the_slice_that_cuda_shows_is_what_there_is_room_in():
    gpu, plain = Gpu("GPU-a", model="A100"), Gpu("GPU-b", model="A100")
    gpu.mig = 1
    slices = {1: ("MIG-x", 10 * GB), 3: ("MIG-y", 20 * GB)}  # places 0, 2 and 4 are not taken

    class Sliced(Driver):
        def nvmlDeviceGetMaxMigDeviceCount(self, handle):  # noqa: N802
            return 5

        def nvmlDeviceGetMigDeviceHandleByIndex(self, handle, index):  # noqa: N802
            if index not in slices:
                raise NVMLError("Not Found")
            return slices[index]

        def nvmlDeviceGetUUID(self, handle):  # noqa: N802
            return handle[0] if handle in slices.values() else super().nvmlDeviceGetUUID(handle)

        def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
            if handle in slices.values():
                return SimpleNamespace(used=0, total=handle[1])
            return super().nvmlDeviceGetMemoryInfo(handle)

    driver = Sliced(gpu, plain)
    assert first_visible({}, driver) == ("MIG slice of A100", 10 * GB)
    assert first_visible({"CUDA_VISIBLE_DEVICES": "MIG-y"}, driver) == ("MIG slice of A100", 20 * GB)
    assert first_visible({"CUDA_VISIBLE_DEVICES": "MIG-z"}, driver) is None
    assert first_visible({"CUDA_VISIBLE_DEVICES": "GPU-b"}, driver) == ("A100", 80 * GB)


def test_no_driver_is_said_so():
    driver = Driver()
    driver.failing = "Driver Not Loaded"
    with pytest.raises(LensUnavailable, match="Driver Not Loaded"):
        lens_on(driver)
    assert device_levels(driver) == {}
    with pytest.raises(LensUnavailable, match="lists no GPU"):
        lens_on(Driver())


def test_a_driver_error_costs_the_samples_of_its_time_only():
    gpu = Gpu("GPU-a")
    gpu.processes = {ME: 2 * GB}
    driver = Driver(gpu)
    lens = lens_on(driver)
    assert lens.sample(now=0.0).used_mb == 2000.0
    driver.failing = "GPU is lost"
    for now in (0.1, 0.2):
        with pytest.raises(SampleMissed, match="GPU is lost"):
            lens.sample(now=now)
    driver.failing = None
    assert lens.sample(now=1.5).used_mb == 2000.0
    lens.close()
    assert driver.open == 0


def test_readings_that_a_gpu_lacks_are_absent():
    driver = Driver(Gpu("GPU-a"))
    driver.unsupported = {"utilisation", "power", "energy"}
    lens = lens_on(driver)
    sample = lens.sample(now=0.0)
    assert (sample.utilisation_percent, sample.power_w, lens.energy_j()) == (None, None, None)


def test_utilisation_and_power_are_left_out_where_not_asked_for():
    sample = lens_on(Driver(Gpu("GPU-a"))).sample(now=0.0, full=False)
    assert (sample.utilisation_percent, sample.power_w) == (None, None)


def test_energy_counts_from_the_first_call_and_survives_a_reset_of_the_counter():
    gpu = Gpu("GPU-a")
    lens = lens_on(Driver(gpu))
    read = [lens.energy_j()]
    for counter in (1_005_000, 200, 3_200):
        gpu.energy_mj = counter
        read.append(lens.energy_j())
    assert read == [0.0, 5.0, 5.0, 8.0]
