"""Encodings: bodies as they travel, compressed or not. Knows nothing of what they hold."""

from __future__ import annotations

import gzip
import zlib

import zstandard

from service.errors import Malformed, TooLarge
from service.http import wire

WORTH = 1024  # bytes of an answer below which compressing it gains nobody anything
LEVEL = 1  # floats hardly shrink, however hard one tries
# By what clients of the protocol can read: tritonclient's aio sends whatever aiohttp can, and knows these two alone.
OFFERED = ("gzip", "deflate", "zstd")


def unpack(body: bytes, encoding: str | None, limit: int) -> bytes:
    """The body as it was before it was compressed, never more than `limit` bytes of it; deflate is zlib's format."""
    if (encoding or "").strip().lower() != "deflate":
        return wire.decompress(body, encoding, limit)
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise Malformed(f"the body is not what deflate makes: {error}") from None
    if len(content) > limit:
        raise TooLarge(f"the body is over the limit of {limit} bytes")
    if not stream.eof or stream.unused_data:
        raise Malformed("the deflate body is cut short, or goes on after its end")
    return content


def accepted(header: str | None, size: int) -> str | None:
    """The encoding that an answer of so many bytes is to have, by Accept-Encoding; None for none.

    >>> accepted("gzip;q=0.5, deflate", 5000), accepted("br", 5000), accepted("gzip", 100)
    ('deflate', None, None)
    """
    if not header or size < WORTH:
        return None
    qualities = dict(_quality(part) for part in header.lower().split(","))
    others = qualities.get("*", 0.0)
    best = max(OFFERED, key=lambda name: qualities.get(name, others))
    return best if qualities.get(best, others) > 0 else None


def _quality(part: str) -> tuple[str, float]:
    name, *parameters = (piece.strip() for piece in part.split(";"))
    quality = next((one[2:] for one in parameters if one.startswith("q=")), "1")
    try:
        return name, float(quality)
    except ValueError:
        return name, 0.0


def pack(body: bytes, encoding: str) -> bytes:
    """A body compressed."""
    match encoding:
        case "gzip":
            return gzip.compress(body, LEVEL, mtime=0)
        case "deflate":
            return zlib.compress(body, LEVEL)
        case _:
            return zstandard.ZstdCompressor(level=LEVEL).compress(body)
