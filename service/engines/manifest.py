# SPDX-License-Identifier: Apache-2.0
"""From the configs of a repository to the families that can be served (docs/repository.md)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from service.core.errors import RepositoryError
from service.core.family import (
    ClassHandling,
    Decision,
    FeatureReuse,
    GraphRole,
    GuidanceTensor,
    ImageResize,
    InputDtype,
    MaskResize,
    MergeRule,
    ModelFamily,
    PostOp,
    PostStep,
    PostTarget,
    ResizeMode,
    ScoreMeaning,
    VoidRule,
    WayAxis,
)
from service.core.merge_tensors import VALIDITY
from service.engines.config_files import ModelConfig, config_path
from service.engines.parameters import KEYS, PREFIX, SCHEMA, Entry, Parameters, parameters_of

_ALIAS: Final = re.compile(r"[a-z][a-z0-9-]{0,39}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_ROLE_KEY: Final = PREFIX + "role"

#: What every family has.
_REQUIRED: Final = frozenset(
    {
        GraphRole.FEATURES,
        GraphRole.GUIDE,
        GraphRole.DECODE,
        GraphRole.SUPPORT_ENCODER,
        GraphRole.QUERY_DECODER,
    }
)
_ENSEMBLES: Final = frozenset({GraphRole.SUPPORT_ENCODER, GraphRole.QUERY_DECODER})
#: Those that may take ``extent``.
_EXTENT_ROLES: Final = frozenset({GraphRole.QUERY_FEATURES, GraphRole.GUIDE, GraphRole.DECODE})


@dataclass(frozen=True, slots=True)
class FamilyModels:
    """A complete family and the configs of its models."""

    family: ModelFamily
    configs: Mapping[GraphRole, ModelConfig]


@dataclass(slots=True)
class Catalog:
    """What a repository holds.

    Attributes:
        families: The complete families, by name.
        problems: A line for each thing that cannot be served; names the file.
    """

    families: dict[str, FamilyModels] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def is_ensemble(role: GraphRole) -> bool:
    """Whether models of that role are ensembles, which hold no graph."""
    return role in _ENSEMBLES


def read_catalog(configs: Mapping[str, ModelConfig], broken: Collection[str] = ()) -> Catalog:
    """Groups models into families and reads each family's parameters.

    Models without ``fewseg.*`` parameters belong to somebody else and are ignored.

    Args:
        configs: The repository's configs by model name.
        broken: Models whose configs cannot be read, which was told already: their families
            cannot be served, and no problem is added.
    """
    catalog = Catalog()
    told = set(broken)
    members: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    for model, config in sorted(configs.items()):
        values = parameters_of(config)
        if not values:
            continue
        try:
            _check_member(model, values)
        except RepositoryError as error:
            catalog.problems.append(error.message)
            told.add(model)
        else:
            members[values[PREFIX + "family"]][model] = values
    for name, models in members.items():
        if not told.isdisjoint(f"{name}_{role.value}" for role in GraphRole):
            continue
        try:
            catalog.families[name] = _read_family(name, models, configs)
        except RepositoryError as error:
            catalog.problems.append(error.message)
    return catalog


def describe_family(model: str, config: ModelConfig) -> ModelFamily | None:
    """Reads what one model says of its family; every model of a family says the same.

    Args:
        model: The model's name.
        config: Its config.

    Returns:
        The family, or None for a model of somebody else.

    Raises:
        RepositoryError: A parameter is wrong; the message names file and key.
    """
    values = parameters_of(config)
    if not values:
        return None
    _check_member(model, values)
    return _parse_family(Parameters(model, values))


def _check_member(model: str, values: Mapping[str, str]) -> None:
    """Checks what can be said of a model without its family."""
    parameters = Parameters(model, values)
    schema = parameters.text("schema")
    if schema != SCHEMA:
        parameters.fail("schema", f"is {schema!r}; this version reads {SCHEMA!r}")
    for key in sorted(KEYS):
        parameters.text(key.removeprefix(PREFIX))
    role = parameters.choice("role", GraphRole)
    if model != f"{values[PREFIX + 'family']}_{role.value}":
        parameters.fail("role", f"and {PREFIX}family do not make the model's name")


def _read_family(
    name: str, models: Mapping[str, Mapping[str, str]], configs: Mapping[str, ModelConfig]
) -> FamilyModels:
    """Reads a family whose members were checked one by one."""
    first, *others = sorted(models)
    for other in others:
        _check_equal(first, other, models)
    parameters = Parameters(first, models[first])
    family = _parse_family(parameters)
    by_role = {GraphRole(values[_ROLE_KEY]): model for model, values in models.items()}
    for role in sorted(family.graphs):
        if role not in by_role:
            raise RepositoryError(
                "FAMILY_INCOMPLETE",
                f"{config_path(f'{name}_{role.value}')}: is missing, and {PREFIX}graphs names it.",
            )
    for role in sorted(by_role):
        if role not in family.graphs:
            raise RepositoryError(
                "FAMILY_INCONSISTENT",
                f"{config_path(by_role[role])}: {PREFIX}graphs does not name this role.",
            )
    family_configs = {role: configs[model] for role, model in by_role.items()}
    for role, config in family_configs.items():
        _check_model(role, config)
    _check_guidance(family, family_configs)
    _check_extent(family, family_configs)
    _check_merge_inputs(family, family_configs)
    return FamilyModels(family, family_configs)


def _check_equal(first: str, other: str, models: Mapping[str, Mapping[str, str]]) -> None:
    """Checks that two models of a family agree in everything but their role."""
    expected, values = models[first], models[other]
    for key in sorted(expected.keys() | values.keys()):
        if key != _ROLE_KEY and expected.get(key) != values.get(key):
            raise RepositoryError(
                "FAMILY_INCONSISTENT",
                f"{config_path(other)}: {key} differs from that of {config_path(first)}.",
            )


def _check_model(role: GraphRole, config: ModelConfig) -> None:
    """Checks those of Triton's own fields that every engine relies on."""
    where = config_path(config.name)
    if config.max_batch_size < 1:
        raise RepositoryError("CONFIG_INVALID", f"{where}: max_batch_size must be at least 1.")
    if is_ensemble(role) != config.HasField("ensemble_scheduling"):
        wanted = "an ensemble" if is_ensemble(role) else "a graph, not an ensemble"
        raise RepositoryError("CONFIG_INVALID", f"{where}: {role.value} must be {wanted}.")


def _check_guidance(family: ModelFamily, configs: Mapping[GraphRole, ModelConfig]) -> None:
    """Checks that guide or merge emit and decode takes what ``fewseg.guidance`` says."""
    decode = configs[GraphRole.DECODE]
    taken = {tensor.name for tensor in decode.input}
    for tensor in family.guidance:
        made = tensor.merge is MergeRule.GRAPH
        maker = configs[GraphRole.MERGE if made else GraphRole.GUIDE]
        for name in filter(None, (tensor.name, tensor.weight)):
            if name not in _outputs(maker):
                raise RepositoryError(
                    "FAMILY_INCONSISTENT",
                    f"{config_path(maker.name)}: {PREFIX}guidance names {name!r}, "
                    "which is no output.",
                )
        for name in filter(None, (tensor.name, tensor.validity)):
            if name not in taken:
                raise RepositoryError(
                    "FAMILY_INCONSISTENT",
                    f"{config_path(decode.name)}: {PREFIX}guidance names {name!r}, "
                    "which is no input.",
                )


def _check_extent(family: ModelFamily, configs: Mapping[GraphRole, ModelConfig]) -> None:
    """Checks that those graphs take ``extent`` that ``fewseg.extent`` names, and no others."""
    for role in sorted(_EXTENT_ROLES & configs.keys()):
        config = configs[role]
        dims = [list(tensor.dims) for tensor in config.input if tensor.name == "extent"]
        if dims != ([[2]] if role in family.extent_roles else []):
            raise RepositoryError(
                "FAMILY_INCONSISTENT",
                f"{config_path(config.name)}: must have an input 'extent' with dims [2] if "
                f"{PREFIX}extent names {role.value}, and only then.",
            )


def _check_merge_inputs(family: ModelFamily, configs: Mapping[GraphRole, ModelConfig]) -> None:
    """Checks that merge takes what its parameters name, and that each is to be had."""
    if GraphRole.MERGE not in configs:
        return
    merge = configs[GraphRole.MERGE]
    named = {*family.merge_inputs, *family.merge_judged}
    per_image = _outputs(configs[GraphRole.FEATURES]) | {"planes"}
    to_be_had = _outputs(configs[GraphRole.GUIDE]) | per_image
    problem = ""
    if named - to_be_had:
        problem = f"nothing makes its input {min(named - to_be_had)!r}"
    elif {tensor.name for tensor in merge.input} != named | {VALIDITY}:
        problem = f"its inputs are not {VALIDITY!r} and those that {PREFIX}merge_* name"
    elif family.input_size is None and per_image & set(family.merge_inputs):
        problem = "maps of a native input size cannot be stacked; judge shots one by one"
    if problem:
        raise RepositoryError("FAMILY_INCONSISTENT", f"{config_path(merge.name)}: {problem}.")


def _outputs(config: ModelConfig) -> set[str]:
    return {tensor.name for tensor in config.output}


def _parse_family(read: Parameters) -> ModelFamily:
    """Reads all values that the models of a family share."""
    alias = read.matching("alias", _ALIAS, "1 to 40 lower-case letters, digits or -")
    digest = read.matching("digest", _DIGEST, "64 hexadecimal digits")
    name = read.text("family")
    if name != f"{alias}-{digest[:8]}":
        read.fail("family", f"must be <alias>-<digest8>, here {alias}-{digest[:8]}")
    family = ModelFamily(
        name=name,
        alias=alias,
        method=read.text("method"),
        digest=digest,
        created=read.moment("created"),
        graphs=_graphs(read),
        input_size=read.size("input_size"),
        input_dtype=read.choice("input_dtype", InputDtype),
        image_resize=read.choice("image_resize", ImageResize),
        mask_resize=read.choice("mask_resize", MaskResize),
        class_handling=read.choice("class_handling", ClassHandling),
        needs_background=read.flag("needs_background"),
        void=read.choice("void", VoidRule),
        guidance=_guidance(read),
        post_chain=_post_chain(read),
        decision=read.choice("decision", Decision),
        threshold=read.number("threshold"),
        score=read.choice("score", ScoreMeaning),
        way_buckets=read.ascending("way_buckets"),
        shot_buckets=read.ascending("shot_buckets"),
        feature_reuse=read.choice("feature_reuse", FeatureReuse),
        provenance=read.strings("provenance"),
        min_side=read.positive("min_side") or 1,
        max_pixels=read.positive("max_pixels"),
        position_buckets=read.ascending("position_buckets") if read.has("position_buckets") else (),
        extent_roles=_extent_roles(read),
        merge_inputs=read.names("merge_inputs"),
        merge_judged=read.names("merge_judged"),
    )
    _check_coherence(read, family)
    return family


def _check_coherence(read: Parameters, family: ModelFamily) -> None:
    """Refuses values that are right alone and wrong together."""
    native = family.input_size is None
    if native != (family.image_resize is ImageResize.NONE):
        read.fail("image_resize", "must be none for a native input size, and only for it")
    if native != (family.mask_resize is MaskResize.NONE):
        read.fail("mask_resize", "must be none for a native input size, and only for it")
    if family.image_resize is ImageResize.CV2_LETTERBOX:
        _check_letterbox(read, family)
    elif family.mask_resize is MaskResize.CV2_LETTERBOX_NEAREST:
        read.fail("mask_resize", "must go with image_resize cv2_letterbox")
    if any(tensor.positions for tensor in family.guidance) != bool(family.position_buckets):
        read.fail("position_buckets", "must be there if guidance holds positions, and only then")
    _check_merge(read, family)
    for key in ("min_side", "max_pixels"):
        if read.positive(key) is not None and not native:
            read.fail(key, "belongs to a native input size, and only to it")
    multiway = family.class_handling is ClassHandling.MULTIWAY
    if multiway != (family.decision is Decision.ARGMAX):
        read.fail("decision", "must be argmax for multiway classes, and only for them")
    if multiway != (family.score is ScoreMeaning.SOFTMAX):
        read.fail("score", "must be softmax for multiway classes, and only for them")


def _check_letterbox(read: Parameters, family: ModelFamily) -> None:
    size = family.input_size
    if size is None or size.height != size.width:
        read.fail("input_size", "must be a square for cv2_letterbox")
    if family.input_dtype is not InputDtype.UINT16_FIXED:
        read.fail("input_dtype", "must be uint16_8.8 for cv2_letterbox, which resizes floats")
    if family.mask_resize is not MaskResize.CV2_LETTERBOX_NEAREST:
        read.fail("mask_resize", "must be cv2_letterbox_nearest, as the image is letterboxed")


def _check_merge(read: Parameters, family: ModelFamily) -> None:
    """A ``merge`` graph, its inputs and tensors of its making come together or not at all."""
    merging = GraphRole.MERGE in family.graphs
    if merging != any(tensor.merge is MergeRule.GRAPH for tensor in family.guidance):
        read.fail(
            "guidance", "must have a tensor of merge rule graph for a merge graph, and only then"
        )
    if merging != bool(family.merge_inputs):
        read.fail("merge_inputs", "must be there for a merge graph, and only then")
    if family.merge_judged and not merging:
        read.fail("merge_judged", "belongs to a merge graph, and only to one")
    if not set(family.merge_inputs).isdisjoint(family.merge_judged):
        read.fail("merge_judged", "names a tensor of merge_inputs")
    for tensor in family.guidance:
        if tensor.positions and tensor.name in family.merge_inputs:
            read.fail("merge_inputs", "cannot stack stored positions")
        made = tensor.merge is MergeRule.GRAPH
        if made and family.merge_judged and tensor.validity is None:
            read.fail("guidance", "must have 'validity' where shots are judged one by one")


def _graphs(read: Parameters) -> frozenset[GraphRole]:
    graphs = frozenset(read.choices("graphs", GraphRole))
    missing = sorted(role.value for role in _REQUIRED - graphs)
    if missing:
        read.fail("graphs", f"must name {', '.join(missing)}")
    return graphs


def _extent_roles(read: Parameters) -> frozenset[GraphRole]:
    roles = frozenset(read.choices("extent", GraphRole) if read.has("extent") else ())
    if not roles <= _EXTENT_ROLES:
        names = ", ".join(sorted(role.value for role in _EXTENT_ROLES))
        read.fail("extent", f"must name some of {names}")
    return roles


def _guidance(read: Parameters) -> tuple[GuidanceTensor, ...]:
    tensors = read.entries("guidance", _guidance_tensor)
    names = [tensor.name for tensor in tensors]
    if len(set(names)) != len(names):
        read.fail("guidance", "names a tensor twice")
    return tensors


def _guidance_tensor(entry: Entry) -> GuidanceTensor:
    tensor = GuidanceTensor(
        name=entry.text("name"),
        merge=entry.choice("merge", MergeRule),
        ways=entry.choice("ways", WayAxis),
        weight=entry.optional_text("weight"),
        validity=entry.optional_text("validity"),
        positions=entry.flag("positions"),
    )
    if tensor.positions and tensor.merge is not MergeRule.STACK:
        entry.fail("must have the merge rule stack, as it holds positions")
    if (tensor.weight is not None) != (tensor.merge is MergeRule.WEIGHTED_MEAN):
        entry.fail("must have 'weight' for weighted_mean, and only for it")
    stacked = tensor.merge is MergeRule.STACK
    if tensor.merge is not MergeRule.GRAPH and (tensor.validity is not None) != stacked:
        entry.fail("must have 'validity' for stack, and only for it or for graph")
    return tensor


def _post_chain(read: Parameters) -> tuple[PostStep, ...]:
    steps = read.entries("post_chain", _post_step)
    if [step.target is PostTarget.OUTPUT for step in steps] != [False] * (len(steps) - 1) + [True]:
        read.fail("post_chain", "must go to output in its last step, and only there")
    return steps


def _post_step(entry: Entry) -> PostStep:
    op = entry.choice("op", PostOp)
    if op is PostOp.DECONVOLVE:
        return PostStep(op, factor=entry.integer("factor"))
    target = entry.choice("target", PostTarget)
    if op is PostOp.CROP:
        return PostStep(op, target=target)
    return PostStep(op, target=target, mode=entry.choice("mode", ResizeMode))
