"""What a whole model does in each phase, without processes."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from attnopt.bench.model_runner import ModelRunner, extend_positions, position_table
from attnopt.bench.work import Setting
from attnopt.student.attach import attach
from attnopt.student.swap import Swap

SETTING = Setting(batch=2, decode_tokens=3, dtype=torch.float32, device=torch.device("cpu"))


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=96, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).eval()


def llama() -> LlamaForCausalLM:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 16}
    return LlamaForCausalLM(LlamaConfig(vocab_size=96, num_attention_heads=4, num_key_value_heads=2, **sizes)).eval()


def swapped() -> GPT2LMHeadModel:
    return attach(gpt2(), Swap("softmax"))


@pytest.mark.parametrize("make", [gpt2, swapped, llama])
def test_prefill_and_decode_of_a_model_reach_the_length_and_leave_the_context_as_it_was(make):
    runner = ModelRunner(make(), SETTING)
    assert runner.work("prefill", 10).run(None).get_seq_length() == 10
    work = runner.work("decode", 10)
    assert work.tokens == 3
    context = work.context()
    assert work.run(work.copy(context)).get_seq_length() == 13
    assert context.get_seq_length() == 10


def test_a_swapped_models_decoding_run_begins_with_room_for_its_tokens():
    work = ModelRunner(swapped(), SETTING).work("decode", 10)
    context = work.context()
    given = work.copy(context)
    assert [c.layers[1].state.v.capacity for c in (context, given)] == [10, 20]
    assert given.layers[1].state.v.count == 10


def test_extended_positions_change_nothing_below_the_models_own():
    model = gpt2()
    ids = torch.arange(16)[None]
    before = model(input_ids=ids).logits
    extend_positions(model, 16)
    assert model.transformer.wpe.num_embeddings == 16
    extend_positions(model, 40)
    assert model.transformer.wpe.weight.shape == (40, 32)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert model(input_ids=torch.zeros(1, 40, dtype=torch.long)).logits.shape[1] == 40


def test_rotary_models_need_no_extension():
    model = llama()
    assert position_table(model) is None
    runner = ModelRunner(model, SETTING)
    assert not runner.is_synthetic("prefill", 1000)
    assert runner.work("prefill", 40).run(None).get_seq_length() == 40


def test_state_bytes_of_an_untouched_model_follow_its_kv_heads():
    runner = ModelRunner(llama(), SETTING)
    expected = 2 * 2 * 2 * 2 * 10 * 8 * 4  # k and v, layers, batch, kv heads, tokens, head dimension, float32
    assert runner.declared_bytes(10) == runner.state_bytes(runner.work("prefill", 10).run(None)) == expected


def test_train_of_a_model_gives_every_weight_a_gradient():
    gradients = ModelRunner(gpt2(), SETTING).work("train", 10).run(None)
    assert all(g is not None for g in gradients)


def test_weights_are_counted_once_with_their_buffers():
    model = gpt2()
    tied = sum(p.numel() for p in model.parameters()) * 4
    assert ModelRunner(model, SETTING).weight_bytes() == tied + sum(b.nbytes for b in model.buffers())
