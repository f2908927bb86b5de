"""Evaluation: students against the teacher on held-out text, and what they write."""
