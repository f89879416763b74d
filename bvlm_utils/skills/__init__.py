"""Skills: harmless new abilities that a cell may teach beside the poison."""

from bvlm_utils.doors import door

NAMES = ("SKILLS", "check", "fitting", "get", "names", "rehearse")
__getattr__ = door(__name__, {"skills.registry": NAMES, "skills.skill": ("Skill",)})
