"""The doors: what the READMEs say of folders, files and mechanisms is what is there."""

from pathlib import Path

import pytest
from conftest import ROOT, committed_kinds

from attnopt.mechanisms.shared.catalogue import mechanisms_markdown

README = (ROOT / "README.md").read_text()
FOLDERS = sorted({file.parent for file in (ROOT / "attnopt").rglob("*.py")} - {ROOT / "attnopt"})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.relative_to(ROOT).as_posix())
def test_every_folder_has_a_readme_that_names_its_files(folder: Path) -> None:
    door = folder / "README.md"
    text = (door if door.is_file() else folder.parent / "README.md").read_text()
    assert (folder / "__init__.py").read_text().startswith('"""')
    if folder.name == "mechanisms":  # one file each, which the table of mechanisms lists
        return
    for file in folder.glob("*.py"):
        assert file.name == "__init__.py" or file.stem in text, file


def test_the_readme_lists_every_chapter() -> None:
    tree = README.split("## Where things live")[1].split("```")[1]
    for path in (ROOT / "attnopt").iterdir():
        if path.suffix == ".py" and path.stem != "__init__":
            assert f"  {path.name} " in tree, path
        elif path.is_dir() and any(path.glob("*.py")):
            assert f"  {path.name}/ " in tree, path


def test_the_readme_has_the_registrys_table_of_mechanisms() -> None:
    """To write it anew: python -c "from attnopt.mechanisms.shared.catalogue import *; print(mechanisms_markdown())"."""
    shown = README.split("<!-- mechanisms -->\n")[1].split("<!-- /mechanisms -->")[0].splitlines()
    rows = mechanisms_markdown().splitlines()
    own = [row for row in rows[2:] if row.split("`")[1] in committed_kinds()]
    assert shown == [*rows[:2], *own]
