# SPDX-License-Identifier: Apache-2.0
"""The quantization_config of a Hugging Face checkpoint."""

from __future__ import annotations

from typing import Any


class QuantizationConfig:
    """A quantization_config, with checks of what is read of it."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields

    def text(self, key: str, default: str | None = None) -> str:
        """A field that is a string."""
        value = self.fields.get(key, default)
        if not isinstance(value, str):
            raise ValueError(f"{key}: expected a string, got {value!r:.80}")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """A field that is a number of at least 1."""
        value = self.fields.get(key, default)
        if type(value) is not int or not 1 <= value < 1 << 31:
            raise ValueError(f"{key}: expected a size, got {value!r:.80}")
        return value

    def group_size(self, key: str) -> int | None:
        """None where it is not said, or is -1: per channel."""
        return None if self.fields.get(key) in (None, -1) else self.size(key)

    def groups(self) -> dict[int, int | None]:
        """Of compressed-tensors: the bits of integer weights, and the inputs of their groups."""
        found: dict[int, int | None] = {}
        groups = self.fields.get("config_groups")
        for group in groups.values() if isinstance(groups, dict) else ():
            weights = group.get("weights") if isinstance(group, dict) else None
            if isinstance(weights, dict) and weights.get("type", "int") == "int":
                config = QuantizationConfig(weights)
                bits, size = config.size("num_bits"), config.group_size("group_size")
                if bits > 8:
                    raise ValueError(f"num_bits: expected at most 8, got {bits}")
                found[bits] = size if found.get(bits, size) == size else None
        return found

    def hqq(self, key: str) -> Any:
        """A field of the weights' parameters of HQQ, or None."""
        fields: Any = self.fields
        for inner in ("quant_config", "weight_quant_params"):
            fields = fields.get(inner, fields) if isinstance(fields, dict) else {}
        return fields.get(key) if isinstance(fields, dict) else None
