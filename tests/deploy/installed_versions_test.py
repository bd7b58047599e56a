import keras

from keras_deepseek import __version__
from keras_deepseek.deploy.installed_versions import installed_versions


def test_what_is_installed_is_told_and_what_is_not_is_left_out():
    versions = installed_versions()
    assert versions["keras_deepseek"] == __version__
    assert versions["keras"] == keras.__version__
    assert keras.backend.backend() in versions
    assert all(versions.values())
    assert installed_versions(["pytest", "not-there"]).keys() - versions.keys() == {"pytest"}
