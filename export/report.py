"""What an export did: rewrites by kind, nodes left and why, bytes of weights, the verification's figures."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from .calibrate import Calibration
    from .traffic import Traffic

# Names the report that every OUT holds; it also marks OUT as written by fdpp-export.
REPORT_FILE = "fdpp_report.json"
PAGE_FILE = "fdpp_report.html"
MARKER = "fdpp_export"


@dataclass(frozen=True)
class LeftNode:
    """An attention or a matrix product that was not rewritten."""

    op: str
    node: str
    reason: str


@dataclass(frozen=True)
class Difference:
    """Logits of one phase (prefill or decode) compared with another graph's."""

    name: str
    tokens: int
    max_abs_error: float
    relative_error: float  # max_abs_error over the largest magnitude of the other's logits
    top1_agreement: float  # share of the tokens whose largest logit is the same


@dataclass(frozen=True)
class Phase(Difference):
    """A difference that is judged."""

    tolerance: float  # of relative_error

    @property
    def passed(self) -> bool:
        """False for NaN too."""
        return self.relative_error <= self.tolerance


@dataclass(frozen=True)
class Generation:
    """Greedy tokens of both graphs, each by its own logits."""

    tokens: int  # of each row
    same: list[int]  # of each row, before the first that differs
    gap: float  # by which the original preferred its own there, over the largest magnitude of its logits
    tolerance: float  # of gap

    @property
    def passed(self) -> bool:
        """False for NaN too."""
        return self.gap <= self.tolerance


@dataclass(frozen=True)
class OutputError:
    """A cache, after the last step, compared with the original graph's."""

    name: str
    max_abs_error: float
    relative_error: float  # max_abs_error over the largest magnitude of the original's


@dataclass
class Verification:
    """`status` is "passed", "failed" or "not verified"; `reason` says why it was not.

    phases: judged, against the original graph or, where weights are quantised, against the original graph with the
    values that are stored. loss: what quantisation did, the differences to the original graph with its own weights.
    rows: the prompts, in words. generation, outputs: against what the phases are."""

    status: str
    reason: str = ""
    provider: str = ""
    phases: list[Phase] = field(default_factory=list)
    loss: list[Difference] = field(default_factory=list)
    rows: str = ""
    generation: Generation | None = None
    outputs: list[OutputError] = field(default_factory=list)


@dataclass
class ExportReport:
    """Filled along the way; `rewritten` counts by kind."""

    source: str
    destination: str
    target: str
    weights: str
    softmax: str
    head_weights: str = "keep"
    rewritten: dict[str, int] = field(default_factory=dict)
    left: list[LeftNode] = field(default_factory=list)
    needs_tensorrt_10: list[str] = field(default_factory=list)  # why 8.6 does not take it
    weight_bytes_before: int = 0
    weight_bytes_after: int = 0
    traffic: Traffic | None = None
    calibration: Calibration | None = None
    verification: Verification = field(default_factory=lambda: Verification("not verified", "not asked for"))

    def rewrote(self, kind: str) -> None:
        """Counts one rewrite."""
        self.rewritten[kind] = self.rewritten.get(kind, 0) + 1

    def leave(self, node: ir.Node, reason: str) -> None:
        """Records that `node` stays as it is; of several reasons the first."""
        domain = f"{node.domain}::" if node.domain else ""
        left = LeftNode(f"{domain}{node.op_type}", node.name or f"({node.outputs[0].name})", reason)
        if (left.op, left.node) not in {(other.op, other.node) for other in self.left}:
            self.left.append(left)

    def to_json(self) -> str:
        """The report as JSON text, with the marker by which OUT is recognised."""
        fields: dict[str, Any] = {MARKER: 1, **asdict(self)}
        return json.dumps(fields, indent=2) + "\n"

    def print(self, console: Console) -> None:
        """Tables for people."""
        table = Table(title="Rewritten")
        table.add_column("what")
        table.add_column("nodes", justify="right")
        for kind, count in self.rewritten.items():
            table.add_row(escape(kind), str(count))
        console.print(table)
        if self.left:
            left = Table(title="Left as they are")
            for column in ("op", "node", "why"):
                left.add_column(column, overflow="fold")
            for item in self.left:
                left.add_row(escape(item.op), escape(item.node), escape(item.reason))
            console.print(left)
        for reason in self.needs_tensorrt_10:
            console.print(f"TensorRT 8.6 does not take it: {escape(reason)}")
        console.print(f"weights: {_megabytes(self.weight_bytes_before)} -> {_megabytes(self.weight_bytes_after)}")
        self._print_traffic(console)
        self._print_calibration(console)
        self._print_verification(console)

    def _print_traffic(self, console: Console) -> None:
        if self.traffic is None or not self.traffic.gpu:
            return
        limits = ", ".join(f"{step.tokens_per_second:.0f} at {step.context}" for step in self.traffic.steps)
        console.print(f"{escape(self.traffic.gpu)} allows one row at most so many tokens/s by its context: {limits}")

    def _print_calibration(self, console: Console) -> None:
        found = self.calibration
        if found is None:
            return
        leaving = "" if found.leaving is None else f"; {found.leaving:.3%} of their query rows leave phi"
        console.print(f"unified softmax in {len(found.unified)} of {len(found.layers)} layers{leaving}")
        for layer in found.layers:
            if not layer.unified:
                console.print(f"{self.softmax} in {escape(layer.node)}: {layer.leaving:.2%} would leave")

    def _print_verification(self, console: Console) -> None:
        if not self.verification.phases:
            console.print(f"[bold yellow]not verified[/]: {escape(self.verification.reason)}")
            return
        against = "the original graph with the stored weights" if self.verification.loss else "the original graph"
        table = Table(title=f"Logits against {against}: {self.verification.status}")
        for column in ("phase", "tokens", "max abs error", "relative error", "tolerance", "same top-1"):
            table.add_column(column, justify="left" if column == "phase" else "right")
        for phase in self.verification.phases:
            table.add_row(*_columns(phase, f"{phase.tolerance:g}"))
        for loss in self.verification.loss:
            table.add_row(*_columns(loss, "", "lost by quantising: "))
        console.print(table)
        generation = self.verification.generation
        same = ", ".join(f"{count} of {generation.tokens}" for count in generation.same)
        console.print(f"{self.verification.rows}; generated alike: {same} tokens")


def _columns(difference: Difference, tolerance: str, prefix: str = "") -> tuple[str, ...]:
    return (
        prefix + difference.name,
        str(difference.tokens),
        f"{difference.max_abs_error:.2e}",
        f"{difference.relative_error:.2e}",
        tolerance,
        f"{difference.top1_agreement:.0%}",
    )


def is_export(folder: Path) -> bool:
    """Whether `folder` was written by fdpp-export."""
    try:
        return MARKER in json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
