"""papermill's own command on notebooks that refuse a value, fail, or run: its exit code, and what it leaves."""

import nbformat
import papermill
import pytest
from papermill.cli import papermill as command
from papermill.engines import papermill_engines
from papermill.exceptions import PapermillExecutionError

from bvlm_utils.grid.engine import Engine, Refused

REFUSAL = "from bvlm_utils.errors import InputError\nraise InputError('rate is 7; it must be\\n at most 1.')"
MISTAKE = "raise ValueError('nobody foresaw this')"


def notebook(folder, source):
    cells = [nbformat.v4.new_code_cell(source, id="only")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "in.ipynb")
    return str(folder / "in.ipynb"), str(folder / "out.ipynb")


def test_papermill_uses_the_engine_of_the_installed_package():
    assert papermill_engines.get_engine() is Engine


@pytest.mark.parametrize("options", [[], ["--no-request-save-on-cell-execute"]])
def test_a_refusal_ends_papermill_with_code_2_and_one_sentence(tmp_path, capfd, options):
    names = notebook(tmp_path, REFUSAL)
    with pytest.raises(SystemExit) as ended:
        command.main([*names, "-k", "python3", "--no-progress-bar", *options], standalone_mode=True)
    last = capfd.readouterr().err.strip().splitlines()
    assert ended.value.code == 2 and last[-1] == "rate is 7; it must be at most 1."
    assert not any("Traceback" in line for line in last)
    saved = nbformat.read(names[1], 4)
    assert [output.ename for cell in saved.cells for output in cell.get("outputs", ())] == ["InputError"]


def test_callers_of_papermill_get_its_own_error(tmp_path):
    with pytest.raises(PapermillExecutionError) as refused:
        papermill.execute_notebook(*notebook(tmp_path, REFUSAL), kernel_name="python3", progress_bar=False)
    assert (
        isinstance(refused.value, Refused) and refused.value.ename == "InputError" and "rate is 7" in str(refused.value)
    )


def test_other_errors_and_notebooks_that_run_are_as_before(tmp_path):
    with pytest.raises(PapermillExecutionError) as failed:
        papermill.execute_notebook(*notebook(tmp_path, MISTAKE), kernel_name="python3", progress_bar=False)
    assert not isinstance(failed.value, Refused) and failed.value.ename == "ValueError"
    done = papermill.execute_notebook(*notebook(tmp_path, "1 + 1"), kernel_name="python3", progress_bar=False)
    assert done.cells[0].outputs[0].data["text/plain"] == "2"
