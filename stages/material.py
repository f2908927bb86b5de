"""What several stages read: the teacher, the blocks and the cached hidden states, checked against each other."""

from typing import Any

import numpy as np

from attnopt import corpus, teacher
from attnopt.errors import UserError
from attnopt.files import read_json
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
    cached = {split: hidden(split, manifest) for split in corpus.SPLITS}
    blocks = {split: corpus.read(CORPUS, split) for split in corpus.SPLITS}
    return Material(model, blocks, cached), tokenizer


def hidden(split: str, manifest: dict[str, Any]) -> np.ndarray | None:
    """The cached hidden states of a split, memory-mapped; None where the teacher runs online."""
    if manifest["logits"] == "online":
        return None
    array = np.load(TEACHER / f"{split}.npy", mmap_mode="r")
    if len(array) != manifest["splits"][split]["blocks"]:
        raise UserError(f"{TEACHER}/{split}.npy is truncated: run `dvc repro -f -s cache-logits`")
    return array
