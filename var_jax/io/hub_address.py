"""Addresses of models on the Hugging Face hub."""

import dataclasses
import re
import urllib.parse
from typing import Self

from var_jax.errors import UserError

SCHEME = "hf://"
FORM = "hf://OWNER/NAME[@REVISION][/SUBFOLDER]"
ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([^/@]+))?((?:/[^/]+)*)/?")


@dataclasses.dataclass(frozen=True)
class Address:
    """A folder of a repository on the hub, at a revision.

    Attributes:
      repository: "owner/name".
      revision: a branch, a tag or a commit.
      subfolder: the folder in it; empty for the top one.
    """

    repository: str
    revision: str = "main"
    subfolder: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Returns the address that `hf://owner/name[@revision][/subfolder]` stands for.

        A slash in a revision is written as %2F.

        Raises:
          UserError: the text is of another form.
        """
        match = ADDRESS.fullmatch(text)
        if match is None or {".", ".."} & set(match[3].split("/")):
            raise UserError(f"the model's address is {text!r}; it must be {FORM}")
        repository, revision, subfolder = match.groups()
        return cls(repository, urllib.parse.unquote(revision or "main"), subfolder.strip("/"))

    def __str__(self) -> str:
        revision = "" if self.revision == "main" else f"@{self.revision}"
        folder = f"/{self.subfolder}" if self.subfolder else ""
        return f"{SCHEME}{self.repository}{revision}{folder}"

    def path_of(self, file: str) -> str:
        """Returns the path of one of the folder's files below the repository's top folder."""
        return f"{self.subfolder}/{file}" if self.subfolder else file


def is_address(path: object) -> bool:
    """Returns whether a path is an address on the hub."""
    return str(path).startswith(SCHEME)
