"""The section `bench`: what it refuses, and which phases it has at a length and batch."""

import pytest

from attnopt.bench.params import BenchParams


def test_params_refuse_what_cannot_be():
    for wrong in ({"lengths": []}, {"min_iterations": 1}, {"phases": ["prefil"]}, {"length": [1]}, {"dtype": "int8"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            BenchParams.model_validate(wrong)


def test_a_training_step_is_measured_up_to_its_longest_context_and_at_the_first_batch():
    params = BenchParams(longest_train=64, batches=[4])
    assert params.at(64, 1).phases == ["prefill", "decode", "train"]
    assert params.at(65, 1).phases == ["prefill", "decode"]
    assert (params.at(64, 4).phases, params.at(64, 4).batch) == (["prefill", "decode"], 4)
    assert "train" in BenchParams(longest_train=None).at(10**6, 1).phases
