"""Evaluation: the measures against torch's own, positions aligned, perplexities per unit."""

import math
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, Workspace

from attnopt import settings as params
from attnopt.evaluation import measures as evaluate
from attnopt.records.corpus import SplitCounts
from attnopt.student import build as students
from attnopt.student.distance import SUMS, per_token
from attnopt.targets.dataset import load_dataset
from attnopt.teacher.head import head_of


@pytest.mark.parametrize("logits", [1, 300 * 7, 2**22])
def test_measures_equal_the_plain_whole_logits_computation(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, logits: int
) -> None:
    workspace.run("tokenize", "cache-logits")
    settings = params.load_settings()
    loaded, _ = load_dataset(settings.teacher)
    student = students.build_student(loaded.teacher, settings.variant("none").swap, seed=0)
    blocks = loaded.blocks["test"][:5]
    heads = head_of(student), head_of(loaded.teacher)
    monkeypatch.setattr("attnopt.student.distance.LOGITS", logits)
    found = per_token(student, heads[0], partial(loaded.hidden, "test"), heads[1], blocks, batch=2)
    ids = torch.from_numpy(blocks.astype(np.int64))
    with torch.no_grad():
        log_p, log_q = (m(ids).logits[:, :-1].log_softmax(-1) for m in (loaded.teacher, student))
    kl = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    np.testing.assert_allclose(found["kl_forward"], kl, atol=2e-3)
    np.testing.assert_allclose(found["ce"], F.cross_entropy(log_q.mT, ids[:, 1:], reduction="none"), atol=2e-3)
    np.testing.assert_allclose(found["teacher_ce"], F.cross_entropy(log_p.mT, ids[:, 1:], reduction="none"), atol=2e-3)
    assert found["kl_forward"].shape == (5, 31)


def test_summary_counts_words_and_bytes_of_the_split() -> None:
    tokens = {name: np.full((4, 7), value, dtype=np.float32) for name, value in zip(SUMS, (0.2, 0.3, 0.1, 0.5, 2.0, 1.5), strict=True)}  # fmt: skip
    blocks = np.arange(32).reshape(4, 8)
    counts = SplitCounts(documents=1, tokens=300, words=100, bytes=900, blocks=4)
    found = evaluate.summarize(tokens, blocks, blocks, counts)
    assert found.ppl_token == pytest.approx(math.exp(2))
    assert found.ppl_word == pytest.approx(math.exp(2 * 3))
    assert found.teacher_ppl_byte == pytest.approx(math.exp(1.5 / 3))
    assert found.ppl_ratio == pytest.approx(math.exp(0.5))
    assert found.kl_by_position == [0.2] * 7
    assert found.kl_forward_se == pytest.approx(0)
    assert found.tokens == 28


GROWN = """
import numpy as np, resource, sys, torch
from attnopt.student.distance import per_token
from attnopt.teacher.head import Head

class Model:
    def base_model(self, input_ids, use_cache):
        return type("Out", (), {"last_hidden_state": torch.randn(*input_ids.shape, 4)})

def peaks(blocks):
    for block in blocks:
        yield block
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)

head = Head(torch.randn(49152, 4), None, 1.0)
ids = np.zeros((6, 512), dtype=np.int64)
per_token(Model(), head, lambda part, ids: torch.randn(*ids.shape, 4), head, ids, 1, peaks)
"""


def test_a_process_does_not_grow_with_the_logits_it_has_seen() -> None:
    done = subprocess.run(
        [sys.executable, "-c", GROWN], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    peaks = [int(mib) for mib in done.stdout.split()]
    assert peaks[-1] < peaks[0] + 400, peaks  # kept one by one they were 300 MiB a block
