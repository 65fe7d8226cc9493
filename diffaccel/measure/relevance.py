"""What control is worth: each residual of a ControlNet, or block of an adapter, is left out in turn, and all behind it.

The paper of RelaCtrl (arXiv 2502.14377, section 3.1) leaves out blocks of a ControlNet one by one and ranks them by FID
and Hausdorff distance. Here the picture's loss is PSNR and SSIM to the pictures with full control, and the control's
loss is the agreement of edges with the lines that were to be followed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from diffaccel.config.checks import check, number, whole
from diffaccel.measure.edges import edge_agreement
from diffaccel.measure.quality import as_tensor, psnr, ssim
from diffaccel.methods.control_relevance import Loss, Relevance
from diffaccel.networks import UnsupportedModelError, is_companion, layout_of
from diffaccel.networks.block_io import Streams
from diffaccel.networks.layout import fingerprint_of
from diffaccel.reuse.branch import Branch
from diffaccel.sampling.seeds import generator_of
from diffaccel.stream.control import MOST_SCALE, edges

Say = Callable[[str], None]


def relevance(
    pipe: Any,
    images: Sequence[Any],
    prompts: Sequence[str],
    path: str | Path | None = None,
    *,
    net: int = 0,
    scale: float = 1.0,
    seed: int = 0,
    progress: Say | None = None,
    **settings: Any,
) -> Relevance:
    """Leave out each part of a pipeline's control in turn, and measure what pictures and control lose.

    Takes as many runs on all prompts as there are residuals, twice, and for transformers a third time for their blocks.

    Args:
        pipe: a diffusers pipeline with a ControlNet; or one that puts control blocks on its transformer, with the
            handle of `diffaccel.control.attach` as `control` and the blocks as `adapter`, and takes `control_image`.
        images: for each prompt a control image of white lines on black, as PIL or tensors ``(3, height, width)`` in
            [0, 1], all of the pictures' size.
        prompts: a prompt for each.
        path: where to write the result as JSON, for `ControlCache(relevance=...)`; None does not write it.
        net: index of the ControlNet among several; the others work as ever, on the same images.
        scale: conditioning scale, in (0, 10].
        seed: of the noise; prompt i has seed + i.
        progress: is told what is being left out.
        settings: further arguments of every run, such as num_inference_steps.

    Raises:
        UnsupportedModelError: if there is no control of a known kind.
        ValueError: if prompts and images do not go together, a number is out of range, or pictures are not finite.
    """
    check(len(prompts) > 0, "relevance needs at least one prompt and control image; got none")
    check(len(images) == len(prompts), f"{len(prompts)} prompts need as many control images, not {len(images)}")
    number("scale", scale, 1e-6, MOST_SCALE)
    whole("seed", seed, 0)
    control = _control_of(pipe, net)
    lines = as_tensor(torch.stack(list(images)) if isinstance(images[0], torch.Tensor) else images)
    runs = _Runs(pipe, lines, list(prompts), scale, seed, settings)
    told = (("scale", scale), ("seed", seed), ("pictures", len(prompts)), *_plain(settings))
    found = _measured(control, runs, progress or (lambda _: None), told)
    if path is not None:
        found.save(path)
    return found


def _measured(
    control: _ControlNet | _Adapter, runs: _Runs, say: Say, settings: tuple[tuple[str, Any], ...]
) -> Relevance:
    """What is lost without each part of the control, and without all behind it."""
    say("with all control")
    full = runs.pictures()
    with control.without(control.names):
        bare = runs.agreement(runs.pictures())

    def loss(name: str, out: Sequence[str], *, blocks: bool = False) -> Loss:
        say(f"without {name}")
        with control.without(out, blocks=blocks):
            pictures = runs.pictures()
        return Loss(name, *_likeness(pictures, full), runs.agreement(pictures))

    names = control.names
    return Relevance(
        control.model,
        control.fingerprint,
        runs.agreement(full),
        bare,
        each=tuple(loss(name, (name,)) for name in names),
        cuts=tuple(loss(f"{name} and all behind it", names[i:]) for i, name in enumerate(names) if i),
        blocks=tuple(loss(block, (name,), blocks=True) for name, block in control.blocks.items()),
        settings=settings,
    )


def _plain(settings: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Settings that JSON can hold."""
    return tuple((name, value) for name, value in settings.items() if isinstance(value, int | float | str))


def _likeness(pictures: torch.Tensor, full: torch.Tensor) -> tuple[float, float]:
    return float(psnr(pictures, full).mean()), float(ssim(pictures, full).mean())


class _Runs:
    """Runs of a pipeline that differ in nothing but what is left out."""

    def __init__(
        self, pipe: Any, lines: torch.Tensor, prompts: list[str], scale: float, seed: int, settings: dict[str, Any]
    ) -> None:
        taken = inspect.signature(pipe.__call__).parameters
        name = "control_image" if "control_image" in taken else "image"
        nets = len(getattr(getattr(pipe, "controlnet", None), "nets", ()))
        told = "control_scale" if "control_scale" in taken else "controlnet_conditioning_scale"
        self._arguments = {**settings, told: [scale] * nets if nets else scale}
        self._pipe, self._name, self._nets = pipe, name, nets
        self._lines, self._prompts, self._seed = lines, prompts, seed

    def pictures(self) -> torch.Tensor:
        """``(n, 3, height, width)`` in [0, 1], one run each."""
        made = [self._picture(index) for index, _ in enumerate(self._prompts)]
        return torch.cat(made)

    def _picture(self, index: int) -> torch.Tensor:
        """One run's, rounded to the 256 values of a picture."""
        image = self._lines[index : index + 1]
        given = {self._name: [image] * self._nets if self._nets else image}
        generator = generator_of(self._seed + index)
        made = self._pipe(
            prompt=self._prompts[index], generator=generator, output_type="pt", **given, **self._arguments
        ).images
        picture = as_tensor(made)
        check(
            bool(picture.isfinite().all()),
            f"the picture of {self._prompts[index]!r} holds numbers that are not finite, of which nothing can be "
            "measured: run this pipeline in float32, or find out which part of it overflows",
        )
        return (picture * 255).round() / 255

    def agreement(self, pictures: torch.Tensor) -> float:
        """Mean agreement of the pictures' edges with the lines."""
        check(
            pictures.shape == self._lines.shape,
            f"control images {tuple(self._lines.shape[1:])} must have the size of pictures {tuple(pictures.shape[1:])}",
        )
        return float(edge_agreement(torch.stack([edges(picture) for picture in pictures]), self._lines).mean())


class _ControlNet:
    """A ControlNet of which parts can be left out.

    Attributes:
        names: of its residuals.
        blocks: for each residual of a transformer the block that it is made of.
    """

    def __init__(self, model: Any) -> None:
        layout = layout_of(model)
        self._model, self._branches = model, {branch.replayed[0]: branch for branch in layout.residuals}
        self.model, self.fingerprint, self.names = layout.model, layout.fingerprint, tuple(self._branches)
        whole_blocks = not layout.depths
        self.blocks = {name: branch.skipped[0] for name, branch in self._branches.items()} if whole_blocks else {}

    @contextmanager
    def without(self, names: Sequence[str], *, blocks: bool = False) -> Iterator[None]:
        """Within, some residuals are zero, and with `blocks` what makes them passes its input on."""
        handles = [handle for name in names for handle in self._silence(self._branches[name], blocks)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _silence(self, branch: Branch, blocks: bool) -> Iterator[Any]:
        for name in branch.replayed:
            yield self._model.get_submodule(name).register_forward_hook(_zero)
        for name in branch.skipped if blocks else ():
            yield self._model.get_submodule(name).register_forward_hook(_passing, with_kwargs=True)


def _zero(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(output)


def _passing(module: Any, args: Any, kwargs: Any, _: Any) -> Any:
    return Streams(module).passed_on(args, kwargs)


class _Adapter:
    """Control blocks on a transformer, of which some can be left out: their whole work, as nothing else hangs on them.

    Attributes:
        names: of its blocks.
        blocks: none, as a block and what it adds are one here.
    """

    def __init__(self, attached: Any, adapter: Any) -> None:
        self._attached = attached
        self.names = tuple(f"blocks.{i}" for i, _ in enumerate(adapter.positions))
        self.model, self.fingerprint = type(adapter).__name__, fingerprint_of(adapter)
        self.blocks: dict[str, str] = {}

    @contextmanager
    def without(self, names: Sequence[str], *, blocks: bool = False) -> Iterator[None]:  # noqa: ARG002
        """Within, some blocks do not run."""
        before, self._attached.left_out = self._attached.left_out, frozenset(self.names.index(n) for n in names)
        try:
            yield
        finally:
            self._attached.left_out = before


def _control_of(pipe: Any, net: int) -> _ControlNet | _Adapter:
    attached = getattr(pipe, "control", None)
    if attached is not None:
        return _Adapter(attached, pipe.adapter)
    controlnet = getattr(pipe, "controlnet", None)
    nets = [one for one in getattr(controlnet, "nets", [controlnet]) if is_companion(one)]
    if not nets:
        raise UnsupportedModelError(
            f"{type(pipe).__name__} has no ControlNet of a known kind and no adapter: give a ControlNet pipeline of "
            "diffusers, or one with control blocks on its transformer as `control` and `adapter`"
        )
    whole("net", net, 0, len(nets) - 1)
    return _ControlNet(nets[net])
