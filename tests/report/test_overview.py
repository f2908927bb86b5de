"""The teacher's own row, trained softmax controls, and the study's last question."""

from attnopt.report import overview

from .test_questions import asked, replaced, scaled


def test_the_teacher_stands_beside_itself(context):
    table = overview.on_blocks(context)
    row = dict(zip(table.headings, table.rows()[0], strict=True))
    assert (row["variant"], row["role"]) == ("the teacher", "teacher")
    assert (row["KL forward"], row["top-1 agrees"], row["per token"]) == ("0", "100.0\u00a0%", "88.0")
    assert {row[key] for key in ("spread over seeds", "trained weights", "tokens", "time")} == {"–"}
    assert set(table.frame.set_index("variant").loc[["finetuned", "random_start"], "role"]) == {"control"}


def test_what_training_the_teacher_buys_follows_its_perplexity(context):
    def text(of):
        return next(s for s in asked(of, "simplest").sentences if s.startswith("finetuned"))

    assert "higher (1.03×)" in text(context)
    quality = context.records.quality
    better = quality["ppl_ratio"].where(quality["variant"] != "finetuned", 0.8)
    assert "lower (0.80×)" in text(replaced(context, quality=quality.assign(ppl_ratio=better)))


def test_what_the_teachers_weights_are_worth_follows_the_candidates(context):
    def text(of):
        return next(s for s in asked(of, "simplest").sentences if s.startswith("random_start"))

    count = len(context.records.candidates)
    assert "with attention weights drawn anew" in text(context)
    assert f"{count} of {count} variants that compete end closer to the teacher, 0 farther" in text(
        scaled(context, "random_start", 100)
    )
    assert f"0 of {count} variants that compete end closer to the teacher, {count} farther" in text(
        scaled(context, "random_start", 1e-3)
    )


def test_controls_that_were_not_trained_buy_nothing(context):
    sentences = asked(context, "simplest").sentences
    assert not any(s.startswith("softmax") for s in sentences)


def test_what_this_run_has_one_of_is_said(context):
    short = asked(context, "others").short
    assert short.startswith("Not from this run")
    assert "one teacher (bundled), one corpus (enwiki-sample) and one length of blocks (128 tokens)" in short


def test_two_that_differ_in_their_loss_alone_are_compared(context):
    """The two performers differ in their features too: only once these are equal is it the loss."""
    runs = context.records.runs
    other = runs["variant"].map(lambda name: "reverse" if name == "performer_256" else "forward")
    losses = runs.assign(budget_kl=other)
    assert asked(replaced(context, runs=losses), "others").short.startswith("Not from this run")
    equal = replaced(context, runs=losses.assign(options=[{}] * len(losses)))
    short = asked(equal, "others").short
    assert "performer_256 (KL reverse)" in short
    assert "performer (KL forward)" in short
    assert "**performer_256** has the lower KL" in short
    assert short.endswith("blocks (128 tokens).")
    assert "**performer** has the lower KL" in asked(scaled(equal, "performer", 0.1), "others").short
