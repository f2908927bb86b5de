"""The registry, and the lists of mechanisms that people read."""

import importlib
import re
from types import SimpleNamespace

import pytest

from attnopt import mechanisms
from attnopt.mechanisms import load_mechanism, mechanism_names
from attnopt.mechanisms.shared.catalogue import mechanisms_markdown, mechanisms_table, summary


def test_every_public_module_but_base_is_a_mechanism_and_no_folder_is(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [("window", False), ("base", False), ("shared", True), ("_draft", False), ("mine", False)]
    modules = [SimpleNamespace(name=name, ispkg=package) for name, package in found]
    monkeypatch.setattr(mechanisms.pkgutil, "iter_modules", lambda path: modules)
    assert mechanism_names() == ["mine", "window"]


def test_an_unknown_kind_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ValueError, match=r"unknown mechanism 'windwo' \(did you mean window\?\); known: based, "):
        load_mechanism("windwo")


def test_what_the_package_says_it_offers_is_there() -> None:
    assert all(hasattr(mechanisms, name) for name in mechanisms.__all__)


def test_the_list_says_what_a_budget_chooses() -> None:
    said = dict(zip(mechanism_names(), re.findall(r"a budget of state chooses: (.*)", mechanisms_table()), strict=True))
    assert said["hedgehog"] == said["based"] == "feature_dim, window"
    assert (said["window"], said["routing"]) == ("window", "clusters, members, picks, window")
    assert said["nsa"] == said["none"] == "nothing"


def test_the_markdown_table_has_a_row_for_each_kind_with_its_paper() -> None:
    rows = mechanisms_markdown().splitlines()[2:]
    assert [re.match(r"\| `(\w+)`", row)[1] for row in rows] == mechanism_names()
    for kind, row in zip(mechanism_names(), rows, strict=True):
        cls = load_mechanism(kind)
        assert len(row.split(" | ")) == 5
        assert f"[{cls.paper or 'source'}]({cls.source})" in row
        assert (f"`{cls.cost}`" if cls.cost else "not stated") in row
        assert ("control: leaks" in row) == (cls.control == "leaks")


@pytest.mark.parametrize("kind", [kind for kind in mechanism_names() if load_mechanism(kind).paper])
def test_each_file_says_in_one_line_what_it_is_and_below_where_it_comes_from_and_how_it_starts(kind: str) -> None:
    cls = load_mechanism(kind)
    docstring = importlib.import_module(cls.__module__).__doc__ or ""
    assert summary(cls).endswith(".")
    assert summary(cls) in mechanisms_table()
    assert "\nSource: " in docstring
    assert cls.paper.split(" et al.")[0] in docstring
    assert re.search(r"start|fit", docstring)
