import ast
import graphlib
import re
import shlex
import sys
from pathlib import Path

import pytest

import ntk_inr as ni
from ntk_inr import cli
from ntk_inr.networks.catalogue import networks_of

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {path: path.read_text(encoding="utf-8") for path in [*DOCS.glob("*.md"), *DOCS.glob("api/*.md")]}


MODULES = sorted(set(dir(ni)) - set(ni.__all__))


def test_api_pages_have_each_public_name_once():
    """By the shortest way to it."""
    pages = "\n".join(text for path, text in PAGES.items() if path.parent.name == "api")
    described = re.findall(r"^\.\. (?:auto\w+|py:data):: ntk_inr\.([\w.]+)$", pages, re.MULTILINE)
    further = [f"{module}.{name}" for module in MODULES for name in set(dir(getattr(ni, module))) - set(ni.__all__)]
    assert sorted(described) == sorted([*ni.__all__, *further])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_page_says_first_what_one_will_know(path):
    title, _, first, *_ = PAGES[path].splitlines()
    assert title.startswith("# ")
    assert path.stem == "index" or first.startswith("At the end you ")


def commands():
    """Return every command of the pages, README and the Makefile: lines of code, and what stands between backticks."""
    cases = []
    for path in [*PAGES, ROOT / "README.md", ROOT / "Makefile"]:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        lines = re.findall(r"^\s*(?:\.venv/bin/|\$\(BIN\)/)?ntk-inr ([^#\n]+)", text, re.MULTILINE)
        for words in dict.fromkeys([*lines, *re.findall(r"`ntk-inr ([a-z][^`]*)`", text)]):
            cases.append(pytest.param(words, id=f"{path.stem}: {words.strip()}"))
    return cases


@pytest.mark.parametrize("words", commands())
def test_every_command_that_is_shown_is_one(words):
    """Its options exist, and its networks and their settings."""
    if "..." in words or words.strip() in ("compare", "fit", "tune", "report"):
        pytest.skip("an abbreviation")
    command = cli.parse(shlex.split(words))
    for names in [command.network.variant] if hasattr(command, "network") else []:
        assert networks_of(names)


def test_theory_has_every_formula_that_is_cited():
    # Chapters 1 to 11; nothing has the number 0, and Law(1.0) cites nothing.
    numbers = re.compile(r"\(T?((?:[1-9]|1[01])\.[1-9]\d?)\)")
    theory = PAGES[DOCS / "theory.md"]
    known = set(re.findall(r"\\tag\{([\d.]+)\}", theory)) | set(re.findall(r"\*\*\(([\d.]+)\)\*\*", theory))
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "ntk_inr").rglob("*.py"))
    cited = numbers.findall("\n".join(re.findall(r'"""(.*?)"""', sources, re.DOTALL)))
    report = (ROOT / "benchmarks" / "REPORT.md").read_text(encoding="utf-8")
    assert not {*cited, *numbers.findall(report)} - known


@pytest.mark.parametrize(
    "path", [*PAGES, *ROOT.glob("*.md"), ROOT / "benchmarks" / "REPORT.md"], ids=lambda path: path.stem
)
def test_links_lead_to_files(path):
    for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / link).exists(), link


def test_tables_are_made_of_what_was_measured(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(DOCS), *sys.path])
    import measured

    tables = measured.tables(ROOT / "benchmarks" / "results")
    included = set(re.findall(r"\{include\} _generated/(\w+)\.md", "\n".join(PAGES.values())))
    assert included == set(tables)
    assert tables["quality"].count("\n| `") >= 20
    assert all(f"| `{name}` |" in tables["camera_width128_depth3"] for name in ("relu", "pe+hadamard", "siren"))


def _imports():
    """Return each module of the package with the modules of the package that it imports, at its head or later."""
    paths = {path.with_suffix("").relative_to(ROOT).parts: path for path in (ROOT / "ntk_inr").rglob("*.py")}
    modules = {".".join(parts).removesuffix(".__init__"): path for parts, path in paths.items()}
    graph = {}
    for module, path in modules.items():
        imported = graph[module] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in modules:
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                imported.update(name if name in modules else node.module for name in whole)
            elif isinstance(node, ast.Import):
                imported.update({alias.name for alias in node.names} & set(modules))
    return graph


def test_folders_import_only_from_those_above_them_in_the_table():
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    order = re.findall(r"^\| `ntk_inr/(\w+)` \|", table, re.MULTILINE)
    assert set(order) == {path.parent.name for path in (ROOT / "ntk_inr").glob("*/__init__.py")}
    apart = {("variance", "closed_forms"), ("kernels", "networks")}
    for module, imported in _imports().items():
        _, folder, *_ = *module.split("."), ""
        for other in imported:
            _, above, *_ = *other.split("."), ""
            if folder in order and above in order and module != "ntk_inr.kernels.adapters":
                assert order.index(above) <= order.index(folder), f"{module} imports upward, {other}"
                assert (folder, above) not in apart, f"{module} imports {other}"


def test_no_module_imports_itself_in_a_circle():
    graph = _imports()
    del graph["ntk_inr"]  # shows what is public, and is imported by nothing but examples
    graphlib.TopologicalSorter(graph).prepare()
