"""Folders in the form of DeepSeek's releases, float8 and float4 with scales, against transformers.

It computes what the codes stand for where there is no GPU. Sizes are whole numbers of blocks: it
takes the size of a block for that of the matrix divided by the number of scales.
"""

import keras
import numpy as np
import pytest
import torch
import transformers

from keras_deepseek.models import DeepSeekV3CausalLM, DeepSeekV4CausalLM
from parity_tests.language_model_parity_test import LOGITS, relative_error
from parity_tests.written_checkpoints import call_theirs, draw_batch
from tests.oracles import release_folders

V3 = (DeepSeekV3CausalLM, release_folders.draw_v3, release_folders.V3_CONFIG)
V4 = (DeepSeekV4CausalLM, release_folders.draw_v4, release_folders.V4_CONFIG)
CASES = {
    "v3": (*V3, {"kv_lora_rank": 32, "qk_rope_head_dim": 16}),
    "v4": (*V4, {}),
    "v4, float8 experts": (*V4, {"expert_dtype": None}),
    "v4, long windows": (*V4, {"compress_ratios": [128, 4, 0]}),
}


@pytest.mark.parametrize("name", CASES)
def test_transformers_makes_the_same_logits_of_a_folder_of_the_release(
    name, tmp_path, record_property
):
    task, draw, config, sizes = CASES[name]
    quantization = {**config["quantization_config"], "weight_block_size": [16, 16]}
    release = draw(**sizes, quantization_config=quantization)
    folder = release.write(tmp_path)
    ours = task.from_preset(folder, verbose=False)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
        output_loading_info=True,
    )
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    batch = draw_batch(release.config["vocab_size"], None)
    with torch.no_grad():
        expected = call_theirs(theirs.eval(), batch)[0].numpy()
    error = relative_error(keras.ops.convert_to_numpy(ours(batch)), expected)
    record_property("errors", f"logits {error:.1e}  release form, {name}")
    assert np.abs(expected).max() > 1
    assert error < LOGITS
