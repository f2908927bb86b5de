"""Where distillation pays, and where it cannot be said: planted states and KL are found again."""

import dataclasses

import pytest

from attnopt.report.context import Context
from attnopt.report.params import ReportParams
from attnopt.report.questions import untrained

SOFTMAX = 4096 * 1024
TRAINED = {"based": 0.05, "hedgehog": 0.2, "nsa": 0.8}
FREE = {"window_untrained": 0.05, "linformer": 0.2, "routing": 0.8}
"""variant -> its state; that of the free ones counts as without training, whatever it is elsewhere."""


def planted(context: Context, kl: dict[str, float], se: float = 0.01, **shares: float) -> Context:
    """A run of these variants and softmax, with this KL at 1024 tokens and its error, and these states."""
    states = TRAINED | FREE | shares
    tables = {
        name: getattr(context.records, name).loc[lambda t: t["variant"].isin([*kl, "softmax"])]
        for name in ("lengths", "bins", "runs", "states")
    }
    lengths, runs, sizes = tables["lengths"], tables["runs"], tables["states"]
    tables["lengths"] = lengths.assign(kl_forward=[kl.get(v, 0.0) for v in lengths["variant"]], kl_forward_se=se)
    tables["runs"] = runs.assign(trained_parameters=[1000 * (v in TRAINED) for v in runs["variant"]])
    tables["states"] = sizes.assign(bytes=[states.get(v, 1.0) * SOFTMAX for v in sizes["variant"]])
    none = {"bench": context.records.bench.iloc[:0]}
    return Context.of(
        dataclasses.replace(context.records, **tables, **none), ReportParams(lengths=[1024], resamples=100)
    )


def short(context: Context, kl: dict[str, float], **more: float) -> str:
    return untrained.answer(planted(context, kl, **more)).short


def test_it_pays_up_to_the_state_from_which_a_variant_without_training_is_closer(context):
    kl = {"based": 0.2, "hedgehog": 0.15, "window_untrained": 0.4, "linformer": 0.01}
    answer = untrained.answer(planted(context, kl))
    assert answer.short == (
        "By state over softmax’s, at 1024 tokens: distillation pays from 0.0500× to under 0.200× (**based**); "
        "**linformer**, without training, is ahead from 0.200× on."
    )
    assert answer.sentences == [
        "At most 1/8 of softmax’s state: the best distilled is **based** (KL 0.200 ± 0.010, 0.0500×) and the best "
        "without training is **window_untrained** (KL 0.400 ± 0.010, 0.0500×), difference −0.200 ± 0.014: the "
        "distilled one is ahead.".replace(" ±", "\u00a0±").replace("± ", "±\u00a0")
    ]


def test_more_state_counts_for_those_with_less(context):
    """nsa has the lowest KL and the most state: below that, based is the best; linformer is no better than less state."""
    kl = {"based": 0.2, "nsa": 0.05, "window_untrained": 0.1, "linformer": 0.3}
    frame = untrained.answer(planted(context, kl)).tables[0].frame
    assert frame[["share", "distilled", "free", "verdict"]].to_numpy().tolist() == [
        [0.05, "based", "window_untrained", untrained.BEHIND],
        [0.8, "nsa", "window_untrained", untrained.AHEAD],
    ]
    assert frame["until"].tolist()[:1] == [0.8]


@pytest.mark.parametrize(("gap", "verdict"), [(0.027, "not decided"), (0.029, "pays"), (-0.029, "is ahead")])
def test_a_difference_counts_from_two_standard_errors_on(context, gap, verdict):
    """Of 0.01 each: 1.96 of the difference's own are 0.0277."""
    said = short(context, {"based": 0.2, "window_untrained": 0.2 + gap})
    assert f"{verdict} from 0.0500× on" in said
    assert ("distillation pays nowhere clearly" in said) == (verdict != "pays")


def test_without_an_error_nothing_is_clear(context):
    assert "not decided from" in short(context, {"based": 0.1, "window_untrained": 0.9}, se=float("nan"))


def test_states_that_are_about_equal_are_one(context):
    kl = {"based": 0.2, "window_untrained": 0.4}
    frame = untrained.answer(planted(context, kl, based=0.0495)).tables[0].frame
    assert frame["share"].tolist() == [0.05]
    answer = untrained.answer(planted(context, kl, based=0.04))
    assert answer.tables[0].frame["share"].tolist() == [0.04, 0.05]
    assert "From 0.0400× to under 0.0500× there are only distilled ones." in answer.sentences
    assert "pays from 0.0500× on" in answer.short


def test_a_budget_that_holds_one_group_alone_is_said(context):
    sentence = untrained.answer(planted(context, {"hedgehog": 0.1, "window_untrained": 0.2})).sentences[0]
    assert sentence.startswith("At most 1/8 of softmax’s state there is nothing to compare: the best without training")
    sentence = untrained.answer(planted(context, {"hedgehog": 0.1, "linformer": 0.2})).sentences[0]
    assert sentence == "At most 1/8 of softmax’s state there is nothing to compare: no variant alone."


@pytest.mark.parametrize(
    ("kl", "why"),
    [
        ({"based": 0.1, "nsa": 0.1}, "no variant without training was"),
        ({"window_untrained": 0.1}, "no variant distilled was"),
        ({"random_start": 0.1}, "no variant distilled and no variant without training was"),
    ],
)
def test_a_group_that_is_not_there_is_said(context, kl, why):
    assert short(context, kl) == f"Not from this run: {why} evaluated at length with its state known."


def test_without_quality_at_length_it_is_not_answered(context):
    bare = planted(context, {})
    empty = bare.records.lengths.iloc[:0]
    found = Context.of(dataclasses.replace(bare.records, lengths=empty), bare.params)
    assert untrained.answer(found).short == "Not from this run: quality at length was not measured."


def test_a_training_that_is_not_known_is_left_out_and_said(context):
    found = planted(context, {"based": 0.2, "nsa": 0.01, "window_untrained": 0.4})
    runs = found.records.runs.query("variant != 'nsa'")
    answer = untrained.answer(Context.of(dataclasses.replace(found.records, runs=runs), found.params))
    assert "nsa" not in answer.short
    assert answer.limits[-1] == "Left out, as KL, state or training is not known: nsa."


def test_controls_and_leaks_are_nowhere(context):
    kl = dict.fromkeys(["based", "window_untrained", "none", "finetuned", "performer_bidirectional"], 0.1)
    answer = untrained.answer(planted(context, kl))
    assert set(answer.figures[0].frame["variant"]) == {"based", "window_untrained"}


def test_the_lines_are_the_best_at_or_below_each_state(context):
    kl = {"based": 0.2, "hedgehog": 0.3, "nsa": 0.1, "window_untrained": 0.4, "linformer": 1e-6}
    answer = untrained.answer(planted(context, kl))
    series = {s.name: s for s in answer.figures[0].views[0].panels[0].series}
    found = series["best distilled"]
    assert found.x == pytest.approx([0.05, 0.2, 0.2, 0.8, 0.8, 0.8])
    assert found.y == pytest.approx([0.2, 0.2, 0.2, 0.2, 0.1, 0.1])
    free = series["best without training"]
    assert (free.x, free.y) == (pytest.approx([0.05, 0.8]), pytest.approx([0.4, 0.4]))
    assert "linformer" not in series
    assert "linformer (KL under 0.00001) is off the scale" in answer.figures[0].caption
    assert (
        series["nsa"].style.colour == found.style.colour != free.style.colour == series["window_untrained"].style.colour
    )
