"""The mix's blocks are what they say, and exactly the unpredictable tokens are left out of the loss."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from conftest import sentences

from attnopt.tools.pretrain import mix
from attnopt.tools.pretrain.text import POSITIONS, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer([sentences(9, 300)], vocab=320, length=1024)


@pytest.fixture(scope="module")
def source(tokenizer: Any) -> mix.Source:
    return mix.source_of(tokenizer, [sentences(i, 40) for i in range(20)], home=5)


@pytest.fixture(scope="module")
def counted() -> mix.Source:
    """Text in which every token tells its place, so that a jump is seen."""
    return mix.Source(np.arange(5000), 2000, [[5001]], [[5002]], [5003], [5004], 6000)


@pytest.mark.parametrize("kind", mix.MAKERS)
@pytest.mark.parametrize("length", [32, 256, 1024])
def test_every_row_is_full(source: mix.Source, kind: str, length: int) -> None:
    for seed in range(5):
        row = mix.MAKERS[kind](source, np.random.default_rng(seed), length)
        assert len(row.ids) == len(row.counts) == length


def test_prose_is_a_piece_of_the_text_that_counts_as_a_whole(counted: mix.Source) -> None:
    row = mix.prose(counted, np.random.default_rng(0), 64)
    assert row.ids == list(range(row.ids[0], row.ids[0] + 64))
    assert all(row.counts)


@pytest.mark.parametrize("seed", range(8))
def test_passages_come_again_and_only_jumps_do_not_count(counted: mix.Source, seed: int) -> None:
    row = mix.passages(counted, np.random.default_rng(seed), 256)
    jumps = [0, *(i for i in range(1, 256) if row.ids[i] != row.ids[i - 1] + 1)]
    assert [i for i, counts in enumerate(row.counts) if not counts] == jumps
    starts = [row.ids[i] for i in jumps]
    ends = [*jumps[1:], 256]
    for first in range(0, len(jumps) - 1, 2):
        assert starts[first] == starts[first + 1]
        assert ends[first] - jumps[first] >= ends[first + 1] - jumps[first + 1] >= mix.SHORTEST_COPY


def test_gaps_are_none_and_long(counted: mix.Source) -> None:
    gaps = set()
    for seed in range(300):
        row = mix.passages(counted, np.random.default_rng(seed), 1024)
        jumps = [i for i in range(1, 1024) if row.ids[i] != row.ids[i - 1] + 1]
        gaps.add(jumps[0] - (jumps[1] - jumps[0] if len(jumps) > 1 else 0))
    assert min(gaps) < 20
    assert max(gaps) > 600


@pytest.mark.parametrize("seed", range(8))
def test_of_a_random_run_only_the_copy_after_its_first_token_counts(source: mix.Source, seed: int) -> None:
    row = mix.runs(source, np.random.default_rng(seed), 256)
    counts = np.array(row.counts)
    start = 0
    while 256 - start >= 2 * mix.SHORTEST_RUN:
        n = int(counts[start:].argmax()) - 1
        assert row.ids[start : start + n] == row.ids[start + n : start + 2 * n]
        assert not counts[start : start + n + 1].any()
        assert counts[start + n + 1 : start + 2 * n].all()
        start += 2 * n
    assert counts[start + 1 :].all()


@pytest.mark.parametrize("seed", range(8))
def test_every_key_is_asked_once_with_its_value(source: mix.Source, tokenizer: Any, seed: int) -> None:
    row = mix.lists(source, np.random.default_rng(seed), 512)
    lines = re.findall(r" ([a-z]+) => (\d{4}) ;", tokenizer.decode(row.ids))
    assert len(lines) >= 2 * mix.FEWEST_PAIRS
    while lines:
        n = next(i for i, (key, _) in enumerate(lines) if key in {k for k, _ in lines[:i]})
        assert sorted(lines[:n]) == sorted(lines[n : 2 * n])
        lines = lines[2 * n :]


@pytest.mark.parametrize("seed", range(8))
def test_keys_and_defined_values_do_not_count_all_else_does(source: mix.Source, tokenizer: Any, seed: int) -> None:
    row = mix.lists(source, np.random.default_rng(seed), 512)
    expected: list[bool] = []
    seen: set[str] = set()
    last = 0
    ids = row.ids
    for stop in [i for i in range(len(ids)) if ids[i - len(source.end) + 1 : i + 1] == source.end]:
        line = ids[last : stop + 1]
        key, value = tokenizer.decode(line).strip().removesuffix(" ;").split(" => ")
        parts = [(f" {key}", False), (" =>", True), (f" {value}", key in seen), (" ;", True)]
        expected += [c for part, c in parts for _ in tokenizer.encode(part, add_special_tokens=False)]
        seen.add(key)
        last = stop + 1
    assert row.counts == [*expected, *(i > 0 for i in range(len(ids) - last))]


def test_pieces_put_together_are_tokenised_as_the_whole(source: mix.Source, tokenizer: Any) -> None:
    ids = source.keys[3] + source.arrow + source.values[17] + source.end
    assert tokenizer.encode(tokenizer.decode(ids), add_special_tokens=False) == ids


def test_a_source_is_where_the_next_token_stood_first_and_every_copied_token_has_one(source: mix.Source) -> None:
    batch = mix.batch_of_step(source, 1, 0, 60, 256)
    led = batch.sources >= 0
    rows, t = led.nonzero(as_tuple=True)
    assert torch.equal(batch.ids[rows, t + 1], batch.ids[rows, batch.sources[rows, t]])
    assert (batch.sources[rows, t] <= t).all()
    assert not led[:, -1].any()
    for kind, least in {"passages": 20, "runs": 90, "lists": 20}.items():
        row = mix.MAKERS[kind](source, np.random.default_rng(3), 256)
        assert sum(origin >= 0 for origin in row.origins) >= least
        assert all(counts for counts, origin in zip(row.counts, row.origins, strict=True) if origin >= 0)
    assert set(mix.prose(source, np.random.default_rng(3), 256).origins) == {-1}


def test_half_of_the_text_is_from_the_sample(counted: mix.Source) -> None:
    starts = [mix.prose(counted, np.random.default_rng(seed), 64).ids[0] for seed in range(400)]
    home = sum(start < 2000 for start in starts) / 400
    assert home == pytest.approx(mix.HOME + (1 - mix.HOME) * 2000 / 5000, abs=0.07)


def test_a_batch_is_a_function_of_its_step_alone(source: mix.Source) -> None:
    first, again, other = (mix.batch_of_step(source, 3, step, 4, 64) for step in (7, 7, 8))
    assert torch.equal(first.ids, again.ids)
    assert torch.equal(first.positions, again.positions)
    assert not torch.equal(first.ids, other.ids)


def test_short_blocks_reach_every_position_and_always_begin_at_the_first(source: mix.Source) -> None:
    positions = mix.batch_of_step(source, 0, 0, 400, 256).positions
    assert (positions[:, 0] == 0).all()
    assert (positions[:, 1:].diff(dim=1) == 1).all()
    assert positions.max() < POSITIONS
    assert set(range(POSITIONS - 32)) <= set(positions.flatten().tolist())
    assert 150 < (positions[:, 1] == 1).sum() < 250


def test_the_kinds_come_as_often_as_the_mix_says(source: mix.Source, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def maker(kind: str) -> Any:
        def make(source: mix.Source, rng: np.random.Generator, length: int) -> mix.Row:
            made.append(kind)
            return mix.prose(source, rng, length)

        return make

    monkeypatch.setattr(mix, "MAKERS", {kind: maker(kind) for kind in mix.MIX})
    mix.batch_of_step(source, 0, 0, 4000, 4)
    assert sum(mix.MIX.values()) == pytest.approx(1)
    for kind, share in mix.MIX.items():
        assert made.count(kind) / 4000 == pytest.approx(share, abs=0.04)
