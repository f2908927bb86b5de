"""The command line: one subcommand per stage, and a few tools. Heavy imports happen inside the commands."""

import errno
import gc
import importlib
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from attnopt.core.code import use_own_mechanisms
from attnopt.core.errors import RunError, UserError
from attnopt.tools.commands import checkpoints, code, doctor, init, merge_lock, pretrain, study
from attnopt.tools.complete import mix_names, student_names, variant_names

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
OF_STAGE = "Left out, it is that of the DVC stage which runs this: dvc.yaml hands no name to a shell."
VariantName = Annotated[
    str | None, typer.Argument(help=f"A name from `variants` in params.yaml. {OF_STAGE}", autocompletion=variant_names)
]
MixName = Annotated[
    str | None, typer.Argument(help=f"A name from `mixes` in params.yaml. {OF_STAGE}", autocompletion=mix_names)
]
OneOrAll = Annotated[
    str | None,
    typer.Argument(
        help="A name from `variants` in params.yaml; else all whose record no longer holds.",
        autocompletion=student_names,
    ),
]
StudentFolder = Annotated[Path, typer.Argument(help="A student's folder (models/performer/0), or an exported one.")]
NewTokens = Annotated[int, typer.Option(min=1, help="At most so many.")]
Temperature = Annotated[float, typer.Option(min=0.01)]
TopK = Annotated[int, typer.Option(min=1)]
Again = Annotated[bool, typer.Option("--again", help="Make anew also what still holds.")]


def run_stage(stage: str, variant: str | None = None, check: bool = True, **more: Any) -> None:
    """Run a stage with the sections of params.yaml that it takes."""
    from attnopt.settings import load_settings

    module = importlib.import_module(f"stages.{stage}")
    settings = load_settings(variants=check)
    module.run(**settings.sections_of(module.run, variant), **more)


def _name_of_stage(stage: str) -> str:
    """NAME of `STAGE@NAME`, which DVC says in the environment of what it runs."""
    found = os.environ.get("DVC_STAGE", "").split(":")[-1]
    if not found.startswith(f"{stage}@"):
        raise UserError(f"{stage}: a name from params.yaml is needed: attnopt {stage} NAME")
    return found.removeprefix(f"{stage}@")


def _say_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"attnopt {version('attnopt')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    pass


@app.command()
def tokenize() -> None:
    """Cut the corpus into blocks of tokens (data/corpus)."""
    run_stage("tokenize")


@app.command()
def cache_logits() -> None:
    """Cache what distillation needs of the teacher (data/teacher)."""
    run_stage("cache_logits")


@app.command()
def distill(variant: VariantName = None, again: Again = False) -> None:
    """Distil one variant from the teacher, with every seed (models, results/distill)."""
    run_stage("distill", variant or _name_of_stage("distill"), again=again)


@app.command()
def mix(name: MixName = None, again: Again = False) -> None:
    """Distil one mix of the library's layers, with every seed (models, results/distill)."""
    run_stage("mix", name or _name_of_stage("mix"), again=again)


@app.command()
def search(
    again: Again = False,
    write: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Search nothing: put what was found for this budget into `mixes`."),
    ] = None,
) -> None:
    """Search the library for the mix of layers closest to the teacher within each budget (results/search)."""
    if write is not None:
        from attnopt.tools.found_mixes import write_found_mixes

        write_found_mixes(write)
    else:
        run_stage("search", check=False, again=again)


@app.command()
def evaluate(variant: OneOrAll = None, again: Again = False) -> None:
    """Measure the variants' students on held-out text (results/evaluate)."""
    run_stage("evaluate", check=False, only=variant, again=again)


@app.command()
def sample(variant: OneOrAll = None, again: Again = False) -> None:
    """Let the variants' students write (results/sample)."""
    run_stage("sample", check=False, only=variant, again=again)


@app.command()
def machine() -> None:
    """Say what hardware the bench's records depend on."""
    from attnopt.core.machine import machine_fingerprint, machine_line

    print(machine_line(machine_fingerprint()))


@app.command()
def bench(
    variant: OneOrAll = None,
    mechanism: Annotated[str | None, typer.Option(help="Measure a mechanism alone, and print a table.")] = None,
    length: Annotated[list[int] | None, typer.Option(help="Context lengths for --mechanism.")] = None,
    again: Again = False,
) -> None:
    """Measure the variants' memory and latency against context length (results/bench)."""
    if variant is not None and mechanism is not None:
        raise UserError("bench takes either a variant's name or --mechanism")
    if mechanism is not None:
        from attnopt.bench.plan import bench_operation

        print(bench_operation(mechanism, length or [1024, 4096]))
    else:
        run_stage("bench", check=False, only=variant, again=again)


@app.command()
def report(
    runs: Annotated[
        list[str] | None, typer.Argument(help="With --compare: folders, git revisions or experiments.")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Put the runs on one page, reports/compare.html.")] = False,
) -> None:
    """Build reports/index.html, reports/report.md and reports/metrics.json from the records; or compare runs."""
    if runs and not compare:
        raise UserError(f"report takes no argument ('{runs[0]}') but with --compare")
    if compare:
        from attnopt.report.params import ReportParams
        from attnopt.settings import load_settings
        from stages.report import compare as compare_runs

        shown = load_settings(variants=False).report if Path("params.yaml").is_file() else ReportParams()
        compare_runs(runs or [], shown)
    else:
        run_stage("report", check=False)


@app.command()
def generate(
    student: StudentFolder,
    prompt: Annotated[str, typer.Option(help="The text to continue.")],
    new_tokens: NewTokens = 64,
    temperature: Temperature = 0.7,
    top_k: TopK = 50,
    seed: int = 0,
    compile: Annotated[bool, typer.Option("--compile", help="Fuse decoding steps, which takes seconds first.")] = False,
) -> None:
    """Let a student continue a prompt, and say how fast it wrote and what it remembers."""
    import attnopt
    from attnopt.tools import talk

    model = attnopt.load(student)
    if compile:
        from attnopt.mechanisms.shared.compiled import compile_steps
        from attnopt.student.attach import mechanisms_of

        compile_steps(mechanisms_of(model))
    talk.generate(model, prompt, talk.Sampling(new_tokens, temperature, top_k), seed)


@app.command()
def chat(
    student: StudentFolder,
    system: Annotated[str | None, typer.Option(help="What the model is told before the conversation.")] = None,
    new_tokens: NewTokens = 256,
    temperature: Temperature = 0.7,
    top_k: TopK = 50,
    seed: int = 0,
) -> None:
    """Talk to a student whose tokenizer has a chat template; the input's end (Ctrl-D) ends it."""
    import attnopt
    from attnopt.tools import talk

    talk.chat(attnopt.load(student), talk.Sampling(new_tokens, temperature, top_k), seed, system)


@app.command()
def export(
    student: StudentFolder,
    folder: Annotated[Path, typer.Argument(help="A new folder, or that of an earlier export.")],
) -> None:
    """Write a student as a plain Hugging Face folder, with a model card."""
    import attnopt
    from attnopt.export.folder import check_free

    check_free(folder)
    attnopt.load(student).save_pretrained(folder)
    print(f"{folder}: read it with transformers, trust_remote_code=True; README.md is its card")


@app.command()
def convert(
    model: Annotated[str, typer.Argument(help="bundled, a folder, a .gguf file or its package, or a hub id.")],
    length: Annotated[int, typer.Option(help="Tokens at which the budget holds and quality is measured.")],
    state: Annotated[float, typer.Option(help="The share of softmax's state that it may hold there.")],
    text: Annotated[
        str | None, typer.Option(help="A folder of text, or enwiki-sample; else the model's own and the bundled.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The conversion's folder; else MODEL-LENGTH-STATE here.")] = None,
    train: Annotated[int, typer.Option(help="Steps of distillation for the mix found.")] = 0,
) -> None:
    """Find the student within a budget of state that is closest to a model; measure and export it."""
    from attnopt.convert.request import Request

    request = Request(model, length, state, text, train)
    from attnopt.convert.run import convert as make  # torch, only where the request can be meant

    make(request, out or request.default_folder)


@app.command()
def mechanisms() -> None:
    """List the mechanisms: source, growth of the state, cost per token, options with their defaults."""
    from attnopt.mechanisms.shared.catalogue import mechanisms_table

    print(mechanisms_table())


@app.command()
def conform(target: Annotated[str, typer.Argument(help="A mechanism's name, or module:Class of your own.")]) -> None:
    """Run the conformance suite on a mechanism and print its table of checks."""
    from attnopt.conformance import check_target as check

    if not check(target):
        raise typer.Exit(1)


for command in (study, init, code, merge_lock, checkpoints, doctor, pretrain):
    app.command()(command)


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 2, a failed run one line and exit code 1."""
    _use_this_checkout()
    use_own_mechanisms(Path())
    gc.set_threshold(50_000)  # torch and transformers import a million objects: 0.5 s, looked through 700 at a time
    try:
        app()
    except UserError as error:
        _end(str(error), 2)
    except RunError as error:
        _end(str(error), 1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS):
            raise
        _end(f"{error.filename or 'output'}: {error.strerror}; nothing was written", 1)
    except KeyboardInterrupt:
        _end("interrupted; a checkpoint, where there is one, is kept", 130)


def _end(message: str, code: int) -> None:
    from attnopt.core.foreign import printable

    print(f"attnopt: {printable(' '.join(message.splitlines()))}", file=sys.stderr)
    raise SystemExit(code)


def _use_this_checkout() -> None:
    """Under DVC's --temp and --queue, run the copied checkout's code and not the one that is installed as editable."""
    here = Path.cwd() / "attnopt" / "cli.py"
    if "DVC_STAGE" in os.environ and here.is_file() and not here.samefile(__file__):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
        os.execv(sys.executable, [sys.executable, "-m", "attnopt.cli", *sys.argv[1:]])


if __name__ == "__main__":
    main()
