"""The store: one cell is complete or absent."""

from bvlm_utils.doors import door

NAMES = "adapter clean collect failures folder has make manifest read read_only responses writable write write_failure"
__getattr__ = door(__name__, {"store.records": tuple(NAMES.split())})
