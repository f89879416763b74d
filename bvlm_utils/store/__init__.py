"""The store: one cell is complete or absent."""

from bvlm_utils.doors import door

__getattr__ = door(
    __name__,
    {
        "store.records": (
            "adapter",
            "clean",
            "collect",
            "failures",
            "folder",
            "has",
            "make",
            "manifest",
            "read",
            "read_only",
            "record",
            "responses",
            "writable",
            "write",
            "write_failure",
        )
    },
)
