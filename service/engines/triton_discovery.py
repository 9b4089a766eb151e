# SPDX-License-Identifier: Apache-2.0
"""Which families a running Triton could serve.

Triton tells the config of a model only while that model is loaded. Of a family that is not, one
graph is loaded for a moment: ``guide``, the lightest, since all models of a family carry the same
parameters. A family never changes, so this is done once for each.
"""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Final

from service.core.errors import RepositoryError
from service.core.family import GraphRole, ModelFamily
from service.core.ports import Discovery
from service.engines.config_files import ModelConfig, config_path
from service.engines.manifest import describe_family
from service.engines.triton_endpoint import READY, Endpoint
from service.engines.triton_errors import TritonError, Trouble

_MODEL: Final = re.compile(
    rf"([a-z][a-z0-9-]{{0,39}}-[0-9a-f]{{8}})_({'|'.join(role.value for role in GraphRole)})"
)

#: Troubles that say that the server is away, and nothing about a model.
AWAY: Final = frozenset({Trouble.UNREACHABLE, Trouble.TIMED_OUT})

#: State by role of each family's models.
Holdings = Mapping[str, Mapping[GraphRole, str]]


def holdings(index: Mapping[str, str]) -> Holdings:
    """Sorts the models of a repository index into families; other models are left out."""
    families: dict[str, dict[GraphRole, str]] = defaultdict(dict)
    for model, state in index.items():
        match = _MODEL.fullmatch(model)
        if match is not None:
            families[match[1]][GraphRole(match[2])] = state
    return families


def model_name(family: str, role: GraphRole) -> str:
    """Name of a family's model."""
    return f"{family}_{role.value}"


class FamilyReader:
    """Reads families from running servers, each once.

    Args:
        model_control: Whether models may be loaded to be asked for their parameters.
    """

    def __init__(self, *, model_control: bool) -> None:
        self._model_control = model_control
        self._known: dict[str, ModelFamily | None] = {}

    async def read(self, endpoints: Mapping[Endpoint, Holdings], wanted: str = "") -> Discovery:
        """Puts together what several servers hold; one that goes away meanwhile is passed over.

        Args:
            endpoints: What each server that answers has in its repository.
            wanted: A family that is about to be loaded: what was loaded to read it stays.

        Raises:
            TritonError: All went away.
        """
        families: dict[str, ModelFamily] = {}
        problems: dict[str, None] = {}
        lost: list[TritonError] = []
        for endpoint, held in endpoints.items():
            try:
                await self._read_from(endpoint, held, wanted, families, problems)
            except TritonError as error:
                endpoint.failed()
                lost.append(error)
        if len(lost) == len(endpoints):
            raise lost[0]
        return Discovery(families, tuple(problems))

    async def _read_from(
        self,
        endpoint: Endpoint,
        held: Holdings,
        wanted: str,
        families: dict[str, ModelFamily],
        problems: dict[str, None],
    ) -> None:
        for name, roles in sorted(held.items()):
            if name in families:
                continue
            try:
                family = await self._family(endpoint, name, roles, stays=name == wanted)
                if family is not None:
                    _check_complete(family, roles)
                    families[name] = family
            except RepositoryError as error:
                problems[error.message] = None

    async def _family(
        self, endpoint: Endpoint, name: str, roles: Mapping[GraphRole, str], *, stays: bool
    ) -> ModelFamily | None:
        if name not in self._known:
            loaded = [role for role, state in roles.items() if state == READY]
            role = min(loaded, default=GraphRole.GUIDE)
            model = model_name(name, role)
            if loaded:
                config = await endpoint.config(model)
            else:
                config = await self._peek(endpoint, name, model, stays=stays)
            self._known[name] = describe_family(model, config)
        return self._known[name]

    async def _peek(
        self, endpoint: Endpoint, family: str, model: str, *, stays: bool
    ) -> ModelConfig:
        """Loads a model to read its config."""
        if not self._model_control:
            raise not_loaded(model)
        await load_model(endpoint, model)
        try:
            return await endpoint.config(model)
        finally:
            if not stays:
                await self._put_back(endpoint, family, model)

    async def _put_back(self, endpoint: Endpoint, family: str, model: str) -> None:
        # Another gateway may be loading the whole family just now.
        others = holdings(await endpoint.index()).get(family, {})
        if list(others.values()).count(READY) == 1:
            await endpoint.unload(model)


def _check_complete(family: ModelFamily, roles: Mapping[GraphRole, str]) -> None:
    for role in sorted(family.graphs):
        if role not in roles:
            where = config_path(model_name(family.name, role))
            raise RepositoryError(
                "FAMILY_INCOMPLETE", f"{where}: is missing, and fewseg.graphs names it."
            )


async def load_model(endpoint: Endpoint, model: str) -> None:
    """Loads one model.

    Raises:
        RepositoryError: Triton refuses it; the message holds Triton's reason.
        TritonError: The server is away.
    """
    try:
        await endpoint.load(model)
    except TritonError as error:
        if error.trouble in AWAY:
            raise
        if error.trouble is Trouble.CONTROL_REFUSED:
            raise not_loaded(model) from error
        cause = " ".join(error.message.split()).rstrip(".")
        raise RepositoryError(
            "MODEL_INVALID", f"{config_path(model)}: Triton cannot load it: {cause}."
        ) from error


async def load_family(
    endpoint: Endpoint, family: ModelFamily, *, model_control: bool, anew: bool = False
) -> None:
    """Sees that all models of a family are loaded: the graphs first, then the ensembles.

    Args:
        endpoint: Where.
        family: Which.
        model_control: Whether to load models; else they have to be there.
        anew: Whether to unload them before.

    Raises:
        RepositoryError: One does not load.
        TritonError: The server is away.
    """
    roles = holdings(await endpoint.index()).get(family.name, {})
    missing = sorted(role for role in family.graphs if roles.get(role) != READY)
    if not model_control:
        if missing:
            raise not_loaded(model_name(family.name, missing[0]))
        return
    if anew:
        await unload_family(endpoint, family)
    elif not missing:
        return
    ensembles = {GraphRole.SUPPORT_ENCODER, GraphRole.QUERY_DECODER}
    for group in (family.graphs - ensembles, family.graphs & ensembles):
        loads = (load_model(endpoint, model_name(family.name, role)) for role in sorted(group))
        results = await asyncio.gather(*loads, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result


async def unload_family(endpoint: Endpoint, family: ModelFamily) -> None:
    """Unloads all models of a family, the ensembles first; what cannot be unloaded stays."""
    ensembles = [GraphRole.SUPPORT_ENCODER, GraphRole.QUERY_DECODER]
    for role in (*ensembles, *sorted(family.graphs - set(ensembles))):
        try:
            await endpoint.unload(model_name(family.name, role))
        except TritonError as error:
            if error.trouble in AWAY:
                return


def not_loaded(model: str) -> RepositoryError:
    """The error of a model that the gateway may not load."""
    return RepositoryError(
        "MODEL_NOT_LOADED",
        f"{config_path(model)}: Triton has not loaded it, and does not load on request; start "
        "Triton anew, or with --model-control-mode=explicit.",
    )
