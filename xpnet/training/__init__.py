"""Training: what `fit` and `evaluate` do, from checking what they are given to the checkpoints of a run."""
