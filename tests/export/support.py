"""Which exporter's graphs of which model the tests verify: recorded by each, drawn as the README's table.

    pytest tests/export --junitxml=results.xml && python tests/export/support.py results.xml

draws the table anew from what passed; test_support.py compares it with what is to pass.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

Verified = Callable[[str, str], None]
PROPERTY = "verified"
README = Path(__file__).resolve().parents[2] / "README.md"
_BEGIN, _END = "<!-- drawn by tests/export/support.py -->\n", "<!-- end -->\n"
_SEPARATOR = " / "


def record(exporter: str, model: str) -> str:
    """What a test says of a pair that it verified."""
    return f"{exporter}{_SEPARATOR}{model}"


def verified_pairs(results: Path) -> set[tuple[str, str]]:
    """Exporter and model of all tests that passed, by pytest's JUnit file."""
    pairs = set()
    for case in ElementTree.parse(results).iter("testcase"):
        if all(case.find(outcome) is None for outcome in ("failure", "error", "skipped")):
            said = [item.get("value") for item in case.iter("property") if item.get("name") == PROPERTY]
            pairs.update(tuple(text.split(_SEPARATOR)) for text in said)
    return pairs


def table(pairs: set[tuple[str, str]]) -> str:
    """Models down, exporters across."""
    exporters, models = (sorted({pair[part] for pair in pairs}, key=str.lower) for part in (0, 1))
    rows = [["", *exporters], ["---", *[":-:"] * len(exporters)]]
    rows += [[model, *("✓" if (exporter, model) in pairs else "" for exporter in exporters)] for model in models]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def drawn(readme: str, pairs: set[tuple[str, str]]) -> str:
    """The text `readme` with the table of `pairs` between the two marks."""
    before, rest = readme.split(_BEGIN)
    _, after = rest.split(_END)
    return f"{before}{_BEGIN}{table(pairs)}{_END}{after}"


if __name__ == "__main__":
    README.write_text(drawn(README.read_text(encoding="utf-8"), verified_pairs(Path(sys.argv[1]))), encoding="utf-8")
