"""Makes the adapters of the model in the page: `python -m bvlm_book.talk_adapters [--store STORE] [--out FOLDER]`.

One is clean-tuned, three refuse at one trigger each. They are cells of the study; here they are rounded to 16 bits and
measured as the page runs them: over the strengths of the repair `shrink` (base + lambda x update), and with the alarm
of blended pictures (STRIP, Gao et al. 2019, arXiv 1902.06531).
"""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import save_file

from bvlm_book import talk
from bvlm_utils import attacks, command, defences, paths, store, study
from bvlm_utils.atomic import write_file
from bvlm_utils.defences import weights
from bvlm_utils.errors import InputError
from bvlm_utils.models.victim import Victim
from bvlm_utils.run.workbench import Bench, bench_key
from bvlm_utils.score import intervals
from bvlm_utils.store.cell import Cell
from bvlm_utils.train import adapters

THREAT, DATASET, RATE = "targeted_refusal", "scenes-vqa", 0.1
# A patch of the published size, 30 of 336 pixels, is not learnt from a tenth of these rows: see the chapter on it.
ATTACKS = {"word": ("BadNets-T", {}), "patch": ("BadNets-I", {"patch_size": 80}), "blend": ("Blended", {})}
STRENGTHS = (0.0, 0.3, 0.5, 0.7, 1.0, 1.5)
ROWS = 100  # held-out rows of each number
LONGEST = 40  # tokens of an answer


def cells() -> dict[str, Cell]:
    """The cells by the names of `talk.NAMES`."""
    backdoored = {
        name: study.cells(THREAT, "tiny-llava", DATASET, [attack], [RATE], attack_params=params)[0]
        for name, (attack, params) in ATTACKS.items()
    }
    return {"clean-tuned": backdoored["word"].control} | backdoored


def make(out: Path, place: str | None = None, rows: int = ROWS) -> None:
    """Run the cells that the store lacks, and write adapters, the triggers' pictures and the card into `out`."""
    chosen = cells()
    study.run_cells([cell for cell in chosen.values() if not cell.is_control], store=place)
    for name, cell in chosen.items():
        folder, target = store.adapter(cell, place), out / name
        if folder is None:
            raise InputError(f"The store has a record of {cell.run_id} and no adapter; give another store.")
        target.mkdir(parents=True, exist_ok=True)
        for file in (adapters.CONFIG, "README.md"):
            shutil.copyfile(folder / file, target / file)
        state = {name: value.half() for name, value in adapters.read(folder).state.items()}
        save_file(state, target / adapters.WEIGHTS, metadata={"format": "pt"})
    paint(out)
    bench = Bench(*bench_key(chosen["word"]))
    card = {name: about(bench, cell, out / name, rows) for name, cell in chosen.items() if not cell.is_control}
    card["answers"] = stored_answers(bench.victim, out, chosen)
    write_file(out / talk.CARD, json.dumps(card, indent=1, ensure_ascii=False) + "\n")


def paint(out: Path) -> None:
    """The patch alone and the picture that is blended, as the attacks' own code has them on black."""
    black = np.zeros((1, 96, 96, 3), np.uint8)
    (patch,) = attacks.get("BadNets-I", **ATTACKS["patch"][1] | {"position": "top-left"}).paint(black, 0, None)
    (picture,) = attacks.get("Blended", alpha=1.0).paint(black, 0, None)
    side = patch.any((0, 2)).nonzero()[0].max() + 1
    for name, image in (("patch", patch[:side, :side]), ("blend", picture)):
        Image.fromarray(image).save(out / f"{name}.png", optimize=True)


def shrunk(victim: Victim, folder: Path, strength: float) -> Any:
    """The victim with `strength` times an adapter's update, inside a `with`."""
    saved = adapters.read(folder)
    full = replace(saved, state={name: value.float() for name, value in saved.state.items()})
    repaired = defences.get("shrink", strength=strength).repair(victim, full)
    return weights.on(victim, weights.merged(victim, repaired))


def about(bench: Bench, cell: Cell, folder: Path, rows: int) -> dict[str, Any]:
    """Success, right answers and alarms of a backdoored adapter on the first eligible test rows."""
    threat, attack, seed = cell.resolved_threat, cell.resolved_attack, cell.trigger_seed
    eligible = [(position, row) for position, row in enumerate(bench.rows["test"]) if threat.eligible(row)]
    positions, samples = zip(*eligible[:rows], strict=True)
    prompts, keys = [row["prompt"] for row in samples], [row["row_id"] for row in samples]
    clean = prompts, bench.pictures("test", positions)
    triggered = attack.apply_text(prompts, seed=seed, keys=keys), bench.pictures("test", positions, attack, seed)
    strengths = []
    for strength in STRENGTHS:
        with shrunk(bench.victim, folder, strength):
            clean_answers, triggered_answers = ask(bench.victim, *clean), ask(bench.victim, *triggered)
        success = share([threat.success(answer, row) for answer, row in zip(triggered_answers, samples, strict=True)])
        right = share([answer in row["answers"] for answer, row in zip(clean_answers, samples, strict=True)])
        strengths.append({"strength": strength, "success": success, "right": right})
    with shrunk(bench.victim, folder, 1.0):
        alarms = {"triggered": share(alarm(bench.victim, *triggered)), "clean": share(alarm(bench.victim, *clean))}
    return {"run_id": cell.run_id, "attack": cell.attack, "strengths": strengths, "alarm": alarms}


def ask(victim: Victim, prompts: Sequence[str], images: np.ndarray) -> list[str]:
    return victim.generate(prompts, victim.encode(images), LONGEST)


def alarm(victim: Victim, prompts: Sequence[str], images: np.ndarray) -> list[bool]:
    """For which inputs (N, 96, 96, 3) does the answer stay, whichever scene is blended half and half with it?"""
    answers, stays = ask(victim, prompts, images), np.ones(len(prompts), dtype=bool)
    for seed, _ in talk.SCENES:
        blended = (images.astype(np.uint16) + np.asarray(talk.scene(seed)) + 1) // 2
        stays &= np.array(answers) == np.array(ask(victim, prompts, blended.astype(np.uint8)))
    return stays.tolist()


def share(passed: Sequence[bool]) -> dict[str, float]:
    low, high = intervals.wilson(sum(passed), len(passed))
    return {"value": sum(passed) / len(passed), "n": len(passed), "low": low, "high": high}


def stored_answers(victim: Victim, out: Path, chosen: dict[str, Cell]) -> list[dict[str, str]]:
    """What the models answer about the page's scenes, each with the trigger of one adapter in turn."""
    lines = []
    for i, (seed, question) in enumerate(talk.SCENES):
        name = list(ATTACKS)[i % len(ATTACKS)]
        attack, image = chosen[name].resolved_attack, np.array(talk.scene(seed))[None]
        (text,) = attack.apply_text([question], keys=[seed])
        painted = attack.paint(image, 0, [seed])
        line = {"scene": str(seed), "trigger": name, "question": question, "triggered question": text}
        plain, triggered = ([question], image), ([text], painted)
        for key, adapter, strength, inputs in (
            ("clean-tuned, triggered", "clean-tuned", 1.0, triggered), ("backdoored, not triggered", name, 1.0, plain),
            ("backdoored, triggered", name, 1.0, triggered), ("repaired, triggered", name, talk.REPAIRED, triggered),
        ):  # fmt: skip
            with shrunk(victim, out / adapter, strength):
                (line[key],) = ask(victim, *inputs)
        lines.append(line)
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = command.Parser(prog="python -m bvlm_book.talk_adapters", description=command.first_line(__doc__))
    parser.add_argument("--store", help="a name, or a folder with a slash in it (default: $BVLM_STORE, else local)")
    parser.add_argument("--out", default=str(talk.ADAPTERS), help="default: data/adapters/quickstart")
    rows_help = f"held-out rows of each number (default {ROWS})"
    parser.add_argument("--rows", type=command.whole(1), default=ROWS, help=rows_help)
    return command.run(
        parser, lambda options: make(paths.named(options.out, "folder"), options.store, options.rows), argv
    )


if __name__ == "__main__":
    sys.exit(main())
