"""Quality at length decides: planted truths are found, and where they are not there the page says so."""

import dataclasses
from types import SimpleNamespace

import pandas as pd
import pytest

from attnopt.report import overview, page
from attnopt.report.compare import page as compare
from attnopt.report.compare.data import Comparison
from attnopt.report.context import Context
from attnopt.report.data import at_length
from attnopt.report.params import ReportParams
from attnopt.report.questions import choose, length, picture, recall, rival

from .. import fake, stretched

QUICK = {"resamples": 200}


def about(context: Context, *lengths: int, **tables: pd.DataFrame) -> Context:
    """The same run, asked about lengths, with other tables."""
    return Context.of(dataclasses.replace(context.records, **tables), ReportParams(lengths=list(lengths), **QUICK))


def without(context: Context, *variants: str, **tables: pd.DataFrame) -> Context:
    """As if these had not been evaluated at length."""
    table = context.records.lengths
    return about(context, 1024, lengths=table[~table["variant"].isin(variants)], **tables)


def window_wins(context: Context) -> Context:
    """A run whose windows recall all that there is."""
    table = context.records.recall
    windows = table["variant"].str.startswith("window")
    return about(context, 1024, recall=table.assign(kl_answer=table["kl_answer"].where(~windows, 0.01)))


@pytest.fixture(scope="module")
def asked(context) -> Context:
    return about(context, 1024, 4096, 16384)


def test_quality_speaks_for_lengths_within_a_factor_of_two(context):
    nearest = {n: at_length.nearest(context.records, n) for n in (511, 512, 1024, 2048, 2049)}
    assert nearest == {511: None, 512: 1024, 1024: 1024, 2048: 1024, 2049: None}


def test_of_two_lengths_the_nearer_speaks(context):
    both = stretched.measured_at(context.records, [1024, 2048])
    assert [at_length.nearest(both, n) for n in (1400, 1500, 4096, 4100)] == [1024, 2048, 2048, None]


def test_a_length_without_quality_is_recommended_nothing(asked):
    answer = choose.answer(asked)
    unknown = "Quality at 4096 and 16k tokens was not measured: nothing is recommended for them."
    assert answer.opening[2].startswith("With more state, **")
    assert answer.opening[2].endswith(unknown)
    names = {table.name for table in answer.tables}
    assert {"choose_1024", "costs_4096", "costs_16384"} <= names
    assert not {"choose_4096", "choose_16384", "rivals_4096"} & names
    assert {view.label for view in answer.picture.views} == {"at 1024 tokens"}
    for table in (*answer.tables, *overview.summary(asked)):
        costs_elsewhere = any(f"{n}" in table.title for n in ("4096", "16k"))
        assert not (costs_elsewhere and any("KL" in heading for heading in table.headings)), table.name


def test_a_run_without_quality_at_length_says_so_and_recommends_nothing(context):
    empty = {name: getattr(context.records, name).iloc[:0] for name in ("lengths", "bins", "gaps", "states")}
    bare = about(context, 1024, 4096, **empty)
    answer = choose.answer(bare)
    assert answer.short.startswith("Quality at 1024 and 4096 tokens was not measured: nothing is recommended for them.")
    assert "On blocks of 128 tokens, as trained on, **nsa** is closest" in answer.short
    assert "choose **" not in answer.short
    assert answer.picture is None
    assert {table.name.split("_")[0] for table in answer.tables} == {"costs"}
    assert [table.name for table in overview.summary(bare)] == ["blocks"]
    assert "Not from this run" in length.answer(bare).short


def test_the_recommended_is_the_closest_within_the_budget_that_beats_its_windows(context):
    """hedgehog is closer than the window and recalls no more; nsa is the closest, with more state."""
    assert choose.recommended(about(context, 1024), 1024) == "based"
    opening = choose.answer(about(context, 1024)).opening
    assert opening[0].startswith("At 1024 tokens, with at most 1/8 of softmax’s state, choose **based**: KL ")
    assert "the teacher’s perplexity at positions 512 to 1024, 0.95× its copying over a gap of 256" in opening[0]
    assert opening[2].startswith("With more state, **nsa** is closer (KL ")
    said = choose.answer(without(context, "based")).sentences[0]
    assert said.startswith("Of lower KL at 1024 tokens and not ahead of its window on both: hedgehog (")
    assert choose.recommended(without(context, "based"), 1024) == "window"


def test_the_page_opens_with_three_sentences(asked):
    answer = choose.answer(asked)
    assert len(answer.opening) == 3
    assert answer.short == " ".join(answer.opening)


def test_who_beats_the_windows_of_its_bytes_is_the_planted_one(context):
    rows = rival.rivals(about(context, 1024), 1024).set_index(["variant", "rival"])
    assert rows.loc[("based", "window"), "ahead"]
    assert rows.loc[("based", "window_untrained"), "ahead"]
    found = rows.loc[("hedgehog", "window")]
    assert (found["kl_verdict"], found["recall_verdict"], found["ahead"]) == ("ahead", "level", False)
    assert "nsa" not in rows.index.get_level_values(0), "it holds more than the budget"
    assert (
        "**based** is ahead of the untrained and the trained window" in choose.answer(about(context, 1024)).opening[1]
    )


def test_where_no_mechanism_is_ahead_the_window_wins_in_the_first_screen(context):
    wins = window_wins(context)
    answer = choose.answer(wins)
    assert answer.opening[1].startswith("**The window wins**: of 5 mechanisms none is ahead of the untrained and the")
    assert answer.opening[0].startswith("At 1024 tokens, with at most 1/8 of softmax’s state, choose **window**")
    assert any(s.startswith("Of lower KL at 1024 tokens and not ahead") and "based (" in s for s in answer.sentences)


def test_a_window_of_other_bytes_is_no_rival(context):
    states = context.records.states
    windows = states["variant"].str.startswith("window")
    for factor in (1.2, 0.4):
        other = about(context, 1024, states=states.assign(bytes=states["bytes"].where(~windows, factor * 270_000)))
        bench = other.records.bench
        other = about(other, 1024, bench=bench[bench["length"] != 1024])
        assert not len(rival.rivals(other, 1024))
        assert "is not from this run" in rival.verdict(other, 1024)
        assert rival.sentences(other, 1024)[0].startswith(
            "No window of about equal bytes was run beside based, hedgehog"
        )


def test_recall_that_was_not_tested_makes_nobody_ahead(context):
    untested = about(context, 1024, recall=context.records.recall.iloc[:0])
    rows = rival.rivals(untested, 1024)
    assert set(rows["recall_verdict"]) == {"not measured"}
    assert not rows["ahead"].any()


def test_tables_are_grouped_by_state(context):
    table = overview.summary(about(context, 1024))[0]
    groups = dict(zip(table.variants(), table.frame["shown_group"], strict=True))
    assert groups["based"] == groups["window_untrained"] == "At most 1/8 of softmax’s state"
    assert groups["nsa"] == groups["linformer"] == "More state than that"
    assert groups["softmax"] == groups["performer_bidirectional"] == "Controls"
    assert [name for name in table.groups() if name] == list(dict.fromkeys(groups.values()))


def test_the_budget_of_the_settings_groups_too(context):
    tight = dataclasses.replace(context.records, settings="state: {share: 0.0625, length: 1024}\n")
    found = Context.of(tight, ReportParams(lengths=[1024], **QUICK))
    assert found.within == "at most 1/16 of softmax’s state at 1024 tokens"
    table = found.at(1024)
    assert set(table.index[table["group"] == "within"]) == set(), "270 000 bytes are 0.064 of 4 MiB, 264 000 are 0.063"
    assert "no variant with at most 1/16" in choose.answer(found).short
    broken = dataclasses.replace(context.records, settings="state: [")
    assert at_length.budget(broken) == (0.125, None)


def test_the_share_that_the_training_recorded_decides_where_there_is_one(context):
    runs = context.records.runs
    held = about(context, 1024, runs=runs.assign(state_share=[0.2 if v == "based" else None for v in runs["variant"]]))
    groups = held.at(1024)["group"]
    assert (groups["based"], groups["hedgehog"], groups["nsa"]) == ("beyond", "within", "beyond")
    assert held.within == "at most 1/8 of softmax’s state"
    free = about(context, 1024, runs=runs.assign(state_budget=None, state_length=2048))
    assert free.within == "at most 1/8 of softmax’s state at 2048 tokens"
    told = about(context, 1024, runs=runs.assign(state_budget=0.25, state_length=4096))
    assert told.within == "at most 1/4 of softmax’s state at 4096 tokens"
    assert "; at 1024 tokens it takes 0.064× softmax’s state" in choose.answer(told).opening[0]


def test_a_teacher_that_passes_nothing_is_said_to(context):
    table = context.records.recall
    never = about(context, 1024, recall=table.assign(retention=float("nan"), teacher_accuracy=0.2))
    answer = recall.answer(never)
    assert answer.short.startswith("This teacher passes no test of recall (90.0\u00a0% right or more)")
    assert [table.name for table in answer.tables] == ["recall_kl_answer", "recall_written"]
    assert "copying" not in choose.answer(never).opening[0]


def test_a_window_that_is_a_control_is_a_rival_and_can_be_chosen(context):
    records = dataclasses.replace(window_wins(context).records, controls=["softmax", "none", "window"])
    found = Context.of(records, ReportParams(lengths=[1024], **QUICK))
    assert choose.recommended(found, 1024) == "window"
    assert "The window wins" in choose.answer(found).short


def test_the_picture_names_the_recommended_and_has_a_view_for_each_cost(context):
    two = Context.of(stretched.measured_at(context.records, [1024, 4096]), ReportParams(lengths=[1024, 4096], **QUICK))
    figure = choose.answer(two).picture
    assert [view.label for view in figure.views] == ["at 4096 tokens"] * 3 + ["at 1024 tokens"] * 3
    assert {view.of for view in figure.views} == {"against state", "against decoding time", "against prefill time"}
    assert figure.views[0].of != "against state", "the budget has made it all but one"
    for view in figure.views:
        (ring,) = [s for s in view.panels[0].series if s.style.shape == "ring"]
        own = next(s for s in view.panels[0].series if s.name == "based")
        assert ring.name == "choose based"
        assert (ring.x, ring.y) == (own.x, own.y)
    states = two.records.states
    spread = {"based": 4.0, "hedgehog": 0.25}
    sizes = states["bytes"] * states["variant"].map(spread).fillna(1.0)
    bench = two.records.bench[two.records.bench["phase"] != "decode"]
    wide = about(two, 1024, states=states.assign(bytes=sizes), bench=bench)
    assert picture.picture(wide, {1024: ""}).views[0].of == "against state"


def test_without_a_cost_there_is_no_picture_and_a_choice_all_the_same(context):
    free = about(context, 1024, bench=context.records.bench.iloc[:0], states=context.records.states.iloc[:0])
    assert choose.answer(free).picture is None
    unknown = about(context, 1024, states=context.records.states.iloc[:0])
    assert choose.recommended(unknown, 1024) == "", "without states nothing is known to be within the budget"


def test_quality_holds_to_where_it_was_planted(context):
    answer = length.answer(context)
    assert "lowest for **based** with at most 1/8 of softmax’s state (1.21×" in answer.short
    assert "and **nsa** with more state" in answer.short
    held = [v for v in context.records.candidates if stretched.FAR.get(v, 4.0) <= 2]
    assert f"to the end for {len(held)} of 10 variants" in answer.short
    assert any(
        s.startswith("Where the predicted pair last stood 256 or more") and "**nsa**" in s for s in answer.sentences
    )
    (series,) = [s for s in answer.figures[0].views[0].panels[0].series if s.name == "window"]
    assert len(series.y) == len(stretched.BINS) - 1
    assert all(low < y < high for low, y, high in zip(series.low, series.y, series.high, strict=True))


def test_what_the_teacher_cannot_is_said_and_its_kl_is_shown_all_the_same(context):
    answer = recall.answer(context)
    assert any(s.startswith("This teacher cannot: phone book, at best 30.0\u00a0% right") for s in answer.sentences)
    tables = {table.name: table for table in answer.tables}
    assert "phone book, 16 names" not in tables["recall_retention"].headings
    assert "phone book, 16 names" in tables["recall_kl_answer"].headings
    views = {view.label: view.panels for view in answer.figures[0].views}
    assert [panel.title for panel in views["phone book"]] == ["KL of the answers"]
    assert [panel.title for panel in views["copying"]] == ["Retention", "KL of the answers"]


def test_recall_names_who_keeps_most_within_the_budget(context):
    answer = recall.answer(context)
    assert "copying, a gap of 256 tokens: **based** at 0.95 [0.89,\u00a01.01]" in answer.short
    assert any(s.startswith("Windows at copying, a gap of 256 tokens: window 0.10") for s in answer.sentences)
    table = next(t for t in answer.tables if t.name == "recall_written")
    rows = dict(zip(reversed(table.variants()), reversed(table.rows()), strict=True))
    assert rows["based"][1:3] == ["84.6\u00a0%", "99.0\u00a0%"]


def test_the_line_of_windows_goes_through_their_points(context):
    states = context.records.states
    trained = {"window": 1.0, "masks": 0.5}
    kinds = context.records.variants | {"masks": "window"}
    sizes = states["bytes"] * states["variant"].map(trained).fillna(1.0)
    records = dataclasses.replace(context.records, variants=kinds, states=states.assign(bytes=sizes))
    panel = recall.answer(Context.of(records, context.params)).figures[0].views[0].panels[0]
    line = next(s for s in panel.series if s.name == "window + sinks, trained")
    assert line.x == sorted(line.x)
    assert len(line.x) == 2


def test_metrics_have_quality_at_length_by_its_name(context):
    found = page.metrics(about(context, 1024))["based"]
    at = context.records.lengths
    own = at[at["variant"] == "based"]
    assert found["kl_1024"] == pytest.approx(own["kl_forward"].mean(), rel=1e-5)
    assert found["kl"] != found["kl_1024"]
    assert found["ppl_ratio_last_1024"] == pytest.approx(own_last(context), rel=1e-5)
    assert found["copy_retention"] == 0.95
    assert found["state_share_1024"] == pytest.approx(fake.state_bytes("based", 1024) / (4096 * 1024), rel=1e-5)


def test_costs_of_the_metrics_are_at_the_length_that_quality_speaks_for(asked, context):
    assert page.metrics(asked)["based"]["cost_length"] == 1024
    none = page.metrics(about(context, 4096, lengths=context.records.lengths.iloc[:0]))["based"]
    assert none["cost_length"] == 4096
    assert "kl_1024" not in none


def test_recall_without_quality_at_length_has_no_groups(context):
    empty = {name: getattr(context.records, name).iloc[:0] for name in ("lengths", "bins", "gaps", "states")}
    answer = recall.answer(about(context, 1024, **empty))
    assert answer.short.startswith("Of the teacher’s right answers most are kept by: copying")
    assert set(answer.tables[0].groups()) == {"State not known", ""}


def test_a_comparison_keeps_costs_of_another_length_apart(context, asked):
    @dataclasses.dataclass
    class Run:
        context: Context
        source: str = "here"
        settings: dict = dataclasses.field(default_factory=dict)

    near = Comparison([Run(asked), Run(asked)])
    assert (near.quality_length, near.length, near.beside) == (1024, 1024, True)
    (table,) = compare._results(near)
    assert "decode at 1024, ms" in table.headings
    blocks = about(context, 1024, lengths=context.records.lengths.iloc[:0])
    apart = Comparison([Run(blocks), Run(blocks)])
    quality, costs = compare._results(apart)
    assert "KL" in quality.headings
    assert "KL" not in costs.headings
    assert not any("decode" in heading for heading in quality.headings)
    assert "Quality is on blocks of 128 tokens, costs are at 1024: neither speaks for the other." in apart.limits


def own_last(context: Context) -> float:
    table = context.records.bins
    return float(table[(table["variant"] == "based") & (table["stop"] == 1024)]["ppl_ratio"].mean())


def test_questions_about_blocks_say_that_they_are(context):
    answers = {answer.slug: answer for answer in page.Report.of(context).answers}
    for slug in ("coherence", "features", "branches", "coefficients", "phases", "positions"):
        assert (
            "KL here is on blocks of 128 tokens, as trained on: it says nothing of longer texts."
            in answers[slug].limits
        )
    assert "on pieces of 1024 tokens, of variants with at most 1/8" in answers["simplest"].short


def test_the_budget_is_that_of_most_and_not_of_one_with_its_own() -> None:
    runs = pd.DataFrame({"state_budget": [0.125, None, 0.125, 0.5], "state_length": [1024] * 4})
    found = at_length.budget(SimpleNamespace(runs=runs, settings=""))
    assert (found.share, found.length) == (0.125, 1024)
