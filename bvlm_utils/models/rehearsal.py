"""A model of one's own, opened as a run opens it but for the numbers of its weights: a dry run tells what is wrong."""

from functools import lru_cache
from typing import Any

import numpy as np

from bvlm_utils import paths
from bvlm_utils.errors import InputError
from bvlm_utils.models import context_length, names


def opened(name: str, picture_last: bool = False) -> tuple[Any, int] | None:
    """A model without numbers, and the tokens of a picture, or InputError; None for ours and for what is not here."""
    folder = names.folder(name)
    if folder is None or folder.parent == paths.MODELS:
        return None
    from bvlm_utils.models import opening

    if names.is_hub_id(name) and opening.downloaded(name) is None:  # nothing is downloaded for a dry run
        return None
    return _opened(name, picture_last, names.digest(name))


@lru_cache(maxsize=4)
def _opened(name: str, picture_last: bool, digest: str) -> tuple[Any, int]:
    from bvlm_utils.models import opening, victim

    model = victim.from_pretrained(name, device=opening.NOWHERE, picture_last=picture_last)
    image_tokens = context_length.image_tokens(names.folder(name))
    if model.family.grids:
        return model, image_tokens
    try:
        return model, model.encode(np.zeros((1, context_length.SIDE, context_length.SIDE, 3), np.uint8)).shape[1]
    except NotImplementedError:  # the architecture looks at numbers on its way, of which there are none
        return model, image_tokens
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise InputError(f"The model {name!r} cannot take a picture: {opening.first_line(error)}") from error
