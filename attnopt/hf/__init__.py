"""The swap of attention in any Hugging Face causal language model."""
