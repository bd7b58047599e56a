import keras
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training import ClusterSpec, ParameterServer
from keras_deepseek.training.cluster.parameter_server import resolve_settings
from keras_deepseek.training.parameter_server.ray_actors import RayEngine

pytestmark = pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="It has an engine of its own."
)
SETTINGS = resolve_settings(ParameterServer(num_workers=2), {})


def test_one_process_alone_runs_the_script():
    cluster = ClusterSpec("parameter_server", 3, 0, coordinator="127.0.0.1:29500")
    with pytest.raises(
        InvalidInputError, match="2 workers and 1 servers itself; received world_size=3"
    ):
        RayEngine(SETTINGS, cluster)


def test_without_a_trainer_nothing_starts():
    pytest.importorskip("ray", reason="tox -e ray has it.")
    engine = RayEngine(SETTINGS, ClusterSpec("parameter_server"))
    with pytest.raises(RuntimeError, match="no trainer"):
        engine.start(None, None)
    engine.stop(is_clean=True)
