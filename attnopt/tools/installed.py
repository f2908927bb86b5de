"""code.json: what a study depends on of the installed package, in place of source files.

Of every stage the digest of all that it imports, of every mechanism that of its own, and of the bundled data. A stage's
records carry keys of the same code, so that DVC looks where a digest changes, and nowhere else.
"""

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from attnopt.core.code import ROOT, code_digest, import_closure, own_mechanisms
from attnopt.core.errors import UserError
from attnopt.core.files import sha256, write_json
from attnopt.core.keep import key_of
from attnopt.tools.shipped import ASSETS, BUNDLED

CODE = Path("code.json")


def installed_code() -> dict[str, Any]:
    """Digests by kind of thing and name: `stages`, `mechanisms` (the user's own among them) and `assets`.

    Takes no import of torch. Raises: UserError, one line, where a mechanism of the user's own cannot be read or has a
    name that is taken.
    """
    stages = sorted(file.stem for file in (ROOT / "stages").glob("*.py") if file.stem != "__init__")
    return {
        "attnopt": metadata.version("attnopt"),
        "stages": {name.replace("_", "-"): _stage_digest(name) for name in stages},
        "mechanisms": {kind: code_digest(f"attnopt.mechanisms.{kind}") for kind in sorted(_kinds())},
        "assets": {name: key_of(ASSETS / name) for name in BUNDLED},
    }


def write_code(path: Path = CODE) -> None:
    write_json(path, installed_code())


def _stage_digest(stage: str) -> str:
    """Of its modules, and of the templates that lie beside them."""
    modules = import_closure([ROOT / "stages" / f"{stage}.py"])
    templates = sorted({file for module in modules for file in module.parent.glob("templates/*") if file.is_file()})
    return sha256(code_digest(f"stages.{stage}"), *(part for file in templates for part in (file.name, file)))


def _kinds() -> Iterator[str]:
    """As `attnopt.mechanisms.mechanism_names`, whose import takes torch."""
    taken = {file.stem for file in (ROOT / "attnopt" / "mechanisms").glob("*.py")}
    yield from (kind for kind in taken if kind != "base" and not kind.startswith("_"))
    own = own_mechanisms()
    for file in sorted(own.glob("*.py")) if own else ():
        if file.stem in taken and not file.stem.startswith("_"):
            raise UserError(f"{file}: '{file.stem}' is a mechanism of attnopt already; give the file another name")
        if not file.stem.startswith("_"):
            yield file.stem
