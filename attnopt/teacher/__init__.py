"""The teacher: the frozen original, its head, and text sampled from it."""
