"""data/corpus: the text as blocks of tokens."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from attnopt import settings as params
from attnopt.core.device import resolve_device
from attnopt.core.files import written_aside
from attnopt.core.paths import CORPUS
from attnopt.core.progress import progress_bar
from attnopt.corpus import blocks as corpus
from attnopt.corpus.params import CorpusParams
from attnopt.teacher import model as teacher
from attnopt.teacher import sampling


def run() -> None:
    settings = params.load_settings()
    print(f"tokenize: {settings.corpus.source}", file=sys.stderr)
    writes = settings.corpus.source == "teacher"
    model, tokenizer = teacher.load_teacher(settings.teacher, model=writes)
    with written_aside(CORPUS) as aside:
        aside.mkdir()
        sample = _sampler(settings.corpus, model, tokenizer) if writes else None
        manifest = corpus.write_corpus(settings.corpus, tokenizer, aside, sample)
    for split, counts in manifest["splits"].items():
        print(f"  {split:5}  " + "  ".join(f"{n:,} {name}" for name, n in counts.items()), file=sys.stderr)


def _sampler(settings: CorpusParams, model: Any, tokenizer: Any) -> Callable[[int], np.ndarray]:
    progress = partial(progress_bar, name="the teacher writes", unit="batch")
    model.to(resolve_device("auto"))
    return partial(sampling.sample_blocks, model, tokenizer, settings.block, seed=settings.seed, progress=progress)
