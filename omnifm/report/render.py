"""The one way from what a page shows to its HTML: the templates of this package, with every text escaped."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, page: object) -> bytes:
    """Return a self-contained HTML page.

    The page's policy forbids scripts and every request, so that it can be mailed and opened offline.

    Args:
        template: name of a file in `omnifm/report/templates/`.
        page: what the template shows, a dataclass with a `title`.
    """
    text = _environment().get_template(template).render(page=page)
    return text.encode(errors="replace")  # half of a character pair in a site's name must not end a run


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("omnifm.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
