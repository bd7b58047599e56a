import gzip
import tracemalloc
import zlib

import pytest

from keras_deepseek.inference.http.body import inflate_body
from keras_deepseek.inference.http.message import HttpError

CONTENT = b"0.25, " * 500


def deflate_bare(content):
    deflater = zlib.compressobj(wbits=-15)
    return deflater.compress(content) + deflater.flush()


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(CONTENT, mtime=0)),
        ("x-gzip", gzip.compress(CONTENT, mtime=0)),
        ("GZip ", gzip.compress(CONTENT[:99], mtime=0) + gzip.compress(CONTENT[99:], mtime=0)),
        ("deflate", zlib.compress(CONTENT)),
        ("deflate", deflate_bare(CONTENT)),
        ("identity", CONTENT),
        ("", CONTENT),
    ],
)
def test_what_was_compressed_comes_back_up_to_the_limit(encoding, body):
    assert inflate_body(body, encoding, len(CONTENT)) == CONTENT


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress, deflate_bare])
def test_one_byte_over_the_limit_is_refused(compress):
    encoding = "gzip" if compress is gzip.compress else "deflate"
    with pytest.raises(HttpError, match="inflates to more than 2999 bytes") as caught:
        inflate_body(compress(CONTENT), encoding, len(CONTENT) - 1)
    assert caught.value.status == 413


def test_a_bomb_is_refused_without_being_inflated():
    bomb = gzip.compress(bytes(50_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(HttpError) as caught:
            inflate_body(bomb, "gzip", 10_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.status == 413
    assert peak < 1_000_000


def test_a_bomb_of_many_members_is_refused():
    with pytest.raises(HttpError) as caught:
        inflate_body(gzip.compress(b"") * 10_000, "gzip", 10_000)
    assert caught.value.status == 413


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", CONTENT),
        ("gzip", b""),
        ("gzip", gzip.compress(CONTENT, mtime=0)[:-1]),
        ("gzip", gzip.compress(CONTENT, mtime=0) + b"more"),
        ("gzip", gzip.compress(CONTENT, mtime=0)[:-8] + bytes(8)),
        ("deflate", zlib.compress(CONTENT)[:-1]),
        ("deflate", b"\x00"),
    ],
)
def test_damaged_bytes_are_refused(encoding, body):
    with pytest.raises(HttpError, match=f"The body is not {encoding}") as caught:
        inflate_body(body, encoding, 10_000)
    assert caught.value.status == 400


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip"])
def test_another_encoding_is_refused_and_those_that_are_taken_are_named(encoding):
    with pytest.raises(HttpError) as caught:
        inflate_body(CONTENT, encoding, 10_000)
    assert caught.value.status == 415
    assert caught.value.headers == (("Accept-Encoding", "gzip, deflate"),)
