"""The score of a key that is not to be looked at."""

HIDDEN = -1e30
"""In the place of a score in float32 or better, or added to one, it leaves no weight beside what is
shown. It is finite, so that a query that sees nothing, and its gradient, stay finite too."""
