"""Runs commands and scripts as a user would, each in a process of its own, in which torch and Lightning are imported already.

A new interpreter spends five seconds of processor time on those imports, more than most scripts need for all the rest. So the
processes are forked from a server that has done nothing but import the package; no test runs in the server. One test of each
way to start the package takes a new interpreter all the same.
"""

import multiprocessing
import os
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["lightning_vamo.cli"])


@dataclass(frozen=True)
class Done:
    """What came of a command.

    Attributes:
        returncode: Its exit code.
        stdout: What it printed, with the processes that it started.
        stderr: Likewise.
    """

    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str, cwd: Path, scratch: Path, timeout: float = 1800) -> Done:
    """Run what ``python ARGUMENTS`` runs.

    Args:
        *arguments: A script and its arguments, or ``-m``, a module and its arguments.
        cwd: The working directory.
        scratch: A folder for the output.
        timeout: Seconds.

    Returns:
        The exit code and the output.
    """
    files = [scratch / f"{name}.txt" for name in ("stdout", "stderr")]
    process = context.Process(target=_run, args=([*map(str, arguments)], str(cwd), [str(file) for file in files]))
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"{' '.join(map(str, arguments))} took longer than {timeout} s")
    return Done(process.exitcode, *(file.read_text() for file in files))


def _run(arguments, cwd, files):
    for descriptor, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.chdir(cwd)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that it starts
    import torch

    torch.set_num_threads(1)  # the problems are tiny
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path.insert(0, cwd)
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
        runpy.run_path(arguments[0], run_name="__main__")
