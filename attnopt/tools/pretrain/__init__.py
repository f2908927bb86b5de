"""Make the bundled teacher: a small GPT-2 of 1024 positions that copies and recalls."""
