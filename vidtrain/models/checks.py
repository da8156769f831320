"""Checks that name the config key at fault and the nearest value that fits."""

from collections.abc import Iterable, Sequence

from vidtrain.errors import UserError


def check_choice(key: str, value: str, choices: Iterable[str]) -> None:
    choices = tuple(choices)
    if value not in choices:
        raise UserError(f"{key}={value!r} is not known; choose one of {', '.join(choices)}.")


def check_positive(key: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{key}={value} is too small; the smallest that fits is 1.")


def check_drop_path(drop_path: float, part: str = "encoder") -> None:
    if not 0 <= drop_path < 1:
        raise UserError(f"model.{part}.drop_path={drop_path} must be a share from 0 to below 1.")


def check_multiple(key: str, value: int, divisor: int, reason: str) -> None:
    """`reason` says where the divisor comes from, for example "model.encoder.patch_size=16"."""
    if value > 0 and value % divisor == 0:
        return
    below = value // divisor * divisor
    fitting = [str(n) for n in (below, below + divisor) if n > 0] or [str(divisor)]
    raise UserError(
        f"{key}={value} is not a positive multiple of {reason}; nearest that fit: {', '.join(fitting)}."
    )


def check_heads(key: str, num_heads: int, embed_dim: int) -> None:
    """Every attention head must get the same number of channels."""
    if num_heads > 0 and embed_dim % num_heads == 0:
        return
    divisors = [n for n in range(1, embed_dim + 1) if embed_dim % n == 0]
    below = [n for n in divisors if n < num_heads][-1:]
    above = [n for n in divisors if n > num_heads][:1]
    raise UserError(
        f"{key}={num_heads} does not divide the embedding dimension model.encoder.embed_dim={embed_dim}; "
        f"nearest that fit: {', '.join(map(str, below + above))}."
    )


def check_out_layers(layers: Sequence[int] | None, depth: int) -> None:
    """Raises UserError for blocks that are not there, or out of order, or that leave the last ones without use."""
    if layers is not None and (sorted(set(layers)) != list(layers) or not layers or layers[0] < 0):
        raise UserError(
            f"model.encoder.out_layers={list(layers)} must be block numbers from 0, in rising order."
        )
    if layers is not None and layers[-1] != depth - 1:
        raise UserError(
            f"model.encoder.out_layers={list(layers)} must end with the last block, {depth - 1}; to leave out what "
            f"follows block {layers[-1]}, say model.encoder.depth={layers[-1] + 1}."
        )
