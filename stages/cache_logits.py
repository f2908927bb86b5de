"""data/teacher: what distillation and evaluation need of the teacher."""

from functools import partial

from attnopt import corpus, params, teacher
from attnopt.files import environment, sha256, write_json, written_aside
from attnopt.progress import bar
from stages import CORPUS, TEACHER


def run() -> None:
    settings = params.load()
    model, tokenizer = teacher.load(settings.teacher)
    manifest = corpus.manifest_of(CORPUS)
    teacher.check_tokens(model, tokenizer, manifest)
    teacher.head_of(model)
    splits = {}
    with written_aside(TEACHER) as aside:
        aside.mkdir()
        for split in corpus.SPLITS if settings.teacher.logits == "hidden" else ():
            blocks = corpus.read(CORPUS, split)
            file = aside / f"{split}.npy"
            size = teacher.cache_hidden(model, blocks, file, progress=partial(bar, name=f"cache {split}", unit="batch"))
            splits[split] = {"blocks": len(blocks), "bytes_per_token": size, "sha256": sha256(file)}
        record = {
            "source": settings.teacher.model_dump(),
            "fingerprint": teacher.fingerprint(model),
            "logits": settings.teacher.logits,
            "config": teacher.describe(model),
            "corpus": manifest["sha256"],
            "splits": splits,
            "environment": environment(),
        }
        write_json(aside / "manifest.json", record)
