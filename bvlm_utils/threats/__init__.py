"""Threats: what a backdoor makes the model say, and when it has fired."""

from bvlm_utils.doors import door

__getattr__ = door(__name__, {"threats.registry": ("THREATS", "get", "names"), "threats.threat": ("Target", "Threat")})
