"""What MkDocs runs as it builds the site: pages made from the code, and the repository's files that pages lead to."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pages import commands, mechanisms, options, repository

MADE: dict[str, Callable[[], str]] = {
    "options.md": options.page,
    "mechanisms.md": mechanisms.page,
    "commands.md": commands.page,
}
"""Pages of which nothing is written by hand."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages of docs/ with those made, and with what they and the navigation lead to."""
    made = {name: page() for name, page in MADE.items()}
    for name, text in made.items():
        files.append(File.generated(config, name, content=repository.rewritten(text, f"docs/{name}")))
    known = {file.src_uri for file in files if not file.inclusion.is_excluded()}
    sources = [f"docs/{name}" for name in known - made.keys() if name.endswith(".md")]
    sources += [name.removeprefix("repository/") for name in named(config.nav) if name.startswith("repository/")]
    for text in made.values():
        sources += repository.linked(text, "docs/")
    for path in sorted(repository.closure(sources)):
        if (name := repository.place(path)) not in known:
            files.append(_file(path, name, config))
    add_to_navigation(config, known)
    return files


def _file(path: str, name: str, config: MkDocsConfig) -> File:
    if Path(path).suffix in repository.CODE:
        return File.generated(config, name, content=repository.shown(path))
    return File.generated(config, name, abs_src_path=str(repository.ROOT / path))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links and includes; pages of code and of the README, parts of which are on the first page, are not searched."""
    name = page.file.src_uri
    path = name.removeprefix("repository/") if name.startswith("repository/") else f"docs/{name}"
    if name in MADE:
        return markdown
    if not (repository.ROOT / path).is_file():
        page.meta["search"] = {"exclude": True}
        return markdown
    if path == "README.md":
        page.meta["search"] = {"exclude": True}
    return repository.rewritten(repository.markdown_of(path), path)


def named(nav: Any) -> Iterator[str]:
    """The files that a navigation names."""
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav or ():
            yield from named(entry)


def add_to_navigation(config: MkDocsConfig, known: set[str]) -> None:
    """Pages of docs/ that mkdocs.yml does not name, under a heading of their own: none is forgotten."""
    assert config.nav
    there = set(named(config.nav))
    if left := sorted(name for name in known - there if name.endswith(".md")):
        config.nav = [*config.nav, {"More": left}]
