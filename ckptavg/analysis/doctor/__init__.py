"""The doctor: checkpoints that should be left out of an average, and why."""
