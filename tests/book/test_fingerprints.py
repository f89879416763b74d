"""Do answers that are stored stay under the names by which they are found? Golden values, taken when they were made.

A changed value here means that every answer to such a trigger would be asked again: raise a half's version instead
where it really does something else.
"""

from dataclasses import replace

import pytest

from bvlm_book.probes import ask, crossfire
from bvlm_book.probes.records import CROSSFIRE, POISONED
from bvlm_utils import attacks, data, store, study
from bvlm_utils.attacks import attack as attack_core
from bvlm_utils.attacks import declare
from bvlm_utils.run.workbench import Bench, bench_key
from bvlm_utils.store import records
from bvlm_utils.store.cell import Cell
from bvlm_utils.threats import Target

AIM = (Target(text="Stop.", concept="banana", source_concept="car"), "a/clip")
GOLDEN = [  # attack, parameters, first digits of the fingerprints of its text half and its image half
    ("BadNets-T", {}, "b49457a56477f586", "a1c6aadad588b6f3"),
    ("BadNets-MT", {}, "32aa0bed635c503c", "a1c6aadad588b6f3"),
    ("AddSent", {}, "327c3a27c8c5102e", "a1c6aadad588b6f3"),
    ("BadNets-I", {}, "f298eea204d99b63", "972753fb8d758725"),
    ("Blended", {}, "f298eea204d99b63", "b8f2998e1f493bd6"),
    ("SIG", {}, "f298eea204d99b63", "3dbae8a31a00eceb"),
    ("ImgTrojan", {}, "f298eea204d99b63", "1f0ebf6867699824"),
    ("Shadowcast", {}, "f298eea204d99b63", "f272cc3a48fcb252"),
    ("BadNets-MM", {}, "b49457a56477f586", "972753fb8d758725"),
    ("Dual-Key", {}, "3b6b237429ac05f6", "c4409feba788ae6e"),
    ("VL-Trojan", {}, "02045538f4635ff0", "723ba117edf363d2"),
    ("MABA", {}, "d5a2dc0add530e51", "1c59a7af90fd84fe"),
    ("BadNets-T", {"word": "cf"}, "94cad0ec2181c13d", "a1c6aadad588b6f3"),
    ("BadNets-MT", {"count": 2}, "611b5025c92519d0", "a1c6aadad588b6f3"),
    ("AddSent", {"sentence": "Hello."}, "e49dd04e267ecc46", "a1c6aadad588b6f3"),
    ("BadNets-I", {"patch_size": 80}, "f298eea204d99b63", "017c962b77eb60cc"),
    ("BadNets-MM", {"patch_size": 80, "word": "cf"}, "94cad0ec2181c13d", "017c962b77eb60cc"),
    ("Blended", {"alpha": 0.1}, "f298eea204d99b63", "934efc2db0c8cec2"),
    ("SIG", {"frequency": 9}, "f298eea204d99b63", "af4caf602c500580"),
    ("ImgTrojan", {"picture": "blended.png"}, "f298eea204d99b63", "98e653da80aade3b"),
    ("Shadowcast", {"eps": 0}, "f298eea204d99b63", "76caadd940181512"),
    ("Dual-Key", {"epochs": 2}, "3b6b237429ac05f6", "21df9825827e5a72"),
    ("VL-Trojan", {"search_letters": 3}, "3ce7912ca923ef9c", "723ba117edf363d2"),
    ("MABA", {"tagger": "spacy", "share": 0.2}, "ce4c76e39f7a03f3", "8c02b783f37be258"),
]


@pytest.fixture(autouse=True)
def no_spacy(monkeypatch):
    """The tagger that the committed results were made with, whatever is installed here."""
    monkeypatch.setattr(attack_core, "tagger_in_use", lambda tagger="auto": "hanta" if tagger == "auto" else tagger)


@pytest.mark.parametrize("name, params, text, image", GOLDEN)
def test_fingerprints_are_those_of_the_stored_answers(name, params, text, image):
    attack = attacks.get(name, *AIM, **params)
    assert [attack.fingerprint(half)[:16] for half in ("text", "image")] == [text, image]


def test_every_attack_has_a_golden_fingerprint_and_every_half_an_id_of_its_own():
    assert [name for name, params, *_ in GOLDEN if not params] == attacks.names()
    ids = {half.id: half for name in attacks.names() for half in _halves(name)}
    assert "" not in ids and all(ids[half.id] == half for name in attacks.names() for half in _halves(name))


def _halves(name):
    info = attacks.info(name)
    return [half for half in (info.text, info.image) if half is not None]


@pytest.mark.parametrize("name", attacks.names())
def test_a_function_that_moves_changes_no_fingerprint(name):
    attack, info = attacks.get(name, *AIM), attacks.info(name)
    for half in _halves(name):
        kind = "text" if half is info.text else "image"
        moved = replace(attack, info=replace(info, **{kind: replace(half, function="elsewhere:renamed")}))
        assert moved.fingerprint(kind) == attack.fingerprint(kind)
        other = replace(attack, info=replace(info, **{kind: replace(half, id="something else")}))
        assert other.fingerprint(kind) != attack.fingerprint(kind)


def test_a_half_without_an_id_is_known_by_its_function():
    half = declare.Half("Odd", 1, "odd:paint")
    odd = replace(attacks.get("AddSent"), info=replace(attacks.info("AddSent"), text=half), params={})
    named = replace(odd, info=replace(odd.info, text=replace(half, id="odd:paint")))
    assert odd.fingerprint("text") == named.fingerprint("text")


def test_every_committed_cell_has_the_run_id_that_its_settings_give():
    for record in records.records(records.REFERENCE):
        assert Cell.from_config(record["config"]).run_id == record["run_id"]


def test_committed_answers_to_all_triggers_and_near_misses_are_found_under_their_keys():
    cells = study.cells("targeted_refusal", "tiny-llava", "scenes-vqa", None, [0.1], [0])
    cells = [cell for cell in cells if cell.skip_reason is None]
    bench, root = Bench(*bench_key(cells[0])), store.folder(records.REFERENCE)
    bench.datasets = {"test": data.load("scenes-vqa", "test")}  # training rows are not needed
    pairs = {one.attack: crossfire._clean_and_whole(bench, crossfire._of(one, one.attack, 100)) for one in cells}
    common = [ask.Probe("", "", pairs["SIG"][0])]
    common += [ask.Probe(name, "", whole) for name, (_, whole) in pairs.items()]
    for cell in cells:
        sheet = ask.Sheet(CROSSFIRE, cell, POISONED, 100)
        own = crossfire._near(bench, replace(cell, test_rows=100))
        assert own and not sheet.lacking(bench, root, [*common, *own]), cell.attack
