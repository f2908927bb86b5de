"""How many sequences fit: arithmetic on measurements that are known, and on a model at several batch sizes."""

import pytest
from bench.toys import TinyGPT2

from attnopt.bench.params import BenchParams
from attnopt.bench.plan import Plan, run_bench
from attnopt.records.bench import Measurement
from attnopt.report.data.capacity import capacities

MIB = 2**20


def measurement(batch: int = 1, subject: str = "variant", **fields) -> Measurement:
    about = {"level": "model", "phase": "decode", "length": 64, "unit": "ms/token"}
    known = {"peak_mib": 3.0, "state_bytes": batch * MIB, "weight_bytes": 24 * MIB}
    return Measurement(**about | known | {"batch": batch, "subject": subject} | fields)


def test_one_batch_counts_its_whole_peak_for_each_sequence():
    (row,) = capacities([measurement(2, peak_mib=8.0)], memory_gib=1.0)
    assert (row.weights_mib, row.state_mib, row.sequence_mib) == (24, 1, 4)
    assert (row.length, row.subject, row.batches) == (64, "variant", [2])
    assert row.sequences == (1024 - 24) // 4


def test_several_batches_tell_what_a_sequence_adds():
    """A peak of 100 + 2 x batch MiB: the 100 are paid once."""
    (row,) = capacities([measurement(b, peak_mib=100.0 + 2 * b) for b in (8, 1, 4)], memory_gib=1.0)
    assert row.sequence_mib == pytest.approx(2)
    assert row.batches == [1, 4, 8]
    assert row.sequences == (1024 - 24 - 100) / 2


def test_a_sequence_takes_at_least_its_state_and_weights_must_fit():
    rows = capacities([measurement(peak_mib=0.1), measurement(subject="softmax", weight_bytes=2**40)], memory_gib=1.0)
    assert rows[0].sequences == 1000
    assert rows[1].sequences == 0
    assert capacities([measurement(peak_mib=-0.1, state_bytes=0)], 1.0)[0].sequences is None


def test_what_was_not_decoded_by_a_model_has_no_capacity():
    rows = [
        measurement(phase="prefill", unit="ms"),
        measurement(level="operation"),
        measurement(outcome="out-of-memory", peak_mib=None, state_bytes=None, weight_bytes=None),
    ]
    assert capacities(rows, 1.0) == []


@pytest.mark.slow
def test_further_batches_are_measured_on_the_model_alone():
    params = BenchParams(
        phases=["prefill", "decode", "train"], batches=[8], threads=1, device="cpu", max_spread=1e9, min_seconds=0,
        min_iterations=2,
    )  # fmt: skip
    plans = [Plan("model", [TinyGPT2("softmax")], [64]), Plan("operation", [TinyGPT2("softmax")], [32])]
    found = run_bench(plans, params)
    assert [(m.level, m.phase, m.batch) for m in found] == [
        ("model", "prefill", 1), ("model", "decode", 1), ("model", "train", 1),
        ("operation", "prefill", 1), ("operation", "decode", 1), ("operation", "train", 1),
        ("model", "prefill", 8), ("model", "decode", 8),
    ]  # fmt: skip
    (row,) = capacities(found, memory_gib=1.0)
    assert row.batches == [1, 8]
    assert row.state_mib * MIB == 2 * 2 * 64 * 32 * 4
    assert row.weights_mib * MIB == found[0].weight_bytes
    assert len({m.weight_bytes for m in found}) == 1, "not with the positions that are added for timing"
