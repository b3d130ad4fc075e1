"""Copies the code out of a page of the documentation and runs it as a reader would, away from all other pages.

The blocks ``python``, ``testcode`` and ``doctest`` of a page run from top to bottom; a ``testoutput`` has the last lines that
the block before it prints, with ``...`` for what may differ. Nothing that the reader does not see is run. A block with the
guard ``if __name__ == "__main__":`` is a script, which stands alone: it is saved to a file and run in a process of its own.
"""

import doctest
import io
import os
import re
import sys
import textwrap
import traceback
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.support import scripts

FENCE = re.compile(
    r"^(?P<indent>[ ]*)(?P<fence>`{3,})\{?(?P<language>python|testcode|doctest|testoutput|testsetup|testcleanup)\}?[^\n]*\n"
    r"(?P<body>.*?)^(?P=indent)(?P=fence)[ ]*$",
    re.DOTALL | re.MULTILINE,
)
OPTIONS = re.compile(r"\A(?::\w+:.*\n)+\n?")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
PROGRESS = re.compile(r"(it/s|\?it|s/it)")
HIDDEN = ("testsetup", "testcleanup")


@dataclass(frozen=True)
class Block:
    """A block of code of a page.

    Attributes:
        language: Of the fence.
        code: What the reader copies.
        line: Where the code begins in the page.
        output: What the block prints; None where the page does not say.
    """

    language: str
    code: str
    line: int
    output: str | None = None


def blocks(text: str) -> list[Block]:
    """The blocks of code of a page, in order, each with the output that follows it."""
    found: list[Block] = []
    for match in FENCE.finditer(text):
        body = OPTIONS.sub("", textwrap.dedent(match["body"]))
        line = text.count("\n", 0, match.start("body")) + 1
        if match["language"] == "testoutput":
            last = found.pop()
            found.append(Block(last.language, last.code, last.line, body))
        else:
            found.append(Block(match["language"], body, line))
    return found


def run(page: Path, folder: Path) -> str:
    """Run the blocks of a page, each script in a process of its own and the others together in one.

    Args:
        page: The page.
        folder: Where to run.

    Returns:
        What is wrong; empty if nothing is.
    """
    found = blocks(page.read_text())
    alone = [block for block in found if block.language != "doctest" and '__name__ == "__main__"' in block.code]
    wrong = next(filter(None, (_script(block, page, folder) for block in alone)), "")
    together = [block for block in found if block not in alone]
    return wrong if wrong or not together else _in_process(together, page, folder)


def _script(block, page, folder):
    file = folder / "script.py"
    file.write_text(block.code)
    done = scripts.run(file, cwd=folder, scratch=folder)
    if done.returncode:
        return f"{page}, line {block.line}:\n{block.code}\n{done.stdout}{done.stderr}"
    return _unexpected(block, page, done.stdout)


def _in_process(page_blocks, page, folder):
    receiver, sender = scripts.context.Pipe(duplex=False)
    process = scripts.context.Process(target=_run, args=(page_blocks, str(page), str(folder), sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return f"{page}: the process ended"
    finally:
        process.join()


def _run(page_blocks, page, folder, sender):
    torch.set_num_threads(1)  # the problems are tiny
    os.chdir(folder)
    sys.path.insert(0, folder)
    names = {"__name__": "__main__"}
    for block in page_blocks:
        printed = io.StringIO()
        try:
            with redirect_stdout(printed), redirect_stderr(io.StringIO()):
                if block.language == "doctest":
                    _examples(block, page, names)
                else:
                    exec(compile(block.code, f"{page}, block of line {block.line}", "exec"), names)
        except BaseException:
            sender.send(f"{page}, line {block.line}:\n{block.code}\n{traceback.format_exc()}")
            return
        wrong = _unexpected(block, page, printed.getvalue())
        if wrong:
            sender.send(wrong)
            return
    sender.send("")


def _unexpected(block, page, printed):
    got = without_progress(printed)
    if block.output is None or ends_with(got, block.output):
        return ""
    return f"{page}, line {block.line}: expected\n{block.output}\ngot\n{got}"


def _examples(block, page, names):
    parsed = doctest.DocTestParser().get_doctest(block.code, names, page, page, block.line)
    parsed.globs = names  # the names stay for the blocks to come
    report = io.StringIO()
    if doctest.DocTestRunner(optionflags=FLAGS).run(parsed, out=report.write, clear_globs=False).failed:
        raise AssertionError(report.getvalue())


def ends_with(got: str, expected: str) -> bool:
    """Whether the last lines of what was printed are those expected; Lightning's summary of the model may stand before them."""
    lines = got.splitlines(keepends=True)
    checker = doctest.OutputChecker()
    return any(checker.check_output(expected, "".join(lines[start:]), FLAGS) for start in range(len(lines)))


def without_progress(printed: str) -> str:
    """What was printed, less the progress bars: a terminal shows them and overwrites them."""
    lines = [part for part in re.split(r"[\r\n]", printed) if part.strip() and not PROGRESS.search(part)]
    return "".join(f"{line.replace(chr(27) + '[A', '')}\n" for line in lines)
