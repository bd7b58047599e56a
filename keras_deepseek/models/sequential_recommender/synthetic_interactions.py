"""Synthetic item histories from a known random process, whose best possible score is known."""

from dataclasses import dataclass

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.checks import check_integer, check_number
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.models.sequential_recommender.interactions import Interactions


@dataclass(frozen=True)
class SyntheticInteractions:
    """Synthetic histories in which the next item depends on the last two, and partly on chance.

    Choose it to test a recommender without data. Each item has a category and a style; items with
    the same category and style form a group. With probability `follow`, the next item comes from
    one group: its category is the successor of the last item's category, and its style is that of
    the item before. All items of the group are equally likely. Otherwise it is any item, with a
    popularity of one over its rank. So a good guess needs both items, and popularity alone guesses
    badly.

    Args:
        num_users: integer. Number of histories. Defaults to `2000`.
        num_categories: integer. Number of categories. Defaults to `12`.
        num_styles: integer. Number of styles. Defaults to `4`.
        items_per_group: integer. Number of items with the same category and style. Defaults to `8`.
        shortest: integer. Length of the shortest history, at least 3. Defaults to `12`.
        longest: integer. Length of the longest history. Defaults to `30`.
        follow: float. Probability that the law is followed. Defaults to `0.8`.
        seed: integer. The random seed. Defaults to `0`.

    Raises:
        InvalidInputError: A value is out of its range.

    Example:

    >>> from keras_deepseek.models import SyntheticInteractions
    >>> interactions = SyntheticInteractions(num_users=50)
    >>> interactions.num_items, len(interactions.draw().histories)
    (384, 50)
    """

    num_users: int = 2000
    num_categories: int = 12
    num_styles: int = 4
    items_per_group: int = 8
    shortest: int = 12
    longest: int = 30
    follow: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_users", "num_categories", "num_styles", "items_per_group"):
            check_integer(name, getattr(self, name))
        check_integer("shortest", self.shortest, minimum=3)
        check_integer("seed", self.seed, minimum=0)
        check_number("follow", self.follow, minimum=0)
        if self.follow > 1 or self.longest < self.shortest:
            raise InvalidInputError(
                "`follow` must be at most 1 and `longest` at least `shortest`, received "
                f"follow={self.follow}, shortest={self.shortest} and longest={self.longest}."
            )

    @property
    def num_items(self) -> int:
        """The number of items."""
        return self.num_categories * self.num_styles * self.items_per_group

    def draw(self) -> Interactions:
        """Draws the histories; the same arguments give the same histories."""
        rng = np.random.default_rng((self.seed, 1))
        popularity, number = self._popularity(), self.num_items
        items = np.empty((self.num_users, self.longest), "int64")
        items[:, :2] = rng.choice(number, (self.num_users, 2), p=popularity)
        members = self._members()
        for position in range(2, self.longest):
            groups = self._next_group(items[:, position - 1], items[:, position - 2])
            among = rng.integers(0, self.items_per_group, self.num_users)
            other = rng.choice(number, self.num_users, p=popularity)
            follows = rng.random(self.num_users) < self.follow
            items[:, position] = np.where(follows, members[groups, among], other)
        lengths = rng.integers(self.shortest, self.longest + 1, self.num_users)
        histories = [row[:length] + 1 for row, length in zip(items, lengths, strict=True)]
        return Interactions(histories, number)

    def next_probabilities(self, histories: list[Array]) -> Array:
        """Returns the probabilities of the next item, as `(num_users, num_items)`, item 1 first.

        Args:
            histories: list of integer arrays with at least two items.
        """
        last, second_last = (
            np.array([history[index] for history in histories]) - 1 for index in (-1, -2)
        )
        probabilities = np.tile((1 - self.follow) * self._popularity(), (len(histories), 1))
        chosen = self._members()[self._next_group(last, second_last)]
        rows = np.arange(len(histories))[:, None]
        probabilities[rows, chosen] += self.follow / self.items_per_group
        return probabilities

    def best_hit_rate(self, histories: list[Array], k: int = 10) -> float:
        """Returns the largest hit rate that any recommender can expect after some histories.

        It ranks items by their true probability.

        Args:
            histories: list of integer arrays with at least two items, without the items to guess.
            k: integer. The number of guesses. Defaults to `10`.
        """
        best = np.sort(self.next_probabilities(histories), axis=1)[:, -k:]
        return float(best.sum(axis=1).mean())

    def _structure(self) -> tuple[Array, Array]:
        """Returns the random order of items by group, and each category's successor."""
        rng = np.random.default_rng((self.seed, 0))
        return rng.permutation(self.num_items), rng.permutation(self.num_categories)

    def _members(self) -> Array:
        return self._structure()[0].reshape(-1, self.items_per_group)

    def _next_group(self, last: Array, second_last: Array) -> Array:
        """Returns the group of the next item, if the user follows the pattern."""
        shuffled, following = self._structure()
        groups = np.argsort(shuffled) // self.items_per_group
        category, style = groups // self.num_styles, groups % self.num_styles
        chosen: Array = following[category[last]] * self.num_styles + style[second_last]
        return chosen

    def _popularity(self) -> Array:
        ranks = np.random.default_rng((self.seed, 2)).permutation(self.num_items) + 1
        weights = 1 / ranks
        popularity: Array = weights / weights.sum()
        return popularity
