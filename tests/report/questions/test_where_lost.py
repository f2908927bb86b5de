"""Planted truths of probes: branches, random features, classes, layers and pruning."""

import re

import numpy as np
import pandas as pd
import pytest

from attnopt.report.questions import feature_draws as draws
from attnopt.report.questions import pruning
from attnopt.report.questions import where_lost as probes

from .. import probed
from ..test_questions import asked, replaced


def verdicts(context) -> dict[str, str]:
    frame = asked(context, "branches").tables[0].frame
    return dict(zip(frame["variant"], frame["verdict"], strict=True))


def test_each_far_branch_has_the_planted_verdict(context):
    assert verdicts(context) == {"nsa": "alive", "based": "alive", "hedgehog": "dead", "routing": "cannot tell"}
    answer = asked(context, "branches")
    assert answer.short == "No: alive in **nsa** and **based**; dead in **hedgehog**; this run cannot tell for routing."
    frame = answer.tables[0].frame.set_index("variant")
    assert frame["share"].to_dict() == pytest.approx(probed.ALIVE)


def test_a_verdict_needs_an_uncertainty(context):
    bare = replaced(context, branches=context.records.branches.assign(difference_se=np.nan))
    assert set(verdicts(bare).values()) == {"cannot tell"}
    assert asked(bare, "branches").short.startswith("Not decided")


def test_all_alive_is_yes(context):
    table = context.records.branches
    alive = replaced(context, branches=table[table["variant"].isin(["nsa", "based"])])
    assert asked(alive, "branches").short == "Yes: alive in **nsa** and **based**."


def test_without_the_whole_on_the_same_blocks_nothing_is_said(context):
    table = context.records.branches
    bare = replaced(context, branches=table[~table["branches"].isin(["both", "all"])])
    assert "Not from this run" in asked(bare, "branches").short


def test_features_are_enough_where_the_kl_stops_falling(context):
    drawn = draws.draws_table(context)
    own = drawn[drawn["variant"] == "performer"]
    assert draws.enough(own) == (64, pytest.approx(0.02, rel=0.5))
    assert "from **64** on it no longer falls" in draws.sentences(own)[0]
    falling = own.assign(kl=own["kl"] / own["features"])
    assert "still falls beyond that spread up to the largest number, 512" in draws.sentences(falling)[0]
    flat = own.assign(kl=own.groupby("draw")["kl"].transform("first"))
    assert "do not lower it" in draws.sentences(flat)[0]
    assert "one draw each" in draws.sentences(own[(own["draw"] == 0) & (own["seed"] == 0)])[0]


def one_seed(context):
    quality = context.records.quality
    return replaced(context, quality=quality[quality["seed"] == 0])


def test_one_seed_is_answered_by_untrained_draws(context):
    """FLOOR falls from 1 to 0.49 from 16 to 512 features, with a spread of 0.02 over draws."""
    short = asked(one_seed(context), "features").short
    assert "one run of each, no spread across seeds" in short
    assert "Untrained mechanisms" in short
    number = r"(\u2212?[\d.]+)\u00a0%"
    found = re.findall(rf"\*\*{number}\*\* \[{number},\u00a0{number}\]", short)
    (spread, low, high), (fall, least, most) = [[float(n) for n in numbers] for numbers in found]
    assert low < 2 < high
    assert low < spread < high
    assert spread < 4
    assert re.search(r"and falls by [^,]*, [^,]* from 16 to 512 features", short.replace("\u00a0", " "))
    assert least < 51 < most
    assert least < fall < most
    assert most - least < 5


def test_trained_seeds_are_answered_by_themselves(context):
    assert "ntrained" not in asked(context, "features").short


def test_the_change_over_numbers_is_what_the_draws_say(context):
    table = context.records.features
    rising = replaced(one_seed(context), features=table.assign(kl_forward=table["kl_forward"] * table["features"]))
    number = r"([\d.]+)\u00a0%"
    short = asked(rising, "features").short
    found = re.search(rf"rises by \*\*{number}\*\* \[{number},\u00a0{number}\]", short)
    rise, least, most = (float(n) for n in found.groups())
    assert least < 100 * (0.49 * 512 / 16 - 1) < most
    assert least < rise < most
    flat = table.assign(kl_forward=table.groupby(["variant", "seed", "draw"])["kl_forward"].transform("first"))
    short = asked(replaced(one_seed(context), features=flat), "features").short
    assert "does not change beyond that from 16 to 512 features" in short


def test_one_draw_of_each_has_no_spread(context):
    table = context.records.features
    single = replaced(one_seed(context), features=table[(table["draw"] == 0) & (table["seed"] == 0)])
    assert asked(single, "features").short.startswith("Their spread is not from this run: one run of each")
    alike = replaced(one_seed(context), features=table[table["features"] == 64])
    assert "(standard deviation). Trained" in asked(alike, "features").short


def test_draws_of_few_variants_have_a_wider_interval(context):
    """Half the draws: a spread estimated on fewer, a mean over fewer."""
    drawn = draws.draws_table(context)
    _, _, ratio, low, high = draws._change(drawn)
    _, _, _, lower, higher = draws._change(drawn[drawn["variant"] == "performer"])
    assert low < ratio < high
    assert higher - lower > high - low
    apart = drawn[(drawn["variant"] == "performer") | (drawn["features"] < 512)]
    assert draws._change(apart)[:2] == (16, 256), "numbers that every variant has"


def test_the_figure_of_draws_shows_their_spread(context):
    figure = next(f for f in asked(context, "features").figures if f.name == "draws")
    mean, dots = figure.views[0].panels[0].series[:2]
    assert mean.x == [16, 64, 256, 512]
    assert all(low < y < high for low, y, high in zip(mean.low, mean.y, mean.high, strict=True))
    assert len(dots.x) == 4 * 3 * 2
    assert figure.views[0].panels[0].x.log


def test_features_and_the_order_of_data_are_told_apart_only_where_they_can_be(context):
    assert any("cannot tell them apart" in s for s in asked(context, "features").sentences)
    runs = context.records.runs
    found = asked(replaced(context, runs=runs.assign(data_seed=0)), "features").sentences
    text = next(s for s in found if s.startswith("Taken apart"))
    assert "over features, the order of data fixed" in text
    assert "the features fixed" not in text
    total = re.search(r"varies by \*\*([\d.]+)", asked(context, "features").short)[1]
    assert f"Taken apart: {total}" in text, "all of it, as data never varied"
    found = asked(replaced(context, runs=runs.assign(features_seed=0)), "features").sentences
    assert any("order of data, the features fixed" in s and "order of data fixed" not in s for s in found)


def test_recall_is_the_planted_ratio(context):
    found = probes.recall(probes.classes(context))
    assert found["ratio"].tolist() == pytest.approx([4.0] * len(found))
    error = np.hypot(0.05 / 2, 0.05 / 0.5)
    single = found.loc["hedgehog"]
    assert single["high"] == pytest.approx(4 * np.exp(1.96 * error))
    assert (found["low"] > 1).all()
    text = next(s for s in probes.sentences(context) if s.startswith("Associative recall"))
    assert f"above that on new tokens for {len(found)} of {len(found)} variants, below it for 0" in text
    assert f"highest for **{found['kl'].idxmax()}**" in text
    table = context.records.classes
    swapped = replaced(context, classes=table.assign(kl=1 / table["kl"], kl_se=0.01))
    assert f"below it for {len(found)}" in probes.sentences(swapped)[0]


def test_the_worst_frequency_and_layer_are_named(context):
    count = len(context.records.candidates)
    assert f"highest on rare: under 10 times for {count} of {count} variants" in probes.sentences(context)[1]
    assert f"largest in layer 3 for {count} of {count} variants" in probes.sentences(context)[2]
    table = context.records.layers
    one = table["error"].where((table["variant"] != "nsa") | (table["layer"] != 1), 7.0)
    text = probes.sentences(replaced(context, layers=table.assign(error=one)))[2]
    assert "layer 1 for 1 of" in text
    assert "largest of all is nsa's in layer 1, 7.00" in text


def test_figures_hold_every_class_and_layer(context):
    found = {figure.name: figure for figure in asked(context, "positions").figures}
    assert [view.label for view in found["classes"].views] == ["by context", "by frequency"]
    for view in found["classes"].views:
        for series in view.panels[0].series:
            assert all(low < x < high for low, x, high in zip(series.low, series.x, series.high, strict=True))
    assert {tuple(s.x) for s in found["layers"].views[0].panels[0].series} == {(0, 1, 2, 3)}


def test_what_can_go_is_what_costs_less_than_the_standard_error(context):
    assert pruning.sentences(context, "masks")[0].startswith("**8 of 24** coefficients of masks can go")
    assert "with 16 kept it rises by" in pruning.sentences(context, "masks")[0]
    table = context.records.pruned
    sharp = replaced(context, pruned=table.assign(kl_forward_se=table["kl_forward_se"] / 1e4))
    spread = sharp.records.pruned.groupby("kept")["kl_forward"].transform("mean")
    sharp = replaced(sharp, pruned=sharp.records.pruned.assign(kl_forward=spread))
    assert pruning.sentences(sharp, "masks")[0].startswith("No cut of masks's 24 coefficients")
    free = replaced(context, pruned=table[table["kept"] >= 16])
    assert "the most that was tried" in pruning.sentences(free, "masks")[0]
    assert pruning.sentences(replaced(context, pruned=table.assign(kl_forward_se=np.nan)), "masks") == []


def test_no_probes_no_claims(context):
    names = ("branches", "features", "classes", "layers", "pruned")
    bare = replaced(context, **{name: pd.DataFrame(getattr(context.records, name).iloc[:0]) for name in names})
    assert "Not from this run" in asked(bare, "branches").short
    assert probes.sentences(bare) == []
    assert probes.figures(bare) == []
    assert draws.figures(bare, draws.draws_table(bare)) == []
    assert pruning.tables(bare, "masks") == []
