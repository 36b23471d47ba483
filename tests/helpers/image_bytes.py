"""Image files that Pillow reads and does not write, made byte by byte."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def saved(image: Image.Image, kind: str, **options) -> bytes:
    """Returns a file of a kind that Pillow writes."""
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def png(
    samples: np.ndarray, depth: int, color_type: int, transparent: tuple[int, ...] = ()
) -> bytes:
    """Returns a PNG of (height, width, channels) samples with a tRNS chunk of 16-bit values."""
    height, width, channels = samples.shape
    if depth == 16:
        rows = samples.astype(">u2").tobytes()
        rows = [
            rows[i : i + 2 * width * channels] for i in range(0, len(rows), 2 * width * channels)
        ]
    else:
        bits = (samples.reshape(height, -1, 1) >> np.arange(depth - 1, -1, -1)) & 1
        rows = [np.packbits(row).tobytes() for row in bits.reshape(height, -1).astype(np.uint8)]
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    chunks = [(b"IHDR", header)]
    if transparent:
        chunks.append((b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)))
    chunks += [(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def tiff(
    data: bytes,
    height: int,
    width: int,
    bits: int,
    photometric: int,
    channels: int = 1,
    sample_format: int = 1,
    extra: int | None = None,
) -> bytes:
    """Returns an uncompressed little-endian TIFF of one strip."""
    if channels == 1:
        per_sample = bits
    else:
        per_sample = 8 + len(data)  # where the list of bits lies
        data_after = struct.pack(f"<{channels}H", *[bits] * channels)
        data += data_after
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, channels, per_sample),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, 1, 8),
        (277, 3, 1, channels),
        (278, 4, 1, height),
        (279, 4, 1, len(data)),
        (339, 3, 1, sample_format),
    ]
    if extra is not None:
        entries.append((338, 3, 1, extra))
    directory = (
        struct.pack("<H", len(entries))
        + b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
        + struct.pack("<I", 0)
    )
    return b"II" + struct.pack("<HI", 42, 8 + len(data)) + data + directory


def idx(array: np.ndarray, sizes: tuple[int, ...] = ()) -> bytes:
    """Returns an idx file of bytes, as MNIST has them; its header may give other `sizes`."""
    header = bytes([0, 0, 8, array.ndim])
    return header + struct.pack(f">{array.ndim}I", *(sizes or array.shape)) + array.tobytes()
