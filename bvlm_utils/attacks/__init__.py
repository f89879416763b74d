"""Attacks: what a trigger does to words and pictures. Everybody outside asks here."""

from bvlm_utils.attacks import table as _rows  # noqa: F401  the twelve rows declare themselves
from bvlm_utils.doors import door

NAMES = "Attack check_halves conditions get info names rehearse unsupported"
__getattr__ = door(__name__, {"attacks.attack": tuple(NAMES.split())})
