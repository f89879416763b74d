"""Training: poisoned rows in, adapters out, and what adapters answer."""
