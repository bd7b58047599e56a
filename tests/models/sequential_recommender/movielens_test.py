import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.models import read_movielens

ROWS = [  # User, movie, rating, time: not in order, and two at one time.
    (2, 30, 5, 900),
    (1, 20, 3, 500),
    (1, 10, 4, 400),
    (2, 10, 1, 700),
    (1, 30, 2, 500),
    (3, 30, 4, 100),
]
FORMS = {
    "ratings.csv": lambda rows: (
        "userId,movieId,rating,timestamp\n" + "".join(f"{u},{i},{r}.0,{t}\n" for u, i, r, t in rows)
    ),
    "ratings.dat": lambda rows: "".join(f"{u}::{i}::{r}::{t}\n" for u, i, r, t in rows),
    "u.data": lambda rows: "".join(f"{u}\t{i}\t{r}\t{t}\n" for u, i, r, t in rows),
}


def write(folder, name="ratings.csv", rows=ROWS):
    (folder / name).write_text(FORMS[name](rows), encoding="utf-8")
    return folder


def read(folder, **options):
    return read_movielens(folder, **{"min_items_per_user": 1, "min_users_per_item": 1, **options})


def by_name(data):
    names = [int(name) for name in data.item_names]
    return {
        int(user): [names[item - 1] for item in history]
        for user, history in zip(data.user_names, data.histories, strict=True)
    }


@pytest.mark.parametrize("name", FORMS)
def test_each_form_is_read_in_the_order_of_time(name, tmp_path):
    data = read(write(tmp_path, name))
    assert by_name(data) == {1: [10, 20, 30], 2: [10, 30], 3: [30]}
    assert data.num_items == 3


def test_low_ratings_are_left_out(tmp_path):
    assert by_name(read(write(tmp_path), min_rating=3)) == {1: [10, 20], 2: [30], 3: [30]}


def test_rare_users_and_movies_are_left_out_until_none_is_left(tmp_path):
    # Without movie 20 and user 3, all that is left has two of each.
    data = read(write(tmp_path), min_items_per_user=2, min_users_per_item=2)
    assert by_name(data) == {1: [10, 30], 2: [10, 30]}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("other.csv", "", "has no MovieLens ratings: expected one of ratings.csv, ratings.dat"),
        ("ratings.csv", "movieId,userId\n1,2\n", "must begin with the line 'userId,movieId"),
        ("ratings.dat", "1::2::3\n", "must have four columns"),
        (
            "ratings.dat",
            "1::2::3::4\n1::two::3::4\n",
            "does not have the MovieLens format: could not convert",
        ),
        ("u.data", "1\t2\t3\t4\n1\t2\t3\n", "does not have the MovieLens format"),
    ],
)
def test_what_is_not_of_these_forms_is_refused(name, text, message, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInputError, match=message):
        read(tmp_path)


def test_nothing_left_is_said_with_what_to_lower(tmp_path):
    with pytest.raises(InvalidInputError, match="None of the 6 ratings of"):
        read(write(tmp_path), min_items_per_user=9)
