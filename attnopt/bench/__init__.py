"""What a mechanism costs: latency, peak memory, state and energy against context length, beside SDPA softmax."""
