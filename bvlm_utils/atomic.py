"""Files that are written completely or not at all, whoever is killed and whoever else writes them."""

import os
import socket
from pathlib import Path

PARTIAL = ".partial-"  # beginning of the names of files and folders that are being written


def partial_name(name: str) -> str:
    """What `name` is called while this process writes it."""
    return f"{PARTIAL}{socket.gethostname()}+{os.getpid()}+{name}"


def write_file(file: Path, content: str | bytes) -> None:
    """All of a file or nothing; text is in UTF-8."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(partial_name(file.name))
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(partial, file)
