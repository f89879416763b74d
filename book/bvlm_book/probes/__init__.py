"""Probes: stored adapters are asked again."""
