"""What several stages read: the teacher, the blocks and the teacher's cached outputs, checked against each other."""

from typing import Any

from attnopt import corpus, teacher
from attnopt.cache import Stored
from attnopt.errors import UserError
from attnopt.files import read_json
from attnopt.logits import form_of
from attnopt.material import Material
from attnopt.params import Params
from stages import CORPUS, TEACHER


def load(settings: Params) -> tuple[Material, Any]:
    """The material of a run and the teacher's tokenizer."""
    model, tokenizer = teacher.load(settings.teacher)
    manifest = read_json(TEACHER / "manifest.json")
    if manifest["fingerprint"] != teacher.fingerprint(model):
        raise UserError(f"{TEACHER} was made with another teacher: run `dvc repro cache-logits`")
    if manifest["corpus"] != corpus.manifest_of(CORPUS)["sha256"]:
        raise UserError(f"{TEACHER} was made with another corpus: run `dvc repro cache-logits`")
    if any(manifest["source"].get(key) != getattr(settings.teacher, key) for key in ("logits", "topk", "draws")):
        raise UserError(f"{TEACHER} was made with another teacher.logits: run `dvc repro cache-logits`")
    stored = {split: Stored(TEACHER / split, entry) for split, entry in manifest["splits"].items()}
    hidden = {split: part for split, part in stored.items() if manifest["splits"][split]["form"] == "hidden"}
    form = form_of(settings.teacher, model.config.vocab_size)
    blocks = {split: corpus.read(CORPUS, split) for split in corpus.SPLITS}
    if any(len(part) != len(blocks[split]) for split, part in stored.items()):
        raise UserError(f"{TEACHER} holds other blocks than {CORPUS}: run `dvc repro cache-logits`")
    return Material(model, blocks, hidden, (form, stored["train"]) if form else None), tokenizer
