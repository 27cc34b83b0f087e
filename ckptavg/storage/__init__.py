"""Bytes at a place: whole-file writes, positioned reads and writes, locks.

Nothing here knows what the bytes mean.
"""
