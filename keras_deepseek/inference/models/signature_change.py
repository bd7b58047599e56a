"""The change of a model's signature from one version to the next, as its clients meet it."""

from dataclasses import replace

from keras_deepseek.artifacts.signature import Signature, TensorSpec, can_widen
from keras_deepseek.inference.errors import SignatureChangedError
from keras_deepseek.inference.models.version import Version


def check_signature(old: Version, new: Version) -> None:
    """Raises `SignatureChangedError` if requests that are right for `old` are wrong for `new`."""
    changes = [
        change
        for signature in (old.signature, *old.renamed)
        for change in find_changes(signature, new.signature)
    ]
    if changes:
        raise SignatureChangedError(
            f"Version {new.number} of the model {new.name!r} waits, because requests that are "
            f"right for version {old.number} would be wrong: {'; '.join(changes)}. Restart the "
            "server when the clients have changed, or set --accept-changed-signature "
            "(accept_changed_signature=True)."
        )


def find_changes(old: Signature, new: Signature) -> list[str]:
    """Returns each change by which right requests become wrong, in words.

    The name of a single input may change, with that of a single output: `rename_like` keeps the
    old names. A wider shape or dtype breaks no request, nor does another shape of an output.
    """
    if rename_like(new, old) is not None:
        return []
    changes = []
    old_names, new_names = ([spec.name for spec in item.inputs] for item in (old, new))
    news = {spec.name: spec for spec in new.inputs}
    if len(old_names) == len(new_names) == 1:
        news = {old_names[0]: new.inputs[0]}
    elif sorted(old_names) != sorted(new_names):
        changes.append(f"the inputs were {old_names} and are {new_names}")
    elif old_names != new_names:
        changes.append(f"the order of the inputs was {old_names} and is {new_names}")
    changes += [
        f"an input was {spec} and is {news[spec.name]}"
        for spec in old.inputs
        if spec.name in news and not _accepts(news[spec.name], spec)
    ]
    old_names, new_names = ([spec.name for spec in item.outputs] for item in (old, new))
    if sorted(old_names) != sorted(new_names):
        changes.append(f"the outputs were {old_names} and are {new_names}")
    return changes


def rename_like(signature: Signature, other: Signature) -> Signature | None:
    """Returns a signature with the names of another one, if a single input differs in its name.

    Returns `None` if more differs, or the name does not.
    """
    if len(signature.inputs) != 1 or len(other.inputs) != 1:
        return None
    (spec,), (other_spec,) = signature.inputs, other.inputs
    if spec.name == other_spec.name or not _accepts(spec, other_spec):
        return None
    inputs = (replace(spec, name=other_spec.name),)
    names, other_names = ([spec.name for spec in item.outputs] for item in (signature, other))
    if sorted(names) == sorted(other_names):
        return replace(signature, inputs=inputs)
    if len(names) != 1 or len(other_names) != 1:
        return None
    return Signature(inputs, (replace(signature.outputs[0], name=other_names[0]),))


def _accepts(spec: TensorSpec, other: TensorSpec) -> bool:
    """Returns True if all values that fit the spec `other` fit `spec`."""
    return (
        len(spec.shape) == len(other.shape)
        and all(size in (None, old) for size, old in zip(spec.shape, other.shape, strict=True))
        and can_widen(other.dtype, spec.dtype)
        and (
            spec.vocabulary_size is None
            or (other.vocabulary_size or float("inf")) <= spec.vocabulary_size
        )
    )
