"""A benchmark on a terminal: a line for each model at each size of input."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from qcompile.compiler.reporting.wording import count, plain, shortened, significant, times
from qcompile.runtime.benchmark.results import Benchmark, Row

_WIDTH, _LEAST = 40, 24


def show_benchmark(found: Benchmark, inputs: str, console: Console) -> None:
    """Print `found`.

    Args:
        inputs: where they come from.
    """
    threads = f", {count(found.threads, 'thread')}" if found.threads else ""
    graphs = ", replaying CUDA graphs" if found.cuda_graphs else ""
    console.print(Text(plain(f"{found.provider} on {found.device}{threads}{graphs}"), "bold"))
    console.print(Padding(Text(f"{plain(found.why)}; inputs {plain(inputs)}", "dim"), (0, 0, 0, 2)))
    console.print(Padding(_table(found), (0, 0, 0, 2)))
    console.print(Padding(Text(_ceilings(found), "dim"), (0, 0, 0, 2)))


def short_names(found: Benchmark) -> dict[str, str]:
    """Models by the names of their files, where these differ."""
    files = [Path(model).name for model in found.models]
    alike = len(set(files)) < len(files)
    return {m: shortened(m if alike else Path(m).name, _WIDTH) for m in found.models}


def sizes(row: Row) -> str:
    """'batch 8', 'batch 1, decode after 128 tokens'."""
    words = {"": "{} tokens", "prefill": "prefill of {} tokens", "decode": "decode after {} tokens"}[row.phase]
    return f"batch {row.batch}" + (f", {words.format(row.sequence)}" if row.sequence is not None else "")


def _table(found: Benchmark) -> Table:
    names, several = short_names(found), len({(r.batch, r.sequence, r.phase) for r in found.rows}) < len(found.rows)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", no_wrap=True, min_width=min(max(map(len, names.values())) + 2, _LEAST))
    for title in ("ms\n± spread", f"{found.unit}/s\n", "GFLOP/s\nof ceiling", "GB/s\nof ceiling"):
        table.add_column(title, justify="right", no_wrap=True)
    if several:
        table.add_column(f"{names[found.models[0]]}\nis", overflow="ellipsis")
    before = ""
    for row in found.rows:
        if (here := sizes(row)) != before:
            table.add_row(Text(here, "bold"))
            before = here
        table.add_row(
            Text(f"  {names[row.model]}"),
            f"{significant(row.milliseconds)} ±{row.spread / 2:3.0%}",
            significant(row.per_second),
            f"{significant(row.gflops)} {_share(row.of_products)}",
            f"{significant(row.gbytes)} {_share(row.of_copy)}",
            *([_faster(row)] if several else []),
        )
    return table


def _share(share: float | None) -> str:
    return "   -" if share is None else f"{share:4.0%}"


def _faster(row: Row) -> Text:
    if row.times_faster is None:
        return Text("")
    return Text(
        f"{times(row.times_faster, 'faster', 'SLOWER')} ±{(row.times_faster_spread or 0) / 2:.0%}",
        "green" if row.times_faster >= 1 else "red",
    )


def _ceilings(found: Benchmark) -> str:
    products = [f"{significant(rate)} GFLOP/s in products of {kind}" for kind, rate in found.products.items()]
    return f"ceilings measured in this run: {', '.join([*products, f'{significant(found.copy)} GB/s in a copy'])}"
