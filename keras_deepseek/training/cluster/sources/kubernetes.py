"""Reads the environment variable that Kubernetes sets in each pod of an indexed Job."""

from collections.abc import Mapping

from keras_deepseek.training.cluster.sources.claims import Claim, Claims, read_integer


def read_kubernetes(environ: Mapping[str, str]) -> Claims:
    """Reads the rank of this pod from `JOB_COMPLETION_INDEX`.

    The number of pods and the address come from the arguments, or from `WORLD_SIZE`, `MASTER_ADDR`
    and `MASTER_PORT` in the Job's manifest.
    """
    rank = read_integer(environ, "JOB_COMPLETION_INDEX")
    if rank is None:
        return Claims()
    return Claims(rank=rank, local_rank=Claim(0, rank.origin, is_derived=True))
