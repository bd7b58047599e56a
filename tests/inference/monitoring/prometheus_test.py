from keras_deepseek.inference.histogram import Histogram
from keras_deepseek.inference.monitoring.prometheus import Family, write_metrics


def families():
    counter = Family("a_requests", "counter", "What came.\nA \\ line.")
    counter.add(3, {"path": 'x"y\\z\n'})
    gauge = Family("a_rows", "gauge", "What waits.")
    gauge.add(0.5, {})
    histogram = Histogram((0.1, 2.0))
    for value in (0.05, 1.0, 1.5, 3.0):
        histogram.add(value)
    times = Family("a_seconds", "histogram", "How long.")
    times.add(histogram.values(), {"model": "m"})
    return [counter, gauge, times]


def test_prometheus_s_text():
    assert write_metrics(families()).decode() == (
        "# HELP a_requests_total What came.\\nA \\\\ line.\n"
        "# TYPE a_requests_total counter\n"
        'a_requests_total{path="x\\"y\\\\z\\n"} 3\n'
        "# HELP a_rows What waits.\n"
        "# TYPE a_rows gauge\n"
        "a_rows 0.5\n"
        "# HELP a_seconds How long.\n"
        "# TYPE a_seconds histogram\n"
        'a_seconds_bucket{model="m",le="0.1"} 1\n'
        'a_seconds_bucket{model="m",le="2.0"} 3\n'
        'a_seconds_bucket{model="m",le="+Inf"} 4\n'
        'a_seconds_sum{model="m"} 5.55\n'
        'a_seconds_count{model="m"} 4\n'
    )


def test_open_metrics_names_a_counter_without_total_and_says_where_it_ends():
    lines = write_metrics(families(), open_metrics=True).decode().splitlines()
    assert "# TYPE a_requests counter" in lines
    assert 'a_requests_total{path="x\\"y\\\\z\\n"} 3' in lines
    assert lines[-1] == "# EOF"


def test_nothing_is_a_text_too():
    assert write_metrics([]) == b""
    assert write_metrics([], open_metrics=True) == b"# EOF\n"
