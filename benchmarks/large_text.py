"""Tokenising much text: ids per second beside a bare `tokenizers` loop, and the peak of resident memory.

    python benchmarks/large_text.py [--mb 50 --rounds 3 --threads 2]

Articles of the bundled sample, their sentences shuffled, under WikiText's title lines, in a temporary folder that takes
three times --mb. Each measurement is a process of its own; both read the text from the file, the bare loop keeps nothing.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from attnopt.corpus.wikipedia import sample_articles

BATCH = 1 << 20
"""Characters that the bare loop hands to the tokenizer at once."""


def write_text(path: Path, size: int, seed: int) -> None:
    """So many bytes of articles, the last one whole."""
    rng = random.Random(seed)
    texts = [text.split(". ") for _, text in sample_articles()]
    written = 0
    with path.open("w", encoding="utf-8") as file:
        for i in range(10**9):
            parts = rng.choice(texts)
            article = f" = Article {i} = \n" + ". ".join(rng.sample(parts, len(parts)))
            written += len(article.encode()) + 1
            file.write(article + "\n")
            if written >= size:
                return


def bare(folder: Path) -> dict[str, float]:
    """The tokenizer alone, over batches of whole documents."""
    from attnopt.corpus.encode import Encoder
    from attnopt.corpus.params import CorpusParams
    from attnopt.corpus.sources import documents, open_sources
    from attnopt.teacher.model import load_teacher
    from attnopt.teacher.params import TeacherParams

    backend = Encoder(load_teacher(TeacherParams(), model=False)[1]).backend

    def batches() -> Iterator[list[str]]:
        batch: list[str] = []
        size = 0
        for text in documents(open_sources(CorpusParams(source="files", path=str(folder)))["train"]):
            batch.append(text)
            size += len(text)
            if size >= BATCH:
                yield batch
                batch, size = [], 0
        yield batch

    began = time.perf_counter()
    ids = sum(len(found.ids) + 1 for batch in batches() for found in backend.encode_batch_fast(batch))
    return {"ids": ids, "seconds": time.perf_counter() - began, "mb": peak()}


def ours(folder: Path) -> dict[str, float]:
    """What `attnopt tokenize` does, blocks, digests and counts included."""
    from attnopt.corpus.params import CorpusParams
    from attnopt.corpus.write import write_corpus
    from attnopt.teacher.model import load_teacher
    from attnopt.teacher.params import TeacherParams

    tokenizer = load_teacher(TeacherParams(), model=False)[1]
    began = time.perf_counter()
    manifest = write_corpus(CorpusParams(source="files", path=str(folder), block=1024), tokenizer, folder / "corpus")
    return {"ids": manifest.splits["train"].tokens, "seconds": time.perf_counter() - began, "mb": peak()}


def peak() -> float:
    """MB of resident memory, at most, of this process alone: a fork's count would begin at its parent's."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measured(what: str, folder: Path, threads: int) -> dict[str, float]:
    checkpoints = {"ATTNOPT_CHECKPOINTS": str(folder / "checkpoints"), "RAYON_NUM_THREADS": str(threads)}
    run = [sys.executable, __file__, "--child", what, str(folder)]
    done = subprocess.run(run, env=os.environ | checkpoints, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=50, help="of training text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of the tokenizer")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps({"bare": bare, "ours": ours}[args.child[0]](Path(args.child[1]))))
        return
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split, size in {"train": args.mb * 10**6, "valid": 10**5, "test": 10**5}.items():
            write_text(folder / f"{split}.txt", size, seed=len(split))
        for _ in range(args.rounds):
            loop, own = (measured(what, folder, args.threads) for what in ("bare", "ours"))
            assert loop["ids"] == own["ids"], (loop, own)
            ratios.append(loop["seconds"] / own["seconds"])
            for what, found in {"bare loop": loop, "attnopt": own}.items():
                speed = found["ids"] / found["seconds"]
                print(f"{what:10} {found['ids']:,} ids, {speed:,.0f} a second, {found['mb']:.0f} MB resident at most")
    print(f"{args.mb} MB of text: {statistics.median(ratios):.2f} of the bare loop's speed ({min(ratios):.2f} worst)")


if __name__ == "__main__":
    main()
