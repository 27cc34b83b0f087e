"""What becomes of each tensor in an average, and why (pure)."""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from ckptavg.errors import MismatchError, RecipeError
from ckptavg.formats import ModelConfig, Structure
from ckptavg.formats.layers import split_name
from ckptavg.formats.tensors import TensorInfo

AVERAGE, EQUAL, LAST, DROP = "average", "equal", "last", "drop"
"""The mean of all; a copy, if all agree; the last one's; nothing."""

NON_FLOAT = (EQUAL, LAST)
"""What may become of integers, booleans and texts: see `decide`."""

_COUNTERS = re.compile(r"(^|/)(save_counter(/|$)|global_step$)")
_GENERATOR = re.compile(r"seed_generator|random_generator")
_QUANTIZED = re.compile(r"(^|[._/])(qweight|qzeros|SCB|quant_state|quantized_kernel)\b")
_QUANTIZED_POLICY = re.compile(
    r'"class_name":\s*"(Quantized\w*Policy|GPTQ\w*|AWQ\w*)"|"(int[48]|float8)_from_'
)
_CODES = ("int8", "uint8", "int4", "uint4", "int2", "uint2")


@dataclass(frozen=True, slots=True)
class PlanItem:
    """What becomes of one tensor, and why."""

    tensor: TensorInfo
    action: str
    reason: str


def decide(
    structure: Structure, count: int, non_float: str = EQUAL, *, copy: bool = False
) -> tuple[PlanItem, ...]:
    """Decides on every tensor of `count` checkpoints of one structure.

    Args:
        structure: of the last checkpoint.
        count: number of checkpoints.
        non_float: what to do with integers, booleans and texts, which have no mean: `equal`: all
            must agree; `last`: take the last checkpoint's.
        copy: whether every tensor is to be the last checkpoint's, to the bit.

    Raises:
        RecipeError: `non_float` is something else.
    """
    if non_float not in NON_FLOAT:
        raise RecipeError(f"non_float is {non_float!r:.40}, but must be 'equal' or 'last'")
    return tuple(
        PlanItem(tensor, DROP, "optimizer state")
        if name in structure.optimizer
        else PlanItem(tensor, LAST, "copied")
        if copy
        else PlanItem(tensor, *_decide(tensor, count, non_float))
        for name, tensor in structure.tensors.items()
    )


def _decide(tensor: TensorInfo, count: int, non_float: str) -> tuple[str, str]:
    if tensor.is_float:
        return AVERAGE, f"mean of {count}" if count > 1 else "the only one"
    if _GENERATOR.search(tensor.name):
        return LAST, "state of a random generator, from the last checkpoint"
    if _COUNTERS.search(tensor.name):
        return LAST, "counts saves or steps, from the last checkpoint"
    if non_float == LAST:
        return LAST, f"{tensor.dtype} has no mean, from the last checkpoint"
    return EQUAL, f"{tensor.dtype} has no mean, all must agree"


def check_not_quantized(path: Path, structure: Structure) -> None:
    """Refuses quantized models: codes have no mean, nor do scales that belong to other codes.

    Told by 8-bit or smaller integers of two or more dimensions beside a scale of the same layer (or
    any float, where Keras numbers the variables), by float8 beside a scale, and by names that
    quantizers give.

    Raises:
        MismatchError: the model is quantized.
    """
    layers: dict[str, list[tuple[str, TensorInfo]]] = defaultdict(list)
    for name, tensor in structure.model_tensors.items():
        if _QUANTIZED.search(name):
            raise _quantized(path, name)
        layer, variable = split_name(name)
        if layer:
            layers[layer].append((variable, tensor))
    for tensors in layers.values():
        floats = [variable for variable, tensor in tensors if tensor.is_float]
        # Keras numbers the variables of a layer, so that no name tells of its scale.
        scaled = any("scale" in variable for variable in floats)
        numbered = bool(floats) and all(variable.isdigit() for variable, _ in tensors)
        for _, tensor in tensors:
            codes = tensor.dtype in _CODES and len(tensor.shape) > 1 and (scaled or numbered)
            if codes or (tensor.dtype.startswith("float8") and scaled):
                raise _quantized(path, tensor.name)


def check_config_not_quantized(path: Path, config: ModelConfig) -> None:
    """Refuses the configuration of a quantized model; it is searched, never run.

    Raises:
        MismatchError: the model is quantized.
    """
    found = _QUANTIZED_POLICY.search(config.config)
    if found:
        raise _quantized(path, found[0])


def _quantized(path: Path, what: str) -> MismatchError:
    return MismatchError(
        f"{path} is a quantized model ('{what}'): its integers are codes, which have no mean. "
        "Average the checkpoints from before quantization, then quantize the average"
    )
