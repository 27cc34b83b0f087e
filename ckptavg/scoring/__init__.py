"""Scores of many averages in one live model."""
