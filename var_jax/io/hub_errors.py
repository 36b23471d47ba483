"""Errors of the Hugging Face hub's library, in one line each."""

import contextlib
import logging
from collections.abc import Iterator

from var_jax.errors import RunFailed, UserError
from var_jax.io.hub_address import Address
from var_jax.io.hub_library import endpoint, library
from var_jax.io.system_errors import one_line

LOG_IN = "log in by `hf auth login`, or set HF_TOKEN"
# What the library raises besides its HTTP client's errors; hf_xet, which it may transfer files by,
# raises RuntimeError.
OWN_ERRORS = (OSError, ValueError, RuntimeError)


class MissingFile(UserError):
    """A repository does not have a file."""


@contextlib.contextmanager
def explained(address: Address, file: str | None = None) -> Iterator[None]:
    """Raises the library's errors as UserError, and as RunFailed where the hub is out of reach.

    The library's warnings about its own tries are silenced meanwhile.
    """
    hub = library()
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except (UserError, RunFailed):
        raise
    except (*OWN_ERRORS, hub.errors.HTTPError, hub.errors.EntryNotFoundError) as error:
        raise _explanation(error, address, file) from error
    finally:
        logger.setLevel(level)


def _explanation(error: Exception, address: Address, file: str | None) -> Exception:
    """Returns the error to raise in place of one of the library's or of its HTTP client's."""
    hub = library()
    errors, host = hub.errors, endpoint()
    what = f"{address}: {file}" if file else str(address)
    match error:
        case errors.GatedRepoError():
            return UserError(f"{address} is gated; ask for access on its page, then {LOG_IN}")
        case errors.RepositoryNotFoundError():
            return UserError(
                f"{address}: {host} has no such repository; check the name, or for a private "
                f"one {LOG_IN}"
            )
        case errors.RevisionNotFoundError():
            return UserError(
                f"{address}: the repository has no revision {address.revision!r}; give a branch, a "
                "tag or a commit"
            )
        case errors.LocalEntryNotFoundError() if hub.constants.is_offline_mode():
            return UserError(
                f"{what} is not in the cache {hub.constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is "
                "set; unset it to download the file"
            )
        case errors.LocalEntryNotFoundError():
            return _unreachable(what, host, error.__cause__ or error)
        case errors.EntryNotFoundError():
            return MissingFile(f"{address} has no file {file}{_remedy(file)}")
        case errors.HFValidationError():
            return UserError(f"{what}: {one_line(error)}")
    text = " ".join(str(error).split())
    if "onsistency check failed" in text:
        return UserError(f"{what} arrives with another size than the hub declares: {text[:200]}")
    if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
        place = error.filename or hub.constants.HF_HUB_CACHE
        return UserError(f"{what} cannot be written to {place}: {one_line(error)}")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 400 or "README.md" in text:  # the hub checks the card's front matter
        return UserError(f"{what}: {host} refuses it: {text[:200]}")
    if status in (401, 403):
        return UserError(f"{what}: {host} refuses access; {LOG_IN}")
    return _unreachable(what, host, error)


def _unreachable(what: str, host: str, error: BaseException) -> RunFailed:
    text = " ".join(str(error).split())[:200]
    return RunFailed(
        f"a remote path cannot be reached: {what} on {host}: {type(error).__name__}: {text}"
    )


def _remedy(file: str | None) -> str:
    if file != "model.json":
        return ""
    return (
        ", and so is no model of var_jax, as `publish` uploads them; published PyTorch weights are "
        "for `download` and `convert`"
    )
