from keras_deepseek.inference.batching.batching_policy import FixedPolicy


def test_a_fixed_rule_counts_from_the_oldest_row_whatever_happens():
    policy = FixedPolicy(8, 0.5)
    policy.begin("idle", 1, 10.0)
    policy.arrive(2, 10.1)
    policy.end(10.2)
    assert policy.plan(oldest=10.0) == (10.5, 8)
