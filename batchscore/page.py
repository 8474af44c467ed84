"""HTML pages that stand alone: their style, how values become text in them, and what they forbid the browser."""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from batchscore import charts
from batchscore.rounding import rounded

__all__ = ["instant", "source_hash", "style", "template"]

# A date, with the time and the zone behind it where there are some.
_DATE = re.compile(r"(\d{4}-\d{2}-\d{2}(?:[ T]\d{2}:\d{2}(?: ?UTC|Z)?)?)")
_COMMAND = re.compile(r"(.*?)(\bbatchscore [a-z].*?)(\.?)", re.DOTALL)
_WHOLE = Markup('<span class="t">{}</span>')


def style() -> Markup:
    """The style sheet of every page, with that of the charts."""
    sheet = Path(__file__).with_name("page.css").read_text("utf-8")
    return Markup(charts.STYLE + sheet)  # noqa: S704 - ours


def template(path: Path) -> Template:
    """The template in a file; what it is given is escaped, and what it is not given raises."""
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters.update(fixed=rounded, share=_share, instant=instant, folding=_folding, dated=_dated, told=_told)
    return page.from_string(path.read_text("utf-8"))


def source_hash(text: str) -> str:
    """What a Content-Security-Policy names one inline script or style sheet by, to allow it and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def instant(value: datetime | str) -> str:
    """An instant, or its ISO 8601, in UTC: `2013-10-01 04:00 UTC`."""
    known = datetime.fromisoformat(value) if isinstance(value, str) else value
    return f"{known.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _dated(text: str) -> Markup:
    """A text whose dates and instants stay on one line each."""
    parts = _DATE.split(text)
    # Every other part is a date.
    return Markup().join(_WHOLE.format(part) if i % 2 else part for i, part in enumerate(parts))


def _told(text: str) -> Markup:
    """The same, with a command at its end as code of which each word stays on one line."""
    found = _COMMAND.fullmatch(text)
    if not found:
        return _dated(text)
    words, command, end = found.groups()
    code = Markup(" ").join(_WHOLE.format(word) for word in command.split())
    return _dated(words) + Markup("<code>{}</code>").format(code) + end


def _folding(name: str) -> Markup:
    """A name that may go on in another line behind an underscore."""
    return Markup("_<wbr>").join(name.split("_"))
