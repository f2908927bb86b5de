"""A student as a plain Hugging Face folder: written, described, carried with its numbers, and read again."""
