"""Does routing pay: whom a mixture stands beside, and what is said of it."""

import dataclasses

import pandas as pd
import pytest

from attnopt.report.context import Context
from attnopt.report.questions import answers, routed

EXPERTS = {"experts": [{"kind": "hedgehog", "options": {}}, {"kind": "performer", "options": {}}], "top": 1}


def with_mixture(context: Context, **factors: float) -> Context:
    """The run with based as a mixture of hedgehog and performer, and masks as a static mix; KL times these factors."""
    records = context.records
    lengths = records.lengths.copy()
    for variant, factor in factors.items():
        lengths.loc[lengths["variant"] == variant, "kl_forward"] *= factor
    options = [EXPERTS if v == "based" else {} for v in records.runs["variant"]]
    changed = dataclasses.replace(
        records,
        variants=records.variants | {"based": "mixture", "masks": "heads"},
        runs=records.runs.assign(options=options),
        lengths=lengths,
    )
    return Context.of(changed, context.params)


def test_a_study_without_a_mixture_is_not_asked(context: Context) -> None:
    assert not routed.applies(context)
    assert "routed" not in [answer.slug for answer in answers(context)]


def test_a_mixture_stands_beside_its_best_expert_and_a_static_mix_at_equal_state_and_time(context: Context) -> None:
    changed = with_mixture(context)
    assert "routed" in [answer.slug for answer in answers(changed)]
    frame = routed.compared(changed, changed.main or 0)
    assert set(frame["variant"]) == {"based"}
    state = frame[frame["equal"] == "state"].set_index("against")
    assert state.loc[routed.ALONE, "rival"] == "hedgehog", "of the two experts the one with the lower KL"
    assert state.loc[routed.MIX, "rival"] == "masks"
    assert set(frame["equal"]) == {"state", "time"}
    assert (frame[frame["equal"] == "state"]["rival_share"] <= 1.1 * frame["share"].iloc[0]).all()
    assert (frame[frame["equal"] == "time"]["rival_decode_ms"] <= 1.1 * frame["decode_ms"].iloc[0]).all()


def test_an_expert_with_more_state_or_time_is_no_equal(context: Context) -> None:
    changed = with_mixture(context)
    states, bench = (t.copy() for t in (changed.records.states, changed.records.bench))
    states.loc[states["variant"] == "hedgehog", "bytes"] *= 10
    bench.loc[bench["variant"] == "hedgehog", "state_bytes"] *= 10
    larger = Context.of(dataclasses.replace(changed.records, states=states, bench=bench), changed.params)
    frame = routed.compared(larger, larger.main or 0)
    alone = frame[frame["against"] == routed.ALONE].set_index("equal")["rival"]
    assert dict(alone) == {"state": "performer_256", "time": "hedgehog"}


@pytest.mark.parametrize(("factor", "word"), [(0.01, "Yes"), (100.0, "No")])
def test_it_says_whether_routing_is_ahead(context: Context, factor: float, word: str) -> None:
    answer = routed.answer(with_mixture(context, based=factor))
    assert answer.short.startswith(f"{word}: **based** is, in KL at ")
    verdicts = set(answer.tables[0].frame["verdict"])
    assert verdicts == ({"ahead"} if factor < 1 else {"behind"})


def test_with_nothing_beside_it_it_is_not_from_this_run(context: Context) -> None:
    changed = with_mixture(context)
    bare = dataclasses.replace(changed.records, lengths=pd.DataFrame(columns=changed.records.lengths.columns))
    assert routed.answer(Context.of(bare, context.params)).short.startswith("Not from this run")
