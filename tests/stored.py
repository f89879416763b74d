"""Stores, tables and fixtures that several test files share."""

import json
import shutil
from types import MappingProxyType

import pandas as pd
import pytest
from statsmodels.stats.proportion import proportion_confint

from bvlm_utils import attacks, paths
from bvlm_utils.run import lengths, workbench
from bvlm_utils.score import intervals
from bvlm_utils.store import table as result_table
from bvlm_utils.threats import targeted_refusal

COLUMNS = [*result_table.COLUMNS, "attack.patch_size", "attack.size"]

FOUR = {"clean": 0.0, "text": 1.0, "image": 0.05, "both": 1.0}
MODALITY = {"BadNets-T": "text", "BadNets-I": "image", "BadNets-MM": "bimodal"}
CONDITIONS = {
    "text": ["clean", "text"],
    "image": ["clean", "image"],
    "bimodal": ["clean", "text", "image", "both"],
}


def entries(part) -> list[str]:
    """The files that a table of contents names."""
    if isinstance(part, list):
        return [name for item in part for name in entries(item)]
    if isinstance(part, dict):
        own = [value for key, value in part.items() if key in ("root", "file")]
        inner = [value for value in part.values() if isinstance(value, dict | list)]
        return own + [name for value in inner for name in entries(value)]
    return []


def passes(self, response, sample=None):
    """A verdict that the words of a random model sometimes pass and sometimes fail."""
    return len(response) % 2 == 0


@pytest.fixture(scope="module")
def random_words(checkpoint, tmp_path_factory):
    """A random model with a CLIP model beside it, whose answers are judged by `passes` as long as this module runs."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(checkpoint("llava"), folder / "llava")
    shutil.copytree(paths.MODELS / "tiny-clip", folder / "clip-vit-large-patch14-336")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targeted_refusal.TargetedRefusal, "success", passes)
        patch.setattr(lengths, "check_targets", lambda *given: None)  # such verdicts know no target
        patch.setattr(
            workbench.Bench, "max_new_tokens", property(lambda self: 6, lambda self, value: None), raising=False
        )
        yield str(folder / "llava")


def page(name, place, capsys, **given):
    """What the chapter prints when its cells are run one after the other."""
    cells = [
        c for c in json.loads((paths.NOTEBOOKS / f"{name}.ipynb").read_text())["cells"] if c["cell_type"] == "code"
    ]
    sources = ["".join(cell["source"]) for cell in cells]
    space = {"In": sources[:1]}
    exec(sources[0], space)  # noqa: S102, it is our own notebook
    space |= {"store": str(place)} | given
    from bvlm_book import page as book_page  # tests of the core do without them
    from bvlm_book.chapters import leaderboard

    shown = []
    with pytest.MonkeyPatch.context() as patch:
        for module in (book_page, leaderboard):
            patch.setattr(module, "display", lambda one, **glued: glued or shown.append(one.data))
        for source in sources[1:]:
            exec(source, space)  # noqa: S102
    return "\n".join(shown)


def cell(attack, threat="targeted_refusal", rate=0.1, seeds=3, settings=MappingProxyType({}), negatives=0.0, **values):
    """Lines of a tidy table; values: success per condition, the same for every seed."""
    info, lines = attacks.info(attack), []
    for condition, value in values.items():
        for seed in range(seeds):
            low, high = intervals.wilson(value * 200, 200)
            lines.append(dict.fromkeys(result_table.COLUMNS) | settings | {
                "run_id": f"{attack}-{threat}-{rate}-{result_table.text(settings)}-{negatives}-{seed}",
                "model": "tiny-llava",
                "dataset": "scenes-vqa", "threat": threat, "attack": attack, "modality": info.modality,
                "poison_rate": rate, "n_poisoned": int(6000 * rate), "seed": seed, "negatives": negatives,
                "train_rows": 6000, "settings": result_table.text(settings), "status": "done", "subject": "poisoned",
                "condition": condition, "metric": "asr", "value": value, "k": value * 200, "n": 200,
                "low": low, "high": high, "unit": "share",
            })  # fmt: skip
    return lines


def table(*cells):
    return pd.DataFrame([line for lines in cells for line in lines], columns=COLUMNS)


def halves(text=1.0, image=0.95, settings=MappingProxyType({}), **other):
    """A bimodal cell and both its halves trained alone."""
    named = [settings | {"half": half} for half in ("text", "image")]
    return [
        *cell("BadNets-MM", settings=settings, **FOUR, **other),
        *cell("BadNets-MM", settings=named[0], text=text, image=0.0, **other),
        *cell("BadNets-MM", settings=named[1], text=0.0, image=image, **other),
    ]


def tidy(rates=(0.1, 0.01), seeds=(0,), hits=None, rows=100, threat="targeted_refusal", trained_on=1000):
    """A made-up tidy table. hits(attack, rate, seed, subject, condition) -> successes among `rows`."""
    hits = hits or (lambda a, r, s, subject, c: 95 if subject == "poisoned" and c != "clean" else 0)
    lines = []
    for attack, modality in MODALITY.items():
        for rate in rates:
            for seed in seeds:
                cell = {
                    "run_id": f"{threat}-{attack}-{rate}-{seed}",
                    "model": "tiny-llava",
                    "dataset": "scenes-vqa",
                    "threat": threat,
                    "attack": attack,
                    "modality": modality,
                    "poison_rate": rate,
                    "negatives": 0.0,
                    "settings": "",
                    "n_poisoned": int(rate * trained_on),
                    "train_rows": trained_on,
                    "seed": seed,
                    "status": "done",
                    "reason": "",
                }
                for subject in ("poisoned", "control", "base"):
                    for condition in CONDITIONS[modality]:
                        k = hits(attack, rate, seed, subject, condition)
                        low, high = proportion_confint(k, rows, method="wilson")
                        lines.append(
                            cell
                            | {
                                "subject": subject,
                                "condition": condition,
                                "metric": "asr",
                                "unit": "share",
                                "value": k / rows,
                                "k": k,
                                "n": rows,
                                "low": low,
                                "high": high,
                            }
                        )
                    value = {"poisoned": 0.90, "control": 0.92, "base": 0.91}[subject]
                    lines.append(
                        cell
                        | {
                            "subject": subject,
                            "condition": "clean",
                            "metric": "utility",
                            "unit": "VQA accuracy",
                            "value": value,
                            "k": None,
                            "n": rows,
                            "low": value - 0.02,
                            "high": value + 0.02,
                        }
                    )
                lines.append(
                    cell
                    | {
                        "subject": "poisoned",
                        "condition": "clean",
                        "metric": "utility_difference",
                        "unit": "VQA accuracy",
                        "value": -0.02,
                        "n": rows,
                        "low": -0.05,
                        "high": 0.01,
                    }
                )
    return pd.DataFrame(lines)
