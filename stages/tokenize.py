"""data/corpus: the text as blocks of tokens."""

import sys

from attnopt import corpus, params, teacher
from attnopt.files import written_aside
from stages import CORPUS


def run() -> None:
    settings = params.load()
    print(f"tokenize: {settings.corpus.source}", file=sys.stderr)
    _, tokenizer = teacher.load(settings.teacher, model=False)
    with written_aside(CORPUS) as aside:
        aside.mkdir()
        manifest = corpus.write(settings.corpus, tokenizer, aside)
    for split, counts in manifest["splits"].items():
        print(f"  {split:5}  " + "  ".join(f"{n:,} {name}" for name, n in counts.items()), file=sys.stderr)
