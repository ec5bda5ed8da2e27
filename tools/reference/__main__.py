"""Write the generated pages; with --check, fail when one is out of date."""

from __future__ import annotations

import sys

from tools.reference import DOCS, pages


def main(check: bool) -> int:
    stale = [p for p, text in pages().items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    for path in stale:
        print(("out of date: " if check else "written: ") + str(path.relative_to(DOCS.parent)))
        if not check:
            path.write_text(pages()[path], encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main("--check" in sys.argv))
