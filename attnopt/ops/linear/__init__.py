"""Causal linear attention: matmuls inside chunks of tokens, a state carried between them."""
