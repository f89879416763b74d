"""Kernels that are copies of one process, which has loaded what all pages import: that takes two seconds each time.

`launch` stands in for jupyter_client's function of that name. This file, run as a script, is the process to be copied;
each process that reads pages starts one, and it ends with that.
"""

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from typing import Any

LOADED = ("ipykernel.kernelapp", "matplotlib.backends.backend_svg", "pyarrow.parquet", "scipy.stats",
          "statsmodels.stats.proportion", "statsmodels.stats.weightstats", "bvlm_book.page", "bvlm_book.tables",
          "bvlm_utils.defences.records", "bvlm_utils.study")  # fmt: skip


class Kernel:
    """What jupyter_client asks of a process that it has started. An exit code is not known: it reads 0."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def poll(self) -> int | None:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return 0
        return None

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.05)
        return 0

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def launch(cmd: list[str], env: dict[str, str], cwd: str | None = None, **_: Any) -> Kernel:
    """Start a kernel. cmd: as the kernel's specification has it, with "-f" and a file that says how it is reached."""
    server = _server(os.getpid())
    server.stdin.write(json.dumps([cmd[cmd.index("-f") :], env, cwd]) + "\n")
    server.stdin.flush()
    if not (pid := server.stdout.readline()):
        raise RuntimeError("The process that the book's kernels are copies of has ended; what it said stands above.")
    return Kernel(int(pid))


@cache
def _server(reader: int) -> subprocess.Popen[str]:
    """The process to be copied of the process `reader`: a fork has none of its own yet."""
    command = [sys.executable, __file__]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _serve() -> None:
    """Begin a kernel for every line of standard input, and write its process id."""
    sys.path.remove(os.path.dirname(os.path.abspath(__file__)))
    for name in LOADED:
        importlib.import_module(name)
    gc.freeze()  # no copy looks at what is loaded when it collects garbage, so that memory stays shared
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended kernels leave nothing
    for line in sys.stdin:
        parent = os.getpid()
        if pid := os.fork():
            with suppress(PermissionError, ProcessLookupError):  # it has done so itself
                os.setpgid(pid, pid)  # before anybody asks: what stops a kernel stops its whole group
            print(pid, flush=True)
        else:
            _become_kernel(*json.loads(line), parent)
            return


def _become_kernel(arguments: list[str], env: dict[str, str], cwd: str | None, parent: int) -> None:
    os.setpgid(0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # the server's own output is read by `launch`
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd or ".")
    sys.argv = ["ipykernel", *arguments]
    importlib.import_module("ipykernel.kernelapp").launch_new_instance(
        [*arguments, f"--IPKernelApp.parent_handle={parent}"]
    )


if __name__ == "__main__":
    _serve()
