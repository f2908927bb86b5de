"""The bench beside its crossovers: what a memory holds, train steps, batches, disputed peaks."""

import pandas as pd
import pytest

from attnopt.report.context import Context
from attnopt.report.data.read import read_records
from attnopt.report.questions import bench_tables as peaks

from .. import fake
from ..test_questions import asked, replaced


@pytest.fixture
def tables(context) -> dict:
    return {table.name: table for table in peaks.tables(context)}


def test_what_fits_stands_beside_softmax_of_the_same_run(tables):
    frame = tables["capacity"].frame.set_index("variant")
    each = [fake.peak_mib(size * 4096, 4096) for size in (2048, 4096)]
    fit = [int((16 * 1024 - fake.WEIGHTS_MIB) / mib) for mib in each]
    assert fit == [1249, 775]
    assert frame.loc["nsa", ["sequences", "sequences_softmax"]].tolist() == fit
    assert not {"softmax", "finetuned"} & set(frame.index)
    row = list(frame.index).index("nsa")
    assert tables["capacity"].rows()[row][1:3] == ["1\u202f249", "775"]
    assert "4096 tokens" in tables["capacity"].title
    assert "16.0 GiB" in tables["capacity"].title


def test_half_the_memory_holds_about_half(context, recorded):
    params = context.params.model_copy(update={"memory_gib": 8.0})
    halved = Context.of(read_records(recorded, context.records.variants, params), params)
    (table,) = [table for table in peaks.tables(halved) if table.name == "capacity"]
    assert "8.00 GiB" in table.title
    assert table.frame.set_index("variant").loc["nsa", "sequences"] == int((8 * 1024 - 17) / fake.peak_mib(2**23, 4096))


def test_train_steps_and_batches_are_rows(tables):
    step = tables["train_steps"].frame.set_index("variant").loc["nsa"]
    assert (step["phase"], step["length"], step["unit"]) == ("train", 128, "ms")
    assert "softmax" not in set(tables["train_steps"].frame["variant"])
    assert step["ratio"] == pytest.approx(0.75, rel=0.1)
    assert tables["batches"].frame["batch"].unique().tolist() == [8]
    assert tables["batches"].frame["phase"].unique().tolist() == ["decode"]


def test_disputed_peaks_are_counted_and_marked(context):
    assert peaks.disputed(context)[0].startswith("Two ways of measuring agree on all of")
    bench = context.records.bench
    mine = (bench["variant"] == "nsa") & (bench["phase"] == "train") & (bench["subject"] == "variant")
    doubted = replaced(context, bench=bench.assign(memory_agrees=bench["memory_agrees"].where(~mine, False)))
    assert peaks.disputed(doubted)[0].startswith("1 of")
    assert peaks.disputed(doubted)[0].endswith(": nsa.")
    assert peaks.disputed(doubted)[0] in asked(doubted, "crossovers").limits
    step = next(table for table in peaks.tables(doubted) if table.name == "train_steps")
    marked = [row[0] for row in step.rows() if any("(disputed)" in cell for cell in row)]
    assert marked == ["nsa"]


def test_nothing_measured_is_no_table(context):
    bench = context.records.bench
    bare = replaced(context, bench=bench.iloc[:0], capacity=pd.DataFrame(context.records.capacity.iloc[:0]))
    assert peaks.tables(bare) == []
    assert peaks.disputed(bare) == []
    alone = replaced(context, bench=bench[(bench["batch"] == 1) & (bench["phase"] != "train")])
    assert [table.name for table in peaks.tables(alone)] == ["capacity"]
