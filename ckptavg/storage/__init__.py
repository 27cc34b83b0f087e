"""Bytes at a place: files that appear whole or not at all."""
