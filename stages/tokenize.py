"""data/corpus: the text as blocks of tokens."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from attnopt import corpus, params, sampling, teacher
from attnopt.device import resolve
from attnopt.files import written_aside
from attnopt.progress import bar
from stages import CORPUS


def run() -> None:
    settings = params.load()
    print(f"tokenize: {settings.corpus.source}", file=sys.stderr)
    writes = settings.corpus.source == "teacher"
    model, tokenizer = teacher.load(settings.teacher, model=writes)
    with written_aside(CORPUS) as aside:
        aside.mkdir()
        sample = _sampler(settings.corpus, model, tokenizer) if writes else None
        manifest = corpus.write(settings.corpus, tokenizer, aside, sample)
    for split, counts in manifest["splits"].items():
        print(f"  {split:5}  " + "  ".join(f"{n:,} {name}" for name, n in counts.items()), file=sys.stderr)


def _sampler(settings: params.CorpusParams, model: Any, tokenizer: Any) -> Callable[[int], np.ndarray]:
    progress = partial(bar, name="the teacher writes", unit="batch")
    model.to(resolve("auto"))
    return partial(sampling.blocks, model, tokenizer, settings.block, seed=settings.seed, progress=progress)
