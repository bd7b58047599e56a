"""The members that a `typing.Protocol` asks for."""


def members_of(protocol: type) -> set[str]:
    """Returns the public names that a protocol and its bases define."""
    return {name for name in dir(protocol) if not name.startswith("_")}
