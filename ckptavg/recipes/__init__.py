"""Recipes: the positions of checkpoints to the coefficients of their average."""
