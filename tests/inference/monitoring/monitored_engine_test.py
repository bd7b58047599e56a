from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.monitoring.monitored_engine import (
    MonitoredEngine,
    MonitoredModel,
    MonitoredVersion,
)
from tests.oracles.protocol_members import members_of


def test_an_engine_has_what_monitoring_reads(doubler):
    with ServingEngine(doubler, cache_entries=1) as engine:
        model = engine.models["model"]
        for protocol, value in (
            (MonitoredEngine, engine),
            (MonitoredModel, model),
            (MonitoredVersion, model.versions[1]),
        ):
            assert members_of(protocol) <= set(dir(value))
