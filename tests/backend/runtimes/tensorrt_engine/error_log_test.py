from keras_deepseek.backend.runtimes.tensorrt_engine.error_log import make_error_log


def test_errors_are_kept_and_warnings_are_not(plain_tensorrt, capsys):
    log = make_error_log(plain_tensorrt)
    for name in ("INTERNAL_ERROR", "ERROR", "WARNING"):
        log.log(plain_tensorrt.Severity[name], name)
    assert log.errors == ["INTERNAL_ERROR", "ERROR"]
    assert capsys.readouterr() == ("", "")


def test_one_log_knows_nothing_of_another(plain_tensorrt):
    first, second = make_error_log(plain_tensorrt), make_error_log(plain_tensorrt)
    first.log(plain_tensorrt.Severity.ERROR, "of the first")
    assert second.errors == []
