"""The status report on a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from services.status.report import limits_line

_STYLES = {
    "ok": "green",
    "taken": "green",
    "up": "green",
    "RUNNING": "green",
    "DONE": "green",
    "live": "green",
    "degraded": "yellow",
}


def show(report: dict[str, Any]) -> None:
    """Print the report of `services.status.report.collect`."""
    console = Console(highlight=False)
    console.print(f"Shell Service {report['version']}: {_coloured(report['status'])}")
    _table(
        console,
        ("process", "state", "up"),
        [
            (p["name"], _coloured(p["state"]), duration(p["uptime_seconds"]) if p["uptime_seconds"] else "")
            for p in report["processes"] or []
        ],
        "nothing runs here: `make run` starts it",
    )
    database = report["database"]
    known = ", PostgreSQL {version}, answers in {latency_ms} ms".format(**database) if database["version"] else ""
    console.print(f"database: {_coloured(database['state'])}{known}")
    _table(
        console,
        ("runner", "state", "running", "slots", "heartbeat", "jobs"),
        [
            (r["name"], _coloured(r["state"]), str(r["running"]), str(r["slots"]),
             f"{duration(r['heartbeat_age_seconds'])} ago", _coloured(r["jobs"]))
            for r in report["runners"] or []
        ],
        "runners: unknown" if report["runners"] is None else "no runner has registered",
    )  # fmt: skip
    for r in report["runners"] or []:
        style = "red" if r["sandbox"].startswith("none") else "green"
        console.print(f"{r['name']}: sandbox: [{style}]{r['sandbox']}[/]; network: {r['network']}")
        console.print(f"  limits {limits_line(r['limits'])}")
        if r["missing"]:
            console.print(f"  [red]needed: {r['missing']}[/]")
    console.print("queue: " + queue_line(report["queue"]))


def queue_line(queue: dict[str, Any] | None) -> str:
    """How many jobs are ready, deferred and running, in words."""
    if queue is None:
        return "unknown"
    return ", ".join(f"{count(queue[name], queue['counted_to'])} {name}" for name in ("ready", "deferred", "running"))


def count(number: int | None, limit: int) -> str:
    """A count that stopped at `limit`, or that nobody knows."""
    if number is None:
        return "unknown"
    return f"more than {limit:,}" if number > limit else f"{number:,}"


def duration(seconds: float) -> str:
    """Seconds as people say them, such as ``3 h 20 min``."""
    whole = int(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def _coloured(word: str) -> str:
    return f"[{_STYLES.get(word, 'red')}]{word}[/]"


def _table(console: Console, columns: tuple[str, ...], rows: list[tuple[str, ...]], otherwise: str) -> None:
    if not rows:
        console.print(otherwise)
        return
    table = Table(*columns, box=None, padding=(0, 2, 0, 0), header_style="bold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
