"""Runs: a list of cells becomes records."""
