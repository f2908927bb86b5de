"""Exact softmax attention over a part of the keys, and how such parts become one softmax."""
