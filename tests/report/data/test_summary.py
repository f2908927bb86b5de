import dataclasses
import math

import numpy as np
import pytest

from attnopt.report.data import summary


def test_the_standard_error_has_both_its_sources(context):
    rows = context.evaluated[context.evaluated["variant"] == "performer"]
    spread = rows["kl_forward"].std(ddof=1)
    expected = math.hypot(rows["kl_forward_se"].mean(), spread / math.sqrt(2))
    assert context.quality.loc["performer", "kl"] == pytest.approx(rows["kl_forward"].mean())
    assert context.quality.loc["performer", "kl_spread"] == pytest.approx(spread)
    assert context.quality.loc["performer", "kl_se"] == pytest.approx(expected)


def test_one_run_has_an_error_over_blocks_and_no_spread(context):
    row = context.quality.loc["hedgehog"]
    assert row["seeds"] == 1
    assert math.isnan(row["kl_spread"])
    assert row["kl_se"] == pytest.approx(row["kl_se_blocks"])


def test_controls_and_leaks_stand_behind_those_that_compete(context):
    roles = list(context.quality["role"])
    assert roles == sorted(roles, key=lambda role: role != "candidate")
    assert context.ranked["kl"].is_monotonic_increasing
    assert not {"softmax", "none", "performer_bidirectional"} & set(context.ranked.index)


def test_costs_stand_beside_softmax_of_the_same_run(context):
    rows = context.records.bench
    rows = rows[(rows["level"] == "model") & (rows["phase"] == "decode") & (rows["length"] == 512)]
    rows = rows[rows["variant"] == "nsa"].set_index("subject")["median"]
    found = summary.cost_at(context.records, 512).loc["nsa"]
    assert found["decode_ms"] == rows["variant"]
    assert found["decode_ms_ratio"] == pytest.approx(rows["variant"] / rows["softmax"])
    assert found["state_ratio"] == pytest.approx(0.5)
    assert found["level"] == "model"


def test_a_length_that_only_the_operation_has_is_read_from_it(context):
    found = summary.cost_at(context.records, 16384)
    assert set(found["level"]) == {"operation"}
    assert "performer_bidirectional" not in found.index, "it ran out of memory there"


def test_the_longest_of_each_level_are_highlighted_unless_others_are_asked_for(context):
    assert summary.highlighted(context.records, []) == [4096, 16384]
    assert summary.highlighted(context.records, [512, 777]) == [512]


def test_sample_perplexity_is_a_geometric_mean(context):
    found = summary.coherence(context.records, "test").set_index(["variant", "seed"])
    samples = context.records.samples
    own = samples[(samples["variant"] == "masks") & (samples["seed"] == 1)]["teacher_ppl"]
    assert found.loc[("masks", 1), "sample_ppl"] == pytest.approx(float(np.prod(own) ** (1 / len(own))))


def test_checkpoints_score_by_step_and_never_among_the_final_students(context):
    found = summary.coherence_on_the_way(context.records, "test").set_index(["variant", "seed", "step"])
    kept = context.records.checkpoint_samples
    own = kept[(kept["variant"] == "masks") & (kept["seed"] == 1) & (kept["step"] == 50)]["teacher_ppl"]
    assert found.loc[("masks", 1, 50), "sample_ppl"] == pytest.approx(float(np.prod(own) ** (1 / len(own))))
    assert not summary.coherence(context.records, "test").duplicated(["variant", "seed"]).any()


def test_a_report_without_evaluations_is_empty_not_broken(context):
    bare = dataclasses.replace(context.records, quality=context.records.quality.iloc[:0])
    assert not len(summary.quality(bare, "test"))
    assert not len(summary.coherence(bare, "test"))
