"""``fewseg.v1.ModelService`` over the core: convert, call, convert."""

# gRPC finds the methods of a servicer by their names in the .proto.
# ruff: noqa: N802
from __future__ import annotations

from dataclasses import dataclass

from fewseg.v1 import model_service_pb2 as pb2
from fewseg.v1 import model_service_pb2_grpc as pb2_grpc
from service.api import answers, names
from service.api.calls import ServicerContext, new_call
from service.core.gateway import Gateway


@dataclass(frozen=True, slots=True)
class Identity:
    """What the server says of itself.

    Attributes:
        version: Of the server.
        engine: Name of its engine.
        store: Name of its store.
    """

    version: str
    engine: str
    store: str


class ModelServicer(pb2_grpc.ModelServiceServicer):
    """Tells which models are served, and takes in new ones.

    Args:
        gateway: The core.
        identity: What the server says of itself.
    """

    def __init__(self, gateway: Gateway, identity: Identity) -> None:
        self._gateway = gateway
        self._identity = identity

    async def ListModels(
        self, request: pb2.ListModelsRequest, context: ServicerContext
    ) -> pb2.ListModelsResponse:
        """Lists a page of models, by alias."""
        new_call(context)
        size = names.page_size(request.page_size)
        after = names.read_page_token(request.page_token)
        following = [model for model in self._models() if model.alias > after]
        shown = following[:size]
        token = names.write_page_token(shown[-1].alias) if len(following) > size else ""
        return pb2.ListModelsResponse(models=shown, next_page_token=token)

    async def RefreshModels(
        self, request: pb2.RefreshModelsRequest, context: ServicerContext
    ) -> pb2.RefreshModelsResponse:
        """Looks into the model repository again."""
        new_call(context)
        problems = await self._gateway.catalog.refresh()
        return pb2.RefreshModelsResponse(models=self._models(), problems=problems)

    async def GetServerInfo(
        self, request: pb2.GetServerInfoRequest, context: ServicerContext
    ) -> pb2.ServerInfo:
        """Returns versions and limits."""
        new_call(context)
        return pb2.ServerInfo(
            version=self._identity.version,
            api_version="v1",
            engine=self._identity.engine,
            store=self._identity.store,
            limits=answers.limits(self._gateway.limits),
        )

    def _models(self) -> list[pb2.Model]:
        catalog = self._gateway.catalog
        families = catalog.families()
        return [
            answers.model(families[alias], default=alias == catalog.default_alias)
            for alias in sorted(families)
        ]
