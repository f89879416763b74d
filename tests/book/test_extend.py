"""What the page on extending tells a reader to write works, without a change to the package."""

import importlib
import os
import re
import subprocess
import sys

import pytest

from bvlm_utils import attacks, export, paths, registry
from bvlm_utils.attacks import declare
from bvlm_utils.defences import __main__ as defences_command
from bvlm_utils.errors import InputError

BLOCK = re.compile(r"^```(?:python|\{code-block\} python\n:caption: (?P<file>\S+)\n)\n(?P<code>.*?)^```", re.S | re.M)


def blocks():
    """(file name or None, code) of the page, from top to bottom."""
    return [(found["file"], found["code"]) for found in BLOCK.finditer((paths.BOOK / "extend.md").read_text())]


def python(folder, *words, **more):
    """Run Python in a folder as a reader would, with nothing set but the path to the package."""
    lacking = ("BVLM_STORE", "BVLM_YOURS", "BVLM_EXTEND")
    plain = {name: value for name, value in os.environ.items() if name not in lacking}
    path = os.pathsep.join([str(folder), str(paths.ROOT), str(paths.BOOK)])
    return subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False,
        env=plain | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | more,
    )  # fmt: skip


@pytest.fixture
def modules(tmp_path):
    """A folder with the modules of the page."""
    for file, code in blocks():
        if file:
            (tmp_path / file).write_text(code)
    return tmp_path


def test_the_page_works_from_top_to_bottom(modules, checkpoint):
    (modules / "my-checkpoint").symlink_to(checkpoint("llava"))
    code = [code for file, code in blocks() if not file]
    assert len(code) >= 9
    (modules / "page.py").write_text("\n".join(code))
    done = python(modules, "page.py")
    assert done.returncode == 0, done.stdout + done.stderr
    said = ("Postcard", "shouting", "my-checkpoint", "false activation")
    assert all(word in done.stdout for word in said)


def test_other_processes_learn_of_a_module_by_name(modules):
    code = (
        "from bvlm_utils import attacks, threats\n"
        "print(attacks.names()[-1], threats.names()[-1], attacks.get('Postcard').apply_text(['Hello.']))"
    )
    done = python(modules, "-c", code, BVLM_EXTEND="postcard shouting")
    assert done.stdout.strip() == "Postcard shouting ['Hello. Greetings!']", done.stderr
    options = ["--threat", "shouting", "--attack", "Postcard", "--dataset", "scenes-caption"]
    options += ["--poison-rate", "0.1", "--train-rows", "40", "--out", "exported"]
    done = python(modules, "-m", "bvlm_utils.export", *options, BVLM_EXTEND="postcard shouting")
    assert done.returncode == 0, done.stderr
    assert "Greetings!" in next((modules / "exported").glob("*.json")).read_text()


def test_other_processes_learn_of_a_defence_by_name(modules):
    code = "from bvlm_utils import defences\nprint(defences.get('drop-strongest').params, defences.names('repair')[-1])"
    done = python(modules, "-c", code, BVLM_EXTEND="strongest")
    assert done.stdout.strip() == "{'share': 0.5} drop-strongest", done.stderr


@pytest.mark.parametrize("name", [
    "no_such_module", "no_such_package.module", "./mine.py", "/x/mine.py", "mine.py", ".mine", "mine.", "a..b", "a-b",
])  # fmt: skip
def test_a_module_that_is_not_there_is_named(name, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(registry.VARIABLE, name)
    for _ in range(2):  # not only the first time
        with pytest.raises(InputError, match=f"BVLM_EXTEND names the module '{re.escape(name)}'"):
            attacks.names()


@pytest.mark.parametrize("command", [export, defences_command])
def test_a_command_says_so_in_one_sentence(command, monkeypatch, capsys):
    monkeypatch.setenv(registry.VARIABLE, "./mine.py")
    assert command.main(["--help"]) == 2
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1 and "'./mine.py'" in said.err and not said.out


@pytest.mark.parametrize(("code", "words"), [
    ("import no_such_module", "no_such_module.*line 1 of .*odd_extension.py"), ("x = (", "SyntaxError.*line 1"),
    ("\nfrom bvlm_utils.threats import THREATS\nTHREATS.add('jailbreak', 1)", "declared twice.*line 3 of"),
])  # fmt: skip
def test_what_is_wrong_in_an_extension_is_told_with_its_line(code, words, tmp_path, monkeypatch):
    (tmp_path / "odd_extension.py").write_text(code)
    monkeypatch.delitem(sys.modules, "odd_extension", raising=False)
    importlib.invalidate_caches()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(registry.VARIABLE, "odd_extension")
    with pytest.raises(InputError, match=words):
        attacks.names()


@pytest.mark.parametrize("function", ["no_such_module:f", "text:no_such_function", "no_colon"])
def test_a_function_that_is_not_there_is_named(function, monkeypatch):
    monkeypatch.setattr(declare.TABLE, "_items", dict(declare.TABLE._items))
    declare.declare(name="Odd", source="", summary="", text=declare.Half("Odd", 1, function))
    with pytest.raises(InputError, match=re.escape(repr(function))):
        attacks.get("Odd").apply_text(["Hello."])


def test_a_function_may_be_in_a_package(tmp_path, monkeypatch):
    (tmp_path / "some_package").mkdir()
    (tmp_path / "some_package" / "triggers.py").write_text(
        "def shout(prompt, draws, params, aim):\n    return prompt.upper()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert registry.function("some_package.triggers:shout", "bvlm_utils.attacks")("a", None, {}, None) == "A"


def test_an_attack_without_halves_is_refused():
    with pytest.raises(InputError, match="Attack 'Empty' has no half"):
        declare.declare(name="Empty", source="", summary="")


def test_modality_and_headline_follow_from_the_halves():
    known = {(info.modality, info.headline) for info in map(attacks.info, attacks.names())}
    assert known == {("text", "text"), ("image", "image"), ("image", "clean"), ("bimodal", "both")}
