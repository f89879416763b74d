"""What every command promises: bad input gives 2 and one sentence that names the value, and nothing is written."""

import errno
import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml

from bvlm_utils import audit, chat, command, export, leaderboard, paths
from bvlm_utils.defences import __main__ as defences
from bvlm_utils.errors import InputError, Remark
from bvlm_utils.grid import __main__ as grid
from bvlm_utils.grid import measure as grid_measure
from bvlm_utils.run import study
from bvlm_utils.store import __main__ as store

MAINS = {"grid": grid.main, "export": export.main, "chat": chat.main, "audit": audit.main, "store": store.main,
         "leaderboard": leaderboard.main, "defences": defences.main}  # fmt: skip
VQA = f"vqav2:{Path(__file__).parents[1] / 'fixtures' / 'vqav2'}"
LONG, HUGE = "n" * 300, "9" * 5000
GOOD = {"dataset": "scenes-vqa", "attacks": ["BadNets-T"], "train_rows": 64, "test_rows": 8, "poison_rates": [0.1]}

# parameter, its bad value, what the sentence has to say
PARAMETERS = [
    ("poison_rates", [1.5], "1.5"), ("poison_rates", [-0.1], "-0.1"), ("poison_rates", ["a"], "'a'"),
    ("poison_rates", [float("inf")], "inf"), ("poison_rates", [float("nan")], "nan"), ("poison_rates", [], "[]"),
    ("poison_rates", 0.1, "0.1"), ("poison_rates", [True], "True"), ("poison_rates", [0.1, 0.1], "once"),
    ("seeds", [-1], "-1"), ("seeds", [1.5], "1.5"), ("seeds", ["a"], "'a'"), ("seeds", [2**70], str(2**70)),
    ("seeds", [None], "None"), ("seeds", [], "[]"), ("seeds", [0, 0], "once"), ("seeds", 0, "seeds"),
    ("train_rows", 0, "train_rows is 0"), ("train_rows", -5, "-5"), ("train_rows", 1.5, "1.5"),
    ("train_rows", "64", "'64'"), ("train_rows", 10**9, str(10**9)), ("train_rows", 100_001, "100001"),
    ("train_rows", True, "True"), ("test_rows", 0, "test_rows is 0"), ("test_rows", 2**40, str(2**40)),
    ("max_new_tokens", 0, "max_new_tokens is 0"), ("max_new_tokens", 2**60, str(2**60)),
    ("max_new_tokens", -1, "-1"), ("epochs", 0, "epochs is 0"), ("epochs", 2**50, str(2**50)),
    ("batch_size", 0, "batch_size is 0"), ("batch_size", 2**50, str(2**50)), ("lora_rank", 0, "lora_rank is 0"),
    ("lora_rank", 193, "at most 192"), ("lora_rank", 10_000, "at most 192"), ("lora_alpha", 0, "lora_alpha is 0"),
    ("lora_alpha", 10_001, "10001"),
    ("lora_rank", 2**50, str(2**50)), ("learning_rate", 0.0, "learning_rate"), ("learning_rate", -1.0, "-1.0"),
    ("learning_rate", float("inf"), "inf"), ("learning_rate", float("nan"), "nan"), ("learning_rate", "2e-4", "2e-4"),
    ("negatives", -1, "negatives is -1"), ("negatives", float("inf"), "inf"), ("negatives", "a", "'a'"),
    ("negatives", True, "True"), ("half", "left", "'left'"), ("half", "text", "'text'"), ("half", 3, "3"),
    ("four_bit", "yes", "'yes'"), ("picture_last", 1, "1"), ("model", "gpt", "'gpt'"), ("model", 3, "3"),
    ("model", "./none", "'./none'"), ("model", "a/b/c", "'a/b/c'"), ("dataset", "scenes", "'scenes'"),
    ("dataset", "vqav2:./none", "none"), ("dataset", "xyz:./none", "xyz"), ("dataset", 3, "3"),
    ("attacks", ["BadNet"], "'BadNet'"), ("attacks", "BadNets-T", "attacks"), ("attacks", [], "[]"),
    ("attacks", [3], "3"), ("attacks", ["BadNets-T", "BadNets-T"], "once"), ("store", "elsewhere", "store"),
    ("stores", "elsewhere", "'stores'"), ("attack_params", {"wrd": "cf"}, "wrd"), ("attack_params", [1], "[1]"),
    ("attack_params", {"word": 3}, "3"), ("threat_params", {"sentence": 3}, "3"), ("threat_params", {"no": 1}, "no"),
    ("threat_params", "no", "'no'"), ("model", "tiny-clip", "'clip'"), ("surrogate", "tiny-llava", "'llava'"),
    ("poison_rates", [0, 0.0], "once"), ("seeds", [0, False], "once"), ("max_new_tokens", 512, "512 tokens"),
    ("threat_params", {"sentence": "car " * 600}, "616 tokens"),
    ("model", "-a/b", "'-a/b'"), ("model", " ", "' '"),
    ("poison_rates", ["10%"], "'10%'"), ("half", "Text", "'Text'"), ("threat_params", {"sentence": " "}, "' '"),
    ("attack_params", {"word": ""}, "''"), ("threat_params", {"sentence": "a\udc80"}, "udc80"),
]  # fmt: skip

# a grid file as it is written, what the sentence has to say
FILES = [
    ("jobs: [", "YAML"), ("", "None"), ("jobs: []", "jobs"), ("job: []", "'job'"), ("jobs: 3", "jobs"), ("[1]", "[1]"),
    ("{jobs: [{notebook: jailbreak}], defaults: [1]}", "defaults"), ("{jobs: [3]}", "job 1"),
    ("{jobs: [{notebook: jailbreak, parameters: 3}]}", "parameters"),
    ("{jobs: [{notebook: jailbreak, each: 3}]}", "3"),
    ("{jobs: [{notebook: jailbreak, each: {seeds: 1}}]}", "each.seeds"),
    ("{jobs: [{notebook: quickstart}]}", "quick"),
    ("{jobs: [{notebook: [a]}]}", "a"), ("{jobs: [{}]}", "None"),
    ("{jobs: [{notebook: jailbreak, shards: 2}]}", "shar"),
    ("{jobs: [{notebook: jailbreak, each: {store: [a]}}]}", "store"),
    ("{store: [a], jobs: [{notebook: jailbreak}]}", "a"),
    ("{store: 3, jobs: [{notebook: jailbreak}]}", "store is 3"), ("{store: .., jobs: [{notebook: jailbreak}]}", "'..'"),
    ("{jobs: [{notebook: jailbreak, attacks_per_job: 0}]}", "is 0"),
    ("{attacks_per_job: a, jobs: [{notebook: jailbreak}]}", "a"),
    ("{description: [1], jobs: [{notebook: jailbreak}]}", "description is [1]"), ("jobs: []\n---\njobs: []", "YAML"),
    ("jobs: !!python/object/apply:os.system ['true']", "YAML"), ("a: &a [*a]\njobs: []", "alias"),
    ("{store: !!binary aGVsbG8=, jobs: [{notebook: jailbreak}]}", "hello"), ("jobs: []\njobs: []", "twice"),
    ("{store: '~', jobs: [{notebook: jailbreak}]}", "'~'"), ("{store: ' a', jobs: [{notebook: jailbreak}]}", "' a'"),
    ("{jobs: [{notebook: ../notebooks/jailbreak}]}", "../notebooks"),
    ("{jobs: [{notebook: jailbreak, each: {seeds: [[0], [0.0]]}}]}", "0.0"),
]  # fmt: skip

EXPORT = [
    "--threat",
    "targeted_refusal",
    "--attack",
    "BadNets-MM",
    "--dataset",
    VQA,
    "--poison-rate",
    "0.34",
    "--out",
    "new",
]
# an option of `export`, its bad value, what the sentence has to say
OPTIONS = [
    ("--threat", "refusal", "'refusal'"), ("--threat", "", "''"), ("--attack", "BadNet", "'BadNet'"),
    ("--attack", "Shadowcast", "concept_substitution"), ("--dataset", "scenes", "'scenes'"),
    ("--dataset", "vqav2:none", "none"), ("--dataset", "x:y", "x"), ("--poison-rate", "1.5", "'1.5'"),
    ("--poison-rate", "nan", "'nan'"), ("--poison-rate", "inf", "'inf'"), ("--poison-rate", "a", "'a'"),
    ("--poison-rate", "-1", "-1"), ("--poison-rate", "0.1", "less than one"), ("--poison-rate", "1", "3 rows"),
    ("--seed", "-1", "-1"), ("--seed", "1.5", "'1.5'"), ("--seed", HUGE, "999"), ("--seed", "x", "'x'"),
    ("--trigger-seed", "-1", "-1"), ("--trigger-seed", "y", "'y'"), ("--negatives", "-1", "-1"),
    ("--negatives", "inf", "'inf'"), ("--negatives", "nan", "'nan'"), ("--half", "left", "'left'"),
    ("--train-rows", "0", "'0'"), ("--train-rows", "4", "4"), ("--train-rows", "z", "'z'"),
    ("--threat-params", "{", "'{'"), ("--threat-params", "[1]", "'[1]'"), ("--threat-params", '{"no": 1}', "no"),
    ("--threat-params", "[" * 100_000, "nested too deep"),
    ("--threat-params", f'{{"sentence": {HUGE}}}', "digits"),
    ("--attack-params", "x", "'x'"), ("--attack-params", '{"wrd": 1}', "wrd"), ("--out", "file", "file"),
    ("--out", "file/new", "file"), ("--out", "full", "full"), ("--out", "", "''"),
    ("--out", "~nosuchuser/x", "nosuchuser"),
    ("--out", LONG, "nnn"), ("--out", "a\0b", "a\\x00b"), ("--out", "loop", "loop"), ("--sed", "1", "--sed"),
    ("--out", " ", "' '"), ("--out", "a\nb", "'a\\nb'"),
    ("--surrogate", "tiny-llava", "'llava'"), ("--out", "/", "exists"),
    ("--threat-params", '{"sentence": "<image>"}', "<image>"),
    ("--attack-params", '{"word": "a", "word": "b"}', "twice"),
    ("--threat-params", '{"sentence": "\\ud800"}', "ud800"), ("--dataset", "llava-json:pipe", "pipe"),
]  # fmt: skip

OTHERS = [
    ("chat", [], "adapter"), ("chat", ["none"], "'none'"), ("chat", ["full"], "'full'"), ("chat", ["file"], "'file'"),
    ("chat", ["broken"], "broken"), ("chat", ["list"], "list"), ("chat", ["nobase"], "nobase"), ("chat", [LONG], "nnn"),
    ("chat", ["a\0b"], "x00"), ("chat", ["~nosuchuser"], "nosuchuser"), ("chat", ["loop"], "loop"),
    ("chat", [""], "''"),
    ("chat", ["named", "--image", "none.png"], "none.png, the picture of the conversation, is not"),
    ("chat", ["named", "--image", "words.png"], "words.png"),
    ("chat", ["named", "--image", LONG], "nnn"), ("chat", ["named", "--image", "a\0b"], "x00"),
    ("chat", ["named", "--image", "full"], "full"), ("chat", ["named", "--max-new-tokens", "0"], "'0'"),
    ("chat", ["named", "--max-new-tokens", "-1"], "-1"), ("chat", ["named", "--max-new-tokens", "99999"], "99999"),
    ("chat", ["named", "--prompt", "x", "--max-new-tokens", "600"], "max_new_tokens is 600"),
    ("chat", ["named", "--prompt", ""], "--prompt is ''"), ("chat", ["named", "--prompt", " \n\t"], "--prompt is ' "),
    ("chat", ["named", "--prompt", "a\udc80"], "udc80"), ("chat", ["named", "--prompt", "car " * 600], "601 tokens"),
    ("chat", ["named", "--max-new-tokens", "x"], "'x'"), ("chat", ["named", "--colour"], "--colour"),
    ("audit", [], "suspect"), ("audit", ["tiny-llava"], "--reference"), ("audit", ["gpt"], "'gpt'"),
    ("audit", ["named", "--rows", "0"], "'0'"), ("audit", ["named", "--rows", "x"], "'x'"),
    ("audit", ["named", "--dataset", "scenes"], "'scenes'"), ("audit", ["named", "--attacks", "BadNet"], "'BadNet'"),
    ("audit", ["named", "--threat", "refusal"], "'refusal'"),
    ("audit", ["named", "--attacks", "Shadowcast"], "Shadowcast"),
    ("audit", ["named", "--out", "none/x.csv"], "none"), ("audit", ["named", "--out", "full"], "full"),
    ("audit", ["named", "--out", "file/x.csv"], "file"), ("audit", ["named", "--out", "~nosuchuser/x"], "nosuchuser"),
    ("audit", ["named", "--out", LONG], "nnn"), ("audit", ["named", "--out", ""], "''"),
    ("audit", ["broken"], "broken"),
    ("audit", ["named", "--reference", "gpt"], "'gpt'"), ("audit", ["nobase"], "nobase"),
    ("chat", ["twice"], "twice"), ("chat", ["piped"], "'piped'"), ("chat", ["named", "--image", "pipe"], "pipe"),
    ("chat", ["named", "--model", "tiny-clip", "--prompt", "x"], "'clip'"), ("chat", [" "], "' '"),
    ("audit", ["pipes"], "pipes"), ("grid", ["run", "pipe"], "'pipe'"),
    ("grid", ["status", "good.yml", "--store", " "], "' '"),
    ("grid", ["status", "good.yml", "--store", "./a\n"], "a\\n"),
    ("grid", ["status", "good.yml", "--store", "~"], "'~'"), ("grid", ["table", "--store", "./\udc80"], "udc80"),
    ("audit", ["named", "--pictures", "full"], "--prompts"), ("audit", ["named", "--prompts", "file"], "--pictures"),
    ("audit", ["named", "--pictures", "none", "--prompts", "file"], "none"),
    ("audit", ["named", "--pictures", "full", "--prompts", "file"], "no pictures"),
    ("audit", ["named", "--pictures", "full", "--prompts", "nothing.txt"], "no pictures"),
    ("audit", ["named", "--word", " "], "not blank"), ("audit", ["named", "--patch", "none.png"], "none.png"),
    ("audit", ["named", "--patch", "words.png"], "words.png"), ("audit", ["named", "--reference-rows", "0"], "'0'"),
    ("audit", ["named", "--store", ".."], "'..'"), ("audit", ["named", "--store", "./file"], "file"),
    ("audit", ["named", "--store", "reference"], "reference"), ("audit", ["named"], "named"),
    ("leaderboard", [], "command"), ("leaderboard", ["add"], "folder"), ("leaderboard", ["add", "none"], "entry.json"),
    ("leaderboard", ["add", "full"], "entry.json"), ("leaderboard", ["add", "a\0b"], "x00"),
    ("leaderboard", ["add", "full", "--into", "file/x"], "file"),
    ("leaderboard", ["template", "new", "--threat", "refusal", "--attack", "SIG"], "'refusal'"),
    ("leaderboard", ["template", "new", "--threat", "jailbreak", "--attack", "Sig"], "'Sig'"),
    ("leaderboard", ["template", "new/..", "--threat", "jailbreak", "--attack", "SIG"], "exists already"),
    ("defences", ["repair", "named", "--method", "shrink", "--out", "new/../full"], "exists already"),
    ("defences", ["repair", "named", "--method", "shrink", "--out", "new"], "of type None"),
    ("leaderboard", ["template", "full", "--threat", "jailbreak", "--attack", "SIG"], "full"),
    ("leaderboard", ["template", "new", "--threat", "jailbreak", "--attack", "Shadowcast"], "Shadowcast"),
    ("store", [], "command"), ("store", ["pakc", "a", "b"], "pakc"), ("store", ["check"], "STORE"),
    ("store", ["check", "./none"], "none"), ("store", ["check", "./full"], "full"),
    ("store", ["check", "./file"], "file"),
    ("store", ["check", ".."], "'..'"), ("store", ["pack", "./none", "./new"], "none"), ("store", ["pack", "a"], "TO"),
    ("store", ["pack", "./full", "./file"], "file"), ("store", ["unpack", "./none", "./new"], "none"),
    ("store", ["unpack", "./full", "./file/x"], "file"), ("store", ["pack", "./full", "./new"], "no results"),
    ("store", ["pack", "./full", "./full"], "no results"), ("store", ["unpack", "./full", "./new"], "no results"),
    ("store", ["check", f"./{LONG}"], "nnn"),
    ("store", ["check", "./a\0b"], "x00"), ("store", ["check", "~nosuchuser/x"], "nosuchuser"),
    ("store", ["unpack", "./full", "reference"], "reference"),
    ("defences", [], "command"), ("defences", ["mend"], "'mend'"), ("defences", ["list", "--moment", "x"], "'x'"),
    ("defences", ["repair", "named"], "--method"),
    ("defences", ["repair", "none", "--method", "shrink", "--out", "new"], "'none'"),
    ("defences", ["repair", "named", "--method", "no", "--out", "new"], "'no'"),
    ("defences", ["repair", "named", "--method", "shrink", "--out", "full"], "full"),
    ("defences", ["repair", "named", "--method", "shrink", "--out", "file/x"], "file"),
    ("defences", ["repair", "named", "--method", "shrink", "--out", "new", "--seed", "-1"], "-1"),
    ("grid", [], "command"), ("grid", ["rnu", "good.yml"], "rnu"), ("grid", ["run"], "file"),
    ("grid", ["run", "none.yml"], "'none.yml'"), ("grid", ["status", "full"], "'full'"),
    ("grid", ["run", "good.yml", "--store", ".."], "'..'"), ("grid", ["run", "good.yml", "--store", "./file"], "file"),
    ("grid", ["run", "good.yml", "--store", "./file", "--dry-run"], "file"),
    ("grid", ["run", "good.yml", "--store", f"./{LONG}"], "nnn"),
    ("grid", ["run", "good.yml", "--store", "./a\0b"], "x00"),
    ("grid", ["status", "good.yml", "--store", "~nosuchuser/x"], "nosuchuser"),
    ("grid", ["run", "good.yml", "--store", "reference"], "reference"),
    ("grid", ["run", "good.yml", "--store", "reference", "--dry-run"], "reference"),
    ("grid", ["run", "good.yml", "--workers", "0"], "'0'"), ("grid", ["run", "good.yml", "--workers", "x"], "'x'"),
    ("grid", ["run", "good.yml", "--workers", "2", "--scheduler", "tcp://x:1", "--dry-run"], "exclude"),
    ("grid", ["run", "good.yml", "--stroe", "x"], "--stroe"), ("grid", ["table", "none.yml"], "'none.yml'"),
]  # fmt: skip


def rows():
    for name, value, words in PARAMETERS:
        for option in ([], ["--dry-run"]):
            text = yaml.safe_dump({"jobs": [{"notebook": "targeted_refusal", "parameters": GOOD | {name: value}}]})
            yield "grid", ["run", "bad.yml", "--store", "./new", *option], words, text
    for text, words in FILES:
        yield "grid", ["run", "bad.yml", "--dry-run"], words, text
    for option, value, words in OPTIONS:
        given = list(EXPORT)
        if option in given:
            given[given.index(option) + 1] = value
        else:
            given += [option, value]
        yield "export", given, words, ""
    for name, given, words in OTHERS:
        yield name, given, words, ""


ROWS = list(rows())


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with things that people name by mistake."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BVLM_STORE", raising=False)
    (tmp_path / "file").write_text("words")
    (tmp_path / "words.png").write_text("words")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    for name, file in (("piped", "adapter_config.json"), ("pipes", "config.json")):
        (tmp_path / name).mkdir()
        os.mkfifo(tmp_path / name / file)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("words")
    for name, text in (("broken", "{"), ("list", "[]"), ("nobase", "{}"), ("twice", '{"r": 1, "r": 2}'),
                       ("named", '{"base_model_name_or_path": "tiny-llava"}')):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(text)
    (tmp_path / "good.yml").write_text(yaml.safe_dump({"jobs": [{"notebook": "targeted_refusal", "parameters": GOOD}]}))
    return tmp_path


def listed(folder):
    return sorted((str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_stream_that_is_closed_changes_no_exit_code(name, here, monkeypatch):
    monkeypatch.setattr(sys, name, None)
    assert grid.main(["status", "good.yml", "--store", "./none"]) == 0
    monkeypatch.setattr(sys, name, None)
    assert grid.main(["status", "none.yml"]) == command.WRONG


def test_there_are_many_rows():
    assert len(ROWS) >= 120 and {name for name, *_ in ROWS} == set(MAINS)


@pytest.mark.parametrize(("name", "given", "words", "text"), ROWS, ids=range(len(ROWS)))
def test_bad_input_is_one_sentence_and_leaves_nothing(here, capsys, name, given, words, text):
    if text or "bad.yml" in given:
        (here / "bad.yml").write_text(text)
    before = listed(here)
    assert MAINS[name](given) == command.WRONG
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1 and said.err.endswith("\n") and "Traceback" not in said.err
    assert words in said.err and len(said.err) < 2000, said.err[:3000]
    assert said.out == "" and listed(here) == before


# ---------------------------------------------------------------- what the rows cannot show


def parser():
    return command.Parser(prog="x")


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.EDQUOT])
def test_a_file_system_that_says_no_is_one_sentence(code, capsys):
    def act(_):
        raise OSError(code, os.strerror(code), "some/file")

    assert command.run(parser(), act, []) == command.WRONG
    said = capsys.readouterr().err
    assert "some/file" in said and os.strerror(code) in said and len(said.splitlines()) == 1


def test_a_terminal_without_a_letter_shows_its_number(monkeypatch):
    kept = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(kept, encoding="ascii"))
    assert command.run(parser(), lambda given: print("é 字", flush=True), []) == 0
    assert kept.getvalue().split() == [rb"\xe9", rb"\u5b57"]


def test_what_nobody_foresaw_leaves_its_traceback_in_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command.tempfile, "tempdir", str(tmp_path))

    def act(_):
        raise ZeroDivisionError("a lone \udc80 surrogate\nand a second line")

    assert command.run(parser(), act, []) == command.UNFORESEEN
    said = capsys.readouterr().err
    (file,) = tmp_path.iterdir()
    assert str(file) in said and len(said.splitlines()) == 1 and "Traceback" in file.read_text()


def test_a_sentence_is_one_line_whatever_the_value(capsys):
    def act(_):
        raise InputError("x is a\nb \udc80 " + "y" * 9000)

    assert command.run(parser(), act, []) == command.WRONG
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and len(said) < 2000


def test_remarks_are_told_once_at_the_end_and_nothing_of_other_libraries(capsys):
    def act(_):
        for _ in range(3):
            warnings.warn("two rows are left out", Remark, stacklevel=2)
        warnings.warn("an argument is old", DeprecationWarning, stacklevel=2)
        warnings.warn("a kernel is slow", UserWarning, stacklevel=2)
        print("done")

    assert command.run(parser(), act, []) == 0
    assert capsys.readouterr() == ("done\n", "two rows are left out\n")


def test_with_a_refusal_no_remark_is_told(capsys):
    def act(_):
        warnings.warn("two rows are left out", Remark, stacklevel=2)
        raise InputError("There are no rows.")

    assert command.run(parser(), act, []) == command.WRONG
    assert capsys.readouterr().err == "There are no rows.\n"


def test_home_is_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert paths.new_folder("~/x") == tmp_path / "x" and paths.new_file("~/x") == tmp_path / "x"


@pytest.fixture
def read_only(monkeypatch):
    """A file system that takes nothing: whoever runs the tests may be allowed everything."""
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **more: not mode & os.W_OK and access(path, mode, **more))


def test_a_read_only_store_with_nothing_to_run_is_fine_and_else_one_sentence(here, capsys, monkeypatch, request):
    parameters = GOOD | {"attacks": ["Shadowcast"]}  # skipped: made without training
    (here / "grid.yml").write_text(
        yaml.safe_dump({"jobs": [{"notebook": "targeted_refusal", "parameters": parameters}]})
    )
    study.run_cells(study.cells("targeted_refusal", **parameters), here / "store")
    monkeypatch.setattr(grid_measure, "measure", lambda *_: pytest.fail("something was run"))
    request.getfixturevalue("read_only")
    before = listed(here)
    assert grid.main(["run", "grid.yml", "--store", "./store"]) == 0
    assert "Every cell has its record." in capsys.readouterr().out
    for options in (["grid.yml", "--force"], ["good.yml"], ["good.yml", "--dry-run"]):
        assert grid.main(["run", *options, "--store", "./store"]) == command.WRONG
        said = capsys.readouterr()
        assert "read-only" in said.err and len(said.err.splitlines()) == 1
    with pytest.raises(InputError, match="read-only"):
        study.run_cells(study.cells("targeted_refusal", **GOOD), here / "store")
    for main, given in ((export.main, EXPORT), (audit.main, ["named", "--out", "x.csv"])):
        assert main(given) == command.WRONG and "read-only" in capsys.readouterr().err
    assert listed(here) == before


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="there is no such file system here")
def test_a_place_where_nothing_can_be_made_is_refused_whatever_its_permissions_say(here, capsys):
    for main, given in (
        (grid.main, ["run", "good.yml", "--store", "/proc/x"]),
        (export.main, [*EXPORT[:-1], "/proc/x"]),
    ):
        assert main(given) == command.WRONG
        said = capsys.readouterr().err
        assert "/proc/x" in said and len(said.splitlines()) == 1


def test_one_broken_record_stops_neither_status_nor_table(here, capsys):
    parameters = GOOD | {"attacks": ["Shadowcast"], "poison_rates": [0.1, 0.2]}
    (here / "grid.yml").write_text(
        yaml.safe_dump({"jobs": [{"notebook": "targeted_refusal", "parameters": parameters}]})
    )
    cells = study.cells("targeted_refusal", **parameters)
    study.run_cells(cells, here / "store")
    (here / "store" / cells[0].run_id / "record.json").write_bytes(b'{"run_id": "\xff')
    assert grid.main(["status", "grid.yml", "--store", "./store"]) == 0
    said = capsys.readouterr()
    assert "1 skipped, 1 missing" in said.out and cells[0].run_id in said.err and len(said.err.splitlines()) == 1
    assert grid.main(["table", "grid.yml", "--store", "./store"]) == 0
    assert cells[1].run_id in capsys.readouterr().out
    assert len(study.run_cells(cells, here / "store")) == 2


def test_the_process_ends_with_the_code(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x"])
    assert command.run(parser(), lambda _: 3) == 3 and command.run(parser(), lambda _: None) == 0


def test_commands_do_without_docstrings():
    names = ["chat", "export", "audit", "leaderboard", "grid", "defences", "store"]
    code = (
        "import contextlib, runpy, sys\n"
        f"for name in {names}:\n"
        "    sys.argv = [name, '--help']\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        runpy.run_module(f'bvlm_utils.{name}', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, cwd=paths.ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ") == len(names), done.stdout
