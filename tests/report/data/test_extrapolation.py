"""Lengths that nobody measured: what is said of them, from what, and that it is said everywhere."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from attnopt import statistics as fits
from attnopt.report import page
from attnopt.report.compare.data import Comparison
from attnopt.report.context import Context
from attnopt.report.data import extrapolation
from attnopt.report.params import ReportParams
from attnopt.report.parts import formats
from attnopt.report.questions import choose

from .. import fake, stretched

FAR, SAID = 16384, "extrapolated from 1\u202f024 and 4\u202f096"


def cut(context: Context, lengths: list[int], bench: pd.DataFrame | None = None) -> Context:
    """The same run asked about lengths, with attention alone up to 4096 tokens and the whole model up to 256."""
    table = context.records.bench if bench is None else bench
    table = table[table["length"] <= table["level"].map({"operation": 4096, "model": 256})]
    return Context.of(dataclasses.replace(context.records, bench=table), ReportParams(resamples=200, lengths=lengths))


@pytest.fixture(scope="module")
def far(context) -> Context:
    """Quality was measured at 1024 and FAR, and not in between."""
    found = cut(context, [1024, 4096, FAR])
    return Context.of(stretched.measured_at(found.records, [1024, FAR]), found.params)


def test_it_rests_on_the_level_with_the_longest_lengths(context, far):
    assert extrapolation.basis(context.records) == ("operation", [1024, 4096, 16384])
    assert extrapolation.basis(far.records) == ("operation", [1024, 4096])
    bench = context.records.bench
    model = dataclasses.replace(context.records, bench=bench[bench["level"] == "model"])
    assert extrapolation.basis(model) == ("model", fake.LENGTHS["model"])
    single = dataclasses.replace(context.records, bench=bench[bench["length"] == 1024])
    assert extrapolation.basis(single) is None
    assert extrapolation.lengths(single, [FAR]) == []


def test_no_length_within_those_measured_and_none_beyond_eight_times_the_longest(far):
    wanted = [777, 1024, 4096, 4097, FAR, 8 * 4096, 8 * 4096 + 1]
    assert extrapolation.lengths(far.records, wanted) == [4097, FAR, 8 * 4096]


def test_planted_costs_are_found_beyond_the_lengths_measured(far):
    """Decoding in a + b n, softmax's prefill in a n + b n^2: known at 16 384, never measured there."""
    found = far.costs[FAR]
    softmax = {"decode_ms": 3.0 + 0.0008 * FAR, "prefill_ms": 0.08 * FAR + 4e-5 * FAR**2}
    hit = []
    for variant, row in found.iterrows():
        _, _, _, _, at_128, per_token, _ = fake.VARIANTS[str(variant)]
        truth = {"decode_ms": at_128 + per_token * FAR, "prefill_ms": 0.09 * FAR * at_128 / 3}
        for key, value in truth.items():
            assert row[key] == pytest.approx(value, rel=0.25)
            assert row[f"{key}_baseline"] == pytest.approx(softmax[key], rel=0.25)
            assert row[f"{key}_ratio"] == pytest.approx(row[key] / row[f"{key}_baseline"])
            assert row[f"{key}_low"] <= row[key] <= row[f"{key}_high"]
            hit.append(row[f"{key}_ratio_low"] <= value / softmax[key] <= row[f"{key}_ratio_high"])
        assert row["state"] == fake.state_bytes(str(variant), FAR)
        assert row["state_ratio"] == pytest.approx(row["state"] / (4096 * FAR))
    assert np.mean(hit) >= 0.8
    assert list(found.index) == list(fake.VARIANTS)


def test_what_failed_at_the_longest_length_is_not_extrapolated(context):
    found = extrapolation.extrapolated_cost(context.records, 32768, 100)
    assert set(fake.VARIANTS) - set(found.index) == {"performer_bidirectional"}, "it ran out of memory there"


def test_without_softmax_at_the_longest_length_there_is_a_time_and_no_ratio(context):
    bench = context.records.bench
    lost = (bench["variant"] == "nsa") & (bench["subject"] == "softmax") & (bench["length"] == 4096)
    row = cut(context, [FAR], bench=bench[~lost]).costs[FAR].loc["nsa"]
    assert row["decode_ms"] > 0
    assert row["state"] > 0
    assert row[["decode_ms_ratio", "prefill_ms_ratio", "state_ratio", "state_baseline"]].isna().all()


def test_a_state_without_a_byte_stays_so(context):
    bench = context.records.bench
    none = (bench["variant"] == "none") & (bench["subject"] == "variant")
    found = cut(context, [FAR], bench=bench.assign(state_bytes=bench["state_bytes"].where(~none, 0.0)))
    assert found.costs[FAR].loc["none", "state"] == 0


def test_everything_that_shows_such_a_length_says_what_it_rests_on(far):
    answer = choose.answer(far)
    assert SAID in answer.short
    named = {table.name: table for table in answer.tables}
    for name in (f"choose_{FAR}", f"costs_{FAR}"):
        assert SAID in named[name].title
        assert set(named[name].frame["extrapolated_from"]) == {"1024 and 4096"}
    figure = answer.picture
    assert f"Costs at 16k are {SAID}." in figure.caption
    assert set(figure.frame.loc[figure.frame["length"] == FAR, "extrapolated_from"]) == {"1024 and 4096"}
    assert figure.frame.loc[figure.frame["length"] != FAR, "extrapolated_from"].isna().all()
    for text in (*answer.sentences, *answer.limits):
        assert "extrapolated" in text or not (("16k" in text and "cost" in text) or "softmax there" in text), text
    assert any(SAID in limit for limit in answer.limits)


def test_its_tables_have_intervals_and_not_quartiles(far):
    named = {table.name: table for table in choose.answer(far).tables}
    table = named[f"costs_{FAR}"]
    assert "95 % intervals" in table.note
    assert "quartiles" not in table.note
    timed = ["prefill, ms", "over softmax's", "decoding, ms per token", "over softmax's"]
    assert table.headings == ["variant", *timed, "state", "over softmax's"]
    for cell in table.rows()[list(fake.VARIANTS).index("nsa")][1:5]:
        assert "[" in cell
    assert "as fast within intervals" in named[f"choose_{FAR}"].headings
    assert "as fast within quartiles" in named["choose_1024"].headings
    assert "choose_4096" not in named, "no quality was measured there"


@pytest.mark.slow
def test_measured_lengths_are_shown_as_without_it(context, far):
    measured = cut(context, [1024, 4096])
    for table in choose.answer(measured).tables:
        (same,) = [t for t in choose.answer(far).tables if t.name == table.name]
        assert (same.title, same.note, same.rows()) == (table.title, table.note, table.rows())
        pd.testing.assert_frame_equal(same.frame, table.frame)
    for variant, row in page.metrics(measured).items():
        assert {key: page.metrics(far)[variant][key] for key in row} == row
    assert "extrapolated" not in " ".join(page.downloads(page.Report.of(measured)).values())


def test_the_short_answer_names_one_and_why(far):
    short = choose.answer(far).short
    assert short.startswith(
        f"At 16k tokens, attention alone, {SAID}, with at most 1/8 of softmax’s state, choose **based**"
    )
    row = far.at(FAR).loc["based"]
    assert f"KL {formats.plus_minus(row['kl'], row['kl_se'])}, " in short
    cost = far.costs[FAR].loc["based"]
    said = [formats.times(cost[key]) for key in ("state_ratio", "decode_ms_ratio")]
    assert f"; it takes {said[0]} softmax’s state and {said[1]} softmax’s decoding time." in short
    assert "Quality at 4096 tokens was not measured: nothing is recommended for it." in short


def test_what_is_asked_for_and_cannot_be_answered_is_named(context):
    limits = " ".join(choose.answer(cut(context, [1024, 2000, 65536])).limits)
    assert "Asked for, and its cost not measured: 2000 tokens." in limits
    assert "cost neither measured nor extrapolated: 64k tokens, more than 8 times the longest length measured" in limits
    bench = context.records.bench
    single = cut(context, [1024, FAR], bench=bench[bench["length"] == 1024])
    answer = choose.answer(single)
    assert "Asked for, and its cost not measured: 16k tokens." in answer.limits
    assert "extrapolated" not in answer.short


@pytest.mark.slow
def test_decoding_that_already_outgrows_its_work_is_a_lower_bound(context, far):
    assert not any("a lower bound" in limit for limit in choose.answer(far).limits)
    bench = context.records.bench
    softmax = (bench["subject"] == "softmax") & (bench["phase"] == "decode") & (bench["length"] == 4096)
    steep = bench.assign(median=bench["median"].where(~softmax, 5 * bench["median"]))
    (said,) = [limit for limit in choose.answer(cut(context, [FAR], bench=steep)).limits if "a lower bound" in limit]
    assert "times as long at 4\u202f096 tokens as at 1\u202f024" in said


def test_a_comparison_never_rests_on_it(far):
    @dataclasses.dataclass
    class Run:
        context: Context

    assert Comparison([Run(far), Run(far)]).length == 4096


def test_what_the_page_says_of_measured_mechanisms_is_so():
    """The limit's numbers: 16 384 tokens measured, and predicted from 1 024 and 4 096."""
    content = json.loads((Path(__file__).parents[3] / "benchmarks/mechanisms.json").read_text())
    table = pd.DataFrame([row for row in content["rows"] if row["outcome"] == "ok"])
    off = {}
    for (name, phase), rows in table.groupby(["name", "phase"]):
        medians = rows.set_index("length")["median"]
        if phase in extrapolation.POWERS and FAR in medians:
            predicted = fits.extrapolate([1024, 4096], medians[[1024, 4096]], FAR, extrapolation.POWERS[phase])
            off[name, phase] = float(medians[FAR] / predicted)
    assert 1.35 <= off.pop(("sdpa", "decode")) < 1.45
    assert len(off) > 15
    assert 0.45 < min(off.values()) < 0.55, off
    assert 1.55 < max(off.values()) < 1.65, off
