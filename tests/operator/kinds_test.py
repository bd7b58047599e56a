"""The paths of objects, as Kubernetes's API conventions have them."""

from keras_deepseek.operator.kinds import DEPLOYMENT, SERVICE


def test_paths():
    assert SERVICE.path("team", "digits") == "/api/v1/namespaces/team/services/digits"
    assert DEPLOYMENT.path("team") == "/apis/apps/v1/namespaces/team/deployments"
    assert DEPLOYMENT.path() == "/apis/apps/v1/deployments"
