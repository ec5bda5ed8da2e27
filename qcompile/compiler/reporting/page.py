"""One self-contained HTML page: templates, style and script are put together, nothing is fetched.

Templates escape every value. A content security policy allows the page's own script by its hash
and nothing else, so that even a name that slipped through could not run.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from qcompile.compiler.reporting import wording

if TYPE_CHECKING:
    from jinja2 import Environment

_FOLDER = Path(__file__).parent / "templates"


def render_page(template: str, **values: Any) -> str:
    """The page made from `templates/<template>` with `values`."""
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template(template)
        .render(
            style=Markup((_FOLDER / "page.css").read_text(encoding="utf-8")),
            script=Markup(script),
            policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:",
            **values,
        )
    )


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "plain": wording.plain,
        "shortened": wording.shortened,
        "significant": wording.significant,
        "data_size": wording.data_size,
        "duration": wording.duration,
        "milliseconds": wording.milliseconds,
        "decibel": wording.decibel,
        "cosine": wording.cosine,
    }
    environment.globals |= {"count": wording.count, "times": wording.times}
    return environment
