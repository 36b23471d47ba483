"""Files of pretrained weights."""

import hashlib

import pytest

from var_jax.errors import UserError
from var_jax.pretrained.weights import fingerprint


def test_fingerprint_is_the_sha256s_beginning(tmp_path):
    """The fingerprint is the first 12 digits of the SHA-256 of the whole file, which is longer than
    one read. A missing file is refused with its name."""
    file = tmp_path / "weights.pth"
    file.write_bytes(b"abc" * 10**6)  # longer than what is read at once
    assert fingerprint(str(file)) == hashlib.sha256(b"abc" * 10**6).hexdigest()[:12]
    with pytest.raises(UserError, match="none.pth"):
        fingerprint(str(tmp_path / "none.pth"))
