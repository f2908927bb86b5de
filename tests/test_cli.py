"""The command line: quick to start, and every mistake of the user's one line and exit code 2."""

import gc
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Workspace

from attnopt.cli import main
from attnopt.tools.complete import mix_names, studies, variant_names

RUN = [sys.executable, "-m", "attnopt.cli"]


@dataclass(frozen=True)
class Ended:
    """What a shell sees of a command that has ended."""

    code: int
    stdout: str
    stderr: str


Command = Callable[..., Ended]
Refused = Callable[..., None]


@pytest.fixture
def attnopt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Iterator[Command]:
    """The command's entry point, called in this process with the arguments that a shell would give it."""
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    threshold = gc.get_threshold()

    def call(*arguments: str) -> Ended:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["attnopt", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    yield call
    gc.set_threshold(*threshold)


@pytest.fixture
def refused(attnopt: Command) -> Refused:
    """Call the command, and hold its end against what the user is to be told."""

    def call(expected: str, *arguments: str) -> None:
        check_refused(attnopt(*arguments), expected)

    return call


def check_refused(ended: Ended, expected: str, code: int = 2) -> None:
    assert ended.code == code, ended.stderr
    line = ended.stderr.strip().split("\n")[-1]
    assert line.startswith("attnopt: ")
    assert expected in line
    assert ended.stderr.count("attnopt: ") == 1
    assert "Traceback" not in ended.stderr


def in_a_process(*arguments: str, **options: Any) -> Ended:
    """The same command in a process of its own."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run([*RUN, *arguments], capture_output=True, text=True, env=env, timeout=200, **options)
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def seconds_of_processes() -> float:
    """The processor's time that processes which this one started, and which have ended, took."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def test_help_starts_without_torch() -> None:
    code = (
        "import sys, attnopt.cli; print([m for m in ('torch', 'transformers', 'pandas', 'gensim') if m in sys.modules])"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    started = seconds_of_processes()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert out.stdout.strip() == "[]"
    assert seconds_of_processes() - started < 0.5
    assert "distill" in in_a_process("--help").stdout


@pytest.mark.slow
def test_a_process_ends_with_one_line_and_exit_code_2(workspace: Workspace) -> None:
    """The entry itself, which the tests below call in this process."""
    workspace.set(distill={"stepz": 1})
    check_refused(in_a_process("tokenize"), "unknown key 'distill.stepz' (did you mean 'steps'?)")
    assert not Path("data").exists()


def test_a_shell_completes_names_from_params(workspace: Workspace) -> None:
    assert variant_names("no") == ["none"]
    assert mix_names("") == []
    assert studies("smol") == ["smollm2"]
    workspace.set(distill={"stepz": 1})
    assert variant_names("no") == []


@pytest.mark.parametrize(("words", "told"), [("study smo", "smollm2"), ("distill no", "none"), ("bench so", "softmax")])
def test_a_shell_is_told_what_it_asks_for(workspace: Workspace, words: str, told: str) -> None:
    env = {"_ATTNOPT_COMPLETE": "complete_bash", "COMP_WORDS": f"attnopt {words}", "COMP_CWORD": "2"}
    code = "import sys; from attnopt.cli import main; sys.argv = ['attnopt']; main()"
    asked = os.environ | env | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], env=asked, capture_output=True, text=True)
    assert ended.stdout.split() == [told], ended.stderr


def test_the_version_is_that_of_the_package(attnopt: Command) -> None:
    assert attnopt("--version").stdout == f"attnopt {metadata.version('attnopt')}\n"


def test_a_new_study_s_refusal_is_one_line(workspace: Workspace, refused: Refused) -> None:
    refused("text is there and not an empty folder", "init", "text")
    refused("unknown study 'smolm2' (did you mean 'smollm2'?)", "init", "new", "--study", "smolm2")
    assert not Path("new").exists()


def test_help_lists_the_stages(attnopt: Command) -> None:
    ended = attnopt("--help")
    assert ended.code == 0
    assert "distill" in ended.stdout


def test_mistakes_in_params_are_refused_before_any_work(workspace: Workspace, refused: Refused) -> None:
    workspace.set(distill={"stepz": 1})
    refused("unknown key 'distill.stepz' (did you mean 'steps'?)", "tokenize")
    assert not Path("data").exists()


def test_an_unknown_variant_is_refused(workspace: Workspace, refused: Refused) -> None:
    refused("unknown variant 'performr'; known: softmax, none", "distill", "performr")


@pytest.mark.parametrize("stage", ["evaluate", "sample", "bench"])
def test_an_unknown_variant_is_refused_before_anything_is_measured(
    workspace: Workspace, refused: Refused, stage: str
) -> None:
    refused("unknown variant 'nope' (did you mean 'none'?); known: softmax, none", stage, "nope")
    assert not Path("results").exists()


def test_a_damaged_corpus_is_named(workspace: Workspace, refused: Refused) -> None:
    workspace.run("tokenize", "cache-logits")
    split = Path("data/corpus/train.npy")
    split.write_bytes(split.read_bytes()[:-100])
    refused("data/corpus/train.npy is damaged", "distill", "none")
    assert not Path("models").exists()


def test_a_stage_without_its_inputs_says_what_to_run(workspace: Workspace, refused: Refused) -> None:
    refused("data/corpus/manifest.json is missing: run `dvc repro`", "distill", "none")


def test_a_gpu_that_is_not_there_is_named(workspace: Workspace, refused: Refused) -> None:
    workspace.run("tokenize", "cache-logits")
    workspace.set(distill={"device": "cuda"})
    refused("device: cuda was asked for, but torch sees no GPU", "distill", "none")


def test_a_hub_out_of_reach_is_named(workspace: Workspace, refused: Refused) -> None:
    workspace.set(teacher={"source": "hub", "id": "openai-community/gpt2"})
    refused("teacher.source hub: openai-community/gpt2 cannot be loaded", "tokenize")


def test_teachers_that_are_not_there_are_named(workspace: Workspace, refused: Refused) -> None:
    workspace.set(teacher={"path": "text"})
    refused("teacher.path: text is no model folder", "tokenize")
    workspace.set(teacher={"source": "gguf", "path": "no_such_package"})
    refused("'no_such_package' is neither a .gguf file nor an installed package", "tokenize")


def test_an_architecture_that_cannot_be_swapped_is_named(workspace: Workspace, refused: Refused) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    config = BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    config.max_position_embeddings = 64
    BloomForCausalLM(config).save_pretrained("bloom")
    for file in Path("teacher").glob("tokenizer*"):
        shutil.copy(file, "bloom")
    workspace.set(teacher={"path": "bloom"})
    workspace.run("tokenize", "cache-logits")
    refused("BloomForCausalLM cannot be swapped: 0 of 2 layers", "distill", "none")


def test_a_damaged_student_is_named(workspace: Workspace, refused: Refused) -> None:
    refused("models/none/0 is no student", "generate", "models/none/0", "--prompt", "x")


@pytest.mark.slow
def test_a_full_disk_leaves_nothing_half_written(workspace: Workspace) -> None:
    """Stands in for a full disk: writes beyond 40 KB fail, as they do on a device that is full."""

    def small_files() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    workspace.run("tokenize")
    check_refused(in_a_process("cache-logits", preexec_fn=small_files), "nothing was written", code=1)
    assert [p.name for p in Path("data").iterdir()] == ["corpus"]


def test_generate_continues_a_prompt_and_refuses_an_empty_one(
    workspace: Workspace, attnopt: Command, refused: Refused
) -> None:
    workspace.run("tokenize", "cache-logits", "distill softmax")
    ended = attnopt("generate", "models/softmax/0", "--prompt", "Anna the king", "--new-tokens", "5")
    assert ended.code == 0, ended.stderr
    assert ended.stdout.startswith("Anna the king")
    assert len(ended.stdout.strip()) > len("Anna the king")
    refused("the prompt '' has no token: a text to continue is needed", "generate", "models/softmax/0", "--prompt", "")


def test_mechanisms_are_listed_with_source_growth_and_options(attnopt: Command) -> None:
    listed = attnopt("mechanisms").stdout
    from attnopt import mechanisms

    for kind in mechanisms.mechanism_names():
        assert f"\n{kind}" in "\n" + listed
        assert mechanisms.load_mechanism(kind).source in listed


def test_inside_a_copied_checkout_the_copy_runs(tmp_path: Path) -> None:
    """DVC's --temp and --queue copy the tree; the installed command must then run the copy's code."""
    shutil.copytree(ROOT / "attnopt", tmp_path / "attnopt", ignore=shutil.ignore_patterns("__pycache__", "assets"))
    (tmp_path / "attnopt" / "tools" / "doctor.py").write_text("def diagnose():\n    return 'the copy speaks'\n")
    code = "from attnopt.cli import main; import sys; sys.argv = ['attnopt', 'doctor']; main()"
    env = os.environ | {"PYTHONPATH": str(ROOT), "DVC_STAGE": "doctor"}
    command = [sys.executable, "-P", "-c", code]
    out = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert out.stdout.strip() == "the copy speaks", out.stderr


@pytest.mark.parametrize(
    "command", ["tokenize", "cache-logits", "distill", "evaluate", "sample", "machine", "bench", "report"]
)
def test_every_stage_is_a_subcommand(command: str) -> None:
    from typer.main import get_command

    from attnopt.cli import app

    assert command in get_command(app).commands  # type: ignore[attr-defined]
