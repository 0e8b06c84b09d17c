"""What transformers would fill in or leave out is refused before any work, and again when the model is loaded."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel
from transformers.utils import logging as transformers_logging

from tests.numerics.test_gradients import FAMILIES, _family
from trackstar.storage.errors import InputError
from trackstar.tasks.models.checkpoint import ModelConfig, load_model, read_checkpoint
from trackstar.tasks.models.loadable import require_loadable, require_same_model
from trackstar.tasks.models.selfcheck import selfcheck

MODEL = ModelConfig(device="cpu")
NUM_TOKENS = 336  # of the llama's tokenizer, 320, and what a family's own class of tokenizers adds


@pytest.fixture
def checkpoint(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "checkpoint")


def rewrite(checkpoint, change):
    file = checkpoint / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(file)).items()}, file)


def configure(checkpoint, **settings):
    file = checkpoint / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def without(*parts):
    return lambda tensors: {name: t for name, t in tensors.items() if not any(part in name for part in parts)}


def renamed(prefix):
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def with_more(**more):
    return lambda tensors: {**tensors, **{name.replace("__", "."): tensor for name, tensor in more.items()}}


WEIGHTS = [
    (renamed("_orig_mod."), r"has `_orig_mod\.` in the names of weights .* torch\.compile puts it there"),
    (renamed("module."), r"has `module\.` in the names of weights .* data parallelism puts it there"),
    (renamed("base_model.model."), r"PEFT puts it there: merge the adapter"),
    (
        lambda tensors: {name.replace("layers.0.", "layers.0._orig_mod."): t for name, t in tensors.items()},
        r"has `_orig_mod\.` in the names of weights \(model\.layers\.0\._orig_mod\.",
    ),
    (renamed("wrapped."), r"has no model\.embed_tokens\.weight and \d+ more, which LlamaForCausalLM would fill"),
    (without("layers.1.mlp.up_proj"), r"has no model\.layers\.1\.mlp\.up_proj\.weight, which LlamaForCausalLM"),
    (without("model.norm."), r"has no model\.norm\.weight, which"),
    (with_more(model__norm__weight=torch.ones(9)), r"model\.norm\.weight is \[9\] in the file and \[8\] in Llama"),
    (
        with_more(model__layers__2__mlp__up_proj__weight=torch.ones(16, 8)),
        r"holds model\.layers\.2\.mlp\.up_proj\.weight, for which the LlamaForCausalLM of its config\.json has",
    ),
    (
        with_more(model__layers__0__self_attn__q_proj__bias=torch.ones(8)),
        r"holds model\.layers\.0\.self_attn\.q_proj\.bias, for which",
    ),
    (
        lambda tensors: {name: t.to(torch.int8) if "q_proj" in name else t for name, t in tensors.items()},
        r"keeps model\.layers\.0\.self_attn\.q_proj\.weight as int8 and its config\.json names no quantisation",
    ),
]
CONFIG = [
    ({"num_hidden_layers": 3}, r"has no model\.layers\.2\.\S+ and \d+ more, which"),
    ({"num_hidden_layers": 1}, r"holds model\.layers\.1\.\S+ and \d+ more, for which"),
    ({"tie_word_embeddings": False}, r"has no lm_head\.weight, which LlamaForCausalLM would fill with random"),
    ({"intermediate_size": 24}, r"down_proj\.weight is \[8, 16\] in the file and \[8, 24\] in Llama"),
    ({"transformers_weights": "../model.safetensors"}, r"names '\.\./model\.safetensors' as a file of weights"),
]


@pytest.mark.parametrize(("change", "sentence"), WEIGHTS)
def test_weights_that_are_not_wholly_the_models_are_refused(checkpoint, change, sentence):
    rewrite(checkpoint, change)
    refused(checkpoint, sentence)


@pytest.mark.parametrize(("settings", "sentence"), CONFIG)
def test_a_configuration_of_another_model_than_the_weights_is_refused(checkpoint, settings, sentence):
    configure(checkpoint, **settings)
    refused(checkpoint, sentence)


def refused(checkpoint, sentence):
    """By the check before any work, and by loading itself unless only the check can know."""
    with pytest.raises(InputError, match=sentence):
        require_loadable(str(checkpoint), MODEL)
    if "as int8" not in sentence and "as a file of" not in sentence:
        with pytest.raises(InputError, match=sentence):
            load_model(read_checkpoint(str(checkpoint)), MODEL)
    with pytest.raises(InputError, match=sentence):
        selfcheck(str(checkpoint), MODEL)


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # torch.compile imports what uses it
def test_the_cures_of_wrapped_names_work(llama, checkpoint):
    model = AutoModelForCausalLM.from_pretrained(llama)
    for wrapped in (torch.compile(model), torch.nn.DataParallel(model)):
        prefix = next(iter(wrapped.state_dict())).partition(".")[0]
        save_file({name: t.clone() for name, t in wrapped.state_dict().items()}, checkpoint / "model.safetensors")
        refused(checkpoint, f"`model.{prefix}.save_pretrained" if prefix == "module" else r"`model\._orig_mod\.save_pr")
        getattr(wrapped, prefix).save_pretrained(checkpoint)
        require_loadable(str(checkpoint), MODEL)
        save_file({name: t.clone() for name, t in wrapped.state_dict().items()}, checkpoint / "model.safetensors")
        rewrite(checkpoint, lambda tensors, p=prefix: {name.removeprefix(f"{p}."): t for name, t in tensors.items()})
        require_loadable(str(checkpoint), MODEL)


def test_weights_of_torch_save_are_held_against_the_model_too(checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    torch.save(tensors, checkpoint / "pytorch_model.bin")
    require_loadable(str(checkpoint), MODEL)
    torch.save(without("layers.1.mlp.up_proj")(tensors), checkpoint / "pytorch_model.bin")
    refused(checkpoint, r"has no model\.layers\.1\.mlp\.up_proj\.weight")
    torch.save(tensors, checkpoint / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    require_loadable(str(checkpoint), MODEL)
    torch.save({"model": MODEL}, checkpoint / "pytorch_model.bin")
    with pytest.raises(InputError, match="runs code from the file"):
        require_loadable(str(checkpoint), MODEL)


def test_shards_are_read_by_their_index(checkpoint):
    AutoModelForCausalLM.from_pretrained(checkpoint).save_pretrained(checkpoint, max_shard_size="4KB")
    (checkpoint / "model.safetensors").unlink(missing_ok=True)
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    require_loadable(str(checkpoint), MODEL)
    last = max(index["weight_map"].values())
    (checkpoint / last).unlink()
    with pytest.raises(InputError, match=f"lacks {last}, which its index names"):
        require_loadable(str(checkpoint), MODEL)
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../elsewhere.safetensors")
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="expected one beside it"):
        require_loadable(str(checkpoint), MODEL)


def test_a_damaged_file_is_named(checkpoint):
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged .* copy it again"):
        require_loadable(str(checkpoint), MODEL)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_beside_base_weights_is_not_ignored(checkpoint, name):
    (checkpoint / name).write_bytes(b"{}")
    for check in (lambda: require_loadable(str(checkpoint), MODEL), lambda: read_checkpoint(str(checkpoint))):
        with pytest.raises(InputError, match=rf"holds an adapter \({name}\).*merge it into the model"):
            check()


def test_a_tokenizer_of_more_tokens_than_the_model_has_embeddings_is_refused(checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(checkpoint)
    with pytest.raises(InputError, match=r"its tokenizer gives '<new>' the number 320, and the model has 320 embedd"):
        require_loadable(str(checkpoint), MODEL)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(checkpoint)
    require_loadable(str(checkpoint), MODEL)


def test_weights_outside_the_layers_are_left_out_with_a_warning(checkpoint, caplog):
    rewrite(checkpoint, with_more(v_head__summary__weight=torch.ones(1, 8)))
    require_loadable(str(checkpoint), MODEL)
    assert "v_head.summary.weight is no part of LlamaForCausalLM and is left out" in caplog.text


def test_causal_masks_of_older_checkpoints_are_no_weights(tmp_path, llama):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=8, n_layer=2, n_head=2, n_positions=16))
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(llama).save_pretrained(tmp_path)
    masks = {f"transformer.h.{n}.attn.bias": torch.ones(1, 1, 16, 16) for n in range(2)}
    rewrite(tmp_path, lambda tensors: {**tensors, **masks, "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)})
    require_loadable(str(tmp_path), MODEL)
    load_model(read_checkpoint(str(tmp_path)), MODEL)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_checkpoint_of_every_family_is_loadable(family, llama, tmp_path):
    """Experts are fused, split and renamed on the way from the file to the model: in the outline as well."""
    model = _family(family)
    model.resize_token_embeddings(NUM_TOKENS)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(llama).save_pretrained(tmp_path)
    outline = require_loadable(str(tmp_path), MODEL)
    loaded = load_model(read_checkpoint(str(tmp_path)), MODEL)
    assert outline.shapes == {name: tuple(parameter.shape) for name, parameter in loaded.named_parameters()}
    assert outline.architecture == type(loaded).__name__
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    dropped = next(name for name in tensors if "layers.1." in name or "h.1." in name)
    rewrite(tmp_path, lambda tensors: {name: t for name, t in tensors.items() if name != dropped})
    with pytest.raises(InputError, match=r"has no |cannot be loaded|is \["):
        require_loadable(str(tmp_path), MODEL)


def test_the_outline_takes_no_memory_and_leaves_the_librarys_logging_as_it_was(tmp_path, llama):
    config = AutoModelForCausalLM.from_pretrained(llama).config
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 8192, 28672, 80
    config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((llama / "model.safetensors").read_bytes())
    before = transformers_logging.get_verbosity()
    with pytest.raises(InputError, match=r"has no model\.layers\.10\.\S+ and \d+ more"):  # 280 GB, were it made
        require_loadable(str(tmp_path), MODEL)
    assert transformers_logging.get_verbosity() == before


def test_checkpoints_that_are_no_states_of_one_model_are_not_added_up(llama, gpt2, checkpoint, tmp_path):
    require_same_model(str(checkpoint), MODEL, beside=str(llama))
    with pytest.raises(InputError, match=r"is a GPT2LMHeadModel and .* a LlamaForCausalLM; give checkpoints of one"):
        require_same_model(str(gpt2), MODEL, beside=str(llama))
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Lowercase"}
    (checkpoint / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="has another tokenizer than"):
        require_same_model(str(checkpoint), MODEL, beside=str(llama))
    model = AutoModelForCausalLM.from_pretrained(llama)
    model.resize_token_embeddings(328)
    model.save_pretrained(checkpoint)
    with pytest.raises(InputError, match=r"has model\.embed_tokens\.weight \[328, 8\], which is \[320, 8\] in"):
        require_same_model(str(checkpoint), MODEL, beside=str(llama))
