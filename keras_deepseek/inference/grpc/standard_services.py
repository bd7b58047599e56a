"""gRPC's own services: health, for load balancers and probes, and reflection, for `grpcurl`."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from keras_deepseek.inference.protocols.grpc_messages import message_pool
from keras_deepseek.inference.server.service import Service

_POLL_SECONDS = 0.25
"""Seconds between two looks at the server's readiness, for the clients that watch."""


class HealthService(health.aio.HealthServicer):
    """Answers that all services serve while the server is ready. The empty name means all."""

    def __init__(self, service: Service, names: Sequence[str]) -> None:
        super().__init__()
        self._service = service
        self._names = ("", *names)
        self._was_ready: bool | None = None

    async def follow(self) -> None:
        """Tells the clients that watch of each change, until it is cancelled."""
        while True:
            await self.update()
            await asyncio.sleep(_POLL_SECONDS)

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name.
        """Answers with the status of a service."""
        await self.update()
        return await super().Check(request, context)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802 - gRPC's name.
        """Streams the status of a service now and at each change, until the server stops."""
        await self.update()
        task: Any = asyncio.current_task()
        with self._service.ends_when_stopping(task):
            await super().Watch(request, context)

    async def update(self) -> None:
        """Sets the status of all services if the server's readiness has changed."""
        is_ready = self._service.ready
        if is_ready != self._was_ready:
            self._was_ready = is_ready
            statuses = health_pb2.HealthCheckResponse
            for name in self._names:
                await self.set(name, statuses.SERVING if is_ready else statuses.NOT_SERVING)


class ReflectionService(reflection.aio.ReflectionServicer):
    """Describes the services and their messages, until the server stops."""

    def __init__(self, service: Service, names: Sequence[str]) -> None:
        super().__init__(names, message_pool())
        self._service = service

    async def ServerReflectionInfo(  # noqa: N802 - gRPC's name.
        self, requests: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[Any]:
        """Answers each question of a stream."""
        task: Any = asyncio.current_task()
        with self._service.ends_when_stopping(task):
            async for answer in super().ServerReflectionInfo(requests, context):
                yield answer


def add_standard_services(grpc_server: Any, service: Service, names: Sequence[str]) -> Any:
    """Adds both services to a `grpc.aio.Server`, whose own services have these names.

    Returns the `HealthService`, whose `follow` is to run.
    """
    health_service = HealthService(service, [*names, health.SERVICE_NAME])
    health_pb2_grpc.add_HealthServicer_to_server(health_service, grpc_server)
    all_names = [*names, health.SERVICE_NAME, reflection.SERVICE_NAME]
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
        ReflectionService(service, all_names), grpc_server
    )
    return health_service
