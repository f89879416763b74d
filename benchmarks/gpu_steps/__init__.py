"""The steps of `gpu.py`, one module each; a step's `run` takes a `common.Run` and notes its parts."""
