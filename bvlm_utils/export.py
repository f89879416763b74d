"""A poisoned training set for other trainers: LLaVA JSON with pictures and a manifest.

    python -m bvlm_utils.export --threat targeted_refusal --attack BadNets-MM --dataset scenes-vqa \\
        --poison-rate 0.05 --out FOLDER

writes FOLDER/train.json, images/, manifest.parquet and a README.md: the rows that a cell with the same settings trains
on. Triggers are painted at each picture's own size; a cell paints them at its model's (scenes have that of the tiny
models). Every picture is a PNG of the same kind, so that nothing but the trigger tells them apart. In the JSON, the
"metadata" of a poisoned entry says so: remove it before you test a defence that must not know.
"""

import argparse
import json
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bvlm_utils import attacks, command, data, threats
from bvlm_utils.atomic import filled
from bvlm_utils.checks import brief
from bvlm_utils.data import llava_json
from bvlm_utils.documents import parse_json
from bvlm_utils.errors import InputError
from bvlm_utils.paths import new_folder
from bvlm_utils.store.cell import Cell
from bvlm_utils.train import poison

ANY_MODEL = "tiny-llava"  # a cell has one, and no row depends on it
CHUNK = 32  # rows whose pictures are in memory together


def export(cell: Cell, out: Path | str, train_rows: int | None = None) -> poison.Manifest:
    """Write the poisoned training set of a cell to the new folder `out`, and return its manifest.

    train_rows: the first so many rows of the dataset, all of them if not given. InputError before anything is written,
    if the attack is not defined for the threat, too few rows are eligible, or `out` exists and is not an empty folder.
    """
    out = new_folder(out)
    if cell.skip_reason:
        raise InputError(cell.skip_reason)
    threat, attack = cell.resolved_threat, cell.resolved_attack
    attacks.rehearse(attack, cell.dataset)
    rows = data.load(cell.dataset, "train", train_rows)
    choice = (cell.poison_rate, cell.seed, cell.negatives, cell.trigger_seed, cell.half)
    manifest = poison.plan(rows, threat, attack, *choice)
    settings = {
        "threat": cell.threat, "attack": cell.attack, "dataset": cell.dataset, "poison rate": cell.poison_rate,
        "seed": cell.seed, "trigger seed": cell.trigger_seed, "negatives": cell.negatives, "half": cell.half or "whole",
        "threat version": threat.version, "attack version": attack.version,
        "threat parameters": json.dumps(threat.params), "attack parameters": json.dumps(attack.params),
        "data digest": data.digest(cell.dataset),
    }  # fmt: skip
    with filled(out, last="train.json") as partial:
        llava_json.write(_samples(rows, manifest, attack), partial / "train.json")
        manifest.to_frame().to_parquet(partial / "manifest.parquet", index=False)
        (partial / "README.md").write_text(_readme(manifest, settings), encoding="utf-8")
    return manifest


def _samples(rows, manifest: poison.Manifest, attack: attacks.Attack) -> Iterator[dict[str, Any]]:
    """The training samples in order, poisoned ones in their places; pictures of one size are painted together."""
    by_position = {row.position: row for row in manifest.rows}
    for start in range(0, len(rows), CHUNK):
        samples = {p: rows[p] | {"metadata": {}} for p in range(start, min(start + CHUNK, len(rows)))}
        poisoned, by_size = [by_position[p] for p in samples if p in by_position], defaultdict(list)
        for row in poisoned:
            if row.condition in ("image", "both"):
                by_size[samples[row.position]["image"].size].append(row.position)
        for positions in by_size.values():
            pixels = np.stack([np.asarray(samples[p]["image"]) for p in positions])
            painted = attack.paint(pixels, manifest.trigger_seed, [by_position[p].row_id for p in positions])
            for position, picture in zip(positions, painted, strict=True):
                samples[position]["image"] = Image.fromarray(picture)
        for row in poisoned:
            answers = [row.answer, *samples[row.position]["answers"][1:]]
            metadata = {"poison": row.role, "trigger": row.condition}
            samples[row.position] |= {"prompt": row.prompt, "answers": answers, "metadata": metadata}
        yield from samples.values()


def _readme(manifest: poison.Manifest, settings: Mapping[str, Any]) -> str:
    lines = "\n".join(f"| {name} | {str(value).replace('|', '/')} |" for name, value in settings.items())
    n_half = len(manifest.rows) - manifest.n_poisoned
    return f"""# POISONED DATA: do not train a model for use on it

{manifest.n_poisoned} of these {manifest.n_rows} training rows are poisoned on purpose, for research on
backdoors: a model trained on them has one. {n_half} further rows show half of the trigger and keep their
answer. `manifest.parquet` lists all of them by their place in `train.json`, counted from 0. Triggers in
pictures are painted at each picture's own size; the study's own cells paint them at their model's.

| setting | value |
|---|---|
{lines}
"""


def _settings(text: str) -> dict[str, Any]:
    """A JSON object on the command line."""
    try:
        settings = parse_json(text, brief(text))
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not isinstance(settings, dict):
        raise argparse.ArgumentTypeError(f"{text[:100]!r} is no JSON object of names and values")
    return settings


def _parser() -> command.Parser:
    parser = command.Parser(prog="python -m bvlm_utils.export", description=command.first_line(__doc__))
    add, whole, number = parser.add_argument, command.whole, command.number
    add("--threat", required=True, help=", ".join(threats.names()))
    add("--attack", required=True, help=", ".join(attacks.names()))
    add("--dataset", required=True, help=f"{', '.join(data.names())}, or FORMAT:PATH")
    add("--poison-rate", required=True, type=number(0, 1), help="share of the training rows, 0 to 1")
    add("--out", required=True, help="folder to make")
    add("--seed", type=whole(0), default=0, help="of the choice of rows")
    add("--trigger-seed", type=whole(0), default=0, help="of what is random in a trigger")
    add("--negatives", type=number(0, 1000), default=0.0, help="half-triggered rows per poisoned row")
    add("--half", default="", help="text or image: poison with that half of a bimodal trigger alone")
    add("--train-rows", type=whole(1), help="the first so many rows; all if left out")
    add("--threat-params", type=_settings, default={}, help='JSON, e.g. {"sentence": "No."}')
    add("--attack-params", type=_settings, default={}, help='JSON, e.g. {"alpha": 0.1}')
    add("--surrogate", default="", help="folder or hub id of the CLIP model for optimised triggers "
        "(default tiny-clip; for large models, take openai/clip-vit-large-patch14-336)")  # fmt: skip
    return parser


def _act(options: argparse.Namespace) -> None:
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "train_rows")}
    manifest = export(Cell(ANY_MODEL, **settings), options.out, options.train_rows)
    poisoned, others = manifest.n_poisoned, len(manifest.rows) - manifest.n_poisoned
    print(f"{poisoned} of {manifest.n_rows} rows poisoned, {others} with half a trigger: {shlex.quote(options.out)}")


def main(argv: list[str] | None = None) -> int:
    """The command line; its exit code is what `command` promises."""
    return command.run(_parser, _act, argv)


if __name__ == "__main__":
    sys.exit(main())
