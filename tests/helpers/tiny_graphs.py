# SPDX-License-Identifier: Apache-2.0
"""The graphs of the tiny families of ``tiny_repository``, in ONNX's own text form."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import onnx
from onnx import numpy_helper, parser

STRIDE = 8
CHANNELS = 8
_CONSTANTS = {
    "flat": np.array([0, 0, -1], np.int64),
    "axis_1": np.array([1], np.int64),
    "axis_2": np.array([2], np.int64),
    "from_1": np.array([1], np.int64),
    "from_0": np.array([0], np.int64),
    "to_end": np.array([np.iinfo(np.int64).max], np.int64),
    "last_two": np.array([-2, -1], np.int64),
    "last_axis": np.array([-1], np.int64),
    "always": np.array(True),
    "noise_shape": np.array([32, 32], np.int64),
    "zero": np.array(0, np.float32),
    "one": np.array(1, np.float32),
    "tiny": np.array(1e-5, np.float32),
    "eps": np.array(1e-6, np.float32),
    "half": np.array(0.5, np.float32),
    "scale": np.array(20, np.float32),
    "floor": np.array(-40, np.float32),
    "row_axes": np.array([1, 3], np.int64),
    "column_axes": np.array([1, 2], np.int64),
    "scales": np.array([1, 1, STRIDE, STRIDE], np.float32),
}

_HEADER = '<ir_version: 10, opset_import: ["" : 17]>'


@dataclass(frozen=True)
class TinyFamily:
    """What ``write_tiny_repository`` is asked for; see there."""

    alias: str
    size: int
    seed: int
    created: datetime
    binary: bool
    stack: bool
    query_features: bool
    slow_decode: int
    way_buckets: tuple[int, ...]
    shot_buckets: tuple[int, ...]
    extent: bool
    letterbox: bool
    positions: bool
    merge: str = ""
    vote: bool = False

    @property
    def digest(self) -> str:
        settings = replace(self, created=datetime.min)
        return hashlib.sha256(repr(settings).encode()).hexdigest()

    @property
    def name(self) -> str:
        return f"{self.alias}-{self.digest[:8]}"

    @property
    def grid(self) -> int:
        return self.size // STRIDE

    @property
    def pixels(self) -> str:
        """Type of the image tensor."""
        return "uint16" if self.letterbox else "uint8"

    @property
    def query_maps(self) -> str:
        """What decode takes of the query image."""
        return "query_maps" if self.query_features else "features"

    @property
    def extent_roles(self) -> list[str]:
        """The graphs that take ``extent``, sorted."""
        if not self.extent:
            return []
        return ["decode", "guide", *(["query_features"] if self.query_features else [])]

    @property
    def extent_input(self) -> str:
        return ", float[N,2] extent" if self.extent else ""


def _model(text: str, initializers: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """Parses a graph and gives it those initializers that it uses."""
    model = parser.parse_model(f"{_HEADER}\n{text}")
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(values, name)
        for name, values in initializers.items()
        if name in used
    )
    onnx.checker.check_model(model)
    return model


def features(family: TinyFamily) -> onnx.ModelProto:
    """Mean colour of each cell, centred, with a constant, under an isometry to eight channels."""
    random = np.random.default_rng(family.seed)
    isometry = np.linalg.qr(random.normal(size=(CHANNELS, 4)))[0].astype(np.float32)
    # The constant keeps grey cells away from zero, where a cosine says nothing.
    constant = np.float32(0.25 + 0.05 * (family.seed % 4))
    white = np.float32(255 * 256 if family.letterbox else 255)
    kernel = np.broadcast_to(
        isometry[:, :3, None, None] / (white * STRIDE**2), (CHANNELS, 3, STRIDE, STRIDE)
    )
    bias = isometry @ np.array([-0.5, -0.5, -0.5, constant], np.float32)
    size, grid = family.size, family.grid
    return _model(
        f"""features ({family.pixels}[N,{size},{size},3] image)
            => (float[N,{CHANNELS},{grid},{grid}] features) {{
          pixels = Cast <to = 1> (image)
          planar = Transpose <perm = [0, 3, 1, 2]> (pixels)
          features = Conv <strides = [{STRIDE}, {STRIDE}]> (planar, kernel, bias)
        }}""",
        {"kernel": np.ascontiguousarray(kernel), "bias": bias},
    )


def query_features(family: TinyFamily) -> onnx.ModelProto:
    """Twice the features, which a cosine does not notice."""
    maps = f"float[N,{CHANNELS},{family.grid},{family.grid}]"
    body, covered = _covered(family, "features", STRIDE)
    return _model(
        f"query_features ({maps} features{family.extent_input}) => ({maps} query_maps) {{"
        f"{body} query_maps = Add ({covered}, {covered}) }}",
        {**_CONSTANTS, **_places(family.grid, STRIDE)},
    )


def _places(length: int, step: int) -> dict[str, np.ndarray]:
    return {"places": np.arange(length, dtype=np.float32)[None] * np.float32(step)}


def _covered(family: TinyFamily, maps: str, step: int) -> tuple[str, str]:
    """Lines that make ``maps`` zero where the image does not reach, and the name of the result."""
    if not family.extent:
        return "", maps
    body = f"""
    rows_covered, columns_covered = Split <axis = 1> (extent)
    row_truth = Less (places, rows_covered)
    column_truth = Less (places, columns_covered)
    row_cover = Cast <to = 1> (row_truth)
    column_cover = Cast <to = 1> (column_truth)
    row_planes = Unsqueeze (row_cover, row_axes)
    column_planes = Unsqueeze (column_cover, column_axes)
    cover = Mul (row_planes, column_planes)
    covered_maps = Mul ({maps}, cover)
"""
    return body, "covered_maps"


def _pool(family: TinyFamily) -> str:
    """Raised features ``cells`` [N, H * W, C] and planes ``flat_planes`` [N, P, H * W]."""
    body, covered = _covered(family, "planes", 1)
    return f"""{body}
    raised = Resize
        <mode = "linear", coordinate_transformation_mode = "half_pixel"> (features, , scales)
    flat_features = Reshape (raised, flat)
    cells = Transpose <perm = [0, 2, 1]> (flat_features)
    flat_planes = Reshape ({covered}, flat)
"""


def _pooled(name: str, planes: str) -> str:
    """Masked average pooling of the raised features under ``planes`` [N, rows, H * W]."""
    return f"""
    {name}_sums = MatMul ({planes}, cells)
    {name}_areas = ReduceSum <keepdims = 1> ({planes}, axis_2)
    {name}_divisors = Add ({name}_areas, tiny)
    {name} = Div ({name}_sums, {name}_divisors)
"""


def guide(family: TinyFamily) -> onnx.ModelProto:
    if family.positions:
        return _positions_guide(family)
    size, grid = family.size, family.grid
    inputs = f"float[N,{CHANNELS},{grid},{grid}] features, float[N,P,{size},{size}] planes"
    inputs += family.extent_input
    if not family.binary:
        outputs = f"float[N,P,{CHANNELS}] prototypes"
        body = _pool(family) + _pooled("prototypes", "flat_planes")
        if not (family.stack or family.merge):
            outputs += ", float[N,P] weights"
            body += """
    peaks = ReduceMax <axes = [2], keepdims = 0> (flat_planes)
    positive = Greater (peaks, zero)
    present = Cast <to = 1> (positive)
    way_weights = Slice (present, from_1, to_end, axis_1)
    background_present = Slice (present, from_0, from_1, axis_1)
    ways_present = ReduceSum <keepdims = 1> (way_weights, axis_1)
    shots = Max (ways_present, one)
    background_weight = Mul (background_present, shots)
    weights = Concat <axis = 1> (background_weight, way_weights)
"""
    else:
        outputs = f"float[N,W,{CHANNELS}] foreground, float[N,W,{CHANNELS}] background"
        body = _pool(family) + "way_planes = Slice (flat_planes, from_1, to_end, axis_1)\n"
        body += "all_planes = ReduceSum <keepdims = 1> (flat_planes, axis_1)\n"
        body += "other_planes = Sub (all_planes, way_planes)\n"
        body += _pooled("foreground", "way_planes") + _pooled("background", "other_planes")
        if not family.stack:
            outputs += ", float[N,W] foreground_weights"
            body += """
    peaks = ReduceMax <axes = [2], keepdims = 0> (way_planes)
    positive = Greater (peaks, zero)
    foreground_weights = Cast <to = 1> (positive)
"""
    constants = {**_CONSTANTS, **_places(size, 1)}
    return _model(f"guide ({inputs}) => ({outputs}) {{ {body} }}", constants)


def merge(family: TinyFamily) -> onnx.ModelProto:
    """Either the mean of the prototypes of shots that show a plane, or how alike two shots are."""
    size, grid = family.size, family.grid
    rows, valid = f"float[N,S,P,{CHANNELS}] prototypes", "float[N,S] validity"
    if family.merge == "joint":
        inputs = f"{rows}, float[N,S,P,{size},{size}] planes, {valid}"
        outputs = f"float[N,P,{CHANNELS}] merged"
        body = """
    peaks = ReduceMax <axes = [3, 4], keepdims = 1> (planes)
    shown_truth = Greater (peaks, zero)
    shown = Cast <to = 1> (shown_truth)
    shown_rows = Squeeze (shown, last_axis)
    shot_weights = Unsqueeze (validity, last_two)
    row_weights = Mul (shown_rows, shot_weights)
    weighted = Mul (prototypes, row_weights)
    merged = ReduceSum <keepdims = 0> (weighted, axis_1)
"""
    else:
        maps = f"float[N,{CHANNELS},{grid},{grid}] features, float[N,P,{size},{size}] planes"
        inputs = f"{rows}, {maps}, {valid}"
        outputs = "float[N,S] agreement"
        body = _pool(family) + _pooled("own", "flat_planes")
        body += """
    own_shot = Unsqueeze (own, axis_1)
    products = Mul (own_shot, prototypes)
    dots = ReduceSum <keepdims = 0> (products, last_two)
    own_lengths = ReduceL2 <axes = [2, 3], keepdims = 0> (own_shot)
    lengths = ReduceL2 <axes = [2, 3], keepdims = 0> (prototypes)
    both_lengths = Mul (own_lengths, lengths)
    divisors = Max (both_lengths, eps)
    cosines = Div (dots, divisors)
    alike = Relu (cosines)
    agreement = Mul (alike, validity)
"""
    return _model(f"merge ({inputs}) => ({outputs}) {{ {body} }}", _CONSTANTS)


def _slow(rounds: int) -> str:
    """Lines that turn ``quick`` into the equal ``logits``, slowly."""
    if rounds == 0:
        return "logits = Identity (quick)\n"
    return """
    top = ReduceMax <keepdims = 0> (quick)
    noise = Expand (top, noise_shape)
    last = Loop (rounds, always, noise) <body = round
        (int64 i, bool go, float[32,32] state) => (bool stay, float[32,32] next)
        { stay = Identity (go) next = Sin (state) }>
    peak = ReduceMax <keepdims = 0> (last)
    none = Mul (peak, zero)
    logits = Add (quick, none)
"""


def _unit_cells(maps: str) -> str:
    """Feature maps as ``cells`` [N, C, h * w] of length one."""
    return f"""
    feature_norms = ReduceL2 <axes = [1], keepdims = 1> ({maps})
    feature_divisors = Max (feature_norms, eps)
    unit_map = Div ({maps}, feature_divisors)
    cells = Reshape (unit_map, flat)
"""


def _cosines(name: str, rows: str, cells: str = "cells") -> str:
    """20 * cosine of ``rows`` [..., rows, C] with every cell [..., C, h * w]."""
    return f"""
    {name}_norms = ReduceL2 <axes = [-1], keepdims = 1> ({rows})
    {name}_divisors = Max ({name}_norms, eps)
    {name}_units = Div ({rows}, {name}_divisors)
    {name}_cosines = MatMul ({name}_units, {cells})
    {name} = Mul ({name}_cosines, scale)
"""


def decode(family: TinyFamily) -> onnx.ModelProto:
    if family.positions:
        return _positions_decode(family)
    grid = family.grid
    stacked = family.stack or family.merge == "judged"
    shots = "S," if stacked else ""
    maps = f"float[N,{CHANNELS},{grid},{grid}] {family.query_maps}"
    body, covered = _covered(family, family.query_maps, STRIDE)
    body += _unit_cells(covered)
    if family.binary:
        guidance = "".join(
            f", float[N,{shots}W,{CHANNELS}] {name}" for name in ("foreground", "background")
        )
        body += _shot_margins() if family.stack else _margins()
        logits = f"float[N,W,{'S' if family.stack else 1},{grid},{grid}] logits"
    else:
        rows = "merged" if family.merge == "joint" else "prototypes"
        guidance = f", float[N,{shots}P,{CHANNELS}] {rows}"
        if stacked:
            rows = "mean_prototypes"
            body += _shot_weights(family)
            body += "valid_prototypes = Mul (prototypes, shot_weights)\n"
            # A cosine does not care for length: the sum over real shots is as good as the mean.
            body += "mean_prototypes = ReduceSum <keepdims = 0> (valid_prototypes, axis_1)\n"
        body += _cosines("scores", rows) + "quick = Reshape (scores, maps)\n"
        logits = f"float[N,P,1,{grid},{grid}] logits"
    if stacked:
        guidance += ", float[N,S] validity"
    guidance += family.extent_input
    if family.merge == "judged":
        guidance += ", float[N,S,S] agreement"
    body += _slow(family.slow_decode)
    constants = {
        **_CONSTANTS,
        **_places(grid, STRIDE),
        "maps": np.array([0, 0, 1, grid, grid], np.int64),
        "shot_maps": np.array([0, 0, 0, grid, grid], np.int64),
        "rounds": np.array(family.slow_decode, np.int64),
    }
    return _model(f"decode ({maps}{guidance}) => ({logits}) {{ {body} }}", constants)


def _shot_weights(family: TinyFamily) -> str:
    """1 for real shots, times how well the others agree with them where that is known."""
    if family.merge != "judged":
        return "shot_weights = Unsqueeze (validity, last_two)\n"
    return """
    agreed = ReduceSum <keepdims = 0> (agreement, axis_1)
    real = Mul (agreed, validity)
    shot_weights = Unsqueeze (real, last_two)
"""


def _margins() -> str:
    margins = _cosines("near", "foreground") + _cosines("far", "background")
    return margins + "margins = Sub (near, far)\nquick = Reshape (margins, maps)\n"


def _shot_margins() -> str:
    """Margins per shot; minus 40 for padded shots and for shots that do not show the way."""
    return (
        "shot_cells = Unsqueeze (cells, axis_1)\n"
        + _cosines("near", "foreground", "shot_cells")
        + _cosines("far", "background", "shot_cells")
        + """
    margins = Sub (near, far)
    shown_truth = Greater (near_norms, zero)
    shown = Cast <to = 1> (shown_truth)
    valid = Unsqueeze (validity, last_two)
    active = Mul (shown, valid)
    idle = Sub (one, active)
    lowest = Mul (idle, floor)
    real = Mul (margins, active)
    shot_first = Add (real, lowest)
    way_first = Transpose <perm = [0, 2, 1, 3]> (shot_first)
    quick = Reshape (way_first, shot_maps)
"""
    )


def _positions_guide(family: TinyFamily) -> onnx.ModelProto:
    """The cells that a way covers by more than half, as unit vectors; rows of zeros at the end."""
    size, grid = family.size, family.grid
    cell = f"kernel_shape = [{STRIDE}, {STRIDE}], strides = [{STRIDE}, {STRIDE}]"
    return _model(
        f"""guide (float[N,{CHANNELS},{grid},{grid}] features, float[N,P,{size},{size}] planes)
            => (float16[N,W,K,{CHANNELS}] stored) {{
          way_planes = Slice (planes, from_1, to_end, axis_1)
          shares = AveragePool <{cell}> (way_planes)
          flat_shares = Reshape (shares, flat)
          inside = Greater (flat_shares, half)
          marked = Cast <to = 1> (inside)
          counts = ReduceSum <keepdims = 0> (marked, axis_2)
          busiest = ReduceMax <keepdims = 0> (counts)
          needed = Max (busiest, one)
          needed_whole = Cast <to = 7> (needed)
          most = Reshape (needed_whole, single)
          chosen, places = TopK (marked, most)
          columns = Unsqueeze (places, last)
          hits = Equal (columns, numbers)
          picks = Cast <to = 1> (hits)
          real = Unsqueeze (chosen, last)
          real_picks = Mul (picks, real)
          {_unit_cells("features")}
          rows = Transpose <perm = [0, 2, 1]> (cells)
          shared_rows = Unsqueeze (rows, axis_1)
          precise = MatMul (real_picks, shared_rows)
          stored = Cast <to = 10> (precise)
        }}""",
        {**_CONSTANTS, "numbers": np.arange(grid * grid), **_POSITION_AXES},
    )


def _positions_decode(family: TinyFamily) -> onnx.ModelProto:
    """The nearest stored cell of each shot, averaged over the shots."""
    grid = family.grid
    return _model(
        f"""decode (float[N,{CHANNELS},{grid},{grid}] {family.query_maps},
                    float16[N,S,W,K,{CHANNELS}] stored, float[N,S] validity)
            => (float[N,W,1,{grid},{grid}] logits) {{
          {_unit_cells(family.query_maps)}
          shared_cells = Unsqueeze (cells, axes_1_2)
          precise = Cast <to = 1> (stored)
          cosines = MatMul (precise, shared_cells)
          nearest = ReduceMax <axes = [3], keepdims = 0> (cosines)
          weights = Unsqueeze (validity, last_two)
          valid = Mul (nearest, weights)
          total = ReduceSum <keepdims = 0> (valid, axis_1)
          shots = ReduceSum <keepdims = 1> (weights, axis_1)
          shots_flat = Squeeze (shots, axis_1)
          mean = Div (total, shots_flat)
          above = Sub (mean, half)
          margins = Mul (above, scale)
          logits = Reshape (margins, maps)
        }}""",
        {**_CONSTANTS, "maps": np.array([0, 0, 1, grid, grid], np.int64), **_POSITION_AXES},
    )


_POSITION_AXES = {
    "single": np.array([1], np.int64),
    "last": np.array([-1], np.int64),
    "axes_1_2": np.array([1, 2], np.int64),
}
