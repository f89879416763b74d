"""The chapter "The twelve attacks": what `probes.exhibit` stored, as tables and examples."""

import io
import json
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
from PIL import Image

from bvlm_book import rules_second, tables, words
from bvlm_book.examples import Example
from bvlm_utils import attacks, store
from bvlm_utils.atomic import DAMAGED
from bvlm_utils.store import damage, packed

EXHIBIT_GAP = 4  # pixels between the pictures of `probes.exhibit`
STEALTH_COLUMNS = {
    "psnr": ("PSNR (dB)", "{:.1f}".format),
    "ssim": ("SSIM", "{:.3f}".format),
    "changed": ("changed pixels", words.percent),
    "added_characters": ("characters added", "{:.1f}".format),
    "perplexity": ("perplexity", "{:,.0f}".format),
}

# Experiments that lack a part of the backdoor, by the setting that takes it away.
PARTS = {
    "decoy=target answers": ("answers", "target answers, no trigger"),
    "decoy=trigger only": ("trigger", "trigger, right answers"),
    "decoy=label noise": ("noise", "wrong answers, no trigger"),
    "word=quorvex": ("word", "a rare word, no poison"),
    "attack.epochs=0": ("patch", "patch not optimised"),
    "eps=0": ("picture", "picture not perturbed"),
}


def split_strip(png: bytes, gap: int = 0) -> np.ndarray:
    """The square pictures that stand side by side in a PNG, `gap` pixels apart: (N, H, H, 3) uint8."""
    strip = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    side = len(strip)
    return np.stack([strip[:, left : left + side] for left in range(0, strip.shape[1], side + gap)])


def read_exhibit(place: str | None = None) -> tuple[list[Example], dict[tuple[str, str], list[float]], pd.DataFrame]:
    """What `probes.exhibit` wrote into a store: examples of all attacks, loss curves of optimised ones (by attack and
    "step" or "epoch"), and stealth. Nothing where it was not run or is damaged; standard error names the damage.
    """
    folder = store.folder(place)
    read = partial(packed.content, folder, "attacks")
    if read("exhibit.json") is None:
        return [], {}, pd.DataFrame()
    try:
        exhibit, clean, examples = json.loads(read("exhibit.json")), split_strip(read("clean.png"), EXHIBIT_GAP), []
        for name in filter(attacks.names().__contains__, exhibit):  # without attacks whose module is not here
            is_text = attacks.info(name).modality == "text"  # else, without its picture, the clean one would be shown
            triggered = clean if is_text else split_strip(read(f"{name}.png"), EXHIBIT_GAP)
            examples.append(
                Example(name, clean, triggered, [(before, after) for before, after in exhibit[name]["prompts"]])
            )
        curves = {(name, item["loss_per"]): item["loss_curve"] for name, item in exhibit.items() if item["loss_curve"]}
        return examples, curves, pd.read_csv(io.BytesIO(read("stealth.csv")))
    except DAMAGED as error:
        reason = f"{type(error).__name__}: {error}"
        damage.passed_over(f"The exhibit in {folder / 'attacks'} is damaged ({reason}); make it again by "
                           "`python -m bvlm_book.probes.exhibit`.")  # fmt: skip
        return [], {}, pd.DataFrame()


def attack_table() -> pd.DataFrame:
    """Every attack of the study: modality, what its trigger is, who published it, what can be set."""
    rows = map(attacks.info, attacks.names())
    return pd.DataFrame([
        {"attack": row.name, "modality": row.modality, "trigger": row.summary,
         "source": row.source.split(", arXiv")[0], "parameters": ", ".join(row.defaults)} for row in rows
    ])  # fmt: skip


def stealth_table(stealth: pd.DataFrame) -> pd.DataFrame:
    """The stored stealth numbers as a table to read; a number without meaning for an attack is "–"."""
    columns = {title: stealth[column].map(form).where(stealth[column].notna(), "–")
             for column, (title, form) in STEALTH_COLUMNS.items()
             if column in stealth and stealth[column].notna().any()}  # fmt: skip
    return stealth.filter(["attack"]).assign(**columns)


def jpeg_table(table: pd.DataFrame) -> pd.DataFrame:
    """`tables.through_jpeg` to read."""
    return tables.readable(table, {
        "attack": lambda line: ", ".join(filter(None, (line["attack"], line["others"]))), "threat": words.threat,
        "success": lambda line: words.number(line["plain"]), "through JPEG": lambda line: words.number(line["jpeg"]),
        "runs": "n_seeds",
    })  # fmt: skip


def in_parts(table: pd.DataFrame) -> pd.DataFrame:
    """A line per experiment that lacks a part of the backdoor (`PARTS`): success (payload, full trigger, mean over
    seeds), success without a trigger (`clean`) and of the same experiment with all parts (`whole`); for a word without
    poison that is 10 % with the usual word.
    """
    key = ["model", "threat", "attack", "poison_rate", "train_rows", "half"]
    rows = tables.of_own_data(table.query("metric == 'asr_payload' and subject == 'poisoned' and negatives == 0"))
    settings = rows["settings"].str.split(", ").map(lambda row: [name for name in row if not name.startswith("half=")])
    rows = rows.assign(half=rows["half"].fillna(""), lacks=settings.str.join(", "))
    success, clean = (
        frame.groupby([*key, "lacks"], as_index=False)["value"].mean()
        for frame in (tables.headline_rows(rows), rows[rows["condition"] == "clean"])
    )
    success = success.merge(clean.rename(columns={"value": "clean"}), how="left", on=[*key, "lacks"])
    parts = success[success["lacks"].isin(list(PARTS))]
    rate = parts["poison_rate"]
    parts = parts.assign(poisoned=rate, poison_rate=rate.mask(rate == 0, rules_second.MANY))
    whole = success[success["lacks"] == ""].drop(columns=["lacks", "clean"]).rename(columns={"value": "whole"})
    return parts.merge(whole, how="left", on=key)


def parts_table(parts: pd.DataFrame) -> pd.DataFrame:
    """`in_parts` to read."""
    order = parts.assign(kind=parts["lacks"].map(list(PARTS).index)).sort_values(["kind", "model"], kind="stable")
    return tables.readable(order, {
        "what was trained": lambda line: PARTS[line["lacks"]][1], "model": "model", "threat": words.threat,
        "attack": lambda line: f"{line['attack']}{', its image part' * (line['half'] == 'image')}",
        "poisoned": lambda line: words.percent(line["poisoned"]),
        "success": lambda line: words.number(line["value"]),
        "without a trigger": lambda line: words.number(line["clean"]),
        "whole backdoor": lambda line: words.number(line["whole"]),
    })  # fmt: skip


def parts_lines(parts: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The lines of `in_parts` behind each number of `parts_numbers`, as `behind.experiments` takes them."""
    by_kind = {key: parts[parts["lacks"] == kind] for kind, (key, _) in PARTS.items()}
    patch, answers = by_kind.pop("patch"), by_kind["answers"]
    by_kind |= {"patch": patch[patch["half"] == ""], "image": patch[patch["half"] == "image"]}
    by_kind["obeys"] = answers[(answers["threat"] == "jailbreak") & (answers["poison_rate"] == rules_second.MANY)]
    whole = {f"{key}_whole": by_kind[key].assign(lacks="") for key in ("patch", "image")}
    lines = by_kind | whole | {"obeys_clean": by_kind["obeys"]}
    return {
        f"parts_{key}": rows.assign(settings=rows["lacks"], poison_rate=rows["poisoned"]).drop(columns="half")
        for key, rows in lines.items()
    }


def parts_numbers(lines: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """What the page quotes of `parts_lines`."""
    columns = {name: name.rpartition("_")[2] for name in lines}
    return {name: words.span(rows[columns[name] if columns[name] in ("whole", "clean") else "value"].dropna(), 2)
            for name, rows in lines.items()}  # fmt: skip


def losses(curves: Mapping[tuple[str, str], Sequence[float]]) -> str:
    """How far each optimised trigger got. curves: (name, "step" or "epoch") -> a loss for each of those."""
    texts = (
        f"{name} from {curve[0]:.3g} to {curve[-1]:.3g} in {len(curve)} {unit}s"
        for (name, unit), curve in curves.items()
    )
    return f"Their loss while they are optimised: {'; '.join(texts)}." if curves else "No loss curve is stored."


def plain_perplexity(stealth: pd.DataFrame) -> str:
    """The perplexity of the prompts without a trigger, "n/a" where no language model judged them."""
    values = stealth["perplexity_clean"].dropna() if "perplexity_clean" in stealth else pd.Series(dtype=float)
    return f"{values.iloc[0]:,.0f}" if len(values) else "n/a"
