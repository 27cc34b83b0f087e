"""Runs, checkpoints and their records: what is on disk, and how it is proven."""
