"""Grids: a YAML file becomes papermill jobs, here or under Dask."""
