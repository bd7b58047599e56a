def test_a_job_asks_for_what_is_right_in_the_models_precision(weights_format, job_of):
    job = job_of(weights_format())
    assert not job.allows_difference
    assert job.precision is None
    assert job.optional_samples == ()
    assert len(job.samples) == 3
