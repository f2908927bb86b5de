"""data/corpus: the text as blocks of tokens."""

import sys

from attnopt.core.paths import CORPUS
from attnopt.corpus.params import CorpusParams
from attnopt.corpus.write import write_corpus
from attnopt.teacher.model import load_teacher
from attnopt.teacher.params import TeacherParams
from attnopt.teacher.sampling import sampler_of


def run(corpus: CorpusParams, teacher: TeacherParams) -> None:
    print(f"tokenize: {corpus.source}", file=sys.stderr)
    model, tokenizer = load_teacher(teacher, model=corpus.source == "teacher")
    sample = None if model is None else sampler_of(model, tokenizer, corpus.block, corpus.seed)
    manifest = write_corpus(corpus, tokenizer, CORPUS, sample)
    for split, counts in manifest.splits.items():
        print(f"  {split:5}  " + "  ".join(f"{n:,} {name}" for name, n in counts), file=sys.stderr)
