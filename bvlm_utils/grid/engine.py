"""papermill's engine where this package is installed: its usual one, but a notebook that refuses a value ends the
`papermill` command as it ends every command, with one sentence and exit code 2.

papermill loads it by the entry point in `pyproject.toml`. Notebooks that refuse nothing of ours run and fail as before.
"""

from typing import Any

import click
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from bvlm_utils import command

REFUSALS = ("InputError", "TooFewRows")  # the errors whose messages are written for users


class Refused(PapermillExecutionError, click.ClickException):
    """A notebook refused a value. For callers of `papermill.execute_notebook` it is papermill's own error."""

    exit_code = command.WRONG

    def __init__(self, error: PapermillExecutionError) -> None:
        Exception.__init__(self, *error.args)
        vars(self).update(vars(error))
        self.message = error.evalue

    def show(self, file: object = None) -> None:
        """Print the sentence; click calls it before the command ends with `exit_code`."""
        command.complain(self.evalue)


class Engine(NBClientEngine):
    """papermill's usual engine; Refused for a notebook that ended in a refusal of ours, once the notebook is saved."""

    @classmethod
    def execute_notebook(cls, nb: Any, kernel_name: str, **options: Any) -> Any:
        from papermill.execute import raise_for_execution_errors  # it imports papermill's engines, which import this

        notebook = super().execute_notebook(nb, kernel_name, **options)
        try:
            raise_for_execution_errors(notebook, notebook.metadata.papermill["output_path"])  # saves before it raises
        except PapermillExecutionError as error:
            if error.ename not in REFUSALS:
                raise
            raise Refused(error) from None
        return notebook


papermill_engines.register(None, Engine)  # what `papermill` without --engine uses
