"""What every command promises: exit code 0; 2 with one sentence on stderr; 1 with the traceback in a file it names."""

import argparse
import errno
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from bvlm_utils.errors import InputError, Remark

Act = Callable[[argparse.Namespace], int | None]
WRONG, UNFORESEEN = 2, 1
LONGEST = 1500  # characters of a sentence; of a longer one, the ends are shown
# What the file system may say no with, whatever the code does.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR,
           errno.EEXIST)  # fmt: skip


def first_line(doc: str | None) -> str:
    """What a command says of itself; Python leaves out texts of modules under PYTHONOPTIMIZE=2."""
    return (doc or "").split("\n")[0]


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one sentence, without the list of options before it."""

    def error(self, message: str) -> None:
        sentence = message[:1].upper() + message[1:].rstrip(".")
        raise InputError(f"{sentence}; {self.prog} --help lists the options.")


def run(parser: Parser | Callable[[], Parser], act: Act, argv: list[str] | None = None) -> int:
    """Parse the options and act on them; the exit code. Python's warnings are dropped but for our own remarks, told at
    the end. parser: or what makes it, where it lists names of others' definitions, which may not be found.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us: what is printed goes nowhere
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        if hasattr(getattr(sys, name), "reconfigure"):  # what a terminal has no letters for is shown as its number
            getattr(sys, name).reconfigure(errors="backslashreplace")
    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", Remark)
        code = _run(parser, act, argv)
    if code != WRONG:
        for sentence in dict.fromkeys(str(remark.message) for remark in remarks):
            print(sentence.encode(errors="backslashreplace").decode(), file=sys.stderr)
    return code


def _run(parser: Parser | Callable[[], Parser], act: Act, argv: list[str] | None) -> int:
    try:
        return act((parser if isinstance(parser, Parser) else parser()).parse_args(argv)) or 0
    except InputError as error:
        return complain(str(error))
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left unwritten goes nowhere
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        complain("Stopped by SIGINT.")
        return 128 + signal.SIGINT
    except Exception as error:
        if sentence := of_file_system(error):
            return complain(sentence)
        return unforeseen(error)


def complain(sentence: str) -> int:
    """Print a sentence on standard error, in one line, whatever a user's value has in it."""
    line = " ".join(sentence.split())
    if len(line) > LONGEST:
        line = f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
    print(line.encode(errors="backslashreplace").decode(), file=sys.stderr)
    return WRONG


def of_file_system(error: Exception) -> str | None:
    """A sentence, if it was the file system that refused something; None for anything else."""
    if not isinstance(error, OSError):
        return None
    name = f"{error.filename}" if error.filename else "A file"
    if error.errno in FULL:
        return f"{name} could not be written ({error.strerror}); make room, finished work is kept."
    if error.errno in REFUSED:
        return f"{name} cannot be used ({error.strerror}); name another place, or change its permissions."
    return None


def unforeseen(error: Exception) -> int:
    """Keep the traceback of a fault of ours in a file, and name it."""
    text = "".join(traceback.format_exception(error))
    try:
        handle, name = tempfile.mkstemp(prefix="bvlm-traceback-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        print(text, file=sys.stderr)
        name = "above"
    complain(f"Something went wrong that nobody foresaw ({type(error).__name__}: {error}); the traceback is in {name}.")
    return UNFORESEEN


def whole(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    """A type for argparse: whole numbers from low to high."""
    return _within(int, f"whole number from {low} to {high}", low, high)


def number(low: float, high: float) -> Callable[[str], float]:
    """A type for argparse: finite numbers from low to high."""
    return _within(float, f"number from {low:g} to {high:g}", low, high)


def _within(kind: type, description: str, low: float, high: float) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        with suppress(ValueError):
            if len(text) < 100 and low <= (value := kind(text)) <= high:
                return value
        raise argparse.ArgumentTypeError(f"{text[:100]!r} is not a {description}")

    return read
