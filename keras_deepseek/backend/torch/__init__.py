"""See `keras_deepseek.backend.Backend` for what each of these functions does."""

from keras_deepseek.backend.torch.assignment import assign_array, unset_initializer
from keras_deepseek.backend.torch.buffers import read_buffers, write_buffers
from keras_deepseek.backend.torch.data import feed_batches, prefers_own_feed
from keras_deepseek.backend.torch.device import (
    count_devices,
    on_device,
    read_device_memory,
    read_device_name,
)
from keras_deepseek.backend.torch.export import write_onnx, write_saved_model
from keras_deepseek.backend.torch.flops import count_flops
from keras_deepseek.backend.torch.gradients import (
    apply_with_gradient,
    compute_gradients,
    differentiate,
    rematerialize,
)
from keras_deepseek.backend.torch.inference import compile_inference, plain_inference
from keras_deepseek.backend.torch.layer_devices import beside, compute_on, move_variables
from keras_deepseek.backend.torch.loops import loops_over_blocks, repeat, run_if, stack
from keras_deepseek.backend.torch.memory import count_kept_bytes, is_out_of_memory, release_memory
from keras_deepseek.backend.torch.placement import (
    count_replicas,
    distributed,
    place_batch,
    place_variables,
    replicate_over_devices,
    spread_over_devices,
)
from keras_deepseek.backend.torch.processes import (
    count_processes,
    join_processes,
    process_rank,
    read_strategy,
    read_whole,
)
from keras_deepseek.backend.torch.random_state import (
    draw_seed,
    read_framework_random_state,
    write_framework_random_state,
)
from keras_deepseek.backend.torch.selection import fuses_attention, query_block_size, top_k
from keras_deepseek.backend.torch.state_functions import (
    compile_with_state,
    compiles_by_shape,
    run_unrecorded,
    write_slots,
)
from keras_deepseek.backend.torch.task_cluster import adopt_tasks, connect_tasks, serve_task
from keras_deepseek.backend.torch.tracing import can_read_shapes, read_array, read_integer
from keras_deepseek.backend.torch.training import (
    build_by_step,
    ends_data,
    keeping_variables,
    make_train_function,
    make_train_step,
    run_before_step,
    run_step,
    separate_variables,
)
from keras_deepseek.backend.torch.update import (
    add_multiples,
    apply_update,
    compile_update,
    densify,
    find_finite,
    global_norm,
)

__all__ = [
    "add_multiples",
    "adopt_tasks",
    "apply_update",
    "apply_with_gradient",
    "assign_array",
    "beside",
    "build_by_step",
    "can_read_shapes",
    "compile_inference",
    "compile_update",
    "compile_with_state",
    "compiles_by_shape",
    "compute_gradients",
    "compute_on",
    "connect_tasks",
    "count_devices",
    "count_flops",
    "count_kept_bytes",
    "count_processes",
    "count_replicas",
    "densify",
    "differentiate",
    "distributed",
    "draw_seed",
    "ends_data",
    "feed_batches",
    "find_finite",
    "fuses_attention",
    "global_norm",
    "is_out_of_memory",
    "join_processes",
    "keeping_variables",
    "loops_over_blocks",
    "make_train_function",
    "make_train_step",
    "move_variables",
    "on_device",
    "place_batch",
    "place_variables",
    "plain_inference",
    "prefers_own_feed",
    "process_rank",
    "query_block_size",
    "read_array",
    "read_buffers",
    "read_device_memory",
    "read_device_name",
    "read_framework_random_state",
    "read_integer",
    "read_strategy",
    "read_whole",
    "release_memory",
    "rematerialize",
    "repeat",
    "replicate_over_devices",
    "run_before_step",
    "run_if",
    "run_step",
    "run_unrecorded",
    "separate_variables",
    "serve_task",
    "spread_over_devices",
    "stack",
    "top_k",
    "unset_initializer",
    "write_buffers",
    "write_framework_random_state",
    "write_onnx",
    "write_saved_model",
    "write_slots",
]
