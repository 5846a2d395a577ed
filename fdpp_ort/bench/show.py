"""The results as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def print_results(console: Console, content: dict) -> None:
    import rich.box
    import rich.table
    from rich.markup import escape

    table = rich.table.Table(title=escape(content["model"]), box=rich.box.SIMPLE)
    table.add_column("rows x tokens")
    table.add_column("")
    for heading in ("ms", "tokens/s", "of limit", "peak MB"):
        table.add_column(heading, justify="right")
    for row in content["rows"]:
        table.add_section()
        what = f"{row['phase']} {row['batch']} x {row['tokens']}"
        if row["limit_ms"] is not None:
            table.add_row(what, "byte limit", f"{row['limit_ms']:.3f}", "", "", "")
            what = ""
        for candidate in content["candidates"]:
            name = candidate["name"]
            if name in row["ms"]:
                table.add_row(what, name, *_figures(row, name))
                what = ""
            elif name in row["failed"]:
                table.add_row(what, name, "failed", "", "", "")
                what = ""
    console.print(table)
    for pair, phases in content["comparisons"].items():
        for phase, found in phases.items():
            console.print(
                f"{pair}, {phase}: {found['geometric_mean']:.2f} "
                f"({found['cells']} cells, least {found['least']:.2f} in {found['least_in']})"
            )
    for candidate in content["candidates"]:
        if candidate["absent"]:
            console.print(escape(f"{candidate['name']}: absent: {candidate['absent']}"))
    for row in content["rows"]:
        for name, why in row["failed"].items():
            console.print(escape(f"{name}, {row['phase']} {row['batch']} x {row['tokens']}: failed: {why}"))
    if content["left_out"]:
        console.print(escape(f"left out for lack of time: {'; '.join(content['left_out'])}"))


def _figures(row: dict, name: str) -> tuple[str, ...]:
    share = row["of_limit"].get(name)
    return (
        f"{row['ms'][name]:.3f}",
        f"{row['tokens_per_second'][name]:.1f}",
        "" if share is None else f"{share:.0%}",
        f"{row['peak_memory_bytes'][name] / 1e6:.0f}",
    )
