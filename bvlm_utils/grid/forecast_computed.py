"""Time, memory and disk of cells that no record tells of, from a model's sizes and the data's rows. Free of torch.

Speeds are those of one card with a random LLaVA-1.5-7B (benchmarks/results/gpu_nvidia-h200.json, where a test holds
them together). Hours are a lower bound: loading, reading pictures and judging are not counted, and a base that nobody
has tuned may answer at more length than the data.
"""

import json
from collections.abc import Sequence
from dataclasses import fields
from math import ceil
from statistics import fmean

from bvlm_utils import attacks
from bvlm_utils.grid import forecast_rows
from bvlm_utils.grid.forecast_sizes import Sizes, sizes, tower
from bvlm_utils.grid.progress import minutes
from bvlm_utils.store.cell import NOT_OF_CONTROLS, Cell
from bvlm_utils.train import poison

SPEED = 3.7e14  # operations a second in bfloat16 of that card while it trained eight adapters
EXACT_SPEED = 4.3e13  # in float32, in which triggers are searched: its products alone, so the fastest that there is
STEP = 1e-3  # seconds that one more token of every row takes in each layer: launching, not arithmetic
CARD = 80e9  # bytes
LEAST_EPS = 0.5 / 255  # of Shadowcast: with less, nothing is searched


def computed(group: Sequence[Cell], controls: Sequence[Cell], card: float = CARD) -> tuple[str, float, int]:
    """What a bench's cells will take by the checkpoint's sizes: in words, in seconds, and in bytes of disk for good."""
    first, size = group[0], sizes(group[0].model)
    if size is None:
        return "no estimate; the reference has no cell of this model, and its files are not on this machine", 0.0, 0
    rank, most = max(cell.train.lora_rank for cell in group), max(cell.test_rows for cell in group)
    tokens = forecast_rows.tokens(forecast_rows.samples(first), first.model, most)
    longest = size.image_tokens + tokens.longest
    fitting = size.largest_group(card, rank, longest)
    together = min(fitting, len(group) + len(controls))
    # Reading and training by the arithmetic, writing answers by the number of tokens one after the other.
    total = operations(size, group, controls) / SPEED + writing(size, group, card, together)
    disk = sum(size.stored_bytes(cell.train.lora_rank) for cell in [*group, *controls])
    alone, in_group = (size.group_bytes(count, rank, longest) / 1e9 for count in (1, together))
    room = f"{fitting} fit into {card / 1e9:g} GB" if fitting else f"more than {card / 1e9:g} GB have"
    group_words = f", {in_group:.1f} GB for {together} at once" if together > 1 else ""
    words = (
        f"at least {total / 3600:.1f} hours, {minutes(total / len(group))} each, as fast as an NVIDIA H200; "
        f"{alone:.1f} GB of the card's memory for one adapter{group_words} ({room}, with a fifth to spare); "
        f"{pictures(group) * size.feature_bytes() / 1e9:.1f} GB of memory or disk for image features while it runs, "
        f"{disk / 1e9:.1f} GB of disk for adapters; computed from the model's sizes, not measured"
    )
    return words, total, disk


def operations(size: Sizes, group: Sequence[Cell], controls: Sequence[Cell]) -> float:
    """Operations: two per parameter and token forward, and two backward, as the base has no gradients of its own."""
    rows = forecast_rows.samples(group[0])
    tokens = forecast_rows.tokens(rows, group[0].model, max(cell.test_rows for cell in group))
    trained = sum(cell.train_rows * cell.train.epochs for cell in [*group, *controls])
    parameters = size.weights / 2
    trained_tokens = trained * (size.image_tokens + tokens.trained)
    return parameters * (4 * trained_tokens + 2 * asked_rows(group) * (size.image_tokens + tokens.asked))


def writing(size: Sizes, group: Sequence[Cell], card: float, together: int) -> float:
    """Seconds in which all answers are written. A batch takes as long as its longest answer."""
    first, rows = group[0], forecast_rows.samples(group[0])
    tokens = forecast_rows.tokens(rows, first.model, max(cell.test_rows for cell in group))
    at_once = size.decoded_at_once(card, size.image_tokens + ceil(tokens.asked) + first.max_new_tokens)
    each = max(1, at_once // max(1, together))  # rows of one adapter in a batch
    answers = [min(count + 1, first.max_new_tokens) for count in tokens.answers]  # with the token that ends it
    steps = fmean(max(answers[at : at + each]) for at in range(0, len(answers), each))
    return asked_rows(group) / at_once * steps * size.layers * STEP


def asked_rows(group: Sequence[Cell]) -> int:
    """Test inputs that are answered: by each poisoned model, and those that differ by the base and each control."""
    own, base, control = 0, {}, {}
    for cell in group:
        sets, tuned = forecast_rows.questions(cell), control_key(cell)
        own += sum(sets.values())
        base |= sets
        control |= {(tuned, key): rows for key, rows in sets.items()}
    return own + sum(base.values()) + sum(control.values())


def control_key(cell: Cell) -> str:
    """Equal for cells that have one control."""
    of_poison = ("threat", "threat_params", "attack", "attack_params", "poison_rate", "test_rows", *NOT_OF_CONTROLS)
    return repr([getattr(cell, field.name) for field in fields(Cell) if field.name not in of_poison])


def pictures(group: Sequence[Cell]) -> int:
    """Pictures whose features are kept, at most: clean ones once, and each attack's poisoned and tested ones."""
    triggered: dict[tuple, int] = {}
    for cell in group:
        if attacks.info(cell.attack).modality != "text":
            key = (cell.threat, cell.attack, json.dumps(dict(cell.attack_params), sort_keys=True), cell.trigger_seed)
            rows = ceil(cell.poison_rate * cell.train_rows) + cell.test_rows
            triggered[key] = max(rows, triggered.get(key, 0))
    tested = sum({cell.threat: cell.test_rows for cell in group}.values())
    return group[0].train_rows + tested + sum(triggered.values())


def triggers(cells: Sequence[Cell]) -> tuple[str, float]:
    """What the search for triggers will take beside all that, in words and in seconds; "" where none is searched."""
    steps, unknown, total = picture_steps(cells), set(), 0.0
    by_name: dict[str, float] = {}
    for (name, surrogate, *_), count in steps.items():
        if (clip := tower(surrogate)) is None:
            unknown.add(name)
            continue
        by_name[name] = by_name.get(name, 0.0) + count / 1e6
        total += count * clip.operations() / EXACT_SPEED
    if not steps:
        return "", 0.0
    listed = ", ".join(f"{millions:.2f} million of {name}" for name, millions in by_name.items())
    lacking = f"; not counted, as their CLIP model is not on this machine: {', '.join(sorted(unknown))}"
    return (
        f"  The search for triggers, once for all models: at least {total / 3600:.1f} hours for steps of a picture, "
        f"{listed or 'none known'}, by the products of CLIP's vision tower in float32 alone{lacking if unknown else ''}"
    ), total


def picture_steps(cells: Sequence[Cell]) -> dict[tuple, int]:
    """Pictures times the steps of each search; a key begins with the attack's name and its surrogate. Shadowcast
    searches for each poisoned and tested picture, the others for one patch.
    """
    steps: dict[tuple, int] = {}
    shadowed: dict[tuple, dict[int, int]] = {}  # poisoned pictures by seed
    for cell in cells:
        attack = cell.resolved_attack
        params, key = attack.params, (attack.name, attack.aim.surrogate, cell.trigger_seed, repr(attack.params))
        if "steps" in params and params["eps"] >= LEAST_EPS:
            key += (cell.dataset, cell.resolved_threat)
            by_seed = shadowed.setdefault(key, {})
            by_seed[cell.seed] = max(by_seed.get(cell.seed, 0), poison.count(cell.train_rows, cell.poison_rate))
            shown = forecast_rows.shown(forecast_rows.samples(cell), cell.resolved_threat)  # no other row is poisoned
            steps[key] = params["steps"] * (min(shown, sum(by_seed.values())) + triggered_rows(cell))
        elif {"rows", "epochs"} <= params.keys():
            key = key[:2] + (repr(attack.params), cell.resolved_threat.target if attack.info.aims else None)
            steps[key] = params["rows"] * params["epochs"]
    return steps


def triggered_rows(cell: Cell) -> int:
    """Test inputs of a cell that carry a trigger."""
    sets = forecast_rows.questions(cell).items()
    return sum(rows for (part, *rest), rows in sets if part in ("attack", "elsewhere") and rest[1] != "clean")
