"""Publishing: the workflow asks for what the Makefile has, and a dry run pushes nothing."""

import os
import re
import subprocess

import pytest
import yaml

from bvlm_utils import paths

WORKFLOWS = sorted((paths.ROOT / ".github" / "workflows").glob("*.yml"))


def make(*words, cwd=paths.ROOT, **variables):
    return subprocess.run(
        ["make", *words], cwd=cwd, env=os.environ | variables, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_a_workflow_runs_targets_that_exist_and_pins_its_actions(file):
    jobs = yaml.safe_load(file.read_text())["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    targets = re.findall(r"^([\w-]+):", (paths.ROOT / "Makefile").read_text(), re.MULTILINE)
    for step in steps:
        assert ("run" in step) != ("uses" in step)
        if "uses" in step:
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])
        else:
            program, target = step["run"].split()
            assert program == "make" and target in targets
    assert all(name in jobs for job in jobs.values() for name in [job.get("needs")] if name)


def test_the_workflow_uploads_what_make_book_builds():
    (file,) = WORKFLOWS
    (path,) = re.findall(r"^ +path: (.*)$", file.read_text(), re.MULTILINE)
    assert f"PAGE := {path}/index.html" in (paths.ROOT / "Makefile").read_text()


@pytest.fixture
def checkout(tmp_path):
    """A project with our Makefile whose tools write down what they are asked, and whose book is a page."""
    tools, place = tmp_path / "venv" / "bin", tmp_path / "project"
    for folder in (tools, place):
        folder.mkdir(parents=True)
    (place / "Makefile").write_text((paths.ROOT / "Makefile").read_text())
    for name in ("pyproject.toml", "constraints.txt"):
        (place / name).touch()
    for name in ("python", "jupyter-book", "ghp-import"):
        (tools / name).write_text(f'#!/bin/sh\necho {name} "$@" >> "{place}/asked"\n')
        (tools / name).chmod(0o755)
    (tmp_path / "venv" / ".installed").touch()
    git = ["git", "-C", str(place), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    return place


@pytest.mark.parametrize("dry", [True, False])
def test_only_a_real_run_pushes(dry, checkout):
    done = make("publish", f"VENV={checkout.parent / 'venv'}", *(["DRY=1"] if dry else []), cwd=checkout)
    assert done.returncode == 0, done.stderr
    *_, last = (checkout / "asked").read_text().splitlines()
    assert last.startswith("ghp-import --no-jekyll") and last.endswith("book/_build/html/")
    assert ("--push" in last) != dry


def test_what_is_missing_is_said(checkout):
    (checkout.parent / "venv" / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    done = make("publish", f"VENV={checkout.parent / 'venv'}", cwd=checkout)
    assert done.returncode != 0 and "make publish needs ghp-import" in done.stderr
