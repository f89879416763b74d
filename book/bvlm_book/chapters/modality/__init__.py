"""The chapter "Which modality wins?", a module per part of the page."""
