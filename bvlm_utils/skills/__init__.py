"""Skills: harmless new abilities that a cell may teach beside the poison."""

from bvlm_utils.doors import door

__getattr__ = door(
    __name__,
    {"skills.registry": ("SKILLS", "check", "fitting", "get", "names", "rehearse"), "skills.skill": ("Skill",)},
)
