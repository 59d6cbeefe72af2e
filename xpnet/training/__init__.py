"""Training and evaluation, from the checks of arguments to the checkpoints of a run."""
