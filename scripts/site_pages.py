"""What mkdocs adds to docs/ (a hook of mkdocs.yml): README, CHANGELOG and CONTRIBUTING, a page of
the reference for each package, and a page for each file of the project that a page links to.

Links in all pages are those of the repository; here they are turned into those of the site.
"""

import ast
import pathlib
import posixpath
import re
from collections.abc import Iterator
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).resolve().parents[1]
MOVED = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
LINK = re.compile(r"(?<=\]\()(?![a-z]+:)([^)#\s]+)")  # the file of a relative link
PACKAGES = ("xlstm_jax", "pallas_kernels")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that do not lie in docs/."""
    texts = {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    texts |= {name: (ROOT / name).read_text() for name in MOVED}
    for name, page in MOVED.items():
        files.append(File.generated(config, page, content=texts[name]))
    linked = {target for name, text in texts.items() for target in _targets(name, text)}
    for target in sorted(linked):
        if _page_of(target).startswith("files/"):
            code = (ROOT / target).read_text()
            text = f"# {target}\n\n````{pathlib.Path(target).suffix[1:]}\n{code}\n````\n"
            hidden = InclusionLevel.NOT_IN_NAV
            files.append(File.generated(config, _page_of(target), content=text, inclusion=hidden))
    reference = []
    for title, modules in _rooms():
        page = f"reference/{title.replace('.', '/')}.md"
        files.append(File.generated(config, page, content=_reference(title, modules)))
        reference.append({title: page})
    config.nav.append({"Reference": reference})
    return files


def on_page_markdown(markdown: str, page: Page, **_) -> str:
    """Turns links to files of the repository into links to pages of the site."""
    if page.file.src_uri.startswith(("files/", "reference/")):
        return markdown
    own = next((n for n, p in MOVED.items() if p == page.file.src_uri), f"docs/{page.file.src_uri}")
    return LINK.sub(lambda link: _page_of(_repository_path(own, link[1])), markdown)


class NamesTogether(griffe.Extension):
    """Docstrings here may describe several arguments or attributes in one line: "rows, columns: of
    the table". The reference wants a line for each.
    """

    LINE = re.compile(r"^    (\w+(?:, \w+)+): (.*(?:\n {8}.*)*)", re.MULTILINE)

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called with everything that is read, before its docstring is."""
        if obj.docstring is not None:
            obj.docstring.value = self.LINE.sub(
                lambda line: "\n".join(f"    {name}: {line[2]}" for name in line[1].split(", ")),
                obj.docstring.value,
            )


def _targets(name: str, text: str) -> Iterator[str]:
    """The files of the repository that the page of a file links to."""
    for link in LINK.findall(text):
        target = _repository_path(name, link)
        if (ROOT / target).is_file():
            yield target


def _repository_path(name: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), link))


def _page_of(target: str) -> str:
    """Where a file of the repository lies in the site; pages that link to it lie at its top."""
    if target in MOVED:
        return MOVED[target]
    return target.removeprefix("docs/") if target.startswith("docs/") else f"files/{target}.md"


def _rooms() -> Iterator[tuple[str, list[str]]]:
    """The packages by name, each with its modules; those of xlstm_jax with all that is below."""
    for top in PACKAGES:
        yield top, [top, *_modules(ROOT / top, "*.py")]
        for folder in sorted(path.parent for path in (ROOT / top).glob("*/__init__.py")):
            name = f"{top}.{folder.name}"
            yield name, [name, *_modules(folder, "**/*.py")]


def _modules(folder: pathlib.Path, pattern: str) -> list[str]:
    """Dotted names; a package comes before its modules."""
    paths = (path for path in folder.glob(pattern) if path.name != "__main__.py")
    names = (path.relative_to(ROOT).with_suffix("") for path in paths)
    dotted = {str(name).replace("/", ".").removesuffix(".__init__") for name in names}
    return sorted(dotted - {str(folder.relative_to(ROOT)).replace("/", ".")})


def _reference(title: str, modules: list[str]) -> str:
    """A page of mkdocstrings: of packages what they say and what can be imported from them, of
    modules everything.
    """
    lines = [f"# {title}", ""]
    for module in modules:
        package = ROOT / module.replace(".", "/") / "__init__.py"
        lines += [f"::: {module}"]
        if package.is_file():
            lines += ["    options: { members: false }"] if _exported(package) else []
            names = [f"[`{name}`][{origin}.{name}]" for name, origin in _exported(package)]
            lines += ["", f"From `{module}` can be imported: {', '.join(names)}."] if names else []
        lines += [""]
    return "\n".join(lines)


def _exported(package: pathlib.Path) -> list[tuple[str, str]]:
    """The names of `__all__` that a package imports, each with the module that defines it."""
    tree = ast.parse(package.read_text())
    listed = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    origins = {
        alias.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return [(name, origins[name]) for names in listed for name in names if name in origins]
