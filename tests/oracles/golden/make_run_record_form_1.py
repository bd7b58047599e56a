"""Writes `run_record_form_1.sqlite`, as the release wrote it whose run records have form 1.

Run it by hand with that release: `python tests/oracles/golden/make_run_record_form_1.py`.
"""

from pathlib import Path

from keras_deepseek.artifacts.run_record import RunRecord

with RunRecord(Path(__file__).with_name("run_record_form_1.sqlite"), clock=lambda: 12.5) as record:
    record.describe({"model": "digits", "epochs": 2})
    record.log_steps([(step, {"loss": 1 / step}) for step in range(1, 5)])
    record.log(4, {"val_loss": 0.5, "learning_rate": 0.01})
