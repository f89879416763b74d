"""The user's mistakes, one clear sentence each (commands print it and exit with 2), and remarks, which end nothing."""

import warnings


class _InOneSentence(Exception):
    """In a notebook the message alone is shown, as on the command line: where it was raised is no help to readers."""

    def _render_traceback_(self) -> list[str]:  # IPython asks exceptions for this
        return [f"{type(self).__name__}: {self}"]


class InputError(_InOneSentence, ValueError):
    """A value that the user gave is wrong; the message names the value, the place and what would be right."""


class UnknownName(InputError, KeyError):
    """A name that nobody declared; the message lists those that are there."""

    __str__ = Exception.__str__  # KeyError's own puts the message in quotes


class Remark(UserWarning):
    """What a user should know and need not act on; commands print it as a line at their end."""


class TooFewRows(InputError):
    """The data have too few rows of a kind for what was asked: a limit of the data, which a cell is skipped for."""


def remark(sentence: str) -> None:
    """Tell the user a `Remark`."""
    warnings.warn(sentence, Remark, stacklevel=3)


class StudyError(_InOneSentence, RuntimeError):
    """Some cells of a study failed; the message lists them. Finished cells are kept."""


def in_words(error: BaseException) -> str:
    """An error of code that is not ours, its kind and its words, in one line without a full stop."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200].rstrip('.')}"
