"""Imported by the server that bench processes are forked from: everything they need, so that none imports it again."""

import contextlib
import gc
import importlib

from attnopt import mechanisms

for name in (
    "attnopt.bench.plan",
    "transformers.convert_slow_tokenizer",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.encoder_decoder",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.tokenization_utils_tokenizers",
    *(f"attnopt.mechanisms.{kind}" for kind in mechanisms.mechanism_names()),
):
    with contextlib.suppress(Exception):  # what is really needed fails again, in the process that needs it
        importlib.import_module(name)

with contextlib.suppress(Exception):  # a table of regular expressions that the first from_pretrained compiles
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("gpt2")

gc.collect()
gc.freeze()
