from keras_deepseek.inference.batching.leave_rule import FixedRule


def test_a_fixed_rule_counts_from_the_oldest_row_whatever_happens():
    rule = FixedRule(8, 0.5)
    rule.begin("idle", 1, 10.0)
    rule.arrive(2, 10.1)
    rule.end(10.2)
    assert rule.plan(oldest=10.0) == (10.5, 8)
