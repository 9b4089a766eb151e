"""How the handlers of generated code come to gRPC's server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import grpc
import grpc.aio

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
#: Makes another handler of one, given ``package.Service/Method``.
Wrap = Callable[[Handler, str], Handler]


def _as_it_is(handler: Handler, method: str) -> Handler:
    return handler


class Handlers:
    """Takes the handlers that generated code adds to a server: once, where it adds them twice.

    gRPC's asyncio server waits for the calls of each registered method in a task of its own, and
    touches all these tasks for every call (https://github.com/grpc/grpc/pull/43461). Until it does
    not, it has handlers of services alone.

    Args:
        server: Gets them.
        wrap: Makes another one of each.
    """

    def __init__(self, server: grpc.aio.Server, wrap: Wrap = _as_it_is) -> None:
        self._server = server
        self._wrap = wrap

    def add_generic_rpc_handlers(
        self, handlers: Sequence[grpc.GenericRpcHandler[Any, Any]]
    ) -> None:
        """Leaves them: the same come by the names of their methods."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Adds the handlers of a service, given by the names of its methods."""
        wrapped = {
            name: self._wrap(handler, f"{service}/{name}") for name, handler in handlers.items()
        }
        handler = grpc.method_handlers_generic_handler(service, wrapped)
        self._server.add_generic_rpc_handlers((handler,))
