"""Which share of its channels a network may keep to be as fast as wanted: timed alone, or beside the whole one.

What a network computes takes as long with any weights, so this can be known before it is trained.
"""

from bisect import bisect_right
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

from torch import nn

from prunelab.channels.filters import head_scores, keep_largest, l1_scores, uniform_counts
from prunelab.channels.surgery import shrink
from prunelab.channels.trace import Trace, UntraceableError
from prunelab.latency import compare, measure
from prunelab.models.layers import Select
from prunelab.progress import progress_of
from prunelab.shadows import Size

N_STEPS = 64  # a share of channels is found to this fraction
N_ROUNDS = 20  # in which two networks are timed


class Found(NamedTuple):
    """A share of channels, and what it was found by.

    Attributes:
        density: Share of the channels, and heads, that stay in each layer.
        share: Of the whole network's latency that the narrower one takes.
        seconds: That the whole one takes for an image.
    """

    density: float
    share: float
    seconds: float


def narrowed(model: nn.Module, traced: Trace, density: float, *, in_channels: int, image_size: Size) -> nn.Module:
    """Shrinks a network to the same share of each layer's channels, and heads, those whose weights are largest.

    Args:
        model: Left as it is.
        traced: Its channels, of which those of `Trace.widths` and `Trace.heads` may go.
        density: Share that stays, in (0, 1].
        in_channels: Channels of the images.
        image_size: Their height and width in pixels; one number for both.
    Raises:
        UntraceableError: As for `surgery.shrink`.
        ValueError: A density outside its range.
    """
    # A selection has no weights to be ranked by: it loses what the layers before it lose.
    widths = {name: n for name, n in traced.widths.items() if not isinstance(traced.layers[name].module, Select)}
    scores = l1_scores(model, widths) | head_scores(model, traced)
    kept = keep_largest(scores, uniform_counts(widths | traced.heads, density=density))
    return shrink(model, kept, in_channels=in_channels, image_size=image_size, traced=traced)


def density_for(
    model: nn.Module, traced: Trace, wanted: float, *, is_share: bool, in_channels: int, image_size: Size
) -> Found:
    """Finds the largest share of channels with which a network takes at most a latency for an image.

    A share is a ratio within rounds, as in `latency.compare`. Where seconds are wanted each network is timed alone, as
    it will be used: in turn with another one, which empties the caches, it would take longer.

    Args:
        model: On the device where it is timed; left as it is.
        traced: Its channels.
        wanted: Seconds.
        is_share: Whether `wanted` is a share of what the whole network takes, instead.
        in_channels: Channels of the images.
        image_size: Their height and width in pixels; one number for both.
    Raises:
        UntraceableError: No channels may go.
        ValueError: The network is as fast already, or not even with the fewest channels; says how fast that is.
    """
    if not traced.widths and not traced.heads:
        raise UntraceableError(f"{type(model).__name__} has no channels that may go, so it cannot become smaller")
    image = {"in_channels": in_channels, "image_size": image_size}

    def alone(network: nn.Module) -> float:
        return measure(network, batch_size=1, n_rounds=N_ROUNDS, **image).spread().median

    def beside(network: nn.Module) -> float:
        timed = compare({"whole": model, "narrower": network}, batch_size=1, n_rounds=N_ROUNDS, **image)
        return 1 / timed["narrower"].speed_up_over(timed["whole"]).median

    seconds = alone(model)
    share = wanted if is_share else wanted / seconds
    whole = f"{type(model).__name__} takes {milliseconds(seconds)} for an image here"
    if share >= 1:
        raise ValueError(f"there is nothing to do: {whole}, and {milliseconds(share * seconds)} were asked for")

    def share_at(step: int) -> float:
        narrower = narrowed(model, traced, step / N_STEPS, **image)
        found = beside(narrower) if is_share else alone(narrower) / seconds
        tell(min(next(n_timed), n_expected))
        return found

    n_timed, n_expected = count(1), N_STEPS.bit_length()  # halvings, and the step found once more
    with progress_of(n_expected, what="widths", to="time") as tell:
        step, found = widest(share_at, share, most=N_STEPS - 1)
    if found > share:
        raise ValueError(
            f"{whole}, and with the fewest channels {milliseconds(found * seconds)}, {found:.0%}: more than the "
            f"{milliseconds(share * seconds)}, {share:.0%}, asked for; take another network, or smaller images"
        )
    return Found(step / N_STEPS, found, seconds)


def widest(share_at: Callable[[int], float], share: float, *, most: int) -> tuple[int, float]:
    """Finds the last of the steps 1..`most` that takes at most a share, by bisection.

    Each call of `share_at` measures. The step that is found is measured once more, and while it takes too much so is
    the one below: a lucky measurement does not decide.

    Returns:
        The step, and what it took when it was measured last; too much for the first step, where all do.
    """
    step = max(1, bisect_right(range(1, most + 1), share, key=share_at))
    while (found := share_at(step)) > share and step > 1:
        step -= 1
    return step, found


def milliseconds(seconds: float) -> str:
    """Writes a time with three digits, such as "21.7 ms"."""
    return f"{1e3 * seconds:.3g} ms"
