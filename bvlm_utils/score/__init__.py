"""Scores: responses in, numbers with intervals out."""
