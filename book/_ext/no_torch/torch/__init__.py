"""Stands before the real torch while the book is built, so that no page can train or run a model."""

raise ImportError("The book is built without torch: its pages show what the store holds and run no model.")
