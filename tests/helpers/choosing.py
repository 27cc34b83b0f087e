"""Held-out data for searches: one half chooses, the other reports."""

from tests.helpers.models import tiny_data

X, Y = tiny_data()


CHOOSE = (X[:48], Y[:48])


REPORT = (X[48:], Y[48:])


SPECS = ("--model", "train.py:build_model", "--data", "train.py:bn_data")


SPLIT = """
def choose(): return x[:48], y[:48]
def report(): return x[48:], y[48:]
"""
