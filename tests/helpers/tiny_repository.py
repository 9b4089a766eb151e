# SPDX-License-Identifier: Apache-2.0
"""A real model repository that is built and loaded in milliseconds.

Its families follow docs/repository.md to the letter. Their network is honest and tiny: a feature
cell is the mean colour of its pixels, turned into eight channels, so that a mask follows the
colours of the support: a red thing shown on green is found on green wherever it is red.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import onnx
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from tests.helpers import tiny_graphs
from tests.helpers.tiny_graphs import TinyFamily

CREATED = datetime(2026, 1, 1, tzinfo=UTC)

_TRITON_TYPES = {
    onnx.TensorProto.FLOAT: model_config_pb2.TYPE_FP32,
    onnx.TensorProto.FLOAT16: model_config_pb2.TYPE_FP16,
    onnx.TensorProto.UINT8: model_config_pb2.TYPE_UINT8,
    onnx.TensorProto.UINT16: model_config_pb2.TYPE_UINT16,
}


def write_tiny_repository(
    root: Path,
    alias: str = "tiny",
    *,
    size: int = 32,
    seed: int = 0,
    created: datetime = CREATED,
    binary: bool = False,
    stack: bool = False,
    query_features: bool = False,
    slow_decode: int = 0,
    way_buckets: Sequence[int] = (1, 2, 4, 8),
    shot_buckets: Sequence[int] = (1, 2, 4, 8, 16),
    extent: bool = False,
    letterbox: bool = False,
    positions: bool = False,
    merge: str = "",
    vote: bool = False,
) -> str:
    """Adds one family to the repository at ``root``, which is made if need be.

    Guidance and decision by variant:

    * default: ``prototypes`` [1 + W, 8] (weighted_mean by ``weights``), decision argmax;
    * ``stack``: ``prototypes`` (stack, ``validity``), decision argmax;
    * ``binary``: ``foreground`` [W, 8] (weighted_mean by ``foreground_weights``) and
      ``background`` [W, 8] (mean), decision margin;
    * ``merge`` "joint": ``merged`` [1 + W, 8] of a merge graph, decision argmax;
    * ``merge`` "judged": ``prototypes`` (stack, ``validity``) and ``agreement`` of a merge graph
      that judges each shot under each, decision argmax;
    * both: ``foreground`` and ``background`` (stack, ``validity``), decision any_shot, or vote.

    Args:
        root: The repository.
        alias: Alias of the family.
        size: Side of the network's input, a multiple of 8; the grid is an eighth of it.
        seed: Other seeds make other weights, and so another family of the same alias.
        created: ``fewseg.created``.
        binary: Margins per way instead of competing ways.
        stack: Guidance stacked over shots instead of averaged.
        query_features: With a graph of that role between ``features`` and ``decode``.
        slow_decode: Rounds of useless work in ``decode``; 1000 take about 2 ms.
        way_buckets: ``fewseg.way_buckets``.
        shot_buckets: ``fewseg.shot_buckets``.
        extent: All graphs but ``features`` take ``extent``, and what lies outside is nothing.
        letterbox: Images keep their aspect, and come as ``uint16_8.8``.
        positions: ``stored`` [W, K, 8] float16, the cells of each way, stacked; decision margin.
        merge: "joint" or "judged" for a merge graph; multiway only.
        vote: Of stacked margins: that their shots vote.

    Returns:
        The family's name.
    """
    family = TinyFamily(
        alias,
        size,
        seed,
        created,
        binary,
        stack,
        query_features,
        slow_decode,
        tuple(way_buckets),
        tuple(shot_buckets),
        extent,
        letterbox,
        positions,
        merge=merge,
        vote=vote,
    )
    graphs = {"guide": tiny_graphs.guide(family), "decode": tiny_graphs.decode(family)}
    if query_features:
        graphs["query_features"] = tiny_graphs.query_features(family)
    if merge:
        graphs["merge"] = tiny_graphs.merge(family)
    # As the exporter does: the graph that makes a family look complete comes last.
    graphs["features"] = tiny_graphs.features(family)
    for role in ("support_encoder", "query_decoder"):
        write_model(root, _ensemble_config(family, role, graphs))
    for role, model in graphs.items():
        write_model(root, _graph_config(family, role, model), model)
    return family.name


def write_model(
    root: Path, config: model_config_pb2.ModelConfig, model: onnx.ModelProto | None = None
) -> Path:
    """Writes one model's folder (an ensemble without ``model``) and returns it."""
    folder = root / config.name
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config))
    if model is not None:
        (folder / "1" / "model.onnx").write_bytes(model.SerializeToString())
    return folder


def read_config(folder: Path) -> model_config_pb2.ModelConfig:
    """Reads the config of a model's folder."""
    text = (folder / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def _guidance(family: TinyFamily) -> list[dict[str, object]]:
    validity = {"validity": "validity"}
    if family.positions:
        rule = {"merge": "stack", "positions": True, **validity}
        return [{"name": "stored", "ways": "ways", **rule}]
    stacked = {"merge": "stack", **validity}
    if family.merge == "joint":
        return [{"name": "merged", "ways": "background_and_ways", "merge": "graph"}]
    if family.merge == "judged":
        return [
            {"name": "prototypes", "ways": "background_and_ways", **stacked},
            {"name": "agreement", "ways": "none", "merge": "graph", **validity},
        ]
    if not family.binary:
        rule = {"merge": "stack", **validity} if family.stack else _weighted("weights")
        return [{"name": "prototypes", "ways": "background_and_ways", **rule}]
    near = {"merge": "stack", **validity} if family.stack else _weighted("foreground_weights")
    far = {"merge": "stack", **validity} if family.stack else {"merge": "mean"}
    return [
        {"name": "foreground", "ways": "ways", **near},
        {"name": "background", "ways": "ways", **far},
    ]


def _weighted(weight: str) -> dict[str, str]:
    return {"merge": "weighted_mean", "weight": weight}


_STRETCHED = {
    "input_dtype": "uint8",
    "image_resize": "pil_bilinear",
    "mask_resize": "pil_nearest",
}
_LETTERBOX = {
    "input_dtype": "uint16_8.8",
    "image_resize": "cv2_letterbox",
    "mask_resize": "cv2_letterbox_nearest",
}


def _post_chain(family: TinyFamily) -> list[dict[str, str]]:
    to_output = {"op": "resize", "mode": "half_pixel", "target": "output"}
    if not family.letterbox:
        return [{"op": "resize", "mode": "half_pixel", "target": "input"}, to_output]
    resize = {"op": "resize", "mode": "align_corners"}
    return [
        {**resize, "target": "input"},
        {**resize, "target": "longest_square"},
        {"op": "crop", "target": "original"},
        to_output,
    ]


def _parameters(family: TinyFamily, role: str) -> dict[str, str]:
    roles = ["features", "guide", "decode", "support_encoder", "query_decoder"]
    if family.query_features:
        roles.append("query_features")
    if family.merge:
        roles.append("merge")
    of_shots = "vote" if family.vote else "any_shot"
    margin = of_shots if family.stack else "margin"
    binary = family.binary or family.positions
    extent = {"extent": ",".join(family.extent_roles)} if family.extent else {}
    positions = {"position_buckets": "4,16,64"} if family.positions else {}
    return {
        **extent,
        **positions,
        "schema": "1",
        "family": family.name,
        "alias": family.alias,
        "role": role,
        "graphs": ",".join(sorted(roles)),
        "method": "panet",
        "digest": family.digest,
        "created": family.created.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "input_size": f"{family.size}x{family.size}",
        **(_LETTERBOX if family.letterbox else _STRETCHED),
        "class_handling": "binary" if binary else "multiway",
        "needs_background": "true",
        "void": "background",
        "guidance": json.dumps(_guidance(family)),
        "post_chain": json.dumps(_post_chain(family)),
        "decision": margin if binary else "argmax",
        "threshold": "0.0",
        "score": "sigmoid" if binary else "softmax",
        "way_buckets": ",".join(map(str, family.way_buckets)),
        "shot_buckets": ",".join(map(str, family.shot_buckets)),
        "feature_reuse": "always",
        "provenance": json.dumps({"exporter": "tests", "license": "Apache-2.0"}),
        **_MERGES[family.merge],
    }


_MERGES = {
    "": {},
    "joint": {"merge_inputs": json.dumps(["prototypes", "planes"])},
    "judged": {
        "merge_inputs": json.dumps(["prototypes"]),
        "merge_judged": json.dumps(["features", "planes"]),
    },
}


def _base_config(family: TinyFamily, role: str) -> model_config_pb2.ModelConfig:
    config = model_config_pb2.ModelConfig(name=f"{family.name}_{role}", max_batch_size=8)
    config.version_policy.latest.num_versions = 1
    for key, value in _parameters(family, role).items():
        config.parameters[f"fewseg.{key}"].string_value = value
    return config


def _graph_config(
    family: TinyFamily, role: str, model: onnx.ModelProto
) -> model_config_pb2.ModelConfig:
    config = _base_config(family, role)
    config.backend = "onnxruntime"
    config.default_model_filename = "model.onnx"
    config.instance_group.add(count=1, kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)
    _add_tensors(config.input, model.graph.input)
    _add_tensors(config.output, model.graph.output)
    return config


def _add_tensors(fields: object, values: Sequence[onnx.ValueInfoProto]) -> None:
    for value in values:
        tensor = value.type.tensor_type
        dims = [dim.dim_value or -1 for dim in tensor.shape.dim[1:]]
        fields.add(name=value.name, data_type=_TRITON_TYPES[tensor.elem_type], dims=dims)


def _ensemble_config(
    family: TinyFamily, role: str, graphs: Mapping[str, onnx.ModelProto]
) -> model_config_pb2.ModelConfig:
    path = ["features", "guide"] if role == "support_encoder" else ["features", "decode"]
    if role == "query_decoder" and family.query_features:
        path.insert(1, "query_features")
    config = _base_config(family, role)
    config.platform = "ensemble"
    first, last = graphs["features"].graph, graphs[path[-1]].graph
    made = {"features", family.query_maps}
    _add_tensors(config.input, [*first.input, *(v for v in last.input if v.name not in made)])
    _add_tensors(config.output, last.output)
    for step_role in path:
        graph = graphs[step_role].graph
        step = config.ensemble_scheduling.step.add(
            model_name=f"{family.name}_{step_role}", model_version=-1
        )
        step.input_map.update({value.name: value.name for value in graph.input})
        step.output_map.update({value.name: value.name for value in graph.output})
    return config
