import torch

from attnopt.ops.tensors import last_tokens


def test_the_last_tokens_have_memory_of_their_own():
    x = torch.randn(2, 1, 10, 4)
    kept = last_tokens(x, 3)
    torch.testing.assert_close(kept, x[:, :, 7:])
    assert kept.untyped_storage().nbytes() == kept.numel() * 4
    assert last_tokens(x, 0).shape == (2, 1, 0, 4)
    assert last_tokens(x, 99).data_ptr() != x.data_ptr()
