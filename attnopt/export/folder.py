"""Write a student as a plain Hugging Face folder, which needs this package and nothing else of the study.

config.json             the teacher's config under text_config, the mechanisms under student, auto_map
modeling_attnopt.py     what auto_map points to
model.safetensors       all weights, the mechanisms' too; generation_config.json beside
tokenizer.json, ...     where the student carries a tokenizer
README.md               the model card
"""

import contextlib
import copy
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME

from attnopt.core.errors import UserError
from attnopt.core.files import write_json
from attnopt.export.description import KEY, Description, describe
from attnopt.export.origin import card_text, tokenizer_of
from attnopt.export.pretrained import MODEL_TYPE, is_exported
from attnopt.student.attach import Attachment, attachment_of, mechanisms_of
from attnopt.teacher.model import without_loading_bars

MODELING = "modeling_attnopt"
AUTO_MAP = {"AutoConfig": f"{MODELING}.AttnoptConfig", "AutoModelForCausalLM": f"{MODELING}.AttnoptForCausalLM"}


def save(
    student: Any,
    folder: str | Path,
    is_main_process: bool = True,
    state_dict: dict[str, Tensor] | None = None,
    push_to_hub: bool = False,
    **options: Any,
) -> None:
    """Write a student so that transformers reads it: what its own `save_pretrained` does.

    A folder that is there keeps its other files; config.json is written last. Where transformers has put adapters into
    the student, they alone are saved, as transformers does.

    Args:
        student: a swapped model.
        state_dict: its weights, where the caller has gathered them.
        options: of transformers' `save_pretrained`, such as max_shard_size.
    Raises: UserError, one line, where it is not swapped, its architecture is not transformers' own, or the folder is a
        file.
    """
    if push_to_hub:
        raise UserError("save_pretrained: push_to_hub=True is not possible here: call push_to_hub(repository) instead")
    if not is_main_process:
        return
    made = _check_exportable(student, Path(folder))
    write = type(student).save_pretrained
    if getattr(student, "_hf_peft_config_loaded", False):
        write(student, folder, state_dict=state_dict, **options)
        return
    target = Path(folder).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as name:
        aside = Path(name)
        with without_loading_bars(), _as_plain_weights(student):
            write(student, aside, state_dict=state_dict, **options)
        _write_beside(student, made, aside, state_dict)
        _move(aside, target)


def check_free(folder: Path) -> None:
    """Raises UserError where a folder holds anything but an earlier export."""
    if folder.is_dir() and any(folder.iterdir()) and not is_exported(folder):
        raise UserError(f"{folder} is there and is no exported student: name a new folder, or remove it first")


def _check_exportable(student: Any, folder: Path) -> Attachment:
    made = attachment_of(student)
    if made is None:
        raise UserError(f"{type(student).__name__} is not swapped: there is no student to export")
    config = student.config
    known = config.model_type in CONFIG_MAPPING and type(config) is CONFIG_MAPPING[config.model_type]
    if not known or not type(student).__module__.startswith("transformers."):
        raise UserError(f"{type(student).__name__} cannot be exported: its code is not a part of transformers")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: the name of a folder is needed")
    return made


def _write_beside(student: Any, made: Attachment, aside: Path, state_dict: dict[str, Tensor] | None) -> None:
    """What stands beside the weights; config.json and generation_config.json as they were before the swap."""
    description = describe(mechanisms_of(student), version("attnopt"))
    text, generation = copy.deepcopy(student.config), copy.deepcopy(student.generation_config)
    if _is_unpacked(student):
        vars(text).pop("quantization_config", None)
    text.use_cache, generation.use_cache = made.use_cache, made.generates_with_cache
    write_json(aside / CONFIG_NAME, _config(text, description))
    generation.save_pretrained(aside)
    template = (resources.files("attnopt") / "assets/export" / f"{MODELING}.py.txt").read_text(encoding="utf-8")
    (aside / f"{MODELING}.py").write_text(template.replace("VERSION", description.attnopt), encoding="utf-8")
    if (tokenizer := tokenizer_of(student)) is not None:
        for how_it_was_read in ("is_local", "local_files_only"):
            tokenizer.init_kwargs.pop(how_it_was_read, None)
        tokenizer.save_pretrained(aside)
    (aside / "README.md").write_text(card_text(student, description, state_dict), encoding="utf-8")


def _is_unpacked(student: Any) -> bool:
    """Whether it was read from a .gguf file into plain weights, which transformers would still not save."""
    method = getattr(getattr(student.config, "quantization_config", None), "quant_method", None)
    stored = [*student.named_parameters(), *student.named_buffers()]
    return method == "gguf" and all(t.is_floating_point() for name, t in stored if ".mechanism." not in name)


@contextlib.contextmanager
def _as_plain_weights(student: Any) -> Iterator[None]:
    quantizer = getattr(student, "hf_quantizer", None)
    if _is_unpacked(student):
        student.hf_quantizer = None
    try:
        yield
    finally:
        if quantizer is not None:
            student.hf_quantizer = quantizer


def _config(text: Any, description: Description) -> dict[str, Any]:
    inner = {key: value for key, value in text.to_dict().items() if not key.startswith("_")}
    return {
        "architectures": [AUTO_MAP["AutoModelForCausalLM"].split(".")[1]],
        "auto_map": AUTO_MAP,
        "model_type": MODEL_TYPE,
        "dtype": inner.get("dtype"),
        "transformers_version": inner.pop("transformers_version", None),
        KEY: description.model_dump(),
        "text_config": inner,
    }


def _move(aside: Path, target: Path) -> None:
    """Every file to its place: while they are on their way there is no config.json, so that a half is never read."""
    target.mkdir(exist_ok=True)
    (target / CONFIG_NAME).unlink(missing_ok=True)
    for old in (*target.glob("model-*-of-*.safetensors"), target / SAFE_WEIGHTS_INDEX_NAME):
        old.unlink(missing_ok=True)
    for file in sorted(aside.iterdir(), key=lambda file: file.name == CONFIG_NAME):
        if (target / file.name).is_symlink():
            (target / file.name).unlink()
        if file.is_dir():
            shutil.copytree(file, target / file.name, dirs_exist_ok=True)
        else:
            os.replace(file, target / file.name)
