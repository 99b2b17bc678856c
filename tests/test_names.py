"""The public names: where they are, that each comes when asked for, and what leads to those that moved."""

import inspect
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ntk_inr as ni
from ntk_inr import citation

ROOT = Path(__file__).parent.parent
MODULES = sorted(set(dir(ni)) - set(ni.__all__))
PLACES = [(f"ntk_inr.{module}", name) for module in MODULES for name in dir(getattr(ni, module))]


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_importing_the_package_imports_no_framework():
    code = "import sys, ntk_inr; print(*[name for name in ('jax', 'flax', 'numpy', 'optax') if name in sys.modules])"
    assert run(code) == []


def test_the_flat_names_are_those_of_a_first_day_and_of_modules():
    assert len(ni.__all__) < 65
    assert set(ni.__all__) - {"__version__", "cite"} <= {name for _, name in PLACES}
    assert all(getattr(ni, name) is getattr(sys.modules[module], name) for module, name in PLACES if name in ni.__all__)
    assert ni.training.fit is ni.fit
    exec("from ntk_inr import *; from ntk_inr.networks import *", names := {})
    assert {"ntk", "OneBlob"} <= set(names)


@pytest.mark.parametrize(("module", "name"), PLACES)
def test_every_name_is_what_it_says(module, name):
    value = getattr(sys.modules[module], name)
    assert value.__name__ == name
    assert inspect.getdoc(value)
    assert pickle.loads(pickle.dumps(value)) is value
    # Importing a file of that name would put the file in its place.
    assert not (ROOT / module.replace(".", "/") / f"{name}.py").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("OneBlob", "it is ni.networks.OneBlob"),
        ("eigensystem", "it is ni.spectra.eigensystem"),
        ("condition_nubmer", r"Did you mean ni\.condition_number\?"),
        ("OneBlobb", r"Did you mean ni\.networks\.OneBlob\?"),
        ("zzzz", r"dir\(ni\) lists"),
    ],
)
def test_a_name_that_is_elsewhere_or_misspelled_leads_to_the_right_one(name, message):
    with pytest.raises(AttributeError, match=message):
        getattr(ni, name)
    with pytest.raises(AttributeError, match=message.replace(r"\(ni\)", r"\(ni\.study\)")):
        getattr(ni.study, name)


def test_every_renamed_name_of_the_changelog_leads_to_its_new_place():
    section = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("### Renamed")[1].split("\n## ")[0]
    led = 0
    for entry in section.split("\n- ")[1:]:
        old, _, new = " ".join(entry.split()).partition(" → ")
        place = re.match(r"`(ni\.[\w.]+)`", new)
        for name in re.findall(r"`ni\.(\w+)`", old) if place else ():
            with pytest.raises(AttributeError, match=rf"it is {re.escape(place[1])}\b"):
                getattr(ni, name)
            led += 1
    assert led > 70


def keys_of(thing):
    return re.findall(r"^@\w+\{(\w+),$", ni.cite(thing), re.MULTILINE)


@pytest.mark.parametrize(
    ("thing", "keys"),
    [
        ("wire", ["saragadam2023wire"]),
        ("siren:omega=10", ["sitzmann2020implicit"]),
        (ni.variant("pe+batch"), ["mildenhall2020nerf", "ou2025understanding", "ioffe2015batch", "cai2024towards"]),
        (ni.networks.OneBlob(bins=4), ["muller2019neural"]),
        ("tomography", ["shepp1974fourier"]),
        (ni.signal_task("chirp", samples=64), ["rahaman2019spectral"]),
        (ni.ntk, ["jacot2018neural", "novak2022fast"]),
        (ni.variance_budget, ["ou2025understanding"]),
        (ni.networks.FourierNet, ["fathony2021multiplicative"]),
    ],
    ids=str,
)
def test_cite_gives_what_docstrings_name(thing, keys):
    assert keys_of(thing) == keys


def test_cite_knows_every_paper_that_a_docstring_names():
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "ntk_inr").rglob("*.py"))
    assert set(citation._NAMED.findall(" ".join(sources.split()))) <= set(citation._entries())
    text = (ROOT / "ntk_inr" / "references.bib").read_text(encoding="utf-8")
    keys = re.findall(r"^@\w+\{(\w+),$", text, re.MULTILINE)
    assert len(keys) == len(set(keys)) == len(citation._entries()) == text.count("\n}")
    assert all(f"year = {{{re.search('[0-9]{4}', key)[0]}}}" in text for key in keys)


@pytest.mark.parametrize(
    ("thing", "message"), [("tanh", "tanh has no source"), ("wier", "Did you mean 'wire'"), (3, "int has no source")]
)
def test_what_has_no_source_is_said(thing, message):
    with pytest.raises(ValueError, match=message):
        ni.cite(thing)


@pytest.mark.slow
def test_type_checkers_see_signatures(tmp_path):
    user = tmp_path / "user.py"
    user.write_text("import ntk_inr as ni\nreveal_type(ni.ntk)\nreveal_type(ni.networks.OneBlob)\nni.nkt\n")
    done = subprocess.run([sys.executable, "-m", "mypy", str(user)], capture_output=True, text=True, check=False)
    assert "def (apply: " in done.stdout
    assert "OneBlob" in done.stdout
    assert 'Module has no attribute "nkt"' in done.stdout
