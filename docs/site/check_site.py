"""
Look at a built site as a browser without a network would: every link and anchor within it must lead somewhere, and no
page or style sheet may load anything from elsewhere.

    python docs/site/check_site.py build/docs
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


# What a browser fetches by itself, or may, before anybody clicks.
LOADED = dict.fromkeys(("img", "script", "iframe", "source", "video"), "src") | {"link": "href", "use": "href"}
LOADING_IN_STYLES = re.compile(r"(?:url\(|@import)\s*[\"']?\s*(?:https?:)?//[^)\"'\s]+")
LOADING_IN_SCRIPTS = re.compile(r"(?:fetch|import|importScripts)\(\s*[\"'`](?:https?:)?//[^\"'`]+")


class Page(HTMLParser):
    """The anchors of a page, its links, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}  # type: ignore[misc]
        if tag == "a" and values.get("href"):
            self.links.add(values["href"])  # type: ignore[arg-type]
        if tag in LOADED and values.get(LOADED[tag]):
            self.loaded.add(values[LOADED[tag]])  # type: ignore[arg-type]

    handle_startendtag = handle_starttag


def find_faults(site: Path) -> list[str]:
    """What is wrong, a line for each; addresses elsewhere that are only linked to are not looked at."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    faults = [] if pages else [f"{site}: expected a built site, found no page"]
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        for address in sorted(page.links | page.loaded):
            parts = urlsplit(address)
            if parts.scheme in ("data", "mailto"):
                continue
            if parts.scheme or parts.netloc:
                if address in page.loaded:
                    faults.append(f"{name}: loads {address}")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                faults.append(f"{name}: {address} leads nowhere")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                faults.append(f"{name}: {address} has no such anchor")
    for suffix, pattern in ((".css", LOADING_IN_STYLES), (".js", LOADING_IN_SCRIPTS), (".html", LOADING_IN_STYLES)):
        for path in sorted(site.rglob(f"*{suffix}")):
            found = pattern.findall(path.read_text(encoding="utf-8"))
            faults += [f"{path.relative_to(site)}: loads {what}" for what in found]
    return faults


def main(args: list[str] | None = None) -> int:
    (site,) = sys.argv[1:] if args is None else args
    faults = find_faults(Path(site))
    print("\n".join(faults) or f"{site}: every link leads somewhere, and nothing is loaded from elsewhere")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
