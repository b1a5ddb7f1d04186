"""
The protocol's service in gRPC, on a port of its own. This is the only module that imports grpcio.

Who calls and whether they may is decided where REST's requests are (grpc_callers.py). Callers bring API keys: the
clients of gRPC have no signatures.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from polyhost import __version__
from polyhost.api.deadlines import Phase, too_slow
from polyhost.api.http import Request
from polyhost.api.open_inference.api import EXTENSIONS, OpenInference, model_document
from polyhost.api.open_inference.grpc_callers import request_of
from polyhost.api.open_inference.grpc_messages import CLASSES, SERVICE
from polyhost.api.open_inference.grpc_tensors import asked_by, parameters_of, response_of
from polyhost.api.open_inference.inference import Call, require_version
from polyhost.api.open_inference.replies import failure_of
from polyhost.api.request_ids import request_ids
from polyhost.certificate import Certificate
from polyhost.engine.errors import BadRequest
from polyhost.errors import PortInUse
from polyhost.http_limits import HttpLimits
from polyhost.service_errors import NotAuthenticated, Throttled

logger = logging.getLogger("polyhost")

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT, 403: grpc.StatusCode.PERMISSION_DENIED, 404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED, 409: grpc.StatusCode.ALREADY_EXISTS,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED, 429: grpc.StatusCode.UNAVAILABLE, 503: grpc.StatusCode.UNAVAILABLE,
    507: grpc.StatusCode.RESOURCE_EXHAUSTED,
}  # fmt: skip
# What a message has beside the tensors.
_MARGIN_BYTES = 64 * 1024
# A connection's calls at once; a client sends more when others are answered.
_MOST_STREAMS = 100
# An error's sentence goes into a header, which clients limit to 8 KiB. There a byte that is not ASCII takes three.
_MOST_SENTENCE_BYTES = 2000


class Asking(NamedTuple):
    """A call's message, its id, and the request that it is in REST."""

    message: Any
    request_id: str
    request: Request


# To the message of the answer.
Do = Callable[[Asking], Awaitable[Any]]


class Address(NamedTuple):
    """`certificate`: None without TLS."""

    host: str
    port: int
    certificate: Certificate | None


class GrpcServer:
    """As a server's other addresses: it serves until `stop`, and what is in flight then is answered."""

    def __init__(
        self, api: OpenInference, address: Address, *, max_request_bytes: int, limits: HttpLimits, drain_secs: float
    ) -> None:
        """`limits`: for gRPC's connections, too."""
        self._service = _Service(api, limits)
        self._address = address
        self._max_request_bytes = max_request_bytes
        self._limits = limits
        self._drain_secs = drain_secs
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        self._stopping.set()

    def look(self) -> None:
        """The certificate is that of another address, which looks; new connections ask for it."""

    def leave(self) -> None:
        """Clients are told by `stop`: gRPC's connections have a goodbye."""

    async def serve(self) -> None:
        """Raises PortInUse."""
        server = grpc.aio.server(options=self._options(), maximum_concurrent_rpcs=self._limits.max_connections)
        server.add_generic_rpc_handlers((self._service.handlers(),))
        self._bind(server)
        await server.start()
        logger.info("ready for gRPC on %s:%d", self._address.host, self._address.port)
        await self._stopping.wait()
        await server.stop(self._drain_secs)

    def _options(self) -> list[tuple[str, int]]:
        limits = self._limits
        return [
            ("grpc.max_receive_message_length", self._max_request_bytes + _MARGIN_BYTES),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
            ("grpc.max_allowed_incoming_connections", limits.max_connections),
            ("grpc.max_concurrent_streams", _MOST_STREAMS),
            ("grpc.server_handshake_timeout_ms", int(limits.header_timeout_secs * 1000)),
            ("grpc.max_connection_idle_ms", int(limits.keep_alive_secs * 1000)),
        ]

    def _bind(self, server: grpc.aio.Server) -> None:
        host, port, certificate = self._address
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if certificate is None:
                server.add_insecure_port(where)
            else:
                server.add_secure_port(where, _credentials(certificate))
        except RuntimeError as error:
            raise PortInUse(
                f"cannot listen for gRPC on {where}: stop what listens there, or choose another with --grpc-port."
            ) from error


class _Service:
    def __init__(self, api: OpenInference, limits: HttpLimits) -> None:
        self._api = api
        self._limits = limits
        self._ids = request_ids()

    def handlers(self) -> grpc.GenericRpcHandler:
        methods: dict[str, Do] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ServerMetadata": self._describe_server,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._describe_model,
            "ModelInfer": self._infer,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        return grpc.method_handlers_generic_handler(
            SERVICE, {name: self._rpc(name, do) for name, do in methods.items()}
        )

    def _rpc(self, name: str, do: Do) -> grpc.RpcMethodHandler:
        """
        A request comes as bytes: what is no message is answered as any other wrong request.

        To a handler of streams, because that is called before the message has come, which may take its time.
        """
        read, write = CLASSES[f"{name}Request"].FromString, CLASSES[f"{name}Response"].SerializeToString

        async def answer(contents: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> Any:
            request_id = next(self._ids)
            try:
                message = _message(read, await self._content(contents))
                request = request_of(name, context.invocation_metadata() or (), context.peer())
                asking = Asking(message, request_id, request)
                self._admit(asking, is_inference=name == "ModelInfer")
                return await do(asking)
            except Exception as error:  # noqa: BLE001 - it becomes the answer
                failure = failure_of(error, request_id)
                code, trailing = _code_of(error, failure.status), _trailing_of(error)
            return await context.abort(code, _shortened(failure.message), trailing)

        return grpc.stream_unary_rpc_method_handler(answer, request_deserializer=None, response_serializer=write)

    async def _content(self, contents: AsyncIterator[bytes]) -> bytes:
        """Of the call's one message. Raises Refused, BadRequest."""
        try:
            return await asyncio.wait_for(contents.__anext__(), self._limits.body_timeout_secs)
        except asyncio.TimeoutError as error:
            raise too_slow(Phase.BODY, self._limits) from error
        except StopAsyncIteration as error:
            raise BadRequest("The call has no message: send one.") from error

    def _admit(self, asking: Asking, *, is_inference: bool) -> None:
        """Raises EndpointError."""
        message, request_id, request = asking
        try:
            self._api.admit(request)
        except Throttled as error:
            if is_inference:
                self._api.served.refused(message.model_name, request_id, message.ByteSize(), error)
            raise

    # The server

    async def _live(self, _: Asking) -> Any:
        return CLASSES["ServerLiveResponse"](live=True)

    async def _ready(self, _: Asking) -> Any:
        return CLASSES["ServerReadyResponse"](ready=self._api.is_ready)

    async def _describe_server(self, _: Asking) -> Any:
        return CLASSES["ServerMetadataResponse"](name="polyhost", version=__version__, extensions=EXTENSIONS)

    # Models

    async def _model_ready(self, asking: Asking) -> Any:
        await self._api.served.require_model(asking.request, asking.message.name)
        require_version(asking.message.version)
        return CLASSES["ModelReadyResponse"](ready=True)

    async def _describe_model(self, asking: Asking) -> Any:
        await self._api.served.require_model(asking.request, asking.message.name)
        require_version(asking.message.version)
        name = asking.message.name
        return CLASSES["ModelMetadataResponse"](**model_document(name, await self._api.served.signature(name)))

    async def _index(self, _: Asking) -> Any:
        return CLASSES["RepositoryIndexResponse"](models=self._api.served.index())

    async def _load(self, asking: Asking) -> Any:
        message = asking.message
        await self._api.served.load(asking.request, message.model_name, parameters_of(message.parameters))
        return CLASSES["RepositoryModelLoadResponse"]()

    async def _unload(self, asking: Asking) -> Any:
        await self._api.served.unload(asking.request, asking.message.model_name)
        return CLASSES["RepositoryModelUnloadResponse"]()

    async def _infer(self, asking: Asking) -> Any:
        message, request_id, request = asking
        inference, name = self._api.inference, message.model_name
        call = Call(request_id, name, message.model_version, request, message.ByteSize(), lambda: asked_by(message))
        answered = await inference.answered(call)
        size = sum(len(output.data) for output in answered.outputs)
        is_raw = bool(message.raw_input_contents)
        return await inference.aside(size, lambda: response_of(name, answered, is_raw=is_raw))


def _shortened(sentence: str) -> str:
    """A model's may have half a character, which cannot be sent."""
    return sentence.encode("utf-8", "replace")[:_MOST_SENTENCE_BYTES].decode("utf-8", "ignore")


def _code_of(error: Exception, status: int) -> grpc.StatusCode:
    """GRPC tells apart who is unknown and who may not; clients repeat UNAVAILABLE, as they should for a load."""
    if isinstance(error, NotAuthenticated):
        return grpc.StatusCode.UNAUTHENTICATED
    if isinstance(error, Throttled):
        return grpc.StatusCode.RESOURCE_EXHAUSTED
    return _CODES.get(status, grpc.StatusCode.INTERNAL)


def _trailing_of(error: Exception) -> tuple[tuple[str, str], ...]:
    return (("retry-after", str(error.retry_after_secs)),) if isinstance(error, Throttled) else ()


def _credentials(certificate: Certificate) -> grpc.ServerCredentials:
    """Each new connection gets the certificate that there is then. gRPC asks for it in a thread of its own."""
    used = certificate.pem()

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal used
        pem = certificate.pem()
        if pem == used:
            return None
        used = pem
        return grpc.ssl_server_certificate_configuration([pem])

    return grpc.dynamic_ssl_server_credentials(grpc.ssl_server_certificate_configuration([used]), renewed)


def _message(read: Callable[[bytes], Any], content: bytes) -> Any:
    """Raises BadRequest."""
    try:
        return read(content)
    except DecodeError as error:
        raise BadRequest("The request is no message of the Open Inference Protocol.") from error
