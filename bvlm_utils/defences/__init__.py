"""Defences: what finds, prevents or removes a backdoor. Everybody outside asks here."""

from bvlm_utils.defences import table as _rows  # noqa: F401  the rows declare themselves
from bvlm_utils.doors import door

__getattr__ = door(
    __name__,
    {
        "defences.declare": ("MOMENTS", "NEEDS"),
        "defences.defence": ("Defence", "get", "info", "names"),
        "defences.rows": ("Answered", "Rows"),
        "defences.cell": ("Defended", "defended"),
        "defences.measure": ("run",),
        "defences.records": ("collect",),
    },
)
