"""Training: a student taken to its teacher in phases, resumable to the bit."""
