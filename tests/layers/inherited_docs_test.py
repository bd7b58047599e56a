from keras_deepseek.layers.inherited_docs import complete_docstring


class Base:
    """The base.

    Args:
        size: integer. The size,
            in tokens.
        other: integer. Only the base takes it.
        **kwargs: More.

    Returns:
        A tensor.

    Example:

    >>> 1
    1
    """

    def __init__(self, size: int, other: int, **kwargs: int) -> None:
        pass


def test_it_adds_the_sections_and_arguments_that_a_class_lacks():
    @complete_docstring(Base)
    class Derived(Base):
        """A class.

        Args:
            name: string. Its name.

        Example:

        >>> 2
        2
        """

        def __init__(self, size: int, name: str, **kwargs: int) -> None:
            pass

    assert (
        Derived.__doc__
        == """A class.

Args:
    name: string. Its name.
    size: integer. The size,
        in tokens.
    **kwargs: More.

Returns:
    A tensor.

Example:

>>> 2
2

"""
    )
    Derived.__doc__ = None  # As with `python -OO`.
    assert complete_docstring(Base)(Derived).__doc__ is None
