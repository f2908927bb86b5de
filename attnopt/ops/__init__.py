"""Kernels that several mechanisms share: plain torch, differentiable, linear in memory; fused twins on a GPU."""
