"""Text drawn from the teacher itself."""

import numpy as np
import torch
from conftest import Workspace

from attnopt import settings as params
from attnopt.teacher import model as teacher
from attnopt.teacher import sampling


@torch.no_grad()
def test_a_stream_is_drawn_token_by_token_from_the_whole_distribution(workspace: Workspace) -> None:
    """Against sampling without a cache, token by token."""
    model, _ = teacher.load_teacher(params.load_settings().teacher)
    drawn = sampling.sample_stream(model, 0, 20, 3, 250, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    ids = torch.zeros(3, 1, dtype=torch.int64)
    for _ in range(19):
        p = model(ids, use_cache=False).logits[:, -1].softmax(-1)[:, :250]
        ids = torch.cat([ids, (p / p.sum(-1, keepdim=True)).multinomial(1, generator=generator)], 1)
    assert torch.equal(drawn, ids)
    assert drawn.max() < 250


def test_sampled_blocks_are_cut_from_streams_and_depend_on_the_seed_alone(workspace: Workspace) -> None:
    model, tokenizer = teacher.load_teacher(params.load_settings().teacher)
    found = sampling.sample_blocks(model, tokenizer, 16, 11, seed=1, batch=2)
    assert found.shape == (11, 16)
    assert (found[::4, 0] == tokenizer.eos_token_id).all(), "64 positions hold four blocks of a stream"
    assert len({tuple(block) for block in found.tolist()}) == 11
    assert np.array_equal(found, sampling.sample_blocks(model, tokenizer, 16, 11, seed=1, batch=2))
    assert not np.array_equal(found, sampling.sample_blocks(model, tokenizer, 16, 11, seed=2, batch=2))
