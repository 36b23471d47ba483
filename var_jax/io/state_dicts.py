"""A model's own names in a state dict, without the names of wrappers and containers."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence

from var_jax.errors import UserError

log = logging.getLogger(__name__)

# Parts of names from PyTorch's wrappers, at any place: DataParallel, DDP and AveragedModel;
# torch.compile; FSDP; activation checkpointing.
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def unwrapped(names: Iterable[str], anchors: Sequence[str], what: str) -> dict[str, str]:
    """Returns {a model's own name: the name in the file} of the model's tensors.

    A model may be below any containers (`state_dict.`, `model.`, `trainer.vae_local.`), which the
    anchors find; everything else in the file is left out. If a file holds both the weights and
    their averages (a container's name has "ema" in it), the averages are taken, which is logged.

    Args:
      names: the names in the file.
      anchors: names that every such model has; without any, names lose only wrappers.
      what: the name of the model and its file, for messages.
    Raises:
      UserError: the file holds the weights several times.
    """
    cleaned = [(_without_wrappers(name), name) for name in names]

    # The container that has most of the anchors is the model's.
    anchor_counts = Counter(
        short.removesuffix(anchor)
        for short, _ in cleaned
        for anchor in anchors
        if short == anchor or short.endswith(f".{anchor}")
    )
    most = max(anchor_counts.values(), default=0)
    containers = sorted(place for place, count in anchor_counts.items() if count == most)
    container = _choose(containers, what) if containers else ""
    inner = tuple(
        other for other in containers if other != container and other.startswith(container)
    )

    # Wrappers in and after the container, where all anchors have the same ones.
    own_anchors = {container + anchor for anchor in anchors}
    prefixes = {_prefix(name, container) for short, name in cleaned if short in own_anchors}
    prefix = prefixes.pop() if len(prefixes) == 1 else ""

    own: dict[str, str] = {}
    for short, name in cleaned:
        key = short.removeprefix(container)
        is_own = short.startswith(container) and name.startswith(prefix)
        if not is_own or short.startswith(inner):
            continue
        if key in own:
            raise UserError(
                f"{what} has {key} twice, as {own[key]} and as {name}; give a file with one of them"
            )
        own[key] = name
    return own


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _prefix(name: str, container: str) -> str:
    """Returns the part of a file's name for a container and the wrappers in and after it."""
    parts, left = name.split("."), container.count(".")
    count = 0
    while parts[count] in WRAPPERS or left:
        left -= parts[count] not in WRAPPERS
        count += 1
    return "".join(f"{part}." for part in parts[:count])


def _choose(containers: list[str], what: str) -> str:
    """Returns the container whose weights to take, if several hold as many."""
    if len(containers) == 1:
        return containers[0]
    averaged = [
        name for name in containers if any("ema" in part.split("_") for part in name.split("."))
    ]
    shown = " and ".join(f"{name}*" if name else "names without a container" for name in containers)
    if len(averaged) != 1:
        raise UserError(
            f"{what} holds the weights {len(containers)} times, as {shown}; "
            "give a file with one of them"
        )
    log.warning(
        "%s holds the weights as %s: the averaged ones, %s*, are taken", what, shown, averaged[0]
    )
    return averaged[0]
