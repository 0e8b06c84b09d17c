"""What optimizers write: the second moment of each parameter, and which parameter each entry belongs to.

``torch.save(optimizer.state_dict())`` numbers the parameters through the optimizer's groups and keeps no names unless
the optimizer was given named parameters. They are recovered from how training scripts group the parameters of a model
and accepted only if every entry then has the shape of its parameter.

    optimizer                entries of one parameter                          second moment
    Adam, AdamW              exp_avg, exp_avg_sq [m n]                         full
    transformers Adafactor   exp_avg_sq_row [m], exp_avg_sq_col [n]            factored
    torch Adafactor          row_var [m 1], col_var [1 n]; variance [n]        factored; a vector's is full
    bitsandbytes, 32-bit     state1, state2 [m n]                              full
    bitsandbytes, 8-bit      state2 [m n] codes, qmap2 [256], absmax2 [blocks]   qmap2[code] · absmax2 of its block

A format is told by all of its entries. SOAP keeps an `exp_avg_sq` of the right shape as well, in a rotated basis, where
it is no second moment of the gradient; its further entries give it away, as those of others do.

Fused experts have one axis more in front of each of these, [E m n], and factors for each expert.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor, nn

from trackstar.storage.errors import InputError
from trackstar.tasks.numerics.architecture import WeightMatrix
from trackstar.tasks.numerics.second_moment import FactoredSecondMoment, FullSecondMoment, SecondMoment, transpose

Shape = tuple[int, ...]
State = Mapping[str, Any]
Fields = Mapping[str, Tensor]  # `values`, or `row` and `column`, of a whole parameter as it is stored

CURE = "use the optimizer state of this very model, or --second-moment estimated"
QUANTISED_BLOCKS = (256, 2048)  # of bitsandbytes since 0.44 and before
QUANTISED_STATE = "__bnb_optimizer_quant_state__"  # where bitsandbytes nests its tensors, to hide them from FSDP


@dataclass(frozen=True)
class Format:
    """One way to keep a parameter's second moment.

    Attributes:
        keys: Entries that every parameter has.
        optional: Entries that it may have; with any other it is of another format.
        shape: Shape of the parameter that the entries belong to.
        read: The second moment's fields; called on entries of matrices only.
    """

    keys: tuple[str, ...]
    optional: tuple[str, ...]
    shape: Callable[[State], Shape]
    read: Callable[[State], Fields]

    def has(self, entries: Collection[str]) -> bool:
        return set(self.keys) <= set(entries) <= {*self.keys, *self.optional}


def _dequantise(state: State) -> Fields:
    """``qmap2[code] · absmax2``, one absmax for each block of consecutive elements."""
    codes, absmax = state["state2"], state["absmax2"]
    sizes = [size for size in QUANTISED_BLOCKS if math.ceil(codes.numel() / size) == len(absmax)]
    if not sizes:
        raise InputError(
            f"{len(absmax)} block scales for {codes.numel()} 8-bit values fit no known block size {QUANTISED_BLOCKS}: "
            "use --second-moment estimated"
        )
    scales = absmax.repeat_interleave(sizes[0])[: codes.numel()]
    return {"values": (state["qmap2"][codes.flatten().int()] * scales).view(codes.shape)}


FORMATS = (  # no two have the same entries
    Format(
        ("exp_avg", "exp_avg_sq"),
        ("step", "max_exp_avg_sq", "mu_product"),  # AMSGrad's and NAdam's
        shape=lambda state: state["exp_avg_sq"].shape,
        read=lambda state: {"values": state["exp_avg_sq"]},
    ),
    Format(  # transformers' Adafactor of a vector
        ("exp_avg_sq", "RMS"),
        ("step", "exp_avg"),
        shape=lambda state: state["exp_avg_sq"].shape,
        read=lambda state: {"values": state["exp_avg_sq"]},
    ),
    Format(
        ("exp_avg_sq_row", "exp_avg_sq_col"),
        ("step", "RMS", "exp_avg"),
        shape=lambda state: (*state["exp_avg_sq_row"].shape, state["exp_avg_sq_col"].shape[-1]),
        read=lambda state: {"row": state["exp_avg_sq_row"], "column": state["exp_avg_sq_col"]},
    ),
    Format(
        ("row_var", "col_var"),
        ("step",),
        shape=lambda state: (*state["row_var"].shape[:-1], state["col_var"].shape[-1]),
        read=lambda state: {"row": state["row_var"][..., 0], "column": state["col_var"][..., 0, :]},
    ),
    Format(
        ("variance",),
        ("step",),
        shape=lambda state: state["variance"].shape,
        read=lambda state: {"values": state["variance"]},
    ),
    Format(
        ("state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2"),
        ("step",),
        shape=lambda state: state["state2"].shape,
        read=_dequantise,
    ),
    Format(
        ("state1", "state2"),
        ("step", "unorm_vec", "gnorm_vec"),
        shape=lambda state: state["state2"].shape,
        read=lambda state: {"values": state["state2"]},
    ),
)

OTHERS = {  # an entry that gives away an optimizer whose state is not read
    "GG": "SOAP", "Q": "SOAP", "precond_0": "Shampoo", "inv_precond_0": "Shampoo", "shampoo": "Shampoo",
    "hessian": "Sophia", "exp_avg_diff": "Adan", "exp_avg_res_row": "CAME", "exp_avg_var": "AdaBelief",
    "exp_inf": "Adamax", "square_avg": "RMSprop or Adadelta", "sum": "Adagrad", "projector": "GaLore",
    "p0": "Prodigy", "z": "a schedule-free optimizer", "exp_avg_slow": "AdEMAMix", "momentum_buffer": "SGD or Muon",
    "vmean": "Adam-mini", "qmap1": "8-bit Lion or momentum", "exp_avg": "Lion",
}  # fmt: skip


def read_state(state: State, matrix: WeightMatrix) -> SecondMoment:
    """The second moment of a matrix, oriented (out, in), from what the optimizer keeps for its parameter.

    Raises:
        InputError: The entries hold none.
        ValueError: What they hold is no second moment.
    """
    flat = _flatten(state)
    found = _format_of(flat)
    if found is None:
        name = next((f" ({name})" for entry, name in OTHERS.items() if entry in flat), "")
        raise InputError(
            f"the optimizer keeps {sorted(flat) or 'nothing'}{name}, which is no second moment of Adam or Adafactor: "
            "use --second-moment estimated"
        )
    return second_moment_of(found.read(flat), matrix)


def second_moment_of(fields: Fields, matrix: WeightMatrix) -> SecondMoment:
    """The second moment of a matrix, oriented (out, in), from that of its parameter.

    Raises:
        InputError: The fields are neither ``values`` nor ``row`` and ``column``.
        ValueError: What they hold is no second moment.
    """
    own = fields if matrix.expert is None else {name: field[matrix.expert] for name, field in fields.items()}
    if own.keys() == {"values"}:
        stored: SecondMoment = FullSecondMoment(own["values"])
    elif own.keys() == {"row", "column"}:
        stored = FactoredSecondMoment(own["row"], own["column"])
    else:
        raise InputError(f"expected either `values` or `row` and `column`, found {sorted(own) or 'nothing'}")
    return transpose(stored) if matrix.transposed else stored


def match_parameters(optimizer: Mapping[str, Any], model: nn.Module) -> dict[str, State]:
    """Return what the optimizer keeps for each parameter of the model, by name.

    Args:
        optimizer: A state dict, ``{"state": {id: entries}, "param_groups": [{"params": [id, ...]}, ...]}``; an id is
            a number, also as text, or the name itself in consolidated FSDP checkpoints.
        model: The model that was trained.

    Raises:
        InputError: It is the state of another model; both sides are in the sentence.
    """
    keys = [[_identifier(key) for key in group["params"]] for group in optimizer["param_groups"]]
    kept = {_identifier(key): entries for key, entries in optimizer["state"].items()}
    misfits: list[str] = []
    for names in _groupings(optimizer, model):
        if list(map(len, names)) == list(map(len, keys)):
            states = {name: kept.get(key, {}) for name, key in zip(chain(*names), chain(*keys), strict=True)}
            misfit = _misfit(states, model)
            if misfit is None:
                return states
            misfits.append(misfit)
    raise InputError(f"{misfits[0] if misfits else _no_grouping(keys, model)}: {CURE}")


def _no_grouping(keys: list[list[Any]], model: nn.Module) -> str:
    num_parameters = len(list(model.parameters()))
    return (
        f"its groups of {' + '.join(str(len(group)) for group in keys)} parameters are no way of grouping the "
        f"{num_parameters} parameters of this {type(model).__name__}, neither as one group nor as the Trainer's two"
    )


def _groupings(optimizer: Mapping[str, Any], model: nn.Module) -> Iterator[list[list[str]]]:
    """Names of the parameters in each group: those in the file, or else those of every rule in use."""
    groups = optimizer["param_groups"]
    if all("param_names" in group for group in groups):
        yield [[_plain(name) for name in group["param_names"]] for group in groups]
    elif all(isinstance(_identifier(key), str) for group in groups for key in group["params"]):
        yield [[_plain(key) for key in group["params"]] for group in groups]
    else:
        names = [name for name, _ in model.named_parameters()]
        yield [names]
        for decayed in _decay_rules(model):
            yield [[name for name in names if name in decayed], [name for name in names if name not in decayed]]


def _decay_rules(model: nn.Module) -> Iterator[set[str]]:
    """Which parameters are decayed, and so come first, by the rules that training scripts follow."""
    from transformers.trainer import Trainer  # two seconds of imports, needed for optimizer files alone
    from transformers.trainer_pt_utils import get_parameter_names

    yield set(Trainer.get_decay_parameter_names(None, model))
    outside_norms = get_parameter_names(model, [nn.LayerNorm])
    yield {name for name in outside_norms if "bias" not in name}  # the Trainer of transformers 4
    yield {name for name, parameter in model.named_parameters() if parameter.ndim > 1}  # nanoGPT and its descendants


def _misfit(states: Mapping[str, State], model: nn.Module) -> str | None:
    """The first parameter that differs between the optimizer and the model, with both sides, or None."""
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    for name, state in states.items():
        if name not in shapes:
            return f"it keeps {name}, and the model has {next(iter(shapes))} and {len(shapes) - 1} others, but not that"
        flat = _flatten(state)
        found = _format_of(flat)
        if found is not None and list(found.shape(flat)) != shapes[name]:
            return f"{name} is {shapes[name]} in the model and {list(found.shape(flat))} in the optimizer state"
    return None


def _format_of(flat: State) -> Format | None:
    found = next((candidate for candidate in FORMATS if candidate.has(flat)), None)
    return found if found and all(isinstance(flat[key], Tensor) for key in found.keys if key != "RMS") else None


def _flatten(state: State) -> State:
    own = {key: value for key, value in state.items() if key != QUANTISED_STATE}
    return {**own, **state.get(QUANTISED_STATE, {})}


def _identifier(key: Any) -> Any:
    """A parameter's number; torch.distributed.checkpoint writes it as text."""
    return int(key) if isinstance(key, str) and key.isdecimal() else key


def _plain(name: str) -> str:
    """A parameter's name without what torch.compile and data parallelism put around it."""
    return name.replace("_orig_mod.", "").removeprefix("module.")
