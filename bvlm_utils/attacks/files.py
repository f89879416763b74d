"""What an attack reads from files, as its parameters name them: pictures, a folder of pictures, rows of a dataset."""

from collections.abc import Mapping
from typing import Any

from bvlm_utils import data
from bvlm_utils.attacks.declare import AttackInfo
from bvlm_utils.data.picture_files import read_picture
from bvlm_utils.data.pictures import concept_digest, concept_pictures, picture_path
from bvlm_utils.errors import InputError

FEW = 8  # pixels of a picture that is read only to see whether it can be
SEARCHED = 64  # rows that a word is searched on


def check(info: AttackInfo, params: Mapping[str, Any], target: Any) -> None:
    """InputError for a file that cannot be read, or data with too few rows. target: a threat's."""
    changed = {name for name, value in params.items() if value != info.defaults[name]}
    if "picture" in changed:
        read_picture(picture_path(params["picture"]), f"the trigger of {info.name}")
    if "source" in params:
        concept_pictures(params["source"] or target.source_concept, FEW)
    if {"dataset", "rows"} <= params.keys() and changed & {"dataset", "rows", "search_letters"}:
        dataset, rows = params["dataset"], max(params["rows"], SEARCHED if params.get("search_letters") else 0)
        if ":" not in dataset and dataset not in data.names():
            raise InputError(
                f"The trigger of {info.name} is to be computed with the dataset {dataset!r}, and there is none; choose "
                f"one of: {', '.join(data.names())}, or FORMAT:PATH."
            )
        data.load(dataset, "train", rows)


def digests(params: Mapping[str, Any]) -> dict[str, str]:
    """A digest of each folder of pictures, and of the data in files, that a parameter names, by its name."""
    by_name = {"source": concept_digest(params.get("source") or "")}
    if ":" in params.get("dataset", ""):
        by_name["dataset"] = data.digest(params["dataset"])
    return {name: digest for name, digest in by_name.items() if digest}
