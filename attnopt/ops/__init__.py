"""Algorithms on tensors: plain torch, differentiable, linear in memory, some with a fused kernel on a GPU."""
