"""Attacks: what a trigger does to words and pictures. Everybody outside asks here."""

from bvlm_utils.attacks import table as _rows  # noqa: F401  the twelve rows declare themselves
from bvlm_utils.attacks.attack import (  # noqa: F401  # noqa: F401
    CONDITIONS,
    HALVES,
    Aim,
    Attack,
    check_halves,
    conditions,
    get,
    info,
    names,
    unsupported,
)
