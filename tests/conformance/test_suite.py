"""Every registered mechanism, with every option set it names, against every check; a new file is found by itself."""

import sys

import pytest
import torch

from attnopt import conformance, mechanisms
from attnopt.conformance.case import GEOMETRIES
from attnopt.conformance.memory import peak_bytes
from attnopt.core.errors import UserError
from attnopt.mechanisms import Geometry, Inputs
from attnopt.mechanisms.softmax import Softmax

SETS = {
    f"{kind}-{name}": (kind, options)
    for kind in mechanisms.mechanism_names()
    for name, options in mechanisms.load_mechanism(kind).conformance_options().items()
}
FIRST = {kind: name for name, (kind, _) in reversed(SETS.items())}
CASES = [
    pytest.param(name, label, marks=() if (FIRST[kind], label) == (name, "GQA") else pytest.mark.slow)
    for name, (kind, _) in SETS.items()
    for label in GEOMETRIES
]
"""Of each mechanism its first set, which is its defaults, with grouped queries; the whole suite runs the others."""


class Bidirectional(Softmax):
    """Sees the whole sequence, and says so."""

    control = "leaks"

    def extend(self, x, state=None):
        _, state = super().extend(x, state)
        k, v, scaling = state.k.tensor, state.v.tensor, self.geometry.scaling
        return torch.nn.functional.scaled_dot_product_attention(x.q, k, v, scale=scaling, enable_gqa=True), state

    def reference(self, x):
        return self.extend(x)[0]

    @classmethod
    def limit(cls, length):
        return None


@pytest.mark.parametrize("check", conformance.CHECKS)
@pytest.mark.parametrize(("case", "geometry"), CASES)
def test_mechanism(case: str, geometry: str, check: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("attnopt.conformance.suite.GEOMETRIES", {geometry: GEOMETRIES[geometry]})
    kind, options = SETS[case]
    (result,) = conformance.check(mechanisms.load_mechanism(kind), options, [check])
    assert result.passed is not False, result.detail


def test_causality_is_the_only_check_a_declared_leak_inverts():
    results = {r.name: r for r in conformance.check(Bidirectional)}
    assert results["causality"].passed
    assert "leaks as declared" in results["causality"].detail
    assert results["prefix"].passed is results["streaming"].passed is results["limit"].passed is None
    assert all(r.passed is not False for r in results.values())


def test_declared_leak_that_does_not_leak_fails():
    class Honest(Softmax):
        control = "leaks"

    (result,) = conformance.check(Honest, only=["causality"])
    assert result.passed is False


def test_leak_names_what_leaks_and_leaves_the_mechanism_alone():
    geometry = Geometry(heads=4, kv_heads=2, head_dim=64, hidden=256, scaling=0.125)
    before = torch.get_rng_state()
    assert conformance.leak(Softmax(geometry, Softmax.Options())) is None
    bidirectional = Bidirectional(geometry, Softmax.Options())
    bidirectional.kind = "bidirectional"
    assert "mechanism 'bidirectional' leaks the future" in conformance.leak(bidirectional)
    assert torch.equal(torch.get_rng_state(), before)


def test_unknown_check_lists_the_known():
    with pytest.raises(UserError, match="unknown check 'causal'; known: causality, prefix"):
        conformance.check(Softmax, only=["causal"])


def test_exception_in_a_mechanism_is_a_failed_check():
    class Broken(Softmax):
        def extend(self, x, state=None):
            raise RuntimeError("no kernel")

    (result,) = conformance.check(Broken, only=["ones"])
    assert result.passed is False
    assert "RuntimeError: no kernel" in result.detail
    assert "test_suite.py" in result.detail


def test_main_prints_a_table_and_returns_the_verdict(capsys, monkeypatch):
    monkeypatch.setattr("attnopt.conformance.suite.CHECKS", {"ones": conformance.CHECKS["ones"]})
    assert conformance.check_target("softmax")
    assert "ones         pass" in capsys.readouterr().out


def test_users_class_is_found_in_the_working_directory(tmp_path, capsys, monkeypatch):
    source = (
        "from attnopt.mechanisms.softmax import Softmax\n"
        "class Zero(Softmax):\n"
        "    def extend(self, x, state=None):\n"
        "        out, state = super().extend(x, state)\n"
        "        return out * 0, state\n"
    )
    (tmp_path / "my_module.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "my_module", None)
    del sys.modules["my_module"]  # and the import below is undone after the test
    checks = {name: conformance.CHECKS[name] for name in ("causality", "ones")}
    monkeypatch.setattr("attnopt.conformance.suite.CHECKS", checks)
    path = list(sys.path)
    assert not conformance.check_target("my_module:Zero")
    assert sys.path == path
    printed = capsys.readouterr().out
    assert "ones         FAIL" in printed
    assert "causality    pass" in printed


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("sotfmax", "unknown mechanism 'sotfmax' .did you mean softmax"),
        ("no_such_module:Thing", "cannot import 'no_such_module:Thing' .* No module named"),
        ("attnopt.mechanisms.softmax:Hardmax", "cannot import .* has no attribute 'Hardmax'"),
        ("torch:Tensor", "'torch:Tensor' is not a subclass of attnopt.mechanisms.Mechanism"),
        (":Thing", "cannot import ':Thing' as module:Class"),
    ],
)
def test_bad_target(target: str, message: str):
    with pytest.raises(UserError, match=message) as caught:
        conformance.check_target(target)
    assert "\n" not in str(caught.value)


def test_peak_bytes_measures_a_known_allocation():
    x = torch.zeros(1000, requires_grad=True)

    def run():
        x.exp().mul(
            2
        ).sum().backward()  # exp's output, kept for the backward pass, beside mul's or the gradients of both

    assert peak_bytes(run) == pytest.approx(12000, abs=16)
    assert peak_bytes(lambda: x.detach()[10:]) == 0


def test_inputs_of_a_case_do_not_depend_on_torch_seed():
    case = conformance.case.Case(Softmax, Softmax.Options(), conformance.case.GEOMETRIES["GQA"])
    torch.manual_seed(0)
    first: Inputs = case.inputs(5)
    torch.manual_seed(1)
    assert torch.equal(first.k, case.inputs(5).k)


@pytest.mark.parametrize("way", ["extend", "parallel"])
def test_a_leak_is_found_in_the_form_that_streams_and_in_the_one_that_does_not(way):
    class Leaking(Softmax):
        kind = "half-leaking"

        def parallel(self, x):
            return Softmax.extend(self, x)[0]

    def leaks(self, x, state=None):
        out, state = Softmax.extend(self, x, state)
        out = out + x.v.mean(2, keepdim=True)
        return out if way == "parallel" else (out, state)

    setattr(Leaking, way, leaks)
    geometry = Geometry(heads=2, kv_heads=2, head_dim=8, hidden=16, scaling=0.3)
    assert "'half-leaking' leaks the future" in str(conformance.leak(Leaking(geometry, Leaking.Options())))
