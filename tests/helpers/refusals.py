"""What a client can read out of a failed call."""

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status


class Refusal:
    """What a client can read out of a failed call."""

    def __init__(self, error):
        status = rpc_status.from_call(error)
        self.code = error.code()
        self.details = {}
        for packed in status.details:
            for kind in (
                error_details_pb2.ErrorInfo,
                error_details_pb2.BadRequest,
                error_details_pb2.RetryInfo,
                error_details_pb2.ResourceInfo,
                error_details_pb2.RequestInfo,
            ):
                if packed.Is(kind.DESCRIPTOR):
                    self.details[kind.__name__] = kind.FromString(packed.value)
        self.reason = self.details["ErrorInfo"].reason

    @property
    def field(self):
        """Path of the field at fault; None if there is none."""
        if "BadRequest" not in self.details:
            return None
        return self.details["BadRequest"].field_violations[0].field


async def refused(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return Refusal(caught.value)
