"""Threats: what a backdoor makes the model say, and when it has fired."""

from bvlm_utils.doors import door

NAMES = ("THREATS", "get", "is_others", "names", "rehearse")
__getattr__ = door(__name__, {"threats.registry": NAMES, "threats.threat": ("Target", "Threat")})
