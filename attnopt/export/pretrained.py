"""An exported student read by transformers: the classes that `auto_map` in its config.json points to.

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

is the teacher's own class, loaded by transformers, with the mechanisms in its layers, as `attnopt.load` gives it.
"""

import contextlib
import copy
import re
from collections.abc import Iterator
from json import JSONDecodeError
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.auto_factory import _get_model_class
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file, logging

from attnopt.core.errors import UserError
from attnopt.core.files import read_json
from attnopt.export.description import KEY, read_description, swaps_of
from attnopt.export.origin import note_origin
from attnopt.student.attach import attach, resolve_swap
from attnopt.teacher.model import fused, without_loading_bars

MODEL_TYPE = "attnopt"
HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
"""What `from_pretrained` is told of where files are."""


class ExportedConfig(PreTrainedConfig):
    """config.json of an exported student.

    What is not found here is looked up in `text_config`, so that tools find vocab_size, hidden_size and so on.

    Attributes:
        text_config: the teacher's own config, of an architecture that transformers has.
        student: the description of the mechanisms, see `Description`; as it stands in the file.
    """

    model_type = MODEL_TYPE
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig}

    text_config: Any = None
    student: Any = None

    def __post_init__(self, **more: Any) -> None:
        self.text_config = _text_config(self.text_config, more.get("name_or_path", ""))
        super().__post_init__(**more)

    def __getattr__(self, name: str) -> Any:
        text = vars(self).get("text_config")
        if text is None or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute '{name}'")
        return getattr(text, name)


class ExportedModel(PreTrainedModel, GenerationMixin):
    """Makes exported students. It has no instances: a student is a model of its teacher's class."""

    config_class = ExportedConfig

    def __init__(self, *_: Any, **__: Any):
        raise TypeError(f"{type(self).__name__} has no instances: use from_pretrained or AutoModelForCausalLM")

    @classmethod
    def from_pretrained(cls, where: Any, *args: Any, config: Any = None, **options: Any) -> Any:  # type: ignore[override]
        """The student of an exported folder or hub repository, in eval mode; options as transformers has them.

        Raises: UserError, one line that names the file and the key, where it is damaged, incomplete or edited into
            what does not fit.
        """
        hub = {name: options[name] for name in HUB if name in options}
        wants_info = options.pop("output_loading_info", False)
        adapter = dict(options.pop("adapter_kwargs", None) or {})
        name, path = options.pop("adapter_name", "default"), adapter.pop("_adapter_model_path", None)
        if config is None:
            config = cls.config_class.from_pretrained(where, **hub)
        model, info = _plain(where, config, options)
        student = _swapped(model, config, where)
        _load_mechanisms(student, where, hub, info)
        note_origin(student, Path(str(where)))
        if path is not None:  # after the swap: it may reach into the mechanisms
            student.load_adapter(path, adapter_name=name, adapter_kwargs=adapter)
        return (student, info) if wants_info else student

    @classmethod
    def _from_config(cls, config: Any, **options: Any) -> Any:
        options.pop("trust_remote_code", None)
        return _swapped(AutoModelForCausalLM.from_config(copy.deepcopy(config.text_config), **options), config, "")


def load_exported(folder: Path) -> Any:
    """The student of an exported folder, without running what else lies there.

    Raises: UserError, one line, as `ExportedModel.from_pretrained`.
    """
    content = read_json(folder / CONFIG_NAME)
    if not isinstance(content, dict) or content.get("model_type") != MODEL_TYPE:
        raise UserError(f"{folder / CONFIG_NAME}: its model_type is no '{MODEL_TYPE}': this is no exported student")
    return ExportedModel.from_pretrained(folder, config=ExportedConfig.from_dict(content, name_or_path=str(folder)))


def is_exported(folder: Path) -> bool:
    """Whether a folder's config.json is that of an exported student."""
    with contextlib.suppress(UserError):
        content = read_json(folder / CONFIG_NAME)
        return isinstance(content, dict) and content.get("model_type") == MODEL_TYPE
    return False


def _text_config(content: Any, where: str) -> Any:
    """The teacher's config; None where there is nothing, which is said when a model is to be made of it."""
    if content is None or isinstance(content, PreTrainedConfig):
        return content
    file = Path(where) / CONFIG_NAME
    kind: Any = content.get("model_type") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise UserError(f"{file}: 'text_config.model_type' is {kind!r}, which this version of transformers lacks")
    try:
        return CONFIG_MAPPING[kind](**{key: value for key, value in content.items() if key != "model_type"})
    except Exception as error:  # each architecture checks in its own way
        raise UserError(f"{file}: text_config: {_first_line(error)}") from None


def _plain(where: Any, config: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The teacher's class with the student's weights, still with softmax, and what the loader said."""
    text = copy.deepcopy(config.text_config)
    made_by = _teachers_class(text, Path(str(where)) / CONFIG_NAME)
    options = options | {"output_loading_info": True, "ignore_mismatched_sizes": True}
    options |= {"trust_remote_code": False, "use_safetensors": True}  # transformers' own class, and no pickle
    _check_beside(where, options)
    with without_loading_bars(), _without_report():
        try:
            model, info = made_by.from_pretrained(where, config=text, **options)
        except SafetensorError as error:
            raise UserError(f"{where}: its safetensors are damaged ({error}): export the student again") from None
        except (OSError, JSONDecodeError) as error:
            raise UserError(f"{where}: {_first_line(error)}") from None
    if getattr(model, "_hf_peft_config_loaded", False):
        _refuse_adapter(where)
    misfits = [*info["missing_keys"], *(key if isinstance(key, str) else key[0] for key in info["mismatched_keys"])]
    misfits += [name for name in info["unexpected_keys"] if ".mechanism." not in name]
    if misfits:
        _refuse_weights(where, sorted(misfits)[0])
    return fused(model), info


def _check_beside(where: Any, options: dict[str, Any]) -> None:
    """Raises UserError where files beside the weights name others: another model to adapt, or shards elsewhere."""
    hub = {name: options[name] for name in HUB if name in options}
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    if (Path(str(where)) / "adapter_config.json").is_file():
        _refuse_adapter(where)
    if (index := cached_file(where, SAFE_WEIGHTS_INDEX_NAME, **hub, **quiet)) is not None:
        _shards(index)


def _shards(index: str) -> dict[str, str]:
    """Tensor -> file of a model in several. Raises UserError where one of them is no plain name of a safetensors."""
    content = read_json(index)
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict):
        raise UserError(f"{index}: 'weight_map' is missing: export the student again")
    for name, file in files.items():
        if not isinstance(file, str) or not re.fullmatch(r"[\w-][\w.-]*\.safetensors", file):
            raise UserError(f"{index}: 'weight_map.{name}' is {file!r}, which is no file of this folder")
    return files


def _teachers_class(text: Any, file: Path) -> Any:
    """transformers' class of a config, which can be built by it."""
    if text is None:
        raise UserError(f"{file}: 'text_config' is missing: export the student again")
    known = AutoModelForCausalLM._model_mapping
    if type(text) not in known:
        raise UserError(f"{file}: 'text_config.model_type' is {text.model_type!r}, which is no causal language model's")
    made_by: Any = _get_model_class(text, known)
    try:
        with torch.device("meta"):
            made_by(copy.deepcopy(text))
    except Exception as error:  # each architecture fails in its own way
        raise UserError(f"{file}: text_config: {_first_line(error)}") from None
    return made_by


def _swapped(model: Any, config: Any, where: Any) -> Any:
    file = Path(str(where)) / CONFIG_NAME
    description = read_description(config.student, file)
    if (count := model.config.num_hidden_layers) != len(description.layers):
        raise UserError(f"{file}: '{KEY}.layers' has {len(description.layers)} rows, the model {count} layers")
    swaps: Any = swaps_of(description)
    try:
        for swap in swaps:
            resolve_swap(swap)
        return attach(model, swaps[0] if len(swaps) == 1 else swaps)
    except UserError as error:
        raise UserError(f"{file}: {KEY}: {error}") from None


@torch.no_grad()
def _load_mechanisms(model: Any, where: Any, hub: dict[str, Any], info: dict[str, Any]) -> None:
    """Fill the mechanisms' own parameters and buffers, each of which must be there."""
    own = {name: tensor for name, tensor in model.state_dict().items() if ".mechanism." in name}
    stored = {name for name in info["unexpected_keys"] if ".mechanism." in name}
    if wrong := sorted(own.keys() ^ stored):
        _refuse_weights(where, wrong[0])
    for file, names in _files_of(where, hub, stored).items():
        with safe_open(file, "pt") as tensors:
            for name in names:
                tensor = tensors.get_tensor(name)
                if tensor.shape != own[name].shape:
                    _refuse_weights(where, name)
                own[name].copy_(tensor)
    info["unexpected_keys"] = type(info["unexpected_keys"])(set(info["unexpected_keys"]) - stored)


def _files_of(where: Any, hub: dict[str, Any], names: set[str]) -> dict[str, list[str]]:
    """Which file each tensor is in."""
    if not names:
        return {}
    quiet = {"_raise_exceptions_for_missing_entries": False}
    if (whole := cached_file(where, SAFE_WEIGHTS_NAME, **hub, **quiet)) is not None:
        return {whole: sorted(names)}
    index = _shards(str(cached_file(where, SAFE_WEIGHTS_INDEX_NAME, **hub)))
    files: dict[str, list[str]] = {}
    for name in sorted(names):
        files.setdefault(str(cached_file(where, index[name], **hub)), []).append(name)
    return files


def _refuse_weights(where: Any, name: str) -> NoReturn:
    file = Path(str(where)) / SAFE_WEIGHTS_NAME
    raise UserError(f"{file} does not fit {CONFIG_NAME} at {name}: export the student again")


def _refuse_adapter(where: Any) -> NoReturn:
    raise UserError(f"{where}: an adapter lies beside the model's own files: move adapter_* to a folder of its own")


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split("\n")[0].split())[:300] or type(error).__name__


@contextlib.contextmanager
def _without_report() -> Iterator[None]:
    """Keep transformers from warning of the mechanisms' tensors, which its model does not have yet."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
