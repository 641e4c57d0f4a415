"""The first page: short, and every figure in it stands on a page that says how to measure it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
NUMBER = r"(?<![\w.-])[+-]?\d+(?:,\d{3})*(?:\.\d+)?(?![\w-])"


def result_rows(text: str) -> list[tuple[str, str, str]]:
    """What, result and command of the table of results."""
    table = text.partition("## How well it does")[2].partition("\n\nA violation")[0]
    return [tuple(line.strip("| ").split(" | ")) for line in table.splitlines() if line.startswith("| [")]  # type: ignore[misc]


def prose(text: str) -> str:
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^(\||#|!\[).*$", "", text, flags=re.MULTILINE)
    return re.sub(r"\]\([^)]*\)|`[^`]*`", "", text)


def test_the_first_page_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_no_sentence_has_more_than_three_numbers() -> None:
    for sentence in re.split(r"(?<=[.:;!?])\s+|\n\n|\n- ", prose(README)):
        assert len(re.findall(NUMBER, sentence)) <= 3, sentence


def test_every_result_stands_on_the_page_that_it_links_to_beside_its_command() -> None:
    rows = result_rows(README)
    assert len(rows) == 6
    for what, result, command in rows:
        link = re.match(r"\[.+?\]\((docs/tables/[\w-]+\.md)\)", what)
        assert link, what
        page = (ROOT / link[1]).read_text()
        assert command.strip("`") in page, command
        shown = set(re.findall(NUMBER, page))
        for number in re.findall(NUMBER, result):
            assert number in shown, f"{number} is not in {link[1]}"


def test_results_of_the_old_rule_say_so() -> None:
    for what, _, _ in result_rows(README):
        link = re.search(r"docs/tables/[\w-]+\.md", what)
        assert link
        old = "old rule**" in (ROOT / link[0]).read_text()
        assert old == ("old rule*" in what), what
