"""The dispatcher of requests to the models of a repository, for this process and for servers."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, Protocol, Unpack

from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.errors import InvalidInputError, unknown_name_message
from keras_deepseek.inference.arguments import (
    RequestOptions,
    check_option_names,
    check_request_options,
)
from keras_deepseek.inference.batching.batch import Request
from keras_deepseek.inference.batching.delivery import (
    Answer,
    Settle,
    Waiter,
    open_future,
    open_waiter,
)
from keras_deepseek.inference.errors import ClosedError
from keras_deepseek.inference.models.model_repository import ModelRepository
from keras_deepseek.inference.models.model_version import ModelVersion
from keras_deepseek.inference.models.open_version import as_tensor_version, as_text_version
from keras_deepseek.inference.models.served_model import ServedModel
from keras_deepseek.inference.models.text_version import TextVersion
from keras_deepseek.inference.models.version import Version
from keras_deepseek.inference.monitoring.request_log import RequestLog
from keras_deepseek.inference.monitoring.request_trace import RequestTrace
from keras_deepseek.inference.protocols.shared_memory import SharedMemory
from keras_deepseek.inference.text.text_answer import TextAnswer
from keras_deepseek.inference.text.text_record import describe_answer, is_chat
from keras_deepseek.text.sampling import SamplingOptions


class ReadyCheck(Protocol):
    """The part of a server that its engine uses."""

    @property
    def ready(self) -> bool:
        """True if health checks may answer that the server is ready."""


class Dispatcher:
    """A model repository with the calls that put requests in the queues of its models.

    The handlers of HTTP and gRPC use it. Its subclass `ServingEngine` adds the servers.
    """

    def __init__(self, repository: ModelRepository, request_log: RequestLog | None) -> None:
        self.repository = repository
        self.name = repository.name
        self.monitor = repository.monitor
        self.shared_memory = SharedMemory()
        """The regions that clients of any of its servers have registered."""
        self._request_log = request_log

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """The served models by name. An unknown name raises a `ModelNotFoundError`."""
        return self.repository.models

    @property
    def ready(self) -> bool:
        """True if requests are answered: the engine is started and not closing."""
        return self.repository.state == "ready"

    @property
    def servers(self) -> Sequence[ReadyCheck]:
        """The servers that `ServingEngine.serve` has started; none in this base class."""
        return ()

    def start(self) -> None:
        """Warms the models up and starts the threads that run them. A second call does nothing.

        Raises:
            ClosedError: The engine was closed.
        """
        self.repository.start()

    def close(self) -> None:
        """Refuses new requests, and answers the accepted ones, for good."""
        self._close(None)

    def predict(self, x: Any, **options: Unpack[RequestOptions]) -> Any:
        """Returns the model's outputs for `x`. Blocks until they are computed.

        Args:
            x: The inputs, rows first, with any number of rows. For a model with one input: an array
                or nested lists. Else a mapping by input name, or a sequence in the order of the
                inputs.
            **options: `RequestOptions`.

        Returns:
            A NumPy array if the model has one output, else a dict of arrays by output name.

        Raises:
            InvalidInputError: `x` does not fit the model's inputs or has too many rows, or an
                option is unknown.
            OverloadedError: Too many rows are waiting, or the request can't be answered in time.
            DeadlineExceededError: The answer was not ready within `timeout`.
            ClosedError: The engine was closed.
        """
        self.repository.start()
        return _unwrap(self.submit(x, **options).result())

    async def predict_async(self, x: Any, **options: Unpack[RequestOptions]) -> Any:
        """Returns the same as `predict`, without blocking the event loop.

        Cancelling the call removes the request from the queue.

        Args:
            x: As in `predict`.
            **options: `RequestOptions`.
        """
        if not self.ready:
            await asyncio.to_thread(self.repository.start)
        return _unwrap(await self.submit_async(x, **options))

    def submit(self, x: Any, **options: Unpack[RequestOptions]) -> Answer:
        """Queues a request of a started engine.

        Args:
            x: As in `predict`.
            **options: `RequestOptions`.

        Returns:
            A `concurrent.futures.Future` of a dict of arrays by output name. Cancelling it removes
            the request from the queue.
        """
        check_option_names(options)
        answer, deliver = open_future()
        cancel, _ = self._submit(lambda signature: signature.bind(x), deliver, options)
        answer.add_done_callback(lambda answer: cancel() if answer.cancelled() else None)
        return answer

    def submit_async(self, x: Any, **options: Unpack[RequestOptions]) -> Waiter:
        """Queues a request of a started engine, for the running event loop to await.

        Args:
            x: As in `predict`.
            **options: `RequestOptions`.

        Returns:
            An `asyncio.Future` of a dict of arrays by output name.
        """
        check_option_names(options)
        return self.dispatch_async(lambda signature: signature.bind(x), **options)[0]

    def dispatch_async(
        self,
        bind: Callable[[Signature], dict[str, Array]],
        trace: RequestTrace | None = None,
        **options: Unpack[RequestOptions],
    ) -> tuple[Waiter, ModelVersion]:
        """Queues a request whose inputs are read with the signature of the version that answers it.

        Args:
            bind: As in `dispatch`.
            trace: As in `dispatch`. Defaults to `None`.
            **options: `RequestOptions`.

        Returns:
            An `asyncio.Future` of a dict of arrays by output name, and the `ModelVersion`.
        """
        waiter, settle = open_waiter()
        cancel, version = self.dispatch(bind, settle, trace, **options)
        waiter.add_done_callback(lambda waiter: cancel() if waiter.cancelled() else None)
        return waiter, version

    def dispatch(
        self,
        bind: Callable[[Signature], dict[str, Array]],
        settle: Settle,
        trace: RequestTrace | None = None,
        **options: Unpack[RequestOptions],
    ) -> tuple[Callable[[], None], ModelVersion]:
        """Queues a request as `dispatch_async` does, at less cost: it makes no future.

        Args:
            bind: Function from the `Signature` of the version that will answer to arrays by input
                name, checked against it. It is called again if that version is closed meanwhile.
            settle: Function of the `Request`. The running event loop calls it when the request has
                `outputs` or an `error`: for all requests of a batch in one turn of the loop.
            trace: `RequestTrace`. The model and the version are written to it. Defaults to `None`.
            **options: `RequestOptions`.

        Returns:
            A function that removes the request from the queue, and the `ModelVersion`.
        """
        return self._submit(bind, self.repository.delivery.to_loop(settle), options, trace)

    def text(
        self,
        prompt: str | Sequence[int] | Sequence[Mapping[str, Any]],
        *,
        model: str | None = None,
        timeout: float | None = None,
        priority: int = 0,
        client: str | None = None,
        **sampling: Any,
    ) -> TextAnswer:
        """Asks a language model, and returns its answer, which comes piece by piece.

        Args:
            prompt: string, list of token ids, or list of chat messages as in `{"role": "user",
                "content": "Hello"}`, which the model's chat template formats.
            model: string. The model's name. Defaults to `None`: the engine's own.
            timeout: float. Seconds after which the first token is useless. A request that would be
                late is refused. Defaults to `None`.
            priority: integer. Requests of the same model with a higher priority are read first.
                Defaults to `0`.
            client: string. Clients share the model fairly. Defaults to `None`: all such requests
                are of one client.
            **sampling: Fields of `SamplingOptions`, by OpenAI's names: `max_tokens`, `temperature`,
                `top_p`, `seed`, `stop` and others.

        Returns:
            A `TextAnswer`. Iterate over it, also by `async for`, for each `TextPiece` as it is
            written. `result()` waits for the whole answer, and so does `await answer.wait()`.

        Raises:
            InvalidFieldError: An argument is wrong, or too long for the model.
            InvalidInputError: The model takes tensors, or has no chat template for messages.
            OverloadedError: Too many requests wait, or it would be late.
            ClosedError: The engine was closed.
        """
        self.repository.start()
        options = _read_sampling(sampling)
        check_request_options(timeout, priority)
        is_conversation = is_chat(prompt)
        answer, _ = self.dispatch_text(
            lambda version: version.format_prompt(prompt),
            options,
            model=model,
            body={"messages" if is_conversation else "prompt": prompt, **sampling},
            timeout=timeout,
            priority=priority,
            client=client or "",
            adds_special_tokens=not is_conversation,
        )
        return answer

    def dispatch_text(
        self,
        encode: Callable[[TextVersion], str | Sequence[int]],
        sampling: SamplingOptions,
        *,
        model: str | None = None,
        version: int | None = None,
        trace: RequestTrace | None = None,
        body: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> tuple[TextAnswer, TextVersion]:
        """Puts a request into the queue of a language model.

        Args:
            encode: Function from the version that will answer to the prompt. It is called again if
                that version is closed meanwhile.
            sampling: `SamplingOptions`.
            model: string. The model's name. Defaults to `None`: the engine's own.
            version: integer. Defaults to `None`: the newest, or one on trial.
            trace: `RequestTrace`. The model and the version are written to it, and it is in flight
                from now on. Defaults to `None`.
            body: dict. The request in OpenAI's form, for the log of requests. Defaults to `None`:
                it is not logged.
            **settings: Further arguments of `TextEngine.submit`, such as `timeout` and `client`.

        Returns:
            A `TextAnswer`, and the `TextVersion` that gives it.
        """
        while True:
            chosen = self._choose_text(model, version, trace)
            with self._unless_replaced(chosen, model, version):
                chosen.check_available()
                answer = chosen.engine.submit(encode(chosen), sampling, **settings)
                return self._log_text(answer, chosen, body), chosen

    async def dispatch_text_async(
        self,
        encode: Callable[[TextVersion], str | Sequence[int]],
        sampling: SamplingOptions,
        *,
        model: str | None = None,
        version: int | None = None,
        trace: RequestTrace | None = None,
        body: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> tuple[TextAnswer, TextVersion]:
        """Does what `dispatch_text` does, and tokenizes a long text on another thread."""
        while True:
            chosen = self._choose_text(model, version, trace)
            with self._unless_replaced(chosen, model, version):
                chosen.check_available()
                answer = await chosen.engine.submit_async(encode(chosen), sampling, **settings)
                return self._log_text(answer, chosen, body), chosen

    def find_text(
        self, name: str | None = None, version: int | None = None, label: str = ""
    ) -> TextVersion:
        """Returns a version of a language model, as `find` does.

        Args:
            name: string. Defaults to `None`: the engine's own model.
            version: integer. Defaults to `None`: the newest that is not on trial.
            label: string. A label instead of a version. Defaults to `""`.

        Raises:
            ModelNotFoundError: There is no such model, version or label.
            InvalidInputError: The model takes tensors.
        """
        return as_text_version(self.find(name, version, label))

    def find(self, name: str | None = None, version: int | None = None, label: str = "") -> Version:
        """Returns a version of a model, to read its signature or its state.

        Args:
            name: string. Defaults to `None`: the engine's own model.
            version: integer. Defaults to `None`: the newest that is not on trial. A request may go
                to a version on trial instead (`ServedModel.find`).
            label: string. A label to find the version by, instead of its number. Defaults to `""`.

        Raises:
            ModelNotFoundError: There is no such model, version or label.
        """
        return self.repository.find(name, version, label)

    def tensor_versions(self) -> list[ModelVersion]:
        """Returns all versions of models that take tensors."""
        return [as_tensor_version(version) for version in self._versions() if not version.is_text]

    def text_versions(self) -> list[TextVersion]:
        """Returns all versions of language models."""
        return [as_text_version(version) for version in self._versions() if version.is_text]

    def _versions(self) -> list[Version]:
        models = self.repository.models.values()
        return [version for served in models for version in served.versions.values()]

    def _close(self, end: float | None) -> None:
        """Closes the models by the time `end` of the monotonic clock; `None` waits for all."""
        if self.repository.begin_to_close():
            self.repository.close_models(None if end is None else end - time.monotonic())
            if self._request_log is not None:
                self._request_log.close()

    def _check_ready(self) -> None:
        if not self.ready:
            self.repository.check_open()
            raise ClosedError(f"The model {self.name!r} is not ready: call `start` first.")

    def _choose_text(
        self, model: str | None, number: int | None, trace: RequestTrace | None
    ) -> TextVersion:
        """Returns the version of a language model for a request, which counts as arrived there."""
        self._check_ready()
        version = as_text_version(self.repository.find_model(model).find(number))
        if trace is not None:
            trace.model, trace.version = version.name, str(version.number)
            self.monitor.arrive(trace)
        return version

    @contextlib.contextmanager
    def _unless_replaced(
        self, version: Version, name: str | None, number: int | None
    ) -> Iterator[None]:
        """Context manager that suppresses a `ClosedError` if another version has the place."""
        try:
            yield
        except ClosedError:
            # The version was closed after it was found.
            if self.repository.find(name, number) is version:
                raise

    def _log_text(
        self, answer: TextAnswer, version: TextVersion, body: Mapping[str, Any] | None
    ) -> TextAnswer:
        """Lets an answer be logged when it is over, if it is in the sample."""
        if self._request_log is None or body is None:
            return answer
        describe = partial(describe_answer, answer, body)
        log = self._request_log.watch_text(version.name, version.number, describe)
        if log is not None:
            answer.add_done_callback(lambda _: log())
        return answer

    def _submit(
        self,
        bind: Callable[[Signature], dict[str, Array]],
        deliver: Callable[[Request], None],
        options: RequestOptions,
        trace: RequestTrace | None = None,
    ) -> tuple[Callable[[], None], ModelVersion]:
        """Queues a request. Returns a function that cancels it, and the version that answers."""
        self._check_ready()
        repository = self.repository
        name, number = options.get("model"), options.get("version")
        label, client = options.get("label", ""), options.get("client")
        while True:
            served = repository.find_model(name)
            version = as_tensor_version(served.find(number, label))
            if trace is not None:
                trace.model, trace.version = version.name, str(version.number)
                repository.monitor.arrive(trace)
            try:
                if options.get("timeout") is None:
                    version.check_room()  # Reading a large body only to refuse it takes long.
                inputs = version.bind(bind)
                deliver_and_log = deliver
                if self._request_log is not None:
                    deliver_and_log = self._request_log.watch(
                        version.name, version.number, inputs, deliver
                    )
                request = version.submit(
                    inputs,
                    deliver_and_log,
                    timeout=options.get("timeout"),
                    priority=options.get("priority", 0),
                    client=client,
                    # Cached answers would keep most requests from a version on trial.
                    use_cache=number is not None or label != "" or not served.on_trial,
                    connection=None if trace is None else trace.connection,
                )
            except ClosedError:
                # The version was closed after it was found: another may have replaced it.
                if repository.find(name, number, label) is version:
                    raise
            else:
                if trace is not None:
                    trace.request = request
                return partial(version.cancel, request, client), version


def _read_sampling(sampling: Mapping[str, Any]) -> SamplingOptions:
    names = [item.name for item in fields(SamplingOptions)]
    for name in sampling:
        if name not in names:
            raise InvalidInputError(unknown_name_message("setting of a text", name, names))
    return SamplingOptions(**sampling)


def _unwrap(outputs: dict[str, Array]) -> Any:
    return next(iter(outputs.values())) if len(outputs) == 1 else outputs
