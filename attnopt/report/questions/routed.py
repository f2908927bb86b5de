"""Does routing among experts pay: each mixture beside its best expert alone and the best static mix of them.

Asked of runs that have a mixture alone.
"""

from typing import Any

import pandas as pd

from attnopt.records.distill import MIXED, kinds_in
from attnopt.report.context import Answer, Context, absent
from attnopt.report.data import at_length
from attnopt.report.parts import formats
from attnopt.report.parts.tables import Column, Table, column, variant_column
from attnopt.report.questions.rival import AHEAD, LEVEL, MOST
from attnopt.statistics import STANDARD_ERRORS, Estimate

SLUG, QUESTION = "routed", "Does routing among experts pay?"
KIND, STATIC = "mixture", ("heads", MIXED)
ALONE, MIX = "best expert alone", "best static mix"
COLUMNS = ["variant", "kl", "kl_se", "share", "decode_ms", "equal", "against", "rival"]
COLUMNS += ["rival_kl", "rival_kl_se", "rival_share", "rival_decode_ms", "gap", "gap_se", "verdict"]


def applies(context: Context) -> bool:
    """Whether the study has a mixture that competes."""
    return any(context.records.variants[v] == KIND for v in context.records.candidates)


def answer(context: Context) -> Answer:
    if context.main is None:
        return absent(SLUG, QUESTION, "quality at length was not measured")
    frame = compared(context, context.main)
    if not len(frame):
        return absent(SLUG, QUESTION, "no mixture was evaluated at length beside one of its experts or a static mix")
    return Answer(
        slug=SLUG,
        question=QUESTION,
        short=_short(context, frame),
        sentences=[_sentence(row) for row in frame.to_dict("records")],
        limits=[
            f"At equal state: those that hold at most {MOST} times the mixture's bytes, at equal time: those whose "
            f"decoding step takes at most {MOST} times as long. A static mix is made of the mixture's own experts, or "
            f"of softmax or integers in some heads or layers. Ahead: a lower KL by more than {STANDARD_ERRORS} "
            "standard errors of the difference, the two taken as independent; the rival is chosen by the same KL."
        ],
        tables=[_table(frame)],
    )


def compared(context: Context, length: int) -> pd.DataFrame:
    """COLUMNS, a row per mixture, equality (state, time) and rival that there is, at one of `Context.chosen`."""
    table, experts = context.at(length), _parts(context)
    table = table[table["group"] != at_length.CONTROL]
    rows = []
    for variant in table.index[table["kind"] == KIND]:
        own, kinds = table.loc[variant], experts.get(str(variant), set())
        others = {ALONE: table["kind"].isin(kinds), MIX: table["kind"].isin(STATIC)}
        for equal, key in (("state", "state"), ("time", "decode_ms")):
            within = pd.to_numeric(table[key]) <= MOST * float(own[key])
            for against, among in others.items():
                found = table[among & within].sort_values("kl", kind="stable").head(1)
                rows += [_row(str(variant), own, equal, against, str(v), found.loc[v]) for v in found.index]
    return pd.DataFrame(rows, columns=COLUMNS)


def _parts(context: Context) -> dict[str, set[str]]:
    """The kinds that each variant is made of, as its training recorded them."""
    runs = context.records.runs
    if "options" not in runs:
        return {}
    return {str(v): kinds_in(options) for v, options in zip(runs["variant"], runs["options"], strict=True)}


def _row(variant: str, own: Any, equal: str, against: str, rival: str, other: Any) -> dict[str, Any]:
    ours, theirs = (Estimate(float(r["kl"]), float(r["kl_se"])) for r in (own, other))
    gap, keys = ours.minus(theirs), ("kl", "kl_se", "share", "decode_ms")
    row: dict[str, Any] = {"variant": variant, "equal": equal, "against": against, "rival": rival}
    row |= {key: float(own[key]) for key in keys} | {f"rival_{key}": float(other[key]) for key in keys}
    verdict = AHEAD if theirs.clearly_above(ours) else "behind" if ours.clearly_above(theirs) else LEVEL
    return row | {"gap": gap.value, "gap_se": gap.error, "verdict": verdict}


def _short(context: Context, frame: pd.DataFrame) -> str:
    """Of the mixture with the lowest KL."""
    best = frame.sort_values("kl", kind="stable")["variant"].iloc[0]
    rows = frame[frame["variant"] == best]
    won = bool((rows["verdict"] == AHEAD).all())
    parts = [f"{r['verdict']} {_preposition(r)} at equal {r['equal']}" for r in rows.to_dict("records")]
    at = formats.length(context.quality_length(context.main or 0))
    return f"{'Yes' if won else 'No'}: **{best}** is, in KL at {at} tokens, {formats.listing(parts)}."


def _preposition(row: dict[str, Any]) -> str:
    word = {AHEAD: "of", "behind": ""}.get(row["verdict"], "with")
    return f"{word} the {row['against']} ({row['rival']})".strip()


def _sentence(row: dict[str, Any]) -> str:
    kl, rival = (formats.plus_minus(row[f"{p}kl"], row[f"{p}kl_se"]) for p in ("", "rival_"))
    return (
        f"**{row['variant']}** (KL {kl}) beside the {row['against']} at equal {row['equal']}, {row['rival']} (KL "
        f"{rival}): {row['verdict']}, difference {formats.plus_minus(row['gap'], row['gap_se'])}."
    )


def _table(frame: pd.DataFrame) -> Table:
    return Table(
        name="routed",
        title="Mixtures beside one expert and static mixes",
        columns=[
            variant_column(),
            column("at equal", "equal", kind="text"),
            column("beside the", "against", kind="text"),
            column("namely", "rival", kind="text"),
            Column("KL", lambda r: formats.plus_minus(r["kl"], r["kl_se"])),
            Column("its KL", lambda r: formats.plus_minus(r["rival_kl"], r["rival_kl_se"])),
            column("state over softmax’s", "share", formats.times),
            column("its state", "rival_share", formats.times),
            column("decoding, ms", "decode_ms", formats.number),
            column("its decoding, ms", "rival_decode_ms", formats.number),
            column("verdict", "verdict", kind="text"),
        ],
        frame=frame,
        command="dvc repro evaluate bench",
        note="KL in nats per token, ± one standard error.",
    )
