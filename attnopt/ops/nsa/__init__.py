"""Block-sparse attention: near tokens, far blocks pooled to slots, far blocks picked and read in full."""
