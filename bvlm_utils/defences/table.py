"""The defences: one declared, versioned row each. Each moment has its own file, which declares its rows."""

from bvlm_utils.defences import (  # noqa: F401  the rows declare themselves
    declared_data,
    declared_detect,
    declared_inference,
    declared_repair,
    declared_training,
)
