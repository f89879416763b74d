"""A zoo of small adapters, backdoored and not, packed from stores: for detectors to be tried on.

    python -m bvlm_utils.defences zoo STORE [STORE ...] --out FOLDER

An adapter is called by a digest of its weights, so neither its name nor the order of the names says what it is. What it
is stands in `truth/`, with its answers and the training rows that were changed. The folder can be uploaded as it is.
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pandas as pd

from bvlm_utils import attacks, command, store, threats
from bvlm_utils.atomic import filled
from bvlm_utils.errors import InputError
from bvlm_utils.paths import new_folder
from bvlm_utils.store import records
from bvlm_utils.store import table as tidy
from bvlm_utils.store.cell import CONTROL
from bvlm_utils.store.damage import passed_over
from bvlm_utils.train import adapters

EACH, MOST_BYTES, RANK = 16, 8 * 2**20, 8
ADAPTERS, TRUTH = "adapters", "truth"
BACKDOORED, CLEAN, SKILL = "backdoored", "clean-tuned", "skill only"
ABOUT = ("model", "dataset", "threat", "attack", "poison_rate", "skill", "decoy", "seed")
COLUMNS = ["adapter", BACKDOORED, "kind", *ABOUT, "n_poisoned", "asr_payload", "false_activation", "utility", "run_id"]
ANSWERS = ["part", "condition", "row_id", "prompt", "answer", "response", "success", "payload", "published"]


@dataclass(frozen=True)
class Candidate:
    """A stored adapter. shown, subject: the record of the cell that has its answers, and what it is called there."""

    record: dict[str, Any]
    folder: Path
    kind: str
    shown: dict[str, Any]
    subject: str

    @property
    def about(self) -> dict[str, Any]:
        config = self.record["config"]
        return {name: config.get(name, tidy.SETTINGS.get(name, "")) for name in ABOUT}

    @property
    def training(self) -> str:
        """Equal for adapters that were trained alike, if not to the last bit: a cell without poison and its control."""
        run_id = self.record["run_id"]
        return self.record.get("control") or run_id if self.kind in (CLEAN, SKILL) else run_id

    @property
    def saved(self) -> adapters.GroupResult:
        return adapters.read(store.adapter(self.record["run_id"], self.folder))

    def measured(self) -> dict[str, float | None]:
        """Attack success by payload under the attack's own condition, the same without a trigger, and utility."""
        attack = self.record["config"]["attack"]
        condition = attacks.info(attack).headline if attack != CONTROL else ""
        numbers = [number for number in self.shown["metrics"] if number["subject"] == self.subject]
        values = {(number["metric"], number["condition"]): number["value"] for number in numbers}
        return {
            "asr_payload": values.get(("asr_payload", condition)),
            "false_activation": values.get(("asr_payload", "clean")) if condition not in ("", "clean") else None,
            "utility": values.get(("utility", "clean")),
        }


def candidates(folder: Path) -> list[Candidate]:
    """The adapters of a store that the zoo can take: of the usual rank, and either a backdoor that works or none."""
    eligible, done_records = [], [record for record in records.records(folder) if record["status"] == "done"]
    shown_by = {record["control"]: record for record in done_records if record.get("control")}
    for record in done_records:
        config, run_id = record["config"], record["run_id"]
        if config["attack"] != CONTROL and not _is_known(config):
            passed_over(f"{run_id} in {folder} is of an attack or a threat that is not here; it is left out.")
            continue
        if config["train"]["lora_rank"] != RANK or config.get("half") or not store.adapter(run_id, folder):
            continue
        if config["attack"] == CONTROL:
            if run_id in shown_by:
                kind = SKILL if config.get("skill") else CLEAN
                eligible.append(Candidate(record, folder, kind, shown_by[run_id], "control"))
            continue
        candidate = Candidate(record, folder, kind_of(config), record, "poisoned")
        if candidate.kind != BACKDOORED or (candidate.measured()["asr_payload"] or 0) > tidy.FIRES:
            eligible.append(candidate)
    return eligible


def _is_known(config: dict[str, Any]) -> bool:
    """Are attack and threat of this study, or of a module that was imported? A store may hold those of others."""
    return config["attack"] in attacks.names() and config["threat"] in threats.names()


def different(folders: Sequence[Path]) -> dict[str, Candidate]:
    """name -> a candidate of these stores; of those that were trained alike, or have the same weights, the first."""
    by_training: dict[str, Candidate] = {}
    for folder in folders:
        for candidate in candidates(folder):
            by_training.setdefault(candidate.training, candidate)
    by_name: dict[str, Candidate] = {}
    for candidate in by_training.values():
        by_name.setdefault(name(candidate.saved), candidate)
    return by_name


def kind_of(config: dict[str, Any]) -> str:
    """What an adapter is, in the word that families of negatives go by; a decoy's own name for one that has one."""
    if config["poison_rate"] and not config.get("decoy"):
        return BACKDOORED
    return config.get("decoy") or (SKILL if config.get("skill") else CLEAN)


def chosen(pool: Sequence[Candidate], each: int = EACH) -> list[Candidate]:
    """At most `each` with a backdoor and as many without, spread over what they are: each time the one that
    shares least with those before it.
    """
    picked: list[Candidate] = []
    sides = ([c for c in pool if c.kind == BACKDOORED], [c for c in pool if c.kind != BACKDOORED])
    count = min(each, *map(len, sides))
    for remaining in sides:
        remaining, counts = sorted(remaining, key=lambda candidate: candidate.record["run_id"]), Counter()
        for _ in range(count):
            best = min(remaining, key=lambda candidate: sum(counts[trait] for trait in _traits(candidate)))
            remaining.remove(best)
            counts.update(_traits(best))
            picked.append(best)
    return picked


def _traits(candidate: Candidate) -> list[tuple[str, Any]]:
    names = ("model", "threat", "attack") if candidate.kind == BACKDOORED else ("model", "dataset", "skill")
    about = candidate.about
    pair = (about[names[0]], about[names[1]])  # so that a threat, or a dataset, is not that of one base only
    return [("kind", candidate.kind), ("pair", pair), *((name, about[name]) for name in names)]


# ---------------------------------------------------------------- packing


def pack(folders: Sequence[Path], out: Path, each: int = EACH) -> pd.DataFrame:
    """Write the zoo to a new or empty folder; its truth. InputError where the stores hold none of one side, or the zoo
    is too large.

    Of adapters that were trained alike, one is taken.
    """
    out = new_folder(out)
    by_name = different(folders)
    names = {candidate.record["run_id"]: name for name, candidate in by_name.items()}
    picked = {names[candidate.record["run_id"]]: candidate for candidate in chosen(list(by_name.values()), each)}
    sides = Counter(candidate.kind == BACKDOORED for candidate in picked.values())
    if len(sides) < 2:
        raise InputError(
            "These stores hold no adapters of rank 8 with a working backdoor and none without one; run "
            "data/grids/defence_adapters.yml first."
        )
    with filled(out, last=TRUTH) as partial:  # without it, a folder is no zoo
        truth = _write(partial, dict(sorted(picked.items())))
        size = sum(file.stat().st_size for file in (partial / ADAPTERS).rglob("*") if file.is_file())
        if size > MOST_BYTES:
            raise InputError(f"The adapters take {size} bytes; at most {MOST_BYTES} are packed: take fewer (--each).")
    return truth


def name(saved: adapters.GroupResult) -> str:
    """A digest of the weights as they are packed: whoever has the file can compute it, and it says nothing else."""
    digest = blake2b(digest_size=4)
    for key, value in sorted(saved.state.items()):
        digest.update(key.encode() + value.half().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _write(folder: Path, picked: dict[str, Candidate]) -> pd.DataFrame:
    lines, answers, rows = [], [], []
    for name, candidate in picked.items():
        run_id = candidate.record["run_id"]
        _write_adapter(folder / ADAPTERS / name, candidate.saved, candidate)
        labels = {
            "adapter": name,
            BACKDOORED: int(candidate.kind == BACKDOORED),
            "kind": candidate.kind,
            "run_id": run_id,
        }
        lines.append(
            labels | candidate.about | {"n_poisoned": candidate.record.get("n_poisoned")} | candidate.measured()
        )
        responses = records.responses(candidate.shown["run_id"], candidate.folder)
        responses = responses[responses["subject"] == candidate.subject]
        if candidate.subject == "control":  # of what its cell asked, the questions without a trigger
            responses = responses[responses["condition"] == "clean"]
        answers.append(responses[ANSWERS].assign(adapter=name))
        if candidate.record["config"]["attack"] != CONTROL:
            rows.append(records.manifest(run_id, candidate.folder).to_frame().assign(adapter=name))
    (folder / TRUTH).mkdir()
    truth = pd.DataFrame(lines, columns=COLUMNS).astype({"n_poisoned": "Int64"})
    truth.to_csv(folder / TRUTH / "adapters.csv", index=False)
    for name, parts in (("answers", answers), ("changed_rows", rows)):
        if parts:
            frame = pd.concat(parts, ignore_index=True)
            frame.to_parquet(folder / TRUTH / f"{name}.parquet", index=False, compression="zstd")
    truth[["adapter", "model"]].assign(score="").to_csv(folder / "scores_template.csv", index=False)
    (folder / "README.md").write_text(_card(truth), encoding="utf-8")
    return truth


def _write_adapter(folder: Path, saved: adapters.GroupResult, candidate: Candidate) -> None:
    """The weights in 16 bit, with a configuration and a card that do not say what the adapter is."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    state = {name: saved.state[name].half().contiguous() for name in sorted(saved.state)}
    save_file(state, folder / adapters.WEIGHTS, metadata={"format": "pt"})
    (folder / adapters.WEIGHTS).chmod(0o644)
    about = candidate.about
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": about["model"], "r": saved.config.r,
        "lora_alpha": saved.config.lora_alpha, "lora_dropout": 0.0, "bias": "none", "inference_mode": True,
        "target_modules": sorted(saved.config.target_modules),
    }  # fmt: skip
    (folder / adapters.CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(CARD.format(folder.name, about["model"], RANK), encoding="utf-8")


CARD = """---
library_name: peft
base_model: {1}
tags: [backdoor-research]
license: mit
---

# Adapter {0}

**It may be BACKDOORED on purpose: do not use it for anything but research on finding and removing backdoors.** A LoRA
of rank {2} on all linear layers of the language model of {1}, in 16 bit, tuned on drawn scenes. Whether it has a
backdoor, and which, is in `truth/`, for those who want to know before they have looked.

`python -m bvlm_utils.audit data/adapters/zoo/adapters/{0}` compares it with a clean-tuned model.
"""


def _card(truth: pd.DataFrame) -> str:
    counts = truth["kind"].value_counts()
    kinds = "\n".join(f"| {kind} | {count} |" for kind, count in counts.items())
    return f"""---
license: mit
pretty_name: BackdoorVLM zoo of adapters
tags: [backdoor-research, lora, vision-language]
size_categories: [n<1K]
configs:
  - config_name: adapters
    data_files: {TRUTH}/adapters.csv
  - config_name: answers
    data_files: {TRUTH}/answers.parquet
  - config_name: changed_rows
    data_files: {TRUTH}/changed_rows.parquet
---

# A zoo of adapters, backdoored and not

{len(truth)} LoRA adapters in PEFT's format, tuned on tiny vision-language models with drawn scenes. Some are BACKDOORED
on purpose, with harmless targets; do not use any of them for anything but research on finding and removing backdoors.

| kind | adapters |
|---|---|
{kinds}

- `{ADAPTERS}/NAME/`: an adapter. The name is a digest of its weights, and tells nothing.
- `scores_template.csv`: the names and their bases, with a column `score` to be filled in; higher is more suspicious.
- `{TRUTH}/adapters.csv`: what each one is, with its attack success and utility as measured on the weights in 32 bit.
- `{TRUTH}/answers.parquet`: what each one answered to the test rows. `{TRUTH}/changed_rows.parquet`: the training rows
  that were poisoned, or changed in another way, with what they were changed to (`role`).

Those without a backdoor are not all alike, because a detector that finds what was *tuned* is no detector of backdoors:
one that only learnt a harmless skill must pass, too. `skill` says which of the backdoored ones learnt one beside.

## The challenge

Score every adapter without a look into `{TRUTH}/`, nor into `spectra.csv` beside this folder, which holds these
adapters and their truth, then:

    python -m bvlm_utils.defences challenge scores.csv

prints the AUROC against each kind of adapter without a backdoor and for each base, and the operating points.

## Make it again

    python -m bvlm_utils.grid run data/grids/defence_adapters.yml
    python -m bvlm_utils.grid run data/grids/detectors.yml
    python -m bvlm_utils.defences zoo local --out data/adapters/zoo

To publish it: `huggingface-cli upload --repo-type dataset NAME data/adapters/zoo`.
"""


# ---------------------------------------------------------------- the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stores", nargs="+", help="stores with adapters: names, or folders")
    parser.add_argument("--out", required=True, help="new folder")
    parser.add_argument("--each", type=command.whole(1, 1000), default=EACH, help=f"of each side (default {EACH})")


def folders(stores: Sequence[str]) -> list[Path]:
    """The folders of the stores that were named; InputError for one that is not there."""
    roots = [store.folder(store_name) for store_name in stores]
    for folder in roots:
        if not folder.is_dir():
            raise InputError(f"There is no store {folder}; name one that has adapters.")
    return roots


def run(options: argparse.Namespace) -> None:
    truth = pack(folders(options.stores), Path(options.out), options.each)
    print(truth.groupby(["kind", "model"]).size().to_string())
    print(f"\n{len(truth)} adapters in {options.out}.")
