# SPDX-License-Identifier: Apache-2.0
"""A recording stand-in for the package `tensorrt`, release 10.

It holds what `export.plan_builder` calls, under the names and with the arguments that the real
package takes, and refuses what that refuses: a profile that leaves an input out or does not fit it,
bytes that anything but a cast reads, precision flags on a strongly typed network.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import onnx


class Flags(SimpleNamespace):
    """An enumeration whose members are numbers."""


class Module:
    """The package.

    Attributes:
        plans: What each plan was built with, in order.
        refusal: If set, the parser refuses every graph with these words.
    """

    __version__ = "10.5.0"

    def __init__(self, *, weakly_typed: bool = True):
        self.plans = []
        self.refusal = ""
        self.fails = False
        self.NetworkDefinitionCreationFlag = Flags(EXPLICIT_BATCH=0, STRONGLY_TYPED=1)
        self.MemoryPoolType = Flags(WORKSPACE="workspace")
        self.BuilderFlag = Flags(TF32="TF32", VERSION_COMPATIBLE="VERSION_COMPATIBLE")
        if weakly_typed:
            self.BuilderFlag.FP16 = "FP16"

    class Logger:
        WARNING = "warning"

        def __init__(self, severity):
            assert severity == self.WARNING

    def Builder(self, logger):  # noqa: N802
        return _Builder(self)

    def OnnxParser(self, network, logger):  # noqa: N802
        return _Parser(self, network)


class _Network:
    def __init__(self, flags):
        self.typed = bool(flags & 0b10)
        self.inputs = {}


class _Parser:
    def __init__(self, module, network):
        self._module, self._network = module, network

    def parse(self, content):
        model = onnx.load_model_from_string(content)
        onnx.checker.check_model(model, full_check=True)
        for value in model.graph.input:
            tensor = value.type.tensor_type
            dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
            self._network.inputs[value.name] = dims
            if tensor.elem_type == onnx.TensorProto.UINT8:
                readers = [node for node in model.graph.node if value.name in node.input]
                assert [node.op_type for node in readers] == ["Cast"]
        return not self._module.refusal

    @property
    def num_errors(self):
        return 1 if self._module.refusal else 0

    def get_error(self, index):
        return self._module.refusal


class _Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, least, usual, most):
        self.shapes[name] = (least, usual, most)


class _TimingCache:
    def __init__(self, content):
        self.content = content

    def serialize(self):
        return memoryview(self.content + b"+")


class _Config:
    def __init__(self):
        self.flags = {"TF32"}
        self.pools = {}
        self.profiles = []
        self.cache = _TimingCache(b"none")

    def set_memory_pool_limit(self, pool, size):
        self.pools[pool] = size

    def set_flag(self, flag):
        self.flags.add(flag)

    def clear_flag(self, flag):
        self.flags.discard(flag)

    def add_optimization_profile(self, profile):
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, content):
        return _TimingCache(content)

    def set_timing_cache(self, cache, ignore_mismatch):
        assert ignore_mismatch is False
        self.cache = cache
        return True

    def get_timing_cache(self):
        return self.cache


class _Builder:
    def __init__(self, module):
        self._module = module

    def create_network(self, flags):
        return _Network(flags)

    def create_builder_config(self):
        return _Config()

    def create_optimization_profile(self):
        return _Profile()

    def build_serialized_network(self, network, config):
        if self._module.fails:
            return None
        (profile,) = config.profiles
        assert not (network.typed and "FP16" in config.flags)
        assert profile.shapes.keys() == network.inputs.keys()
        for name, dims in network.inputs.items():
            for shape in profile.shapes[name]:
                fits = (a == b or b == -1 for a, b in zip(shape, dims, strict=True))
                assert all(fits), (name, shape, dims)
            least, usual, most = profile.shapes[name]
            assert all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True))
        self._module.plans.append(
            SimpleNamespace(
                shapes=profile.shapes,
                flags=config.flags,
                pools=config.pools,
                typed=network.typed,
                cache=config.cache.content,
            )
        )
        return memoryview(json.dumps(sorted(network.inputs)).encode())
