"""One module per notebook, of the same name: its numbers, tables, figures and captions."""
