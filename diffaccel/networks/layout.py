"""The named parts of one network, in the order in which they run."""

import hashlib
import json
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from typing import Any

from diffaccel.config.checks import check
from diffaccel.networks.inputs import Inputs
from diffaccel.reuse.branch import Branch


def fingerprint_of(configured: Any) -> str:
    """A hash of the class and configuration of a network or a scheduler, 16 hexadecimal digits.

    What diffusers notes beside the settings, such as where they were loaded from, does not matter.
    """
    config = {key: value for key, value in dict(configured.config).items() if not key.startswith("_")}
    text = json.dumps([type(configured).__name__, config], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_one_of(thing: object, classes: Container[str]) -> bool:
    """Whether something is of a class with one of these names, or of a subclass."""
    return any(cls.__name__ in classes for cls in type(thing).__mro__)


class UnsupportedModelError(TypeError):
    """The network is of no known family, or lacks a part that a method needs."""


@dataclass(frozen=True)
class Level:
    """Parts of a network at one depth, coarse to fine; what is in a list may contain what is in the next.

    Attributes:
        blocks: whole blocks.
        layers: residual layers and transformers.
        units: attentions and feed-forward networks within transformers.
    """

    blocks: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    units: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unit:
    """An attention or a feed-forward network within a transformer block.

    Attributes:
        kind: "self_attention", "cross_attention", "feed_forward", or "parallel" for both behind one projection.
        branch: the module whose output leaves the unit, and those that nothing else reads.
    """

    kind: str
    branch: Branch


@dataclass(frozen=True)
class Reader:
    """Where a residual of a ControlNet is added within the denoiser.

    Attributes:
        blocks: the denoiser's blocks behind which it is added; none where it is never added.
        before: whether it is added to what they are given instead.
    """

    blocks: tuple[str, ...]
    before: bool = False


def joined(units: Iterable[Unit]) -> Branch:
    """Some units as one branch."""
    return joined_branches(unit.branch for unit in units)


def joined_branches(branches: Iterable[Branch]) -> Branch:
    """Some branches as one."""
    listed = tuple(branches)
    replayed = tuple(name for branch in listed for name in branch.replayed)
    return Branch(replayed, tuple(name for branch in listed for name in branch.skipped))


def _unknown(denoiser: "Layout") -> tuple[Reader, ...]:  # noqa: ARG001
    return ()


_NEEDED = {
    "depths": "a UNet with skip connections; {} has none",
    "levels": "the blocks of a UNet; {} has none",
    "encoder": "a UNet with an encoder and a decoder; {} has none",
    "blocks": "a list of transformer blocks; {} has none",
    "units": "transformer blocks with attentions and feed-forward networks; {} has none that are known by name",
    "cross_attention": "cross-attention to a prompt; {} has none",
    "conditioning_only": "cross-attention to a prompt; {} has none",
}


@dataclass(frozen=True)
class Layout:
    """Names of a network's parts; empty where a network has none of a kind.

    Attributes:
        model: class name of the network, for messages.
        depths: branches of a U-shaped network from the shallowest (skips the most) to the deepest. Those of a
            ControlNet correspond one to one to those of its denoiser, and skip what that will not read.
        levels: parts by depth, from the ones next to the output to the deepest.
        encoder: all that runs before the decoder of a U-shaped network.
        self_attention: attentions between positions of the sample.
        picture_attention: those among them whose positions are the tokens of a picture, row by row.
        rotary: whether these turn queries and keys by the positions of their tokens.
        patch: side of such a token in the sample; None where it depends on the depth.
        cross_attention: attentions to the conditioning.
        control: modules whose outputs depend on a control image and on nothing else.
        residuals: what a ControlNet adds, in the order in which it is made: each one's projection, and what runs for it
            behind what has run for those before.
        readers: given the denoiser's layout, where each residual is added in it; none where that is not known.
        conditioning_only: modules whose outputs depend on the conditioning and on nothing else.
        conditioning_path: modules that the conditioning goes through before it reaches those.
        blocks: transformer blocks that hand their hidden states on to the next, in the order in which they run.
        rows_apart: whether rows of the input stay apart in the blocks, so that some can run without the others.
        long_skips: whether outputs of blocks are also read by later blocks than the next.
        channels_last: whether channels are the last dimension of a sample of pictures, too, not of tokens alone.
        units: attentions and feed-forward networks of a stack of transformer blocks.
        fingerprint: tells networks of other classes or configurations apart.
        writes: whether the network, given these inputs, writes into the outputs of its modules in place.
    """

    model: str
    depths: tuple[Branch, ...] = ()
    levels: tuple[Level, ...] = ()
    encoder: Branch | None = None
    self_attention: tuple[str, ...] = ()
    picture_attention: tuple[str, ...] = ()
    rotary: bool = False
    patch: int | None = None
    cross_attention: tuple[str, ...] = ()
    conditioning_only: tuple[str, ...] = ()
    conditioning_path: tuple[str, ...] = ()
    control: tuple[str, ...] = ()
    residuals: tuple[Branch, ...] = ()
    readers: Callable[["Layout"], tuple[Reader, ...]] = _unknown
    blocks: tuple[str, ...] = ()
    rows_apart: bool = True
    long_skips: bool = False
    channels_last: bool = False
    units: tuple[Unit, ...] = ()
    fingerprint: str = ""
    writes: Callable[[Inputs], bool] = lambda _: False

    def require(self, asker: str, parts: str) -> None:
        """Raise `UnsupportedModelError` where the network has none of the parts that ``asker`` needs, by their name."""
        if not getattr(self, parts):
            raise UnsupportedModelError(f"{asker} needs {_NEEDED[parts].format(self.model)}")

    def require_made_for(self, model: str, fingerprint: str, what: str, remedy: str) -> None:
        """Raise ValueError where something was made for another network.

        Args:
            model, fingerprint: of the network that it was made for.
            what: it is, as the start of the message, such as "this profile was tuned on".
            remedy: what to do.
        """
        check(
            (model, fingerprint) == (self.model, self.fingerprint),
            f"{what} {model} with configuration {fingerprint}, and the network is {self.model} with configuration "
            f"{self.fingerprint}: {remedy}",
        )
