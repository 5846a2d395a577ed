"""The results as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def print_results(console: Console, content: dict) -> None:
    import rich.box
    import rich.markup
    import rich.table

    names = [candidate["name"] for candidate in content["candidates"] if not candidate["absent"]]
    table = rich.table.Table(title=f"ms, and the byte limit's share of it: {content['model']}", box=rich.box.SIMPLE)
    table.add_column("")
    for heading in ("limit", *names):
        table.add_column(heading, justify="right")
    for row in content["rows"]:
        what = f"{row['phase']} {row['batch']} x {row['tokens']}"
        table.add_row(what, _number(row["limit_ms"]), *(_cell(row, name) for name in names))
    console.print(table)
    for candidate in content["candidates"]:
        if candidate["absent"]:
            console.print(rich.markup.escape(f"{candidate['name']}: absent: {candidate['absent']}"))
    for pair, phases in content["comparisons"].items():
        for phase, found in phases.items():
            console.print(
                f"{pair}, {phase}: {found['geometric_mean']:.2f} (geometric mean of {found['cells']} cells, "
                f"least {found['least']:.2f} in {found['least_in']})"
            )
    if content["left_out"]:
        console.print(rich.markup.escape(f"left out for lack of time: {'; '.join(content['left_out'])}"))


def _number(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds:.3f}"


def _cell(row: dict, name: str) -> str:
    if name in row["failed"]:
        return "failed"
    share = row["of_limit"].get(name)
    return _number(row["ms"].get(name)) + ("" if share is None else f" ({share:.0%})")
