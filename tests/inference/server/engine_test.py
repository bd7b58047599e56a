from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.server.engine import Engine
from tests.oracles.protocol_members import members_of


def test_an_engine_has_what_its_servers_use(doubler):
    assert members_of(Engine) <= set(dir(ServingEngine(doubler)))
