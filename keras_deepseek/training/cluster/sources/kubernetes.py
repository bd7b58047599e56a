"""Reads the environment variable that Kubernetes sets in each pod of an indexed Job."""

from collections.abc import Mapping

from keras_deepseek.training.cluster.sources.cluster_hints import ClusterHints, Hint, read_integer


def read_kubernetes(environ: Mapping[str, str]) -> ClusterHints:
    """Reads the rank of this pod from `JOB_COMPLETION_INDEX`.

    The number of pods and the address come from the arguments, or from `WORLD_SIZE`, `MASTER_ADDR`
    and `MASTER_PORT` in the Job's manifest.
    """
    rank = read_integer(environ, "JOB_COMPLETION_INDEX")
    if rank is None:
        return ClusterHints()
    return ClusterHints(rank=rank, local_rank=Hint(0, rank.origin, is_derived=True))
