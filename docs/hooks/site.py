"""What the site adds to mkdocs: files of the repository that pages link to become pages, and public names are checked.

A link of a page to a file outside docs/, such as `../examples/tutorial.py`, works in the repository. On the site it
leads to a page with the text of that file, or to a copy of a file of data.
"""

import logging
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))
from reference import missing

LOG = logging.getLogger("mkdocs.hooks.site")
ROOT = Path(__file__).resolve().parents[2]
FOLDER = "repository"
LANGUAGES = {".py": "python", ".mjs": "javascript", "": "make"}
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
CODE = re.compile(r"(^```.*?^```|`[^`\n]*`|<!--.*?-->)", re.M | re.S)


def links(text: str) -> list[str]:
    """The targets of the links of a page, without those in code."""
    return [target for _, target, _ in LINK.findall(CODE.sub("", text))]


def outside(page: str, target: str) -> str | None:
    """The path in the repository of the target of a link in a page of docs/, if it is a file outside docs/."""
    if "://" in target or target.startswith("mailto:"):
        return None
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    return None if path.startswith(("docs/", "..")) or not (ROOT / path).is_file() else path


def place(path: str) -> str:
    """The page of a file of the repository: Markdown and data keep their name, code is shown in a page."""
    suffix = posixpath.splitext(path)[1]
    return f"{FOLDER}/{path}.md" if suffix in LANGUAGES else f"{FOLDER}/{path}"


def content(path: str) -> str:
    """The text of the page of a file of the repository."""
    text, suffix = (ROOT / path).read_text(), posixpath.splitext(path)[1]
    if suffix == ".md":  # a link to a page of docs/ is one up from the folder of these pages
        return relinked(text, f"../{path}")
    if suffix in LANGUAGES:
        return f"# {path}\n\n````{LANGUAGES[suffix]}\n{text}````\n"
    return text


def relinked(text: str, page: str) -> str:
    """A page whose links lead to pages of the site; `page` is its place relative to docs/, in the repository."""
    here = place(page[3:]) if page.startswith("../") else page

    def replaced(match: re.Match[str]) -> str:
        target = match[2]
        path = outside(page, target)
        if path is not None:
            target = posixpath.relpath(place(path), posixpath.dirname(here) or ".")
        elif here != page and "://" not in target:  # a link into docs/ from a page that moved
            into = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
            target = posixpath.relpath(into.removeprefix("docs/"), posixpath.dirname(here))
        return f"{match[1]}{target}{match[3]}"

    parts = CODE.split(text)
    return "".join(part if i % 2 else LINK.sub(replaced, part) for i, part in enumerate(parts))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of files of the repository that pages link to, and those that these link to."""
    todo = [(f.src_uri, Path(f.abs_src_path or "").read_text()) for f in files.documentation_pages()]
    known = {"CHANGELOG.md", "CONTRIBUTING.md"}
    todo += [(f"../{path}", (ROOT / path).read_text()) for path in sorted(known)]
    while todo:
        page, text = todo.pop()
        for path in filter(None, (outside(page, target) for target in links(text))):
            if path not in known:
                known.add(path)
                if path.endswith(".md"):
                    todo.append((f"../{path}", (ROOT / path).read_text()))
    for path in sorted(known):
        files.append(File.generated(config, place(path), content=content(path)))
    return files


def on_nav(nav: Any, config: MkDocsConfig, files: Files) -> Any:
    """Warn of public names without a page or a docstring: with `strict` the build fails."""
    for text in missing():
        LOG.warning(text)
    return nav


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead the links of a page to pages of the site."""
    return markdown if page.file.src_uri.startswith(f"{FOLDER}/") else relinked(markdown, page.file.src_uri)
