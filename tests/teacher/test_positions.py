"""Shifted blocks: which they are, and that models of several families see the positions that they are given."""

import copy

import numpy as np
import pytest
import torch
from student.families import IDS, pair, teacher
from torch import Tensor

from attnopt.core.errors import UserError
from attnopt.student.calls import layer_calls
from attnopt.teacher.head import hidden_states
from attnopt.teacher.params import TeacherParams
from attnopt.teacher.positions import block_offsets, check_room, positions_of, shifted_positions

OFFSETS = np.array([0, 7])
POSITIONS = torch.from_numpy(shifted_positions(OFFSETS, IDS.shape[1]))


def shift(share: float, to: int | None = None) -> TeacherParams:
    return TeacherParams(shift=share, shift_to=to)


def test_the_first_token_stays_and_the_others_are_moved() -> None:
    assert shifted_positions(np.array([0, 5]), 4).tolist() == [[0, 1, 2, 3], [0, 6, 7, 8]]


def test_a_share_of_the_blocks_is_shifted_by_all_that_leaves_room_and_always_the_same() -> None:
    offsets = block_offsets(teacher("gpt2"), shift(0.5), 4000, 16)
    assert offsets is not None
    assert offsets.shape == (4000,)
    assert 0.45 < (offsets > 0).mean() < 0.55
    assert (offsets.min(), offsets.max()) == (0, 64 - 16)
    assert len(set(offsets.tolist())) == 49
    assert np.array_equal(offsets, block_offsets(teacher("gpt2"), shift(0.5), 4000, 16))
    assert (block_offsets(teacher("gpt2"), shift(1.0, 20), 400, 16) > 0).all()
    assert max(block_offsets(teacher("gpt2"), shift(1.0, 20), 400, 16)) == 4


def test_nothing_is_shifted_where_nothing_is_asked_for_or_no_room_is_left() -> None:
    assert block_offsets(teacher("gpt2"), shift(0), 9, 16) is None
    assert block_offsets(teacher("gpt2"), shift(1), 9, 64) is None
    assert positions_of(None, [0], 4, torch.device("cpu")) is None
    assert positions_of(np.array([3, 0, 0]), slice(1, 3), 4, torch.device("cpu")) is None
    assert positions_of(np.array([3, 0, 0]), range(2), 2, torch.device("cpu")).tolist() == [[0, 4], [0, 1]]


def test_blocks_without_room_and_models_without_positions_are_refused() -> None:
    with pytest.raises(UserError, match=r"teacher.shift 0.5: blocks of 64 leave no room in 64 positions"):
        check_room(teacher("gpt2"), shift(0.5), 64)
    with pytest.raises(UserError, match=r"teacher.shift_to 16: blocks of 32 leave no room in 64 positions"):
        check_room(teacher("gpt2"), shift(0.5, 16), 32)
    model = teacher("gpt2")
    model.forward = lambda input_ids: None
    with pytest.raises(UserError, match=r"teacher.shift: GPT2LMHeadModel takes no position_ids; set it to 0"):
        block_offsets(model, shift(0.5), 4, 16)


@torch.no_grad()
def moved_by_hand() -> Tensor:
    """GPT-2's hidden states where the embeddings themselves of the positions have been moved."""
    rows = []
    for ids, positions in zip(IDS, POSITIONS, strict=True):
        model = copy.deepcopy(teacher("gpt2"))
        embeddings = model.transformer.wpe.weight
        embeddings[: len(positions)] = embeddings[positions].clone()
        rows.append(hidden_states(model, ids[None]))
    return torch.cat(rows)


@torch.no_grad()
def test_gpt2_sees_the_embeddings_of_the_positions() -> None:
    found = hidden_states(teacher("gpt2"), IDS, POSITIONS)
    torch.testing.assert_close(found, moved_by_hand(), rtol=1e-5, atol=1e-5)
    assert (found[1] - hidden_states(teacher("gpt2"), IDS)[1]).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "llama gqa", "gpt-neox"])
def test_a_jump_in_the_positions_is_no_border_between_documents(family: str) -> None:
    """Against the causal mask spelled out, which leaves transformers nothing to guess."""
    model = teacher(family)
    mask = torch.full((IDS.shape[1],) * 2, -torch.inf).triu(1).expand(len(IDS), 1, -1, -1)
    spelled = model.base_model(input_ids=IDS, position_ids=POSITIONS, attention_mask=mask, use_cache=False)
    found = hidden_states(model, IDS, POSITIONS)
    torch.testing.assert_close(found, spelled.last_hidden_state, rtol=1e-5, atol=1e-5)
    plain = hidden_states(model, IDS)
    torch.testing.assert_close(found[0], plain[0], rtol=1e-5, atol=1e-5)
    assert (found[1] - plain[1]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "llama gqa", "gpt-neox"])
def test_a_swapped_model_sees_the_same_positions(family: str) -> None:
    original, student = pair(family)
    expected = hidden_states(original, IDS, POSITIONS)
    torch.testing.assert_close(hidden_states(student, IDS, POSITIONS), expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(layer_calls(student, IDS, POSITIONS), layer_calls(original, IDS, POSITIONS), strict=True):
        torch.testing.assert_close(ours.output, theirs.output, rtol=1e-4, atol=1e-5)
