"""What the documentation site needs: every public name says what it is, every page has its place,
and the files that describe the project agree. `make docs` builds the site itself.
"""

import datetime
import importlib
import inspect
import pathlib
import re
import types
from collections.abc import Iterator

import pytest
import yaml

import xlstm_jax

ROOT = pathlib.Path(__file__).parents[1]


def modules() -> Iterator[types.ModuleType]:
    for package in ("xlstm_jax", "pallas_kernels"):
        for file in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            if file.name != "__main__.py":
                yield importlib.import_module(name.removesuffix(".__init__"))


def public_names(module: types.ModuleType) -> Iterator[tuple[str, object]]:
    """Functions, classes and their methods that a module defines, by dotted name."""
    for name, thing in vars(module).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(thing):
            yield f"{module.__name__}.{name}", thing
            for member, kept in vars(thing).items():
                function = getattr(kept, "fget", getattr(kept, "__func__", kept))
                is_default = member in getattr(thing, "__dataclass_fields__", {})
                if inspect.isfunction(function) and not member.startswith("_") and not is_default:
                    yield f"{module.__name__}.{name}.{member}", getattr(thing, member)
        elif callable(thing) and inspect.isfunction(inspect.unwrap(thing)):
            yield f"{module.__name__}.{name}", thing


def test_every_public_name_is_documented():
    """A method may inherit what it says."""
    found = list(modules())
    undocumented = [module.__name__ for module in found if not module.__doc__]
    for module in found:
        undocumented += [name for name, thing in public_names(module) if not inspect.getdoc(thing)]
    assert len(found) > 200 and not undocumented


SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def pages(nav: object) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from pages(part)


def test_every_page_has_its_place_in_the_site():
    moved = {"index.md", "changelog.md", "contributing.md"}  # README.md and others of the root
    written = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(pages(SITE["nav"])) == sorted(written | moved)


def test_the_citation_file_has_what_its_format_requires():
    """Citation File Format 1.2.0: required keys, and those of a reference and of an author."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert "version" not in citation  # xlstm_jax/__init__.py says it
    for cited in (citation, *citation["references"]):
        needed = ("message", "title") if cited is citation else ("type", "title")
        assert all(isinstance(cited[key], str) and cited[key] for key in needed)
        for author in cited["authors"]:
            assert author.keys() in ({"name"}, {"family-names", "given-names"})
    assert citation["license"] == "Apache-2.0"


def test_the_changelog_begins_with_what_is_unreleased_and_ends_with_the_versions():
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    versions = [re.fullmatch(r"(\d+\.\d+\.\d+) \((.*)\)", heading) for heading in headings[1:]]
    assert versions[0][1] == xlstm_jax.__version__
    for version in versions:
        datetime.date.fromisoformat(version[2])
    numbers = [tuple(map(int, version[1].split("."))) for version in versions]
    assert numbers == sorted(numbers, reverse=True)


@pytest.mark.parametrize("page", [ROOT / "README.md"])
def test_readmes_first_screen_has_all_that_a_stranger_looks_for(page):
    """What it is, one figure, one measured table with its command, and the two commands."""
    first = page.read_text().partition("\n## ")[0]
    assert len(re.findall(r"^!\[.+\]\(docs/.+\.png\)", first, re.MULTILINE)) == 1
    assert len(re.findall(r"^\|[-:|]+\|$", first, re.MULTILINE)) == 1
    assert "pip install" in first and "xlstm-train --config=quickstart" in first
