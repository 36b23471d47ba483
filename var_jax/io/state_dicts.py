"""Names of a state dict without what wrappers and containers put around a model's own."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence

from var_jax.errors import UserError

log = logging.getLogger(__name__)

# What PyTorch's wrappers put into names, at any place: DataParallel, DDP and AveragedModel;
# torch.compile; FSDP; activation checkpointing.
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def unwrapped(names: Iterable[str], anchors: Sequence[str], what: str) -> dict[str, str]:
    """{a model's own name: the name in the file} of the tensors that belong to it.

    A model may lie below any containers (`state_dict.`, `model.`, `trainer.vae_local.`), which are
    found by the names that every such model has; what else the file holds beside it is left out. Of
    a file that holds the weights as they are and averaged (a container's name has "ema" in it), the
    averaged ones are taken, which is logged.

    Args:
      anchors: names that every such model has; without any, names lose wrappers alone.
      what: what the model and its file are called in messages.
    Raises:
      UserError: the file holds the weights several times over.
    """
    cleaned = [(_without_wrappers(name), name) for name in names]
    found = Counter(
        short.removesuffix(anchor)
        for short, _ in cleaned
        for anchor in anchors
        if short == anchor or short.endswith(f".{anchor}")
    )
    places = sorted(place for place, count in found.items() if count == max(found.values()))
    place = _chosen(places, what) if places else ""
    others = tuple(other for other in places if other != place and other.startswith(place))
    own_anchors = {place + anchor for anchor in anchors}
    outer = {_outer(name, place) for short, name in cleaned if short in own_anchors}
    below = outer.pop() if len(outer) == 1 else ""
    own: dict[str, str] = {}
    for short, name in cleaned:
        key = short.removeprefix(place)
        if not (short.startswith(place) and name.startswith(below)) or short.startswith(others):
            continue
        if key in own:
            raise UserError(
                f"{what} has {key} twice, as {own[key]} and as {name}; give a file with one of them"
            )
        own[key] = name
    return own


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _outer(name: str, place: str) -> str:
    """The containers of `place` with the wrappers in and after them, as they stand in front of a
    name in the file."""
    parts, left = name.split("."), place.count(".")
    count = 0
    while parts[count] in WRAPPERS or left:
        left -= parts[count] not in WRAPPERS
        count += 1
    return "".join(f"{part}." for part in parts[:count])


def _chosen(places: list[str], what: str) -> str:
    """The place of the weights to take, of several that hold as much."""
    if len(places) == 1:
        return places[0]
    averaged = [
        place for place in places if any("ema" in part.split("_") for part in place.split("."))
    ]
    shown = " and ".join(f"{place}*" if place else "names without a container" for place in places)
    if len(averaged) != 1:
        raise UserError(
            f"{what} holds the weights {len(places)} times, as {shown}; give a file with one of "
            "them"
        )
    log.warning(
        "%s holds the weights as %s: the averaged ones, %s*, are taken", what, shown, averaged[0]
    )
    return averaged[0]
