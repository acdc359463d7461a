"""Figures beside their yardsticks: the table and the JSON file."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from shell_service import __version__


@dataclass(frozen=True)
class Row:
    """One line of the table.

    `rounds` and `yardstick_rounds` are what was measured, in turns; `figure` and `yardstick` their medians. `bound` is
    the least (or with `at_most` the greatest) that `judged` may be: "ratio" or "figure".
    """

    scenario: str
    what: str
    unit: str
    rounds: Sequence[float]
    yardstick_what: str = ""
    yardstick_rounds: Sequence[float] = ()
    judged: str = "figure"
    bound: float | None = None
    at_most: bool = False
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def figure(self) -> float | None:
        return statistics.median(self.rounds) if self.rounds else None

    @property
    def yardstick(self) -> float | None:
        return statistics.median(self.yardstick_rounds) if self.yardstick_rounds else None

    @property
    def ratio(self) -> float | None:
        """The median over rounds that were measured one after the other; robust where the machine is not steady."""
        pairs = list(zip(self.rounds, self.yardstick_rounds, strict=False))
        return statistics.median(ours / theirs for ours, theirs in pairs) if pairs else None

    @property
    def met(self) -> bool | None:
        """Whether the bound is kept; None when there is none."""
        value = self.ratio if self.judged == "ratio" else self.figure
        if self.bound is None or value is None:
            return None
        return value <= self.bound if self.at_most else value >= self.bound

    def as_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "figure": self.figure,
            "yardstick": self.yardstick,
            "ratio": self.ratio,
            "met": self.met,
        }


def number(value: float | None) -> str:
    """Three significant digits, thousands with commas."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(rows: Sequence[Row]) -> Table:
    """All rows, for a terminal."""
    shown = Table("scenario", "what", "figure", "yardstick", "ratio", "at least", "", title="Shell Service, measured")
    for row in rows:
        unit = " ×" if row.judged == "ratio" else f" {row.unit}"
        bound = f"{'≤' if row.at_most else '≥'} {row.bound:g}{unit}" if row.bound is not None else ""
        verdict = {True: "[green]met[/]", False: "[bold red]MISSED[/]", None: ""}[row.met]
        figure = f"{number(row.figure)} {row.unit}" if row.rounds else "–"
        yardstick = f"{number(row.yardstick)} {row.unit}\n{row.yardstick_what}" if row.yardstick is not None else "–"
        ratio = f"{row.ratio:.2f} ×" if row.ratio is not None else ""
        what = f"{row.what}\n[dim]{row.note}[/]" if row.note else row.what
        shown.add_row(row.scenario, what, figure, yardstick, ratio, bound, verdict, end_section=True)
    return shown


def report(rows: Sequence[Row], options: dict[str, Any], output: Path, console: Console) -> None:
    """Print the table, and write everything measured to `output`."""
    console.print(table(rows))
    output.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "version": __version__,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"processors": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
        "load_before": options.pop("load_before"),
        "options": options,
        "rows": [row.as_json() for row in rows],
    }
    output.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    console.print(f"written to {output}")
