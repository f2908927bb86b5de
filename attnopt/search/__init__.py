"""The search: which variant's layer stands where, so that a model within a budget is closest to its teacher."""
