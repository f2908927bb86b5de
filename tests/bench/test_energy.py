"""Energy: counters that are files or a driver's, faked, and what is made of them."""

import sys
from types import SimpleNamespace

import pytest
import torch

from attnopt.bench import energy
from attnopt.bench.params import BenchParams
from attnopt.bench.plan import Plan, run_bench
from attnopt.bench.work import Work
from attnopt.core.errors import UserError

from .toys import Toy

pytestmark = pytest.mark.slow

ON_CPU = SimpleNamespace(cuda=False)


@pytest.fixture
def powercap(tmp_path, monkeypatch):
    """Two packages, of which one has a part that must not be counted twice."""
    for name, content in {"intel-rapl:0": "1000000", "intel-rapl:1": "9000000", "intel-rapl:0:0": "5"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(content)
        (tmp_path / name / "max_energy_range_uj").write_text("10000000")
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    return tmp_path


def test_rapl_adds_packages_up_and_counters_that_go_round(powercap):
    meter = energy.Rapl()
    assert meter() == 0
    (powercap / "intel-rapl:0" / "energy_uj").write_text("3000000")
    (powercap / "intel-rapl:1" / "energy_uj").write_text("1000000")
    (powercap / "intel-rapl:0:0" / "energy_uj").write_text("999")
    assert meter() == meter() == 2 + 2


def test_rapl_without_counters_is_the_users_mistake(powercap, monkeypatch):
    (powercap / "intel-rapl:1" / "energy_uj").unlink()
    with pytest.raises(UserError, match=r"bench\.energy rapl: .*energy_uj cannot be read"):
        energy.Rapl()
    monkeypatch.setattr(energy, "POWERCAP", powercap / "none")
    with pytest.raises(UserError, match=r"bench\.energy rapl: .*no energy counter"):
        energy.Rapl()


def test_nvml_reads_the_gpu_that_torch_uses(monkeypatch):
    told = {"nvmlInit": lambda: None, "nvmlDeviceGetHandleByUUID": str.upper}
    told["nvmlDeviceGetTotalEnergyConsumption"] = {"GPU-AB": 2500}.__getitem__
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(**told))
    with pytest.raises(UserError, match="needs a GPU"):
        energy.Nvml()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(uuid="ab"))
    assert energy.Nvml()() == 2.5


def test_nvml_without_its_package_is_the_users_mistake(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(UserError, match=r"bench\.energy nvml needs the package nvidia-ml-py"):
        energy.Nvml()


def test_joules_are_of_a_token_and_without_the_copies(monkeypatch):
    """A copy takes 3 J, a run of 4 tokens 8 J, each a quarter of a second."""
    spent = SimpleNamespace(joules=0.0, seconds=0.0)

    def take(joules: float) -> None:
        spent.joules += joules
        spent.seconds += 0.25

    monkeypatch.setattr(energy, "time", SimpleNamespace(perf_counter=lambda: spent.seconds))
    work = Work(lambda _: take(8.0), list, lambda _: take(3.0), 4)
    assert energy.joules(work, lambda: spent.joules, ON_CPU) == 2.0


def test_a_platform_that_does_not_tell_is_named_by_the_bench(tmp_path):
    if list(energy.POWERCAP.glob("intel-rapl:*")):
        pytest.skip("this machine has RAPL counters")
    params = BenchParams(phases=["prefill"], energy="rapl", device="cpu", threads=1, min_iterations=2, min_seconds=0)
    with pytest.raises(UserError, match="no energy counter"):
        run_bench([Plan("operation", [Toy("variant")], [1])], params)
