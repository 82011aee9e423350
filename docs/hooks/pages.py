"""What MkDocs adds to the pages of this folder: pages from the program and from files beside it, nav, links, marks."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from cli_pages import command_page, commands, overview_page
from error_pages import troubleshooting_page

ROOT = Path(__file__).parents[2]
CLI = "reference/cli"
BESIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/*.md", "benchmarks/*.png", "examples/*/README.md")
"""What the site takes from the repository outside this folder, under the same names."""
MENTION = re.compile(r"(?<!\[)`((?:docs|benchmarks|examples)/[\w/.-]+\.md|C[A-Z]+\.md)`(?!\])")
NEEDS = re.compile(r"^<!-- needs: (.+?) -->\n(?=```\w)", re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill in the parts of the nav that follow from the program and the folder."""
    nav: list[Any] = config.nav or []
    _section(nav, "Reference").insert(
        0, {"Command line": [f"{CLI}/index.md", *(f"{CLI}/{name}.md" for name in commands())]}
    )
    docs = Path(config.docs_dir)
    examples = [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("examples/*/README.md"))]
    _section(nav, "Guides").append({"Examples": examples})
    _section(nav, "About").append({"Decisions": [f"adr/{path.name}" for path in sorted((docs / "adr").glob("*.md"))]})
    named = set(_names(nav))
    _section(nav, "Guides")[-1:-1] = [path.name for path in sorted(docs.glob("*.md")) if path.name not in named]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    made = {f"{CLI}/{name}.md": command_page(name, parser) for name, parser in commands().items()}
    made |= {f"{CLI}/index.md": overview_page(), "troubleshooting.md": troubleshooting_page(ROOT)}
    for path in (path for pattern in BESIDE for path in sorted(ROOT.glob(pattern))):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix == ".md":
            made[name] = path.read_text(encoding="utf-8").replace("](../docs/", "](../")
        else:
            files.append(File.generated(config, name, abs_src_path=str(path)))
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links where a file of the repository is named, and a visible line where a block says what it needs."""

    def link(found: re.Match[str]) -> str:
        name = found[1].removeprefix("docs/")
        if files.get_file_from_path(name) is None:
            return found[0]
        return f"[`{found[1]}`]({posixpath.relpath(name, posixpath.dirname(page.file.src_uri) or '.')})"

    return NEEDS.sub(r"<small>Needs \1.</small>\n\n", MENTION.sub(link, markdown))


def _section(nav: list[Any], title: str) -> list[Any]:
    """The entries of a section of the nav."""
    found: list[Any] = next(entry[title] for entry in nav if isinstance(entry, dict) and title in entry)
    return found


def _names(entry: Any) -> list[str]:
    """Every page that a part of the nav names."""
    if isinstance(entry, str):
        return [entry]
    inside = entry.values() if isinstance(entry, dict) else entry
    return [name for part in inside for name in _names(part)]
