"""data/corpus: the text as blocks of tokens."""

import sys

from attnopt.core.files import written_aside
from attnopt.core.paths import CORPUS
from attnopt.corpus.blocks import write_corpus
from attnopt.corpus.params import CorpusParams
from attnopt.teacher.model import load_teacher
from attnopt.teacher.params import TeacherParams
from attnopt.teacher.sampling import sampler_of


def run(corpus: CorpusParams, teacher: TeacherParams) -> None:
    print(f"tokenize: {corpus.source}", file=sys.stderr)
    model, tokenizer = load_teacher(teacher, model=corpus.source == "teacher")
    sample = None if model is None else sampler_of(model, tokenizer, corpus.block, corpus.seed)
    with written_aside(CORPUS) as aside:
        aside.mkdir()
        manifest = write_corpus(corpus, tokenizer, aside, sample)
    for split, counts in manifest.splits.items():
        print(f"  {split:5}  " + "  ".join(f"{n:,} {name}" for name, n in counts), file=sys.stderr)
