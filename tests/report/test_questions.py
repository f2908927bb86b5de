"""Planted truths: what the records hold is what the page says, and other records make it say something else."""

import dataclasses
import importlib
import re

import numpy as np
import pandas as pd
import pytest
import torch

from attnopt.mechanisms import Geometry
from attnopt.mechanisms.masks import Masks
from attnopt.report.context import Answer, Context
from attnopt.report.questions import answers, coefficients, coherence, crossovers

from . import fake

SLUGS = [
    "choose",
    "length",
    "recall",
    "untrained",
    "mixes",
    "coherence",
    "simplest",
    "features",
    "branches",
    "coefficients",
]
SLUGS += ["crossovers", "phases", "positions", "others"]


def replaced(context: Context, **tables: pd.DataFrame) -> Context:
    return Context.of(dataclasses.replace(context.records, **tables), context.params)


def asked(context: Context, slug: str) -> Answer:
    return importlib.import_module(f"attnopt.report.questions.{slug}").answer(context)


def without_checkpoints(context: Context) -> Context:
    """As records were before there were any."""
    names = ("checkpoints", "checkpoint_samples")
    return replaced(context, **{name: getattr(context.records, name).iloc[:0] for name in names})


def scaled(context: Context, variant: str, factor: float) -> Context:
    """The same run with one variant's KL multiplied, on blocks and at length."""
    quality = context.records.quality
    kl = quality["kl_forward"].where(quality["variant"] != variant, quality["kl_forward"] * factor)
    lengths = context.records.lengths
    far = lengths["kl_forward"].where(lengths["variant"] != variant, lengths["kl_forward"] * factor)
    return replaced(context, quality=quality.assign(kl_forward=kl), lengths=lengths.assign(kl_forward=far))


def test_every_question_is_answered_in_order(context):
    found = answers(context)
    assert [answer.slug for answer in found] == SLUGS
    *answered, others = found
    assert "Not from this run" in others.short
    for answer in answered:
        assert "Not from this run" not in answer.short
        assert answer.figures or answer.tables
    assert found[0].picture


@pytest.mark.slow
def test_leaking_variants_and_controls_are_in_no_ranking(context):
    """However low the leaking control's KL, no sentence but the one on leaks and no ranked table names it."""
    for answer in answers(scaled(context, "performer_bidirectional", 1e-3)):
        for text in (answer.short, *answer.sentences):
            assert "performer_bidirectional" not in text or text.startswith("The leaking control")
        for table in answer.tables:
            if table.name.startswith(("choose", "quarters", "correlations")):
                assert not {"performer_bidirectional", "softmax", "none"} & set(table.variants())
            assert not table.name.startswith("rivals") or "performer_bidirectional" not in table.variants()


def test_the_closest_output_is_the_lowest_kl_of_those_that_compete(context):
    def closest(of):
        table = next(t for t in asked(of, "choose").tables if t.name == "choose_1024")
        return table.frame.set_index("need").loc["the closest output, any state", "variant"]

    assert closest(context) == "nsa"
    assert closest(scaled(context, "performer", 0.01)) == "performer"


def test_what_is_no_closer_than_no_attention_is_not_chosen(context):
    answer = asked(scaled(context, "linformer", 100), "choose")
    assert all("linformer" not in table.variants() for table in answer.tables if table.name.startswith("choose"))
    assert any("linformer" in limit for limit in answer.limits)


def test_variants_as_fast_within_quartiles_are_told_apart_by_kl(context):
    table = next(t for t in asked(context, "choose").tables if t.name == "choose_1024")
    fastest = table.frame.set_index("need").loc["the fastest decoding"]
    assert (fastest["variant"], fastest["equal"]) == ("window", "masks, window_untrained")


def test_kl_that_orders_the_samples_is_said_to_and_kl_that_does_not_is_not(context):
    context = without_checkpoints(context)
    assert asked(context, "coherence").short.startswith("Yes: over 19 runs of 10 variants the")
    samples = context.records.samples
    for seed in (7, 3):  # whose correlations happen to be 0.1 and -0.4
        rng = np.random.default_rng(seed)
        noise = samples.groupby(["variant", "seed"])["teacher_ppl"].transform(lambda _, rng=rng: np.exp(rng.normal()))
        shuffled = replaced(context, samples=samples.assign(teacher_ppl=100 * noise))
        assert asked(shuffled, "coherence").short.startswith("Not decided")
    samples = samples.assign(teacher_ppl=1 / samples["teacher_ppl"])
    assert asked(replaced(context, samples=samples), "coherence").short.startswith("The opposite")


def test_checkpoints_are_points_beside_the_final_students(context):
    answer = asked(context, "coherence")
    variants = [v for v in fake.SAVING if v in context.records.candidates]
    count = len(variants) * len(fake.SEEDS) * len(fake.KEPT)
    assert f"over 19 runs and {count} checkpoints of 10 variants the Spearman correlation of KL" in answer.short
    frame = answer.tables[0].frame
    assert frame[frame["over"] == "all points"]["checkpoints"].tolist() == [count] * 3
    assert frame[frame["over"] == "final students"]["checkpoints"].tolist() == [0] * 3
    assert any("rests on 3 samples, a checkpoint on 2." in limit for limit in answer.limits)
    assert not any("not sampled" in limit for limit in answer.limits)


def test_the_final_students_alone_are_said_to_correlate_as_they_do_without_checkpoints(context):
    (said,) = [s for s in asked(context, "coherence").sentences if s.startswith("Without checkpoints")]
    bare = asked(without_checkpoints(context), "coherence")
    shown = [re.search(r"\*\*.* with .*", text)[0].removesuffix(".") for text in (bare.short, *bare.sentences[:1])]
    assert "over the 19 final students alone, it is" in said
    assert shown[0] in said
    assert not any(s.startswith("Without checkpoints") for s in bare.sentences)
    assert any("Checkpoints within a training run were not sampled" in limit for limit in bare.limits)
    assert "checkpoint" not in " ".join(
        [bare.short, *bare.sentences, *bare.tables[0].headings, bare.figures[0].caption]
    )


def test_a_correlation_that_only_training_progress_makes_is_called_that(context):
    """Final students that differ in KL and not in order of coherence; checkpoints that are all worse in both."""
    samples, kept = context.records.samples, context.records.checkpoint_samples
    rng = np.random.default_rng(7)
    noise = samples.groupby(["variant", "seed"])["teacher_ppl"].transform(lambda _: np.exp(0.01 * rng.normal()))
    worse = context.records.checkpoints.assign(kl_forward=50 + context.records.checkpoints["kl_forward"])
    found = replaced(
        context,
        samples=samples.assign(teacher_ppl=20 * noise),
        checkpoint_samples=kept.assign(teacher_ppl=1e3 * np.exp(kept["teacher_ppl"] / 1e9)),
        checkpoints=worse,
    )
    short = asked(found, "coherence").short
    assert short.startswith("Yes:")
    assert short.endswith("it is not decided with the final students alone.")


def test_a_variants_checkpoints_are_resampled_with_it(context, monkeypatch):
    groups = []
    monkeypatch.setattr(coherence.statistics, "bootstrap", lambda rows, *_: groups.append(rows) or (0.0, 1.0))
    asked(context, "coherence")
    assert sorted(len(rows) for rows in groups[0]) == [1, 2, 2, 2, 2, 2, 6, 6, 6, 6]


def test_checkpoints_of_the_reports_split_only(context):
    table = context.records.checkpoints
    other = table.assign(kl_forward=table["kl_forward"].where(table["split"] == "test", 1e6))
    figure = asked(replaced(context, checkpoints=other), "coherence").figures[0]
    assert figure.frame["kl"].max() < 1e5
    valid = replaced(context, checkpoints=table[table["split"] == "valid"])
    assert "checkpoint" not in asked(valid, "coherence").short


def test_checkpoints_are_drawn_hollow_in_their_variants_colour_and_say_their_step(context):
    figure = asked(context, "coherence").figures[0]
    for panel in figure.views[0].panels:
        final = {s.name: s for s in panel.series if not s.hollow}
        kept = {s.name: s for s in panel.series if s.hollow}
        assert set(kept) == {context.name(v) for v in fake.SAVING}
        assert all(series.style == final[name].style for name, series in kept.items())
        assert kept["masks"].notes[:2] == ["seed 0, checkpoint at step 50", "seed 0, checkpoint at step 100"]
        assert final["masks"].notes == ["seed 0", "seed 1"]
    rows = figure.frame[(figure.frame["variant"] == "masks") & (figure.frame["seed"] == 0)]
    assert rows["step"].tolist() == ["end", 50, 100]
    expected = context.records.checkpoints
    expected = expected[(expected["variant"] == "masks") & (expected["seed"] == 0) & (expected["split"] == "test")]
    assert rows["kl"].tolist()[1:] == expected["kl_forward"].tolist()
    assert "Small hollow points are checkpoints" in figure.caption


def test_a_checkpoint_that_was_evaluated_and_not_sampled_is_no_point(context):
    kept = context.records.checkpoint_samples
    found = replaced(context, checkpoint_samples=kept[(kept["variant"] != "masks") | (kept["step"] != 50)])
    assert "and 14 checkpoints of" in asked(found, "coherence").short


def test_a_score_that_hardly_varies_is_not_correlated(context):
    samples = context.records.samples
    flat = samples["repetition"].where(samples["variant"] == "masks", 0.0)
    answer = asked(replaced(context, samples=samples.assign(repetition=flat)), "coherence")
    assert "repetition" not in set(answer.tables[0].frame["measure"])
    assert any("Too flat to correlate: repetition" in limit for limit in answer.limits)


def test_a_leak_is_only_called_one_where_it_looks_like_one(context):
    leak = [s for s in asked(context, "coherence").sentences if s.startswith("The leaking control")]
    assert len(leak) == 1
    assert "what a leak looks like" in leak[0]
    (plain,) = [
        s for s in asked(scaled(context, "performer_bidirectional", 20), "coherence").sentences if "leaking" in s
    ]
    assert "what a leak looks like" not in plain


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "No:"), (0.01, "Yes:"), (0.147, "Not decided:")])
def test_the_simplest_is_judged_by_its_distance_and_error(context, factor, verdict):
    assert asked(scaled(context, "masks", factor), "simplest").short.startswith(verdict)


def test_unequal_budgets_are_named(context):
    assert any("Equal budget: 204\u202f800" in limit for limit in asked(context, "simplest").limits)
    runs = context.records.runs
    tokens = runs["budget_tokens"].where(runs["variant"] != "based", 999_000)
    limits = asked(replaced(context, runs=runs.assign(budget_tokens=tokens)), "simplest").limits
    assert any("not equal" in limit and "based: 999\u202f000" in limit for limit in limits)
    assert not any("Equal budget" in limit for limit in limits)


def test_one_run_is_called_one_run(context):
    assert any("One run, no spread across seeds" in x and "hedgehog" in x for x in asked(context, "simplest").limits)
    single = context.records.quality[context.records.quality["seed"] == 0]
    assert "no spread across seeds" in asked(replaced(context, quality=single), "features").short


def test_random_features_spread_is_the_planted_one(context):
    """Log-normal with sigma 0.12: the pooled estimate's interval holds it, and not that of the others, 0.02."""
    numbers = [float(n) for n in _numbers(asked(context, "features").short)]
    estimate, low, high = numbers[:3]
    assert low < estimate < high
    assert low < 12 < high
    assert low > 2


def test_crossovers_are_the_planted_ones(context):
    """nsa decodes in 4.6 + 0.0001 n, softmax in 3 + 0.0008 n: equal at 2286 tokens."""
    rows = pd.DataFrame(list(crossovers._crossings(context)))
    own = rows[(rows["level"] == "model") & (rows["what"] == "decoding time")].set_index("variant")
    assert own.loc["nsa", "at_low"] < 2286 < own.loc["nsa", "at_high"]
    assert own.loc["none", "at"] == 128, "ahead from the start"
    assert np.isnan(float(own.loc["performer_bidirectional", "at"] or np.nan)), "never"
    state = rows[(rows["level"] == "model") & (rows["what"] == "decoding state")].set_index("variant")
    assert state.loc["nsa", "exponent"] == pytest.approx(1)
    assert state.loc["based", "exponent"] == pytest.approx(0)


def test_phases_of_training_are_the_planted_ones(context):
    assert "leaves **60 %** [60, 60] of the swap's KL" in asked(context, "phases").short


def test_each_phase_has_its_own_share(context):
    answer = asked(context, "phases")
    assert "transfer leaves **50 %** [50, 50]" in answer.short
    assert "KL on logits leaves" in answer.short
    before = asked(replaced(context, phases=context.records.phases.iloc[:0]), "phases")
    assert "training leaves" in before.short
    assert "transfer" not in before.short


def test_losses_of_other_phases_are_in_no_curve(context):
    """The fake transfer loss is 9000: no curve of KL may go near it."""
    figure = next(f for f in asked(context, "simplest").figures if f.name == "training")
    training, validation = figure.views[0].panels
    assert max(y for s in (*training.series, *validation.series) for y in s.y) < 10
    assert min(x for s in training.series for x in s.x) >= 100 * 1024
    assert min(x for s in validation.series for x in s.x) == 0


def test_where_quality_is_lost_follows_the_records(context):
    answer = asked(context, "positions")
    assert "for 10 of 10 variants" in answer.short
    frame = answer.tables[0].frame
    assert (frame["ratio"] == frame["last"] / frame["first"]).all()
    assert frame["ratio"].between(frame["low"], frame["high"]).all()
    table = context.records.positions
    falling = replaced(context, positions=table.assign(kl=1 / table["position"]))
    assert "for 0 of 10 variants, lower for 10" in asked(falling, "positions").short


def test_probes_are_shown_and_their_absence_is_said(context):
    found = {table.name: table.frame for table in asked(context, "positions").tables}
    ratio = found["classes_context"]["pair seen before"] / found["classes_context"]["new"]
    assert ratio.tolist() == pytest.approx([4.0] * len(ratio))
    assert found["layer_errors"]["layer 3"].tolist() == pytest.approx([0.4] * len(ratio))
    dropped = next(t for t in asked(context, "coefficients").tables if t.name == "pruned_masks")
    assert [row[1] for row in dropped.rows()] == ["24 of 24", "20 of 24", "16 of 24", "12 of 24"]
    empty = {name: getattr(context.records, name).iloc[:0] for name in ("classes", "layers", "pruned")}
    bare = replaced(context, **empty)
    assert any("Which tokens and layers" in limit for limit in asked(bare, "positions").limits)
    assert any("not from this run" in limit for limit in asked(bare, "coefficients").limits)


def test_the_largest_coefficient_is_named(context):
    answer = asked(context, "coefficients")
    assert "**last:1** has the largest coefficient" in answer.short
    assert answer.tables[0].frame["mean"].is_monotonic_decreasing


@pytest.mark.parametrize("names", [("last:1", "last:3", "first:2"), ("window:4", "stride:3"), ("full", "last:2")])
def test_the_drawn_mask_is_the_mechanisms_own(names):
    geometry = Geometry(heads=2, kv_heads=2, head_dim=4, hidden=8, scaling=0.5)
    mechanism = Masks(geometry, Masks.Options(candidates=names, start="random"))
    expected = mechanism.mask(8)[0].detach().numpy()
    weights = torch.cat(list(mechanism.coefficients().values()), dim=1)[0].tolist()
    drawn = coefficients.learned_mask(names, weights, 8)
    assert np.isnan(drawn[np.triu_indices(8, 1)]).all()
    np.testing.assert_allclose(np.nan_to_num(drawn), expected, rtol=1e-5)


def test_an_unknown_candidate_draws_no_mask():
    assert coefficients.learned_mask(["diagonal:2"], [1.0]) is None


LACKING = ["runs", "history", "coefficients", "positions", "samples", "bench", "lengths", "recall"]


@pytest.mark.parametrize("lacking", ["quality", *(pytest.param(name, marks=pytest.mark.slow) for name in LACKING)])
def test_what_was_not_recorded_is_said_not_guessed(context, lacking):
    bare = replaced(context, **{lacking: getattr(context.records, lacking).iloc[:0]})
    silent = {answer.slug for answer in answers(bare) if "ot from this run" in answer.short}
    expected = {
        "runs": {"untrained", "features", "phases"},
        "history": set(),
        "coefficients": {"coefficients"},
        "quality": {"choose", "coherence", "features", "phases", "positions"},
        "positions": {"positions"},
        "samples": {"coherence"},
        "bench": {"crossovers"},
        "lengths": {"length", "untrained"},
        "recall": {"recall"},
    }
    assert silent == expected[lacking] | {"others"}


def _numbers(text: str) -> list[str]:
    return re.findall(r"\d+\.?\d*", text)
