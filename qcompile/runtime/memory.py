"""How much memory this process may still take: of the machine, of its control group, under its resource limits."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


def free_bytes() -> int:
    """The least of what these leave; where nothing can be known, as much as can be addressed."""
    return max(0, min([*_machine(), *_groups(), *_limits()], default=sys.maxsize))


def _machine() -> Iterator[int]:
    for name, size in _table(Path("/proc/meminfo")).items():
        if name == "MemAvailable":
            yield size
            return
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not on Windows
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _groups() -> Iterator[int]:
    """Of the process's control groups and those above; files that are only cached are taken back when it matters."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, name = line.split(":", 2)
            if kinds == "":
                yield from _group(_GROUPS, name, "memory.max", "memory.current")
            elif "memory" in kinds.split(","):
                yield from _group(_GROUPS / "memory", name, "memory.limit_in_bytes", "memory.usage_in_bytes")


def _group(root: Path, name: str, limit: str, used: str) -> Iterator[int]:
    inner = root / name.lstrip("/")
    for folder in (inner, *inner.parents):
        if folder.is_relative_to(root):
            with contextlib.suppress(OSError, ValueError):  # no such file in the root group; "max" is no number
                cached = _table(folder / "memory.stat", unit=1)
                yield (
                    int((folder / limit).read_text())
                    - int((folder / used).read_text())
                    + cached.get("inactive_file", 0)
                    + cached.get("active_file", 0)
                )


def _limits() -> Iterator[int]:
    """`ulimit -d` and `ulimit -v`."""
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        status = _table(Path("/proc/self/status"))
        for kind, used in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
            limit, _ = resource.getrlimit(kind)
            if limit != resource.RLIM_INFINITY:
                yield limit - status.get(used, 0)


def _table(file: Path, unit: int = 1024) -> dict[str, int]:
    """The numbers of a file of names and numbers, in bytes."""
    found: dict[str, int] = {}
    with contextlib.suppress(OSError):
        for line in file.read_text().splitlines():
            words = line.replace(":", " ").split()
            if len(words) > 1 and words[1].isdigit():
                found[words[0]] = int(words[1]) * unit
    return found
