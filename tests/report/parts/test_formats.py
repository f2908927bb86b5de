import math

import pytest

from attnopt.report.parts import formats
from attnopt.statistics import Estimate


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.04123, "0.0412"), (3.14159, "3.14"), (98765, "98\u202f765"), (-0.5, "\u22120.500"), (4.2e-5, "4.20e-5"),
        (0, "0"), (None, "–"), (math.nan, "–"), (math.inf, "–"),
    ],
)  # fmt: skip
def test_numbers_have_significant_digits(value, shown):
    assert formats.number(value) == shown


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (0.52345, 0.0123, "0.523 ± 0.012"), (12.3, 1.5, "12.3 ± 1.5"), (0.5, None, "0.500"), (0.5, math.nan, "0.500"),
        (0.0, 0.0, "0"), (None, 1.0, "–"),
    ],
)  # fmt: skip
def test_a_value_is_rounded_to_its_error(value, error, shown):
    assert formats.plus_minus(value, error).replace(formats.NBSP, " ") == shown


def test_an_estimate_is_shown_with_its_error():
    assert formats.estimate(Estimate(0.52345, 0.0123)) == formats.plus_minus(0.52345, 0.0123)


@pytest.mark.parametrize(("tokens", "shown"), [(512, "512"), (4096, "4096"), (16384, "16k"), (10_001, "10001")])
def test_lengths(tokens, shown):
    assert formats.length(tokens) == shown


def test_sizes_durations_and_counts():
    assert formats.size(1536) == "1.50 KiB"
    assert formats.size(3 * 2**30) == "3.00 GiB"
    assert formats.duration(125) == "2 min 05 s"
    assert formats.duration(3.14159) == "3.1 s"
    assert formats.millions(4_273_664) == "4.27M"
    assert formats.times(0.0671) == "0.067×"
    assert formats.times(1.234) == "1.23×"
    assert formats.times(0.000977) == "0.00098×"


def test_lists_read_as_sentences():
    assert formats.listing(["a"]) == "a"
    assert formats.listing(["a", "b", "c"]) == "a, b and c"
    assert formats.listing([]) == "none"
    assert formats.plural(1, "run") == "1 run"
    assert formats.plural(2, "run") == "2 runs"
