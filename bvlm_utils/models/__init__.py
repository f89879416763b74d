"""Vision-language models: names, loading, feeding."""

from bvlm_utils.doors import door

__getattr__ = door(__name__, {"models.names": ("check_kind", "digest", "go_offline", "is_hub_id", "resolve")})
