"""A small world for tests: a tiny teacher with its own tokenizer, a text, and a workspace with params.yaml."""

import io
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
WORDS = "the a of in king river house stone water light green old small city born wrote found lived near under".split()  # noqa: SIM905


def committed_kinds() -> list[str]:
    """The mechanisms of this project, without those that a user has added to the folder."""
    listed = subprocess.run(
        ["git", "ls-files", "attnopt/mechanisms"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout
    from attnopt.mechanisms import mechanism_names

    return [kind for kind in mechanism_names() if not listed or f"attnopt/mechanisms/{kind}.py\n" in listed]


def sentences(seed: int, count: int) -> str:
    """Text with some structure: a few words, uneven odds, and names that return within a paragraph."""
    rng = random.Random(seed)
    lines = []
    for _ in range(count):
        name = rng.choice(["Anna", "Bela", "Cyrus", "Dora"])
        body = [rng.choice(WORDS[: rng.randint(4, len(WORDS))]) for _ in range(rng.randint(5, 12))]
        lines.append(f"{name} {' '.join(body)} and {name} .")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests run in an empty folder: params.yaml, data, models and results of this checkout are the user's."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path_factory.mktemp("elsewhere"))
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `teacher` (GPT-2, 2 layers of 32) and `text` (train, valid, test)."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from attnopt.tools.pretrain.text import train_tokenizer

    folder = tmp_path_factory.mktemp("tiny")
    (folder / "text").mkdir()
    for i, (split, count) in enumerate({"train": 400, "valid": 60, "test": 60}.items()):
        (folder / "text" / f"{split}.txt").write_text(sentences(i, count), encoding="utf-8")
    tokenizer = train_tokenizer([sentences(9, 300)], vocab=300, length=64)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.15,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    return folder


PARAMS = """
variants:
  softmax: softmax
  none: none
seeds:
- 0
corpus:
  source: files
  path: text
  block: 32
teacher:
  source: path
  path: teacher
distill:
  steps: 12
  batch: 4
  warmup: 2
  log_every: 2
  valid_every: 6
  valid_blocks: 4
  checkpoint_every: 3
  fit_blocks: 4
  precision: float32
sample:
  prompts:
  - Anna the king
  - Bela
  new_tokens: 8
softmax:
  distill:
    steps: 0
none: {}
"""


class Workspace:
    """A project folder of its own, with helpers to change params.yaml and to call stages."""

    def __init__(self, path: Path):
        self.path = path
        self.params = path / "params.yaml"

    def set(self, **changes: object) -> None:
        """Merge sections into params.yaml: `set(distill={"lr": 0.1})`; a value that is no mapping replaces."""
        content = YAML(typ="safe").load(self.params.read_text())
        for section, value in changes.items():
            if value and isinstance(value, dict) and isinstance(content.get(section), dict):
                content[section].update(value)
            else:
                content[section] = value
        out = io.StringIO()
        YAML(typ="safe").dump(content, out)
        self.params.write_text(out.getvalue())

    def run(self, *stages: str) -> None:
        """Call stages in this process, as the command line does: "tokenize", "distill none", "evaluate none"."""
        from attnopt.cli import run_stage

        for stage in stages:
            name, *variant = stage.split()
            if name in ("distill", "mix"):
                run_stage(name, *variant)
            else:
                run_stage(name.replace("-", "_"), **({"only": variant[0]} if variant else {}))


def small_world(tiny: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The small world copied into a folder of its own, which becomes the working directory."""
    shutil.copytree(tiny, path, dirs_exist_ok=True)
    (path / "params.yaml").write_text(PARAMS)
    monkeypatch.chdir(path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("ATTNOPT_CHECKPOINTS", raising=False)
    return Workspace(path)


def every_stage_in_seconds(workspace: Workspace) -> None:
    """What all stages but distill need, so that a test can run them one after the other."""
    workspace.set(
        transfer={"steps": 2},
        seed={},
        state={},
        align={},
        lora={},
        evaluate={"probe_blocks": 2, "lengths": [64], "recall": {"copy": [0]}, "items": 4},
        search={"budgets": [0.7], "length": 32, "blocks": 2, "pairs": 2, "items": 2, "draws": 4, "held_out": 3},
        bench={"lengths": [16], "operation_lengths": [], "min_iterations": 2, "min_seconds": 0, "phases": ["decode"]},
        report={"lengths": [32], "resamples": 100},
    )
    workspace.set(bench={"max_spread": 1e9, "decode_tokens": 2, "threads": 1, "device": "cpu"})


@pytest.fixture
def workspace(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    return small_world(tiny, tmp_path, monkeypatch)
