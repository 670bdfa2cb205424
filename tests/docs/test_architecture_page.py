"""Every module, class and function that docs/architecture.md and CONTRIBUTING.md name exists."""

from __future__ import annotations

import ast
import re

from pages import DOCS, links

ROOT = DOCS.parent
PACKAGES = {"offrld": ROOT, "offrl": ROOT / "client", "offrl_store": ROOT / "datastore"}
PAGE = DOCS / "architecture.md"


def exists(name: str) -> bool:
    """Whether a dotted name is a package, a module, or a class, function or variable of a module; nothing is imported."""
    first, *_ = parts = name.split(".")
    path = PACKAGES[first]
    for position, part in enumerate(parts, 1):
        path = path / part
        if path.with_suffix(".py").is_file():
            return defines(ast.parse(path.with_suffix(".py").read_text()).body, parts[position:])
        if not path.is_dir():
            return False
    return (path / "__init__.py").is_file()


def defines(body: list[ast.stmt], parts: list[str]) -> bool:
    if not parts:
        return True
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name == parts[0]:
            return defines(node.body, parts[1:])
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        if any(isinstance(target, ast.Name) and target.id == parts[0] for target in targets):
            return len(parts) == 1
    return False


def walks() -> dict[str, str]:
    section = PAGE.read_text().split("## Walks through the code\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^### (\S+ \w+).*?$\n(.*?)(?=^### |\Z)", section, re.MULTILINE | re.DOTALL))


def test_the_page_has_the_seven_walks_each_a_list_of_functions():
    assert list(walks()) == ["An upload", "A spec", "A transition", "A metric", "A policy", "A setting", "A cancel"]
    for title, text in walks().items():
        assert len(re.findall(r"^\d+\. ", text, re.MULTILINE)) >= 6, title
        assert len(re.findall(r"`offrl\w*\.[\w.]+`", text)) >= 6, title


def test_every_name_on_the_page_exists():
    names = re.findall(r"`((?:offrld|offrl_store|offrl)(?:\.\w+)+)`", PAGE.read_text())
    assert len(names) > 50
    assert [name for name in names if not exists(name)] == []


def test_a_name_that_is_gone_is_noticed():
    assert exists("offrld.settings.resolve") and exists("offrld.daemon.workers")
    assert not exists("offrld.settings.resolved") and not exists("offrld.daemon.nowhere") and not exists("offrld.settings.resolve.x")


def test_every_path_in_the_pages_exists():
    for page in (PAGE, ROOT / "CONTRIBUTING.md"):
        names = re.findall(r"`((?:client|datastore|offrld|tests|tools|docs)/[\w./*-]*)`", page.read_text())
        assert names
        fixed = [name for name in names if not re.search(r"[A-Z]{3}", name)]  # NAME and FORMAT are yours to choose
        missing = [name for name in fixed if not list(ROOT.glob(name.rstrip("/")))]
        assert missing == [], page.name


def test_every_link_of_the_documentation_leads_to_a_file_and_a_heading():
    for page in [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]:
        for target in links(page):
            assert target.exists(), f"{page.name}: {target}"
        for file, anchor in re.findall(r"\]\(([^)#:\s]*)#([^)\s]+)\)", page.read_text()):
            text = (page.parent / file).read_text() if file else page.read_text()
            titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
            assert anchor in {slug(title) for title in titles}, f"{page.name}: {file}#{anchor}"


def slug(title: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()).replace(" ", "-")
