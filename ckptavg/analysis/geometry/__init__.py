"""Where the checkpoints of a run lie to each other."""
