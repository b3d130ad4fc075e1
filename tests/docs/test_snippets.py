"""What the pages of the documentation show runs as it stands, copied out of the page, in a fresh process."""

from pathlib import Path

import pytest

from tests.support import snippets

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if not {"_build", "generated"} & set(page.parts))


def named(pages):
    return [pytest.param(page, id=str(page.relative_to(DOCS))) for page in pages]


@pytest.mark.parametrize("page", named(page for page in PAGES if snippets.blocks(page.read_text())))
def test_runs(page, tmp_path):
    assert snippets.run(page, tmp_path) == ""


@pytest.mark.parametrize("page", named(PAGES))
def test_hides_nothing(page):
    hidden = [block.line for block in snippets.blocks(page.read_text()) if block.language in snippets.HIDDEN]
    assert not hidden, f"{page}: a reader cannot see these blocks, and the snippets need them: lines {hidden}"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("```python\nprint(undefined)\n```\n", "NameError"),
        ("```{testcode}\nprint(1)\n```\n\n```{testoutput}\n2\n```\n", "expected\n2\n"),
        ("```{doctest}\n>>> 1 + 1\n3\n```\n", "Expected:"),
        ('```python\nif __name__ == "__main__":\n    raise SystemExit("stop")\n```\n', "stop"),
        ("```python\nx = 1\n```\n\n```{testcode}\nprint(x, end='')\n```\n\n```{testoutput}\n1\n```\n", ""),
    ],
)
def test_what_is_wrong_is_told(text, wrong, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(text)
    told = snippets.run(page, tmp_path)
    assert wrong in told
    assert bool(told) == bool(wrong)
