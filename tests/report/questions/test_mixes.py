"""Which attention for which layer: the words and tables say what was planted."""

import dataclasses

from attnopt.report.context import Context
from attnopt.report.questions import mixes


def test_the_answer_names_the_layers_and_how_the_rivals_stand(context: Context) -> None:
    answer = mixes.answer(context)
    assert "Within 1/8 of softmax’s state at 1024 tokens" in answer.short
    assert "**based in 0, window in 1, based in 2, window in 3**" in answer.short
    assert "ahead on KL and level on recall against two variants interleaved" in answer.short
    assert "level on both against the greedy mix" in answer.short  # the very same mix
    assert "**softmax in 0, window in 1, based in 2, window in 3**" in answer.sentences[0]
    assert any(
        "Spearman 0.98 in KL on text and 0.93 on recalled values by layers replaced" in text
        for text in answer.sentences
    )
    assert any("come to 1.50× their sum" in text for text in answer.sentences)
    assert any("8 random mixes come to" in text for text in answer.sentences)


def test_tables_and_figures_hold_every_mix(context: Context) -> None:
    answer = mixes.answer(context)
    (table,) = answer.tables
    assert table.frame["way"].iloc[0] == "searched"
    assert table.groups()[0] == "At most 1/8 of softmax’s state"
    assert len(table.frame) == 8
    names = {figure.name: figure for figure in answer.figures}
    assert set(names) == {"mix_front", "mix_layers", "mix_predicted", "mix_scores"}
    picture = names["mix_layers"].views[0].panels[0]
    assert len(picture.y.categories or []) == 8
    assert sum(len(series.x) for series in picture.series) == 8 * 4
    points = names["mix_predicted"].views[0].panels[0].series
    ratio = [y / x for series in points[1:] for x, y in zip(series.x, series.y, strict=True)]
    assert min(ratio) > 1.49 and max(ratio) < 1.51  # noqa: PT018


def test_layers_are_told_by_stretches() -> None:
    assert mixes.stretches(["a", "a", "b", "a", "a", "a"]) == "a in 0 to 1, b in 2, a in 3 to 5"


def test_without_a_search_it_is_not_from_this_run(context: Context) -> None:
    without = Context.of(dataclasses.replace(context.records, search=None), context.params)
    assert mixes.answer(without).short.startswith("Not from this run")
