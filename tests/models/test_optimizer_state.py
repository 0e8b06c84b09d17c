"""Real optimizers train tiny real models; what is read back is what they held in memory."""

import copy
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Trainer,
    TrainingArguments,
)
from transformers.optimization import Adafactor

from trackstar.storage.errors import InputError
from trackstar.storage.layout import SECOND_MOMENT
from trackstar.tasks.index.second_moment import SecondMomentConfig
from trackstar.tasks.models.checkpoint import Checkpoint
from trackstar.tasks.models.optimizer_formats import QUANTISED_STATE, read_state
from trackstar.tasks.models.optimizer_state import read_second_moment_file, read_second_moments, write_second_moments
from trackstar.tasks.numerics.architecture import find_weight_matrices
from trackstar.tasks.numerics.second_moment import FactoredSecondMoment, FullSecondMoment, dense, factor

IDS = {"vocab_size": 48, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def gpt2(num_layers: int = 2, width: int = 16) -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(n_embd=width, n_layer=num_layers, n_head=2, n_positions=32, **IDS))


def llama(num_layers: int = 2, width: int = 16) -> nn.Module:
    sizes = {"hidden_size": width, "intermediate_size": 24, "num_hidden_layers": num_layers}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, **IDS))


def llama_with_gain() -> nn.Module:
    """A vector that is neither norm nor bias: the Trainer decays it, a rule by dimension does not."""
    model = llama()
    for layer in model.model.layers:
        layer.mlp.gain = nn.Parameter(torch.ones(16))
    return model


def mixtral() -> nn.Module:
    """Experts fused in one parameter, [3 m n]."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_local_experts": 3}
    return MixtralForCausalLM(MixtralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, **IDS))


MODELS = [gpt2, llama, mixtral]


def trainer_groups(model: nn.Module) -> list[dict]:
    """The two groups of ``Trainer.create_optimizer``."""
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    named = list(model.named_parameters())
    return [
        {"params": [p for name, p in named if name in decayed], "weight_decay": 0.1},
        {"params": [p for name, p in named if name not in decayed], "weight_decay": 0.0},
    ]


def transformers_4_groups(model: nn.Module) -> list[dict]:
    """Decay left off biases and nn.LayerNorm: RMSNorm weights are decayed."""
    norms = {id(p) for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
    named = list(model.named_parameters())
    left_off = [p for name, p in named if id(p) in norms or "bias" in name]
    return [{"params": [p for _, p in named if not any(p is q for q in left_off)]}, {"params": left_off}]


def dimension_groups(model: nn.Module) -> list[dict]:
    parameters = list(model.parameters())
    return [{"params": [p for p in parameters if p.ndim > 1]}, {"params": [p for p in parameters if p.ndim < 2]}]


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        tokens = torch.randint(3, 48, (4, 12), generator=generator)
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def train_and_save(model: nn.Module, optimizer: torch.optim.Optimizer, directory: Path) -> None:
    train(model, optimizer)
    torch.save(optimizer.state_dict(), directory / "optimizer.pt")
    torch.save({"last_epoch": 3}, directory / "scheduler.pt")


def read(directory: Path, model: nn.Module):
    return read_second_moments(directory, model, find_weight_matrices(model))


def assert_second_moments(found, model, live) -> None:
    """Compare with the dense V that ``live`` computes from a parameter, in its storage orientation."""
    matrices = find_weight_matrices(model)
    parameters = dict(model.named_parameters())
    assert set(found) == {matrix.name for matrix in matrices}
    for matrix in matrices:
        expected = matrix.part_of(live(parameters[matrix.parameter]).double())
        assert found[matrix.name].shape == matrix.shape
        # rtol: factors of float32 carry its rounding, and a transposed pair is rescaled once
        torch.testing.assert_close(dense(found[matrix.name]), expected, rtol=1e-6, atol=0)


def outer(row, column):
    row, column = row.double(), column.double()
    return row[..., :, None] * column[..., None, :] / row.mean(-1)[..., None, None]


@pytest.mark.parametrize("groups", [trainer_groups, transformers_4_groups, dimension_groups, nn.Module.parameters])
@pytest.mark.parametrize("build", [*MODELS, llama_with_gain])
def test_adamw_state_is_read_back_whatever_the_grouping(build, groups, tmp_path):
    model = build()
    optimizer = torch.optim.AdamW(groups(model), lr=1e-3)
    train_and_save(model, optimizer, tmp_path)
    found = read(tmp_path, model)
    assert_second_moments(found, model, lambda p: optimizer.state[p]["exp_avg_sq"])
    assert all(isinstance(second_moment, FullSecondMoment) for second_moment in found.values())


@pytest.mark.parametrize("build", MODELS)
def test_named_parameters_need_no_rule_and_survive_compile_prefixes(build, tmp_path):
    model = build()
    reversed_names = [(f"_orig_mod.{name}", p) for name, p in reversed(list(model.named_parameters()))]
    optimizer = torch.optim.AdamW(reversed_names)
    train_and_save(model, optimizer, tmp_path)
    assert_second_moments(read(tmp_path, model), model, lambda p: optimizer.state[p]["exp_avg_sq"])


@pytest.mark.parametrize("build", MODELS)
def test_transformers_adafactor_state_is_read_back(build, tmp_path):
    model = build()
    optimizer = Adafactor(trainer_groups(model), lr=1e-3, scale_parameter=False, relative_step=False)
    train_and_save(model, optimizer, tmp_path)
    state = optimizer.state
    found = read(tmp_path, model)
    assert_second_moments(found, model, lambda p: outer(state[p]["exp_avg_sq_row"], state[p]["exp_avg_sq_col"]))
    assert all(isinstance(second_moment, FactoredSecondMoment) for second_moment in found.values())


@pytest.mark.parametrize("build", MODELS)
def test_torch_adafactor_state_is_read_back(build, tmp_path):
    model = build()
    optimizer = torch.optim.Adafactor(trainer_groups(model))
    train_and_save(model, optimizer, tmp_path)
    state = optimizer.state
    found = read(tmp_path, model)
    assert_second_moments(found, model, lambda p: outer(state[p]["row_var"][..., 0], state[p]["col_var"][..., 0, :]))


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor"])
@pytest.mark.filterwarnings("ignore")  # the Trainer's own
def test_a_trainer_checkpoint_is_read_back(optim, tmp_path):
    pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate")
    model = gpt2()
    tokens = torch.randint(3, 48, (16, 12), generator=torch.Generator().manual_seed(0))
    settings = {"max_steps": 3, "save_steps": 3, "per_device_train_batch_size": 4, "optim": optim}
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True, **settings)
    trainer = Trainer(model, arguments, train_dataset=[{"input_ids": row, "labels": row} for row in tokens])
    trainer.train()
    state = trainer.optimizer.state
    found = read(tmp_path / "checkpoint-3", model)
    if optim == "adafactor":
        assert_second_moments(found, model, lambda p: outer(state[p]["exp_avg_sq_row"], state[p]["exp_avg_sq_col"]))
    else:
        assert_second_moments(found, model, lambda p: state[p]["exp_avg_sq"])


@pytest.mark.filterwarnings("ignore")  # torch.distributed warns that there is one process
@pytest.mark.parametrize("state_of", [get_optimizer_state_dict, lambda _, optimizer: optimizer.state_dict()])
@pytest.mark.parametrize("is_wrapped", [True, False])
def test_what_distributed_checkpoint_wrote_is_refused_with_a_command_that_makes_it_readable(
    state_of, is_wrapped, tmp_path
):
    directory = tmp_path / "a checkpoint; of mine"
    directory.mkdir()
    model = llama()
    optimizer = torch.optim.AdamW(trainer_groups(model))
    train(model, optimizer)
    state = state_of(model, optimizer)
    dcp.save({"optimizer": state} if is_wrapped else state, checkpoint_id=directory / "optimizer_0", no_dist=True)
    with pytest.raises(InputError, match=r"not read as it is \(optimizer_0\)") as refusal:
        read(directory, model)
    command = re.search(r"run `(.*)`, or use --second-moment estimated$", str(refusal.value))[1]
    words = shlex.split(command)
    assert words[0] == "python"
    subprocess.run([sys.executable, *words[1:]], check=True, capture_output=True)
    assert_second_moments(read(directory, model), model, lambda p: optimizer.state[p]["exp_avg_sq"])


PIECES = [
    "global_step3/", "rank0-of-2-optimizer.pt", "optimizer.pt_0", "optimizer_0/", "optimizer/", "optim/", "optim.pt",
    "model_and_optim/", "optimizer_0_rank1.bin", "optimizer.safetensors", "optimizer_1.bin", "opt_state.msgpack",
    "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt", "mp_rank_00/",
    "distrib_optim.pt", "__0_0.distcp", "OptimizerStates.pth", "training_state.pt", "adamw-optimizer-state.pt",
]  # fmt: skip
NO_STATE = [
    "optimizer_config.json", "optimizer.py", "optim.yaml", "model_optimized.onnx", "optimum_notes.bin", "scheduler.pt",
    "training_args.bin", "trainer_state.json", "rng_state.pth", "model.safetensors",
]  # fmt: skip


@pytest.mark.parametrize("name", PIECES)
def test_an_optimizer_state_that_is_not_read_is_no_reason_for_an_estimate_that_nobody_asked_for(name, tmp_path):
    make = Path.mkdir if name.endswith("/") else Path.touch
    make(tmp_path / name)
    checkpoint = Checkpoint(path=str(tmp_path), digest="", optimizer_digest=None)
    for find in (lambda: read(tmp_path, llama()), lambda: SecondMomentConfig().resolve(checkpoint)):
        with pytest.raises(InputError, match=rf"\({name.strip('/')}\), .*: use --second-moment estimated$"):
            find()
    assert SecondMomentConfig(mode="estimated").resolve(checkpoint) == "estimated"
    torch.save({"state": {}, "param_groups": []}, tmp_path / "optimizer.pt")
    assert SecondMomentConfig().resolve(checkpoint) == "factored"


def test_what_is_no_optimizer_state_leaves_the_choice_of_an_estimate(tmp_path):
    for name in NO_STATE:
        (tmp_path / name).touch()
    checkpoint = Checkpoint(path=str(tmp_path), digest="", optimizer_digest=None)
    assert SecondMomentConfig().resolve(checkpoint) == "estimated"


MATRIX, VECTOR = torch.ones(16, 16), torch.ones(16)
ADAM = {"step": 3, "exp_avg": MATRIX, "exp_avg_sq": MATRIX}
FOREIGN = [
    ({**ADAM, "GG": [MATRIX, MATRIX], "Q": [MATRIX, MATRIX]}, "SOAP"),
    ({**ADAM, "GG": [], "Q": []}, "SOAP"),
    ({"step": 3, "precond_0": MATRIX, "inv_precond_0": MATRIX, "momentum_buffer": MATRIX}, "Shampoo"),
    ({"step": 3, "exp_avg": MATRIX, "hessian": MATRIX}, "Sophia"),
    ({**ADAM, "exp_avg_diff": MATRIX, "neg_pre_grad": MATRIX}, "Adan"),
    ({"step": 3, "exp_avg": MATRIX, "exp_avg_var": MATRIX}, "AdaBelief"),
    ({**ADAM, "s": MATRIX, "p0": MATRIX}, "Prodigy"),
    (
        {"step": 3, "RMS": 1.0, "exp_avg": MATRIX, "exp_avg_sq_row": VECTOR, "exp_avg_sq_col": VECTOR,
         "exp_avg_res_row": VECTOR, "exp_avg_res_col": VECTOR}, "CAME",
    ),
    ({"exp_avg": MATRIX}, "Lion"),
    ({"momentum_buffer": MATRIX}, "SGD or Muon"),
    ({"step": 3, "square_avg": MATRIX}, "RMSprop or Adadelta"),
    ({"step": 3, "z": MATRIX, "exp_avg_sq": MATRIX}, "a schedule-free optimizer"),
    ({"step": 3, "state1": MATRIX, "qmap1": VECTOR, "absmax1": VECTOR}, "8-bit Lion or momentum"),
    ({**ADAM, "exp_avg_slow": MATRIX}, "AdEMAMix"),
]  # fmt: skip


@pytest.mark.parametrize(("entries", "name"), FOREIGN, ids=[name for _, name in FOREIGN])
def test_a_state_with_entries_that_a_known_format_has_not_is_of_another_optimizer(entries, name):
    matrix = find_weight_matrices(llama())[0]
    assert matrix.shape == (16, 16)
    with pytest.raises(InputError, match=rf"keeps .* \({name}\), which is no second moment of Adam or Adafactor"):
        read_state(entries, matrix)


@pytest.mark.parametrize("extra", ["rotation", "preconditioner", "anything"])
def test_an_unknown_entry_beside_adams_is_refused_by_name(extra):
    with pytest.raises(InputError, match=rf"keeps .*'{extra}'.*use --second-moment estimated"):
        read_state({**ADAM, extra: MATRIX}, find_weight_matrices(llama())[0])


@pytest.mark.parametrize("extra", [{}, {"max_exp_avg_sq": MATRIX}, {"mu_product": VECTOR[0]}])
def test_the_variants_of_adam_keep_the_same_second_moment(extra):
    found = read_state({**ADAM, **extra}, find_weight_matrices(llama())[0])
    assert torch.equal(found.values, MATRIX)


def test_muon_of_torch_is_refused_for_the_matrices_that_it_trains(tmp_path):
    model = llama()
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    optimizer = torch.optim.Muon(matrices)
    train(model, optimizer)
    with pytest.raises(InputError, match=r"keeps \['momentum_buffer'\] \(SGD or Muon\)"):
        read_state(optimizer.state[matrices[0]], find_weight_matrices(model)[0])


def parts(codes, code_map, scales):
    return ("state", codes), ("qmap", code_map), ("absmax", scales)


def _quantised_checkpoint(directory: Path, *, block_size: int, nested: bool) -> tuple[nn.Module, dict]:
    """The layout of bitsandbytes written by hand; return the model and V by parameter, as its blocks decode."""
    generator = torch.Generator().manual_seed(1)
    model = gpt2(width=32)
    expected, state = {}, {}
    for index, (name, parameter) in enumerate(model.named_parameters()):
        size = parameter.numel()
        codes = torch.randint(1, 256, parameter.shape, generator=generator, dtype=torch.uint8)
        scales = torch.rand(-(-size // block_size), generator=generator) + 0.1
        code_map = torch.linspace(0, 1, 256)
        flat = [code_map[code] * scales[i // block_size] for i, code in enumerate(codes.flatten().tolist())]
        expected[name] = torch.stack(flat).view(parameter.shape)
        tensors = {f"{name}{n}": part for n in (1, 2) for name, part in parts(codes, code_map, scales)}
        state[index] = {"step": 3, **({QUANTISED_STATE: tensors} if nested else tensors)}
    torch.save({"state": state, "param_groups": [{"params": list(state)}]}, directory / "optimizer.pt")
    return model, expected


@pytest.mark.parametrize(("block_size", "nested"), [(256, True), (2048, False)])
def test_8_bit_state_is_dequantised_block_by_block(block_size, nested, tmp_path):
    model, expected = _quantised_checkpoint(tmp_path, block_size=block_size, nested=nested)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert_second_moments(read(tmp_path, model), model, lambda p: expected[names[id(p)]])


def test_8_bit_state_of_an_unknown_block_size_is_refused(tmp_path):
    model, _ = _quantised_checkpoint(tmp_path, block_size=100, nested=True)
    with pytest.raises(InputError, match="fit no known block size"):
        read(tmp_path, model)


@pytest.mark.filterwarnings("ignore")
def test_bitsandbytes_dequantises_to_the_same_values(tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    model = gpt2(width=64)
    optimizer = bitsandbytes.optim.AdamW8bit(trainer_groups(model), lr=1e-3)
    train_and_save(model, optimizer, tmp_path)

    def live(parameter):
        state = optimizer.state[parameter]
        if state["state2"].dtype != torch.uint8:
            return state["state2"]
        return bitsandbytes.functional.dequantize_blockwise(
            state["state2"], absmax=state["absmax2"], code=state["qmap2"], blocksize=256
        )

    assert {optimizer.state[p]["state2"].dtype for p in model.parameters()} == {torch.uint8, torch.float32}
    assert_second_moments(read(tmp_path, model), model, live)


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("factored", [False, True])
def test_our_own_file_is_read_back_and_comes_before_the_optimizers(build, factored, tmp_path):
    model = build()
    train_and_save(model, torch.optim.AdamW(model.parameters()), tmp_path)
    matrices = find_weight_matrices(model)
    generator = torch.Generator().manual_seed(2)
    written = {w.name: FullSecondMoment(torch.rand(w.shape, generator=generator) + 0.1) for w in matrices}
    if factored:
        written = {name: factor(full) for name, full in written.items()}
    write_second_moments(tmp_path / SECOND_MOMENT, written, matrices=matrices)
    found = read(tmp_path, model)
    for name, second_moment in written.items():
        # rtol: a transposed pair of factors is rescaled twice
        torch.testing.assert_close(dense(found[name]), dense(second_moment), rtol=1e-14, atol=0)
        assert type(found[name]) is type(second_moment)


@pytest.mark.parametrize("build", MODELS)
def test_our_own_file_keeps_the_storage_orientation_of_each_parameter(build, tmp_path):
    from safetensors.torch import load_file

    model = build()
    matrices = find_weight_matrices(model)
    full = {w.name: FullSecondMoment(torch.rand(w.shape) + 0.1) for w in matrices}
    write_second_moments(tmp_path / "full.safetensors", full, matrices=matrices)
    factored = {name: factor(second_moment) for name, second_moment in full.items()}
    write_second_moments(tmp_path / "factored.safetensors", factored, matrices=matrices)
    values, factors = load_file(tmp_path / "full.safetensors"), load_file(tmp_path / "factored.safetensors")
    parameters = dict(model.named_parameters())
    for matrix in matrices:
        shape = parameters[matrix.parameter].shape
        assert values[f"{matrix.parameter}.values"].shape == shape
        assert factors[f"{matrix.parameter}.row"].shape == shape[:-1]
        assert factors[f"{matrix.parameter}.column"].shape == (*shape[:-2], shape[-1])


def test_our_own_file_of_another_model_is_refused(tmp_path):
    model, other = llama(), llama(num_layers=1)
    matrices = find_weight_matrices(model)
    path = tmp_path / SECOND_MOMENT
    full = {w.name: FullSecondMoment(torch.rand(w.shape) + 0.1) for w in matrices}
    write_second_moments(path, full, matrices=matrices)
    with pytest.raises(InputError, match=r"holds model\.layers\.1\.\S+, which is no parameter"):
        read(tmp_path, other)
    write_second_moments(path, dict(list(full.items())[1:]), matrices=matrices)
    with pytest.raises(InputError, match=r"layers\.0\.self_attn\.q_proj\.weight: expected either .* found nothing"):
        read(tmp_path, model)
    full[matrices[0].name] = FullSecondMoment(torch.ones(3, 16))
    write_second_moments(path, full, matrices=matrices)
    with pytest.raises(InputError, match=r"\[3, 16\] as \(out, in\), and the model's matrix is \[16, 16\]"):
        read(tmp_path, model)


def test_our_own_file_of_more_experts_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    model = mixtral()
    matrices = find_weight_matrices(model)
    path = tmp_path / SECOND_MOMENT
    write_second_moments(
        path, {w.name: FullSecondMoment(torch.rand(w.shape) + 0.1) for w in matrices}, matrices=matrices
    )
    tensors = load_file(path)
    name = "model.layers.0.mlp.experts.down_proj.values"
    save_file({**tensors, name: torch.cat([tensors[name], tensors[name][:1]])}, path)
    with pytest.raises(InputError, match=r"down_proj: its values is \[4, 16, 24\], and the model has 3 experts"):
        read(tmp_path, model)


def test_an_expert_that_was_never_trained_is_refused_by_name(tmp_path):
    model = mixtral()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer)
    optimizer.state[model.model.layers[1].mlp.experts.down_proj]["exp_avg_sq"][2] = 0
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.experts\.down_proj\.2: V ranges from 0\.0 to 0\.0"):
        read(tmp_path, model)


def test_our_own_file_is_read_from_an_object_store():
    from upath import UPath

    model = llama()
    matrices = find_weight_matrices(model)
    path = UPath("memory://second-moments/second_moment.safetensors")
    full = {w.name: FullSecondMoment(torch.rand(w.shape) + 0.1) for w in matrices}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_second_moments(path, full, matrices=matrices)
    found = read_second_moment_file(path, model, matrices)
    assert all(torch.equal(found[name].values, full[name].values) for name in full)
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer)
    path.unlink()
    with (path.parent / "optimizer.pt").open("wb") as file:
        torch.save(optimizer.state_dict(), file)
    found = read_second_moments(path.parent, model, matrices)
    assert_second_moments(found, model, lambda p: optimizer.state[p]["exp_avg_sq"])


def test_a_checkpoint_without_optimizer_state_has_none(tmp_path):
    llama().save_pretrained(tmp_path)
    torch.save({"last_epoch": 3}, tmp_path / "scheduler.pt")
    assert read(tmp_path, llama()) is None


def test_a_checkpoint_that_is_no_directory_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a directory"):
        read(tmp_path / "absent", llama())


@pytest.mark.parametrize("groups", [trainer_groups, nn.Module.parameters])
def test_state_of_a_deeper_model_is_refused_with_both_counts(groups, tmp_path):
    trained = llama(num_layers=3)
    train_and_save(trained, torch.optim.AdamW(groups(trained)), tmp_path)
    with pytest.raises(
        InputError, match=r"groups of .* parameters are no way of grouping the 21 parameters of this Llama"
    ):
        read(tmp_path, llama())


@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.Adafactor])
def test_state_of_a_wider_model_is_refused_with_both_shapes(optimizer_class, tmp_path):
    trained = llama(width=32)
    train_and_save(trained, optimizer_class(trainer_groups(trained)), tmp_path)
    with pytest.raises(
        InputError, match=r"embed_tokens.weight is \[48, 16\] in the model and \[48, 32\] in the optimizer"
    ):
        read(tmp_path, llama())


def test_named_state_of_a_shallower_model_is_not_partially_used(tmp_path):
    trained = llama(num_layers=1)
    train_and_save(trained, torch.optim.AdamW(trained.named_parameters()), tmp_path)
    with pytest.raises(InputError, match=r"layers\.1\.self_attn\.q_proj\.weight: the optimizer keeps nothing"):
        read(tmp_path, llama())


def test_named_state_of_a_deeper_model_is_refused(tmp_path):
    trained = llama(num_layers=3)
    train_and_save(trained, torch.optim.AdamW(trained.named_parameters()), tmp_path)
    with pytest.raises(InputError, match=r"it keeps model\.layers\.2\.\S+, and the model has .* but not that"):
        read(tmp_path, llama())


def test_an_optimizer_without_a_second_moment_is_refused(tmp_path):
    model = llama()
    train_and_save(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), tmp_path)
    with pytest.raises(InputError, match=r"keeps \['momentum_buffer'\] \(SGD or Muon\), which is no second moment"):
        read(tmp_path, model)


def test_state_that_is_no_second_moment_names_the_matrix(tmp_path):
    model = llama()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][1]["exp_avg_sq"][0, 0] = float("nan")
    torch.save(state, tmp_path / "optimizer.pt")
    with pytest.raises(
        InputError, match=r"optimizer\.pt, model\.layers\.0\.self_attn\.q_proj\.weight: V ranges from nan"
    ):
        read(tmp_path, model)


class Arbitrary:
    def __reduce__(self):
        return print, ("executed",)


def test_python_objects_are_never_unpickled(tmp_path, capsys):
    torch.save({"state": Arbitrary(), "param_groups": []}, tmp_path / "optimizer.pt")
    with pytest.raises(InputError, match="runs code from the file"):
        read(tmp_path, llama())
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_a_file_cut_short_is_refused(keep, tmp_path):
    model = llama()
    train_and_save(model, torch.optim.AdamW(model.parameters()), tmp_path)
    path = tmp_path / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"optimizer\.pt is damaged"):
        read(tmp_path, model)
    (tmp_path / SECOND_MOMENT).write_bytes(b"\0" * keep)
    with pytest.raises(InputError, match=r"second_moment\.safetensors is damaged"):
        read(tmp_path, model)


def test_a_torch_file_that_is_no_optimizer_is_refused(tmp_path):
    torch.save({"last_epoch": 3}, tmp_path / "optimizer.pt")
    with pytest.raises(InputError, match=r"is not what `torch\.save"):
        read(tmp_path, llama())
