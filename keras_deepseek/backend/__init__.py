"""The only code that names TensorFlow, JAX or PyTorch, and that touches private names of Keras.

`current()` is the way in: a module with the same functions whichever framework Keras runs on.
Beside the three stand `keras_internals` and `keras_training` (private names of Keras, each with a
canary test), `named_model` (a model by the names of its inputs and outputs), `saved_model`,
`openvino_model` and `tensorrt_engine` (running what was exported, without Keras: `deploy` verifies
by them, `inference` serves by them), `positioned_data` (training data that know how far a training
has come) and `random_state` (the generators that a process shares).
"""

import contextlib
import importlib
import importlib.util
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from keras_deepseek.errors import InvalidInputError, unknown_name_message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from typing import Any

    import keras

    from keras_deepseek.artifacts.signature import Array, InferenceFunction
    from keras_deepseek.backend.export.named_model import NamedModel
    from keras_deepseek.backend.export.serving_signatures import ServingSignatures
    from keras_deepseek.backend.keras_private.keras_internals import Distribution
    from keras_deepseek.backend.processes.processes import Processes, Replicas
    from keras_deepseek.backend.processes.task_cluster import TaskCluster


class Backend(Protocol):
    """What each of `backend.tensorflow`, `backend.jax` and `backend.torch` offers."""

    def count_devices(self, kind: str) -> int:
        """Returns how many devices of a kind (`"cpu"`, `"gpu"`, `"tpu"`) there are."""

    def on_device(self, device: str) -> "AbstractContextManager[object]":
        """Returns a context in which Keras creates variables and computes on a device as `"gpu:0"`.

        `keras.device` copies all tensors there on PyTorch, where that is the CPU.
        """

    def read_device_memory(self) -> dict[str, int] | None:
        """Returns the bytes that the accelerator's allocator holds; `None` where none counts."""

    def read_device_name(self) -> str | None:
        """Returns the name that the maker gave the accelerator; `None` on a CPU."""

    def count_flops(self, function: "Callable[..., Any]", *args: "Any") -> int:
        """Returns the floating-point operations of `function(*args)`, a multiply-add as two."""

    def compile_inference(self, model: "NamedModel") -> "InferenceFunction":
        """Returns the model as a compiled function of NumPy arrays, from and to dicts by name."""

    def plain_inference(self, model: "NamedModel") -> "InferenceFunction":
        """Returns the model as a function of NumPy arrays, computed at each batch's own sizes."""

    def compile_with_state(
        self,
        function: "Callable[..., tuple[Any, Any]]",
        variables: "Sequence[keras.Variable]",
    ) -> "Callable[..., tuple[Any, Any]]":
        """Returns `function(state, *inputs)`, which makes outputs and the next state, compiled.

        A state is `None` at first, then a structure of tensors of lasting shapes. The one that is
        given is used up: the next one may lie in its memory. Inputs are arrays, integers or `None`;
        on PyTorch, which runs the function as it is, integers stay integers. `variables` are those
        that it reads.
        """

    def compiles_by_shape(self) -> bool:
        """Whether `compile_with_state` takes its time anew for each shape of a prompt."""

    def write_slots(self, tensor: "Any", start: "Any", update: "Any") -> "Any":
        """Returns a tensor `(batch_size, slots, ...)` with an update in its slots from `start` on.

        The tensor is written into where it belongs to a function that `compile_with_state` made.
        """

    def compute_gradients(
        self,
        function: "Callable[..., Any]",
        inputs: "Sequence[Array]",
        variables: "Sequence[keras.Variable]",
    ) -> "tuple[list[Array], list[Array]]":
        """Returns the gradients of the scalar `function(*inputs)`, by input and by variable."""

    def apply_with_gradient(
        self,
        function: "Callable[..., Any]",
        gradient: "Callable[..., Sequence[Any]]",
        tensors: "Sequence[Any]",
        constants: "Sequence[Any]",
    ) -> "Any":
        """Returns `function(*tensors, *constants)`; `gradient` says what its gradients are.

        Nothing that `function` computes is kept. `gradient(upstream, *tensors, *constants)` returns
        the gradients by `tensors`. Constants are tensors without one, such as integers.
        """

    def differentiate(
        self,
        compute: "Callable[[], tuple[Any, Any]]",
        variables: "Sequence[keras.Variable]",
        states: "Sequence[keras.Variable]",
    ) -> "tuple[Any, Callable[..., list[Any]]]":
        """Returns what `compute` returns beside a scalar, and the scalar's backward pass.

        `backward(factor, receive)` returns the gradients of the scalar, times a factor where there
        is one, by variables: `None` or zeros by one that the scalar does not depend on. It may call
        `receive(index, gradient)` for some of them while it still computes others. It is called
        once. `states` are the variables that `compute` may assign.
        """

    def count_kept_bytes(
        self,
        compute: "Callable[[], tuple[Any, Any]]",
        variables: "Sequence[keras.Variable]",
        states: "Sequence[keras.Variable]",
        batch: "Any",
    ) -> int:
        """Returns the bytes that `differentiate` keeps from its forward for its backward pass.

        Variables and the arrays of `batch`, which are there anyway, do not count.
        """

    def rematerialize(
        self,
        layer: "keras.Layer",
        call: "Callable[..., Any]",
        states: "Sequence[keras.Variable]",
    ) -> "Callable[..., Any]":
        """Returns a layer's `call` that keeps nothing for the gradient, and computes it anew there.

        `states` are the variables that it may assign: those of the second time are not kept.
        """

    def make_train_step(
        self,
        model: "keras.Model",
        step: "Callable[[Any], dict[str, Any]]",
        carried: "Callable[[], Sequence[keras.Variable]]" = list,
    ) -> "Callable[..., Any]":
        """Returns what Keras takes as the `train_step` of a model.

        `step` goes from the data of a batch to the logs, and assigns the variables of the model, of
        its optimizer and its metrics, and those that `carried` returns.
        """

    def build_by_step(self, model: "keras.Model", batch: "Any") -> None:
        """Makes the variables that a model's own `train_step` uses, as far as tracing it does.

        `batch` is a structure of `KerasTensor`s. PyTorch can't trace a step.
        """

    def run_step(self, model: "keras.Model", batch: "Any") -> "dict[str, Any]":
        """Trains a model, whose training function was made, on one batch, and returns the logs.

        `batch` is a tuple of `x`, or `x` and `y`, or these and weights, as arrays or tensors.
        """

    def ends_data(self, error: Exception) -> bool:
        """Returns whether an error out of a training function says that the data have ended."""

    def separate_variables(self, model: "keras.Model") -> None:
        """Gives each variable of a model, its optimizer and its metrics memory of its own.

        Moving averages that have become the weights share theirs, which JAX does not take.
        """

    def keeping_variables(self, model: "keras.Model") -> "AbstractContextManager[object]":
        """Returns a context out of which no error leaves a compiled model without its variables.

        Keras on JAX takes them away while it goes over batches, and forgets them where the first
        one fails.
        """

    def make_train_function(
        self,
        model: "keras.Model",
        carried: "Callable[[], Sequence[keras.Variable]]",
        *,
        force: bool,
    ) -> "Callable[..., Any]":
        """Returns what Keras makes of the `train_step` of a model, and keeps in it.

        `carried` returns further variables that the step assigns. After an error the model still
        has its variables: on JAX it has no values while it trains.
        """

    def run_before_step(
        self,
        model: "keras.Model",
        train_step: "Callable[..., Any]",
        prepare: "Callable[[], None]",
    ) -> "Callable[..., Any] | None":
        """Returns a `train_step` that begins with `prepare()`; `None` where no step is compiled.

        `prepare` may assign the variables of the optimizer. The result is another function each
        time, so that nothing which was compiled before stands for it.
        """

    def apply_update(
        self,
        optimizer: "keras.optimizers.Optimizer",
        gradients: "Sequence[Any]",
        variables: "Sequence[keras.Variable]",
        factor: "Any" = None,
    ) -> None:
        """Does what `optimizer.apply` does, in the fastest way that the framework has.

        `factor` is a scalar that all gradients are multiplied with first, or `None`.
        """

    def compile_update(
        self, optimizer: "keras.optimizers.Optimizer", variables: "Sequence[keras.Variable]"
    ) -> "Callable[[Sequence[Any]], None]":
        """Returns a function that updates variables by gradients as `optimizer.apply` does.

        The optimizer is built for the variables. A gradient is an array, or `None` for a variable
        that stays as it is.
        """

    def add_multiples(
        self, sums: "Sequence[Any]", tensors: "Sequence[Any]", factor: "Any"
    ) -> "list[Any]":
        """Returns sums, into which it may write, and multiples of as many tensors added to them.

        All are float32, and `factor` is a scalar.
        """

    def densify(self, gradient: "Any") -> "Any":
        """Returns a gradient as one tensor: that of an embedding may be sparse."""

    def find_finite(self, tensors: "Sequence[Any]") -> list[bool]:
        """Returns, for each tensor of floats, whether all of its numbers are finite."""

    def global_norm(self, gradients: "Sequence[Any]") -> "Any":
        """Returns the norm of all gradients together, a float32 scalar."""

    def spread_over_devices(self, devices: "Sequence[str] | None" = None) -> "Distribution | None":
        """Returns a distribution of batches over devices, or all; `None` where it must be copies.

        Raises `NotSupportedError` where the framework can't compute on such devices together.
        """

    def distributed(self, distribution: "Distribution") -> "AbstractContextManager[None]":
        """Makes Keras create variables and place batches by a distribution until the block ends.

        Raises `NotSupportedError` where the framework knows none.
        """

    def count_processes(self) -> int:
        """Returns how many processes the framework's engine runs in already."""

    def process_rank(self) -> int:
        """Returns which of the processes this one is; 0 where it runs alone."""

    def read_whole(self, value: "Any") -> "Array":
        """Returns a tensor as an array; where its parts lie in several processes, all must call it.

        It may lie in the memory of the tensor, and is read before that changes.

        Raises:
            PeerLostError: One of them has ended, or does not answer.
        """

    def read_strategy(self, strategy: "Any") -> "tuple[int, int, str] | None":
        """Returns world size, rank, and rank 0's address of an object that runs several processes.

        Of the framework's own, as `tf.distribute.MultiWorkerMirroredStrategy`; else `None`.
        """

    def replicate_over_devices(self, strategy: "Any") -> "Replicas | None":
        """Returns copies of a step on devices of this process; `None` where there is one alone.

        `strategy` is `"allreduce"`, for all devices, or an object of the framework that names them,
        or a list of names as in `"gpu:0"`, each of which gets the rows that it is fast enough for;
        else `InvalidInputError` or `NotSupportedError` is raised. Where a `Distribution` spreads
        over devices, there is none either.
        """

    def join_processes(
        self,
        coordinator: str,
        world_size: int,
        rank: int,
        *,
        join_timeout: float,
        timeout: float,
    ) -> "Processes":
        """Returns the processes that train together, once all of them are there.

        Rank 0 listens at `coordinator`, `HOST:PORT`. In seconds: how long is waited for those that
        have not come, which `PeerLostError` names; and for one that does not answer. Raises
        `NotSupportedError` where the framework's processes can't train together.
        """

    def connect_tasks(
        self, find_addresses: "Callable[[], Mapping[str, Sequence[str]]]"
    ) -> "TaskCluster":
        """Returns the workers and servers that this process is the chief of.

        The first time it is asked for the addresses of `"chief"`, `"worker"` and `"ps"`, all of
        which serve; afterwards they stay. Raises `InvalidInputError` where the framework has
        computed something already.
        """

    def adopt_tasks(self, strategy: "Any") -> "TaskCluster | None":
        """Returns the workers and servers that an object has connected to; `None` for another."""

    def serve_task(
        self,
        addresses: "Mapping[str, Sequence[str]]",
        task_type: str,
        index: int,
        on_ready: "Callable[[], None]",
    ) -> None:
        """Computes what the chief of a cluster has it compute, until the process is ended.

        `on_ready` is called when it listens.
        """

    def count_replicas(self, model: "keras.Model") -> int:
        """Returns how many copies of a model `tf.distribute` keeps, each for part of a batch."""

    def place_variables(self, variables: "Sequence[keras.Variable]") -> None:
        """Moves variables that were made outside to where the distribution around wants them."""

    def move_variables(
        self,
        devices: "Sequence[tuple[keras.Variable, str]]",
        optimizer: "keras.optimizers.Optimizer | None",
    ) -> bool:
        """Moves variables, each to its device as in `"gpu:0"`; returns whether any was on another.

        `optimizer` is the one that updates them. Raises `NotSupportedError` where the framework
        can't train a model of which parts lie on several devices.
        """

    def compute_on(
        self,
        layer: "keras.Layer",
        call: "Callable[..., Any]",
        device: str,
        *,
        is_away: bool,
        comes_back: bool,
    ) -> "Callable[..., Any]":
        """Returns a layer's `call` that computes on a device, its gradient as well.

        `is_away` says whether those who call it compute on another one, and `comes_back` whether
        they have to find the outputs where they compute.
        """

    def beside(self, tensor: "Any") -> "AbstractContextManager[object]":
        """Returns a context in which Keras computes on the device that a tensor lies on."""

    def place_batch(self, batch: "Any") -> "Any":
        """Returns a batch where the distribution around wants it; as it is, where there is none."""

    def assign_array(self, variable: "keras.Variable", source: "Any") -> None:
        """Copies an array, or what is read like one by its indices, into a variable by pieces.

        Of a variable that a distribution shards, a process reads its own parts alone where the
        framework lets it.
        """

    def unset_initializer(self) -> "Any":
        """Returns the initializer of a variable that is filled before it is read."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Returns whether an error says that the memory of a device, or the machine's, ran out."""

    def release_memory(self) -> None:
        """Gives back the memory that nothing uses and that the framework holds in reserve."""

    def feed_batches(
        self, make_batches: "Callable[[], Iterator[Any]]", specs: "Any"
    ) -> "Iterable[Any]":
        """Returns what Keras's training loop goes through once an epoch."""

    def prefers_own_feed(self, x: "Any") -> bool:
        """Returns whether `feed_batches` is faster for data than how Keras itself feeds them."""

    def read_buffers(self, model: "keras.Model") -> "dict[str, Array]":
        """Returns what a model holds beside Keras's variables, as copies by name."""

    def write_buffers(self, model: "keras.Model", buffers: "dict[str, Array]") -> None:
        """Puts what a model holds beside Keras's variables to what was read before."""

    def draw_seed(self) -> int:
        """Returns a seed for the order of data, by what Keras's users seed that order with."""

    def read_framework_random_state(self) -> "dict[str, Array]":
        """Returns the state of the framework's own shared generators, as a copy."""

    def write_framework_random_state(self, state: "dict[str, Array]") -> None:
        """Puts the framework's own shared generators into a state that was read before."""

    def read_integer(self, value: "Any") -> int | None:
        """Returns an integer or integer scalar tensor as a number; `None` while it is traced."""

    def read_array(self, value: "Any") -> "Array | None":
        """Returns a tensor's numbers where the host holds them; `None` where it must wait."""

    def repeat(
        self,
        body: "Callable[..., Sequence[Any]]",
        times: "Any",
        state: "Sequence[Any]",
        variables: "Sequence[keras.Variable]" = (),
    ) -> "tuple[Any, ...]":
        """Returns the tensors that `state = body(index, *state)` makes, one run after the other.

        `variables` are those that `body` may assign.
        """

    def loops_over_blocks(self) -> bool:
        """Whether `stack` may be used, and is faster than one operation on all blocks at once.

        It has no gradient, so this is so in functions that `compile_with_state` and
        `compile_inference` made, and there alone; and on a CPU, where it was measured: a GPU would
        wait for each block. On PyTorch it never is: what can be read is not in blocks, and the rest
        is recorded.
        """

    def run_unrecorded(self, function: "Callable[..., Any]", *tensors: "Any") -> "Any":
        """Returns the tensor that a function makes of tensors.

        PyTorch records steps that come often. On a CPU it calls this function anew in each, so that
        numbers can be read in it. It may use no variables of its own, nor a layer's call.
        """

    def stack(self, function: "Callable[[Any], Any]", count: "Any", number: "Any") -> "Any":
        """Returns what `function(index)` makes for indices below `count`, zeros up to `number`.

        Each is a tensor of the same shape. `count` is an integer scalar tensor, and so is `number`
        on TensorFlow where sizes are free; the count is 1 or more there.
        """

    def run_if(
        self,
        condition: "Any",
        function: "Callable[[], None]",
        variables: "Sequence[keras.Variable]",
    ) -> None:
        """Runs a function that assigns variables, where a boolean scalar is true."""

    def top_k(self, values: "Any", k: int) -> "tuple[Any, Any]":
        """Returns the largest of the last axis and int32 indices; of the least, the first ones."""

    def fuses_attention(self, query: "Any") -> bool:
        """Whether `ops.dot_product_attention` is faster than scores, softmax and sums apart."""

    def query_block_size(self, query: "Any") -> int:
        """Returns how many queries of a long causal sequence are computed together.

        Each block leaves out the keys behind it, half of the work in all. Smaller ones leave out
        more, and their scores stay in the processor's cache; larger ones are fewer products.
        """

    def can_read_shapes(self, value: "Any") -> bool:
        """Whether a tensor's numbers can be read, and shapes may follow from them at no cost."""

    def write_saved_model(
        self, model: "NamedModel", path: str, signatures: "ServingSignatures"
    ) -> None:
        """Writes the model as a SavedModel into a folder, or raises `NotSupportedError`."""

    def write_onnx(self, model: "NamedModel", path: str, opset: int) -> None:
        """Writes an ONNX file of an opset up to this, or raises `NotSupportedError`."""


NAMES = ("tensorflow", "jax", "torch")
"""The frameworks that Keras may run on, in the order in which one is chosen."""


def choose_installed() -> None:
    """Makes Keras run on a framework that is installed, where the user has not named one.

    Keras takes TensorFlow unless `KERAS_BACKEND` or its own settings file names another. Called
    before Keras is imported; it changes `KERAS_BACKEND` of this process and nothing else.

    Raises:
        InvalidInputError: `KERAS_BACKEND` names none of the frameworks.
    """
    named = os.environ.get("KERAS_BACKEND")
    if named is not None and named not in NAMES:
        raise InvalidInputError(unknown_name_message("KERAS_BACKEND", named, NAMES))
    if named is not None:
        return
    installed = [name for name in NAMES if importlib.util.find_spec(name)]
    # Keras writes that file itself when it is first loaded: it need not be what the user wants.
    if installed and not (_settings_file().is_file() and chosen() in installed):
        os.environ["KERAS_BACKEND"] = installed[0]


def chosen() -> str:
    """Returns the framework that Keras will run on, without loading Keras."""
    named = os.environ.get("KERAS_BACKEND")
    if named is None and _settings_file().is_file():
        # A file that is none of Keras's is for Keras to complain about.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            named = json.loads(_settings_file().read_text(encoding="utf-8")).get("backend")
    return named or NAMES[0]


def current() -> Backend:
    """Returns the backend module for the framework that Keras runs on."""
    import keras

    return cast(Backend, importlib.import_module(f"{__name__}.{keras.backend.backend()}"))


def _settings_file() -> Path:
    return Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "keras.json"
