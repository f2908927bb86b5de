"""A conversion: the stages of its study one after the other, in its folder; what holds is left as it is."""

import contextlib
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnopt.convert.check import Checked, check
from attnopt.convert.clock import Clock
from attnopt.convert.findings import STUDENT, findings
from attnopt.convert.request import SAMPLE, Request, check_folder, claim
from attnopt.convert.study import BASELINES, MIX, as_yaml, study, with_mix
from attnopt.convert.text import is_split, write_splits
from attnopt.core.code import code_digest
from attnopt.core.errors import UserError
from attnopt.core.files import read_json, write_json, written_aside
from attnopt.core.keep import key_of
from attnopt.core.paths import CORPUS, RESULTS, TEACHER
from attnopt.records.search import SearchRecord
from attnopt.settings import Settings, load_settings

TEXT = Path("text")
KEYS = Path("stages.json")
"""Keys of those stages whose outputs carry none, and of the student as exported."""


def convert(request: Request, folder: Path) -> None:
    """Make, or go on making, the conversion in a folder; prints what was found.

    Raises: UserError, one line and before any work, where it is not possible.
    """
    check_folder(folder, request)
    checked = check(request)
    text = _text_folder(request, folder)
    made = Conversion(request, checked, text)
    claim(folder, request)
    with contextlib.chdir(folder):
        if checked.texts is not None and not is_split(TEXT):
            write_splits(checked.texts, TEXT)
        made.run()
    print(findings(folder, request))


def _text_folder(request: Request, folder: Path) -> str | None:
    """Where the splits will lie; None where there is no folder of text."""
    if request.text in (None, SAMPLE):
        return None
    given = Path(str(request.text))
    return str(given.absolute()) if is_split(given) else str(TEXT)


class Conversion:
    """One that runs in the working directory.

    Args:
        text: a folder with the three splits; None: text of the model's own, or the bundled.
    """

    def __init__(self, request: Request, checked: Checked, text: str | None):
        self.request = request
        self.sections = study(request, checked.searched, text, checked.positions)
        self.clock = Clock(_forwards(request, checked, list(self.sections["variants"])), checked.seconds)

    def run(self) -> None:
        """All stages."""
        self._write(self.sections)
        settings = load_settings()
        self._once("tokenize", settings, CORPUS / "manifest.json")
        self._once("cache_logits", settings, TEACHER / "manifest.json", CORPUS)
        for name in settings.variants:
            self._stage("distill", settings, name)
        self._stage("search", settings)
        found = SearchRecord.read(RESULTS / "search" / "record.json")
        layers = next(mix.layers for mix in found.mixes if mix.way == "searched")
        self._write(with_mix(self.sections, self.request, layers))
        settings = load_settings()
        self._stage("mix", settings, MIX)
        shown = {name: kind for name, kind in settings.students.items() if name in (MIX, *BASELINES)}
        for stage in ("evaluate", "sample", "bench", "report"):
            self._stage(stage, settings, students=shown)
        with self.clock.timed("export"):
            self._export()

    def _write(self, sections: dict[str, Any]) -> None:
        with written_aside("params.yaml") as aside:
            aside.write_text(as_yaml(sections), encoding="utf-8")
            load_settings(aside)

    def _stage(self, stage: str, settings: Settings, variant: str | None = None, **given: Any) -> None:
        """One that sees itself what holds."""
        run = importlib.import_module(f"stages.{stage}").run
        with self.clock.timed(" ".join(filter(None, (stage, variant)))):
            run(**settings.sections_of(run, variant) | given)

    def _once(self, stage: str, settings: Settings, made: Path, *inputs: Path) -> None:
        """One that would be run again whatever there is."""
        run = importlib.import_module(f"stages.{stage}").run
        sections = settings.sections_of(run)
        text = [Path(str(settings.corpus.path))] if settings.corpus.source == "files" else []
        key = key_of(code_digest(f"stages.{stage}"), sections, *text, *inputs)
        with self.clock.timed(stage):
            if made.is_file() and _key(stage) == key:
                return
            run(**sections)
            _set_key(stage, key)

    def _export(self) -> None:
        """The student as a plain folder, unless it is that already."""
        import attnopt

        source = Path("models") / MIX / "0"
        records = [RESULTS / "evaluate" / MIX / "0" / "record.json", RESULTS / "bench" / MIX / "record.json"]
        key = key_of(code_digest("attnopt.export.folder"), source, *records)
        if (STUDENT / "config.json").is_file() and _key("export") == key:
            return
        attnopt.load(source).save_pretrained(STUDENT)
        _set_key("export", key)


def _key(stage: str) -> str | None:
    try:
        return read_json(KEYS).get(stage)
    except UserError:
        return None


def _set_key(stage: str, key: str) -> None:
    write_json(KEYS, (read_json(KEYS) if KEYS.is_file() else {}) | {stage: key})


def _forwards(request: Request, checked: Checked, variants: Sequence[str]) -> dict[str, float]:
    """About what each stage costs, in forward passes of the model over the length; in the order they are run."""
    searched, shown, trained = len(checked.searched), 3, request.train * 3 * 1024 / request.length
    return {
        "tokenize": 2.0,
        "cache_logits": 3.0,
        **{f"distill {name}": 0.5 for name in variants},
        "search": 1.2 * checked.layers * searched + 40,
        f"mix {MIX}": 1 + trained,
        "evaluate": 14.0 * (shown + 1),
        "sample": 4.0 * shown,
        "bench": 16.0 * shown,
        "report": 2.0,
        "export": 1.0,
    }
