"""What becomes of measurements: one record, one table."""

from typing import Any

import pytest

from attnopt.bench.latency import in_milliseconds
from attnopt.bench.params import BenchParams
from attnopt.bench.tables import bench_record, bench_table
from attnopt.records.bench import BenchRecord, Measurement
from attnopt.records.distill import StudentCard


def measurement(subject: str, phase: str = "prefill", **fields) -> Measurement:
    about = {"level": "model", "phase": phase, "length": 64, "batch": 1, "subject": subject}
    return Measurement(**about | times(phase, []) | fields)


def times(phase: str, milliseconds: list[float]) -> dict[str, Any]:
    return in_milliseconds(phase, [ms / 1e3 for ms in milliseconds])._asdict()


def test_record_names_what_the_numbers_depend_on(tmp_path):
    found = [
        measurement("variant", **times("prefill", [1.0, 3.0, 2.0])),
        measurement("softmax", outcome="out-of-memory"),
    ]
    params = BenchParams(machine="laptop", threads=3, dtype="bfloat16", device="cpu")
    card = StudentCard.model_construct(variant="mine", kind="window", control="leaks")
    record = bench_record(card, params, "Sparc, 4 cores, 8 GiB", 0.254, found, key="abc")
    made = record.model_dump()
    assert made["hardware"] == "Sparc, 4 cores, 8 GiB"
    assert [made[key] for key in ("variant", "kind", "control", "machine")] == ["mine", "window", "leaks", "laptop"]
    assert (made["key"], made["format"]) == ("abc", 3)
    expected = {"threads": 3, "dtype": "bfloat16", "device": "cpu", "load_before": 0.25}
    assert made["environment"].items() >= expected.items()
    assert {"cpu", "cores", "ram_gib", "torch", "transformers", "python", "os"} <= made["environment"].keys()
    assert [m["samples"] for m in made["measurements"]] == [[1.0, 3.0, 2.0], []]
    assert made["measurements"][1]["median"] is None
    record.write(tmp_path / "record.json")
    assert BenchRecord.read(tmp_path / "record.json") == record


def test_table_sets_the_variant_beside_softmax():
    found = [
        measurement("variant", **times("prefill", [2.0, 2.0]), peak_mib=1.5, state_bytes=2048, noisy=True),
        measurement("softmax", **times("prefill", [4.0, 4.0]), peak_mib=3.0, state_bytes=4096, memory_agrees=False),
        measurement("variant", "decode", outcome="out-of-memory"),
        measurement("softmax", "decode", **times("decode", [0.25, 0.25]), outcome="over-time"),
    ]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in bench_table(found).splitlines()[2:]]
    assert rows[0] == ["model", "prefill", "64", "2 ms (noisy)", "4 ms", "0.50", "1.5", "3.0 (disputed)", "2.0", "4.0"]
    assert rows[1][3:6] == ["out-of-memory", "0.25 ms/token (over-time)", "-"]


def test_a_measurement_refuses_what_the_record_does_not_know():
    with pytest.raises(ValueError, match="outcome"):
        measurement("variant", outcome="crashed")
