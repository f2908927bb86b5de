"""What becomes of two passes: one measurement, one record, one table."""

import pytest

from attnopt.bench.latency import _merge
from attnopt.bench.params import BenchParams
from attnopt.bench.tables import Measurement, bench_record, bench_table, summarize_samples


def measurement(subject: str, phase: str = "prefill", **fields) -> Measurement:
    unit = "ms/token" if phase == "decode" else "ms"
    return Measurement(level="model", phase=phase, length=64, batch=1, subject=subject, unit=unit, **fields)


def test_either_pass_that_ends_early_is_the_outcome_and_the_other_is_kept():
    timed = {"outcome": "ok", "noisy": False, **summarize_samples([1.0, 2.0, 3.0])}
    weighed = {"outcome": "ok", "peak_mib": 5.0}
    assert _merge(timed, weighed) == timed | {"peak_mib": 5.0}
    killed = _merge(timed, {"outcome": "out-of-memory"})
    assert (killed["outcome"], killed["median"]) == ("out-of-memory", 2.0)
    late = _merge({"outcome": "over-time"}, weighed)
    assert (late["outcome"], late["peak_mib"]) == ("over-time", 5.0)


def test_record_names_what_the_numbers_depend_on():
    found = [
        measurement("variant", **summarize_samples([1.0, 3.0, 2.0])),
        measurement("softmax", outcome="out-of-memory"),
    ]
    params = BenchParams(machine="laptop", threads=3, dtype="bfloat16", device="cpu")
    made = bench_record("mine", "window", "leaks", params, 0.254, found)
    assert [made[key] for key in ("variant", "kind", "control", "machine")] == ["mine", "window", "leaks", "laptop"]
    expected = {"threads": 3, "dtype": "bfloat16", "device": "cpu", "load_before": 0.25}
    assert made["environment"].items() >= expected.items()
    assert {"cpu", "cores", "ram_gib", "torch", "transformers", "python", "os"} <= made["environment"].keys()
    assert [m["samples"] for m in made["measurements"]] == [[1.0, 3.0, 2.0], []]
    assert made["measurements"][1]["median"] is None


def test_quartiles_enclose_the_median():
    fields = summarize_samples([5.0, 1.0, 3.0])
    assert (fields["q1"], fields["median"], fields["q3"]) == (2.0, 3.0, 4.0)


def test_table_sets_the_variant_beside_softmax():
    found = [
        measurement("variant", **summarize_samples([2.0, 2.0]), peak_mib=1.5, state_bytes=2048, noisy=True),
        measurement("softmax", **summarize_samples([4.0, 4.0]), peak_mib=3.0, state_bytes=4096, memory_agrees=False),
        measurement("variant", "decode", outcome="out-of-memory"),
        measurement("softmax", "decode", **summarize_samples([0.25, 0.25]), outcome="over-time"),
    ]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in bench_table(found).splitlines()[2:]]
    assert rows[0] == ["model", "prefill", "64", "2 ms (noisy)", "4 ms", "0.50", "1.5", "3.0 (disputed)", "2.0", "4.0"]
    assert rows[1][3:6] == ["out-of-memory", "0.25 ms/token (over-time)", "-"]


def test_a_measurement_refuses_what_the_record_does_not_know():
    with pytest.raises(ValueError, match="outcome"):
        measurement("variant", outcome="crashed")
