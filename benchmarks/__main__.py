"""``python -m benchmarks``: start a service of its own, measure it, print a table and write a JSON file."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import uvloop
import yaml
from rich.console import Console

from benchmarks.bench import OVERRIDES, Bench
from benchmarks.results import Row, report
from benchmarks.scenarios import SCENARIOS
from tests.stack import Stack

DEFAULT_OUTPUT = Path(__file__).resolve().parent.parent / "data" / "bench.json"


@click.command()
@click.option(
    "--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Settings to measure with."
)
@click.option("--only", multiple=True, type=click.Choice(list(SCENARIOS)), help="This scenario; may be repeated.")
@click.option("--quick", is_flag=True, help="A fifth of the work, each once: to see that it runs.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), default=DEFAULT_OUTPUT, show_default=True)
def main(config: Path | None, only: Sequence[str], quick: bool, output: Path) -> None:
    """Measure the service beside its yardsticks.

    It runs in a folder and on a port of its own, beside a running service and without touching it; but whatever else
    runs on this machine makes the figures smaller. Ends with 0 even if a figure misses its bound: the table says so.
    """
    console = Console() if sys.stdout.isatty() else Console(width=150)
    options: dict[str, Any] = {"quick": quick, "only": list(only), "load_before": os.getloadavg()[0]}
    began = time.monotonic()
    names = only or list(SCENARIOS)
    rows: list[Row] = []
    overrides = _overrides(config)
    console.print("starting a service to measure")
    with Stack(**overrides) as stack:

        async def measure() -> None:
            bench = await Bench.set_up(stack, overrides, quick)
            for name in names:
                started = time.monotonic()
                rows.extend(await SCENARIOS[name](bench))
                console.print(f"measured {name} in {time.monotonic() - started:.0f} s")
                await asyncio.sleep(1)  # what the one left to do is not counted against the next

        uvloop.run(measure())
    options["seconds"] = round(time.monotonic() - began)
    report(rows, options, output, console)


def _overrides(config: Path | None) -> dict[str, Any]:
    """The sections of a configuration file, under what the benchmarks need."""
    given = (yaml.safe_load(config.read_text()) or {}) if config else {}
    sections = {name: value for name, value in given.items() if isinstance(value, dict)}
    sections.get("server", {}).pop("port", None)
    return {name: {**sections.get(name, {}), **OVERRIDES.get(name, {})} for name in {**sections, **OVERRIDES}}


if __name__ == "__main__":
    main()
