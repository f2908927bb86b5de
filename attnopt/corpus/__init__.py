"""The corpus: documents from a source, cut into blocks of tokens."""
