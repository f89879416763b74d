"""A cell, one run of the study: its settings, checked, and its name, which changes with all that changes its result."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bvlm_utils import attacks, data, models, paths, skills, threats
from bvlm_utils.attacks import Attack
from bvlm_utils.attacks import files as attack_files
from bvlm_utils.attacks.attack import surrogate_digest, without_unused_jpeg
from bvlm_utils.attacks.parts_of_speech import tagger_in_use
from bvlm_utils.checks import LARGEST_SEED, brief, check_number, file_digest, is_text, known
from bvlm_utils.data.pictures import picture_path
from bvlm_utils.errors import InputError
from bvlm_utils.models import context_length
from bvlm_utils.skills import Skill
from bvlm_utils.threats import Threat
from bvlm_utils.threats.registry import check as check_threat
from bvlm_utils.train.poison import check_decoy
from bvlm_utils.train.settings import TrainSettings

VERSION = 1  # raise when training, generation or scoring changes what the same settings give
CONTROL = "none"  # threat and attack of a clean-tuned control
# What optimised triggers are computed with if a cell does not say: the CLIP model that matches the victim's size.
SURROGATE, HUB_SURROGATE = "tiny-clip", "openai/clip-vit-large-patch14-336"

# What a clean-tuned control does not depend on; it has the defaults.
NOT_OF_CONTROLS = ("trigger_seed", "negatives", "half", "decoy", "surrogate", "max_new_tokens")
MOST_NEGATIVES = 1000  # per poisoned row
DTYPES = ("float32", "tf32", "bfloat16")
MAX_NEW_TOKENS = 80  # the longest answer of the scenes with a payload fits in
# Fields that the first records did not have. Left out of the identity at their defaults, so that names stay.
YOUNGER = {"half": "", "four_bit": False, "picture_last": False, "max_new_tokens": MAX_NEW_TOKENS, "dtype": "",
           "skill": "", "skill_rate": 1.0, "decoy": ""}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One point of a grid. InputError names a value that is wrong; a field that does not exist is a TypeError.

    model: as in `models.resolve`. dataset: as in `data.load`. attack_params, threat_params: what differs from the
    defaults. seed: of rows, order and initialisation. trigger_seed: of the trigger instances.
    negatives: half-triggered rows per poisoned one (bimodal attacks). half: "text" or "image" poisons with that half of
    a bimodal trigger alone, to see whether it can be learnt; tests stay the same. decoy: what the rows to be poisoned
    get instead of the backdoor (`train.poison.with_decoys`). skill: a harmless ability (`skills`) that other rows
    teach, a share skill_rate of those that it fits; poison rate 0 teaches it alone. picture_last: the picture stands
    after the words of a prompt, in training and tests. four_bit: load the base in 4 bit (needs `bitsandbytes`).
    surrogate: folder or hub id of the CLIP model that optimised triggers are computed with; if empty, `surrogate_of`.
    test_rows: eligible held-out rows per condition.
    max_new_tokens: where an answer is cut; one that ends with a payload has to fit in. dtype: of the base's weights and
    products, on whatever device: float32 (exact), tf32 (float32 with products that a GPU rounds to 10 bits of mantissa)
    or bfloat16; if empty, bfloat16 for models from the hub and float32 for others. On one kind of machine the same cell
    has the same numbers; between a GPU and the CPU they agree within the bounds of `benchmarks/gpu_steps/check.py`.
    """

    model: str
    dataset: str
    threat: str
    attack: str
    poison_rate: float
    seed: int = 0
    attack_params: Mapping[str, Any] = field(default_factory=dict)
    threat_params: Mapping[str, Any] = field(default_factory=dict)
    trigger_seed: int = 0
    negatives: float = 0.0
    half: str = ""
    decoy: str = ""
    skill: str = ""
    skill_rate: float = 1.0
    picture_last: bool = False
    four_bit: bool = False
    max_new_tokens: int = MAX_NEW_TOKENS
    surrogate: str = ""
    dtype: str = ""
    train_rows: int = 6000
    test_rows: int = 200
    train: TrainSettings = field(default_factory=TrainSettings)

    def __post_init__(self) -> None:
        for name in ("model", "dataset", "threat", "attack", "surrogate"):
            if not is_text(getattr(self, name)):
                raise InputError(f"{name} is {brief(getattr(self, name))}; it must be a name.")
        check_number(self.poison_rate, "poison_rate", 0, 1)
        check_number(self.negatives, "negatives", 0, MOST_NEGATIVES)
        for name, low, high in (
            ("seed", 0, LARGEST_SEED), ("trigger_seed", 0, LARGEST_SEED), ("train_rows", 1, 10**7),
            ("test_rows", 1, 10**7), ("max_new_tokens", 1, 10**5),
        ):  # fmt: skip
            check_number(getattr(self, name), name, low, high, whole=True)
        for name in ("attack_params", "threat_params"):
            params = getattr(self, name)
            if not isinstance(params, Mapping) or not all(map(is_text, params)):
                raise InputError(f"{name} is {brief(params)}; it must be a table of names and values.")
        for name in ("picture_last", "four_bit"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} is {getattr(self, name)!r}; it must be true or false.")
        if self.dtype not in ("", *DTYPES):
            raise InputError(f"dtype is {self.dtype!r}; it must be one of: {', '.join(DTYPES)}, or empty.")
        if not isinstance(self.train, TrainSettings):
            raise InputError(f"train is {self.train!r}; it must be TrainSettings.")
        models.check_kind(self.model, clip=False)
        self.train.check_rank(self.model)
        check_dataset(self.dataset)
        self._check_skill()
        # what says the same as an empty setting is emptied: it is one cell, and no unusual one on any page
        if self.dtype == self._usual_precision:
            object.__setattr__(self, "dtype", "")
        if self.is_control:
            if self.threat != self.attack or self.poison_rate or self.negatives or self.decoy:
                raise InputError(
                    f"Threat {self.threat!r}, attack {self.attack!r} and poison rate {self.poison_rate:g}: "
                    f"a control has {CONTROL!r}, {CONTROL!r} and 0, any other cell has a threat and an attack."
                )
            return
        context_length.check_answers(self.model, self.max_new_tokens)  # a control is tuned, and asked with its cells
        check_threat(self.resolved_threat, self.dataset)
        attacks.check_halves(self.resolved_attack, self.negatives, self.half)
        check_decoy(self.decoy, self.poison_rate, self.resolved_attack)
        if self.surrogate and self._has_usual_surrogate():
            object.__setattr__(self, "surrogate", "")

    def _has_usual_surrogate(self) -> bool:
        attack = self.resolved_attack
        if not attack.info.surrogate:
            return True  # it computes nothing
        try:
            usual = surrogate_digest(models.resolve(surrogate_of(self.model)))
        except InputError:  # none is known, or it is not whole, so it has to be said which
            return False
        return usual == surrogate_digest(attack.aim.surrogate)

    def _check_skill(self) -> None:
        check_number(self.skill_rate, "skill_rate", 0, 1)
        if not self.skill_rate:
            raise InputError("skill_rate is 0; it must be above 0: leave the skill away instead.")
        if not isinstance(self.skill, str | None):
            raise InputError(f"skill is {brief(self.skill)}; it must be a name.")
        if self.skill != "":
            skills.check(self.skill, self.dataset)
        elif self.skill_rate != 1:
            raise InputError(f"skill_rate is {self.skill_rate:g} without a skill; name one, or leave it at 1.")

    @property
    def is_control(self) -> bool:
        return CONTROL in (self.threat, self.attack)

    @cached_property
    def resolved_threat(self) -> Threat:
        """The threat with the cell's parameters; made once, when the cell is checked."""
        return threats.get(self.threat, **self.threat_params)

    @cached_property
    def resolved_attack(self) -> Attack:
        """The attack, aimed at the threat's target; applying it to pictures needs torch, making it does not."""
        surrogate = self.surrogate
        if not surrogate and attacks.info(self.attack).surrogate and self.skip_reason is None:
            surrogate = surrogate_of(self.model)
        surrogate = models.resolve(surrogate) if surrogate else None
        return attacks.get(self.attack, self.resolved_threat.target, surrogate, **self.attack_params)

    @property
    def resolved_skill(self) -> Skill | None:
        return skills.get(self.skill) if self.skill else None

    def __getstate__(self) -> dict[str, Any]:
        """What a cell takes to another process: not its attack, whose checks are functions; it is made there again."""
        return {name: value for name, value in vars(self).items() if not name.startswith("resolved_")}

    @property
    def precision(self) -> str:
        """`dtype`, or what an empty one stands for."""
        return self.dtype or self._usual_precision

    @property
    def _usual_precision(self) -> str:
        return "bfloat16" if models.is_hub_id(self.model) else "float32"

    @property
    def modality(self) -> str:
        return CONTROL if self.is_control else attacks.info(self.attack).modality

    @property
    def skip_reason(self) -> str | None:
        """Why the attack is not defined for the threat; None where it is."""
        return None if self.is_control else attacks.unsupported(self.attack, self.threat)

    @property
    def control(self) -> "Cell":
        """The clean-tuned model that this cell is compared with: same rows, skill, order, initialisation and steps."""
        defaults = {name: Cell.__dataclass_fields__[name].default for name in NOT_OF_CONTROLS}
        clean = {"threat": CONTROL, "attack": CONTROL, "poison_rate": 0.0, "attack_params": {}, "threat_params": {}}
        return replace(self, **clean, **defaults)

    def config(self) -> dict[str, Any]:
        """The fields, ready for JSON; `from_config` reads them."""
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        tables = {"attack_params": dict(self.attack_params), "threat_params": dict(self.threat_params)}
        return settings | tables | {"train": asdict(self.train)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Cell":
        """The cell with these fields; InputError for one that a cell does not have."""
        train = config.get("train", {})
        known(config, [f.name for f in fields(cls)], "cell")
        known(train, [f.name for f in fields(TrainSettings)], "training setting")
        return cls(**config | {"train": TrainSettings(**train)})

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that decides the result, ready for JSON. A control is trained only, so its test rows are left out."""
        digests = {"model_digest": models.digest(self.model), "data_digest": data.digest(self.dataset)}
        settings = self.config() | {"version": VERSION} | digests
        # a model folder or a data file may be called by different paths: its digest tells what it is
        settings["model"], settings["dataset"] = short_name(self.model), short_name(self.dataset)
        del settings["surrogate"]
        settings["dtype"] = self.precision if self.precision != "float32" else ""
        settings = {name: value for name, value in settings.items() if name not in YOUNGER or value != YOUNGER[name]}
        if self.skill:
            settings["skill_version"] = self.resolved_skill.version
        if self.is_control:
            del settings["test_rows"], settings["trigger_seed"]
            return settings
        attack, threat = self.resolved_attack, self.resolved_threat
        settings |= {"attack_version": attack.version, "attack_params": without_unused_jpeg(attack.params)}
        settings |= {"threat_version": threat.version, "threat_params": threat.params}
        if "tagger" in attack.params:  # another tagger, other triggers; "auto" is how the first records call HanTa
            tagger = tagger_in_use(attack.params["tagger"])
            settings["attack_params"] |= {"tagger": "auto" if tagger == "hanta" else tagger}
        pictures = [attack.params.get("picture"), threat.target.image]
        settings["pictures"] = [file_digest(picture_path(picture)) for picture in pictures if picture]
        if file_digests := attack_files.digests(attack.params):
            settings["attack_files"] = file_digests
        if attack.info.surrogate:
            settings["surrogate"] = surrogate_digest(attack.aim.surrogate)
        return settings

    @cached_property
    def run_id(self) -> str:
        """A readable name and 8 hex digits of `identity`; the name of the cell's folder in a store."""
        parts = ["clean-tuned"] if self.is_control else [self.threat, self.attack, f"{self.poison_rate:g}"]
        name = "-".join([short_name(self.model), short_name(self.dataset), *parts])
        slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")
        return f"{slug}-s{self.seed}-{digest_of(self.identity)}"


def digest_of(identity: Mapping[str, Any]) -> str:
    """The 8 hex digits at the end of a run_id."""
    return hashlib.sha256(json.dumps(canonical(identity), sort_keys=True).encode()).hexdigest()[:8]


def surrogate_of(model: str) -> str:
    """The CLIP model that matches a victim: tiny-clip for our own, CLIP-L at 336 pixels for one from the hub, and for a
    folder the CLIP-L that lies beside it; InputError where there is none.
    """
    if models.is_hub_id(model):
        return HUB_SURROGATE
    folder = Path(models.resolve(model))
    if folder.parent == paths.MODELS:
        return SURROGATE
    clip = folder.parent / Path(HUB_SURROGATE).name
    if (clip / "config.json").is_file():
        return str(clip)
    raise InputError(
        f"The trigger is computed with a CLIP model, and none is known for {model!r}: put {clip.name} into "
        f"{clip.parent}, or give a folder or hub id as surrogate."
    )


def check_dataset(name: str) -> None:
    """InputError if there is no such dataset, or its files cannot be found."""
    if ":" not in name and name not in data.names():
        raise InputError(
            f"There is no dataset {name!r}; choose one of: {', '.join(data.names())}, "
            "or FORMAT:PATH for data in files, such as coco-caption:FOLDER."
        )
    data.digest(name)


def short_name(name: str) -> str:
    """A name without folders: of the model "/data/x/mine" it is "mine", of the dataset "coco-caption:/x" its format."""
    if ":" in name:
        return name.partition(":")[0]
    return Path(name).name if "/" in name else name


def canonical(value: Any) -> Any:
    """Equal numbers written alike, so that 1 and 1.0 are one cell."""
    if isinstance(value, Mapping):
        return {key: canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
