"""Progress on the terminal: what is being done, how far it is, and the time left. Lines go to stderr."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class TerminalProgress:
    """A Progress whose works may nest; each has its bar while it lasts. Silent where stderr is no terminal."""

    def __init__(self) -> None:
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._tasks: list[TaskID] = []

    def __enter__(self) -> TerminalProgress:
        if self._bars.console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars.console.is_terminal:
            self._bars.stop()

    def start(self, what: str, total: int | None) -> None:
        self._tasks.append(self._bars.add_task(what[:1].upper() + what[1:], total=total))

    def advance(self, steps: int = 1) -> None:
        self._bars.advance(self._tasks[-1], steps)

    def finish(self) -> None:
        self._bars.remove_task(self._tasks.pop())
