"""Classes of frequency: counted part by part, and the same as with all tokens at once."""

import numpy as np
import pytest

from attnopt.evaluation import token_classes


def test_counts_and_quantiles_are_those_of_all_tokens_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for n in range(1, 60):
        train = (rng.zipf(1.3, (n, 7)) % int(rng.integers(2, 300))).astype(np.uint16)
        monkeypatch.setattr(token_classes, "HELD", int(rng.integers(1, 200)))
        counts = np.bincount(train.ravel(), minlength=20)
        assert np.array_equal(token_classes._counts(train, 20), counts)
        shares = (0.25, 0.5, 0.75)
        found = [token_classes._count_below(counts, share) for share in shares]
        assert np.array_equal(np.quantile(counts[train.ravel()], shares), found)
