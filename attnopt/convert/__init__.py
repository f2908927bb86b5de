"""From a model to a student within a budget of state: the pipeline with a study made for it, in its own folder."""
