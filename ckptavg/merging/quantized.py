"""Quantized models, which are refused: how they are recognized."""

import re
from collections import defaultdict
from pathlib import Path

from ckptavg.errors import MismatchError
from ckptavg.formats import ModelConfig, Structure
from ckptavg.formats.layers import split_name
from ckptavg.formats.tensors import TensorInfo

_NAMES = re.compile(r"(^|[._/])(qweight|qzeros|SCB|quant_state|quantized_kernel)\b")
_POLICY = re.compile(
    r'"class_name":\s*"(Quantized\w*Policy|GPTQ\w*|AWQ\w*)"|"(int[48]|float8)_from_'
)
_CODES = ("int8", "uint8", "int4", "uint4", "int2", "uint2")


def check_not_quantized(path: Path, structure: Structure) -> None:
    """Refuses quantized models: codes have no mean, nor do scales that are those of other codes.

    A model is quantized if a layer has integers of 8 bits or fewer, of two or more dimensions,
    together with a scale (or with any float, where Keras numbers the variables), or float8 together
    with a scale; or if a name is one that quantizers give. See
    docs/decisions/0027-non-float-tensors-on-request-quantized-models-never.md.

    Raises:
        MismatchError: the model is quantized.
    """
    layers: dict[str, list[tuple[str, TensorInfo]]] = defaultdict(list)
    for name, tensor in structure.model_tensors.items():
        # These names are used by quantizers alone, whatever the dtype.
        if _NAMES.search(name):
            raise _quantized(path, name)
        layer, variable = split_name(name)
        if layer:
            layers[layer].append((variable, tensor))
    for tensors in layers.values():
        floats = [variable for variable, tensor in tensors if tensor.is_float]
        # Keras numbers the variables of a layer: no name says which of them is its scale.
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
    found = _POLICY.search(config.config)
    if found:
        raise _quantized(path, found[0])


def _quantized(path: Path, what: str) -> MismatchError:
    return MismatchError(
        f"{path} is a quantized model ('{what}'): its integers are codes, which have no mean. "
        "Average the checkpoints from before quantization, then quantize the average"
    )
