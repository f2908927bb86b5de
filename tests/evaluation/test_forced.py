"""Chosen tokens of given texts, against torch's own measures of whole logits."""

import pytest
import torch
import torch.nn.functional as F
from planted import HEAD, VOCAB

from attnopt.evaluation import forced
from attnopt.evaluation.forced import Forced, rows_per_pass


class Table:
    """A bigram model: row of the table by token."""

    def __init__(self, seed: int):
        self.table = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(seed))

    def base_model(self, input_ids, use_cache):
        return type("Out", (), {"last_hidden_state": self.table[input_ids]})


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("logits", [VOCAB, 7 * VOCAB, 2**22])
def test_measures_are_those_of_the_whole_logits_at_the_tokens_asked_for(
    rows: int, logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forced, "LOGITS", logits)
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCAB, (5, 20), generator=g)
    asked = torch.rand(5, 20, generator=g) < 0.4
    asked[:, 0] = False
    teacher, student = Table(1), Table(2)
    found = Forced(teacher, HEAD, ids, asked, rows).measure(student, HEAD)
    log_p, log_q = (m.table[ids].log_softmax(-1)[:, :-1] for m in (teacher, student))
    chosen, tokens = asked[:, 1:], ids[:, 1:]
    expected = {
        "kl_forward": F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1),
        "ce": F.cross_entropy(log_q.mT, tokens, reduction="none"),
        "teacher_ce": F.cross_entropy(log_p.mT, tokens, reduction="none"),
        "top1_agreement": (log_p.argmax(-1) == log_q.argmax(-1)).float(),
        "right": log_q.argmax(-1) == tokens,
        "teacher_right": log_p.argmax(-1) == tokens,
    }
    assert set(found) == set(expected)
    for name, values in expected.items():
        torch.testing.assert_close(torch.from_numpy(found[name]), values[chosen], msg=name)


def test_a_pass_has_about_as_many_tokens_as_a_batch_of_blocks() -> None:
    assert [rows_per_pass(16, 512, length) for length in (64, 1024, 8192, 10**6)] == [128, 8, 1, 1]
