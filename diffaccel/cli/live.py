"""`diffaccel live`: what you draw, or show the camera, is painted anew while you watch."""

import logging
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffaccel.cli.help import Grouped, HomePath, Number, declared, refuse
from diffaccel.cli.model_options import (
    DEFAULT_MODEL,
    ENGINE_OPTIONS,
    MODEL_NAMES,
    READING_NAMES,
    ModelChoice,
    model_options,
)
from diffaccel.cli.signals import give_up, interruptible
from diffaccel.cli.streaming import (
    COMPILE_OPTION,
    CONTROLNET_NAMES,
    CONTROLNET_OPTIONS,
    FIT,
    FIT_OPTION,
    GUIDANCE_OPTION,
    SMOOTHING_OPTION,
    controls,
    fitted,
    live_settings,
    parse_size,
    require_extras,
    tell_unread,
)

if TYPE_CHECKING:
    from diffaccel.realtime.server import LiveServer, ServerOptions
    from diffaccel.realtime.settings import LiveSettings
    from diffaccel.stream.engine import StreamEngine

ANOTHER = "--port 0, any that is free"
START = {"prompt": "a green apple", "strength": 0.65, "guidance_scale": 1.4}
"""With the bundled model, a heart on the canvas becomes an apple."""

_OPTIONS: tuple[Callable[..., Any], ...] = (
    click.option("--prompt", help=f"What the picture should become.  [default: {START['prompt']}]"),
    click.option("--negative-prompt", help="What should not be seen; one-time and full guidance read it."),
    click.option("--strength", type=float, help=f"How much is painted anew, to 1.  [default: {START['strength']}]"),
    click.option("--steps", type=int, help="Steps of each picture: more are finer, slower and later.  [default: 2]"),
    GUIDANCE_OPTION,
    click.option("--guidance-scale", type=float, help=f"How hard, from 1.  [default: {START['guidance_scale']}]"),
    click.option("--seed", type=int, help="Seed of the noise: another number, another picture.  [default: 0]"),
    click.option(
        "--cache", type=int, metavar="N", help="Compute deep layers every n-th frame, and on motion.  [default: 4]"
    ),
    *model_options(),
    click.option("--offer", multiple=True, metavar="MODEL", help="A model that the page can change to; repeat."),
    click.option(
        "--offer-lora",
        multiple=True,
        metavar="LORA",
        help="A LoRA that the page can add: bundled name, .safetensors file, or a folder of them; repeat.",
    ),
    *CONTROLNET_OPTIONS,
    click.option(
        "--size",
        callback=parse_size,
        help="Width and height, as in 512 or 640x384; fit: the shape of the --source.  [default: the model's]",
    ),
    FIT_OPTION,
    SMOOTHING_OPTION,
    COMPILE_OPTION,
    click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for everyone."),
    click.option("--port", type=click.IntRange(0, 65535), default=7860, show_default=True, help="Port; 0: any free."),
    click.option("--allow-host", multiple=True, metavar="NAME", help="Host name of a reverse proxy in front of it."),
    click.option("--token", help="Secret in the page's address.  [default: a new random one]"),
    click.option(
        "--ssl-certfile", type=HomePath(exists=True, dir_okay=False, path_type=Path), help="Certificate, for https."
    ),
    click.option("--ssl-keyfile", type=HomePath(exists=True, dir_okay=False, path_type=Path), help="Key, for https."),
    click.option(
        "--max-sessions", type=click.IntRange(1, 1000), default=4, show_default=True, help="Most people at a time."
    ),
    click.option(
        "--max-rows", type=click.IntRange(1, 4096), help="Most steps of all people's frames.  [default: 32 or more]"
    ),
    click.option(
        "--processes",
        type=click.IntRange(1, 64),
        default=1,
        show_default=True,
        help="Processes that paint, each with a model on a device of its own; or replicas on the Ray cluster.",
    ),
    *ENGINE_OPTIONS,
    click.option(
        "--osc", type=click.IntRange(0, 65535), metavar="PORT", help="Let Open Sound Control move the controls, too."
    ),
    click.option("--fps", type=Number(0.1, 240), help="Hold this rate: paint more cheaply where frames come late."),
    click.option("--webrtc", is_flag=True, help="Video over WebRTC, for links that lose packets (extra: webrtc)."),
    click.option("--no-browser", is_flag=True, help="Do not open the page."),
    click.option("--source", metavar="SOURCE", help="camera, screen, a video file, rtmp://...: run without a browser."),
    click.option(
        "--sink", metavar="SINK", help="window, mjpeg, virtual-camera, rtmp://... or a video file.  [default: window]"
    ),
    click.option("--overwrite", is_flag=True, help="Replace the file that --sink names."),
)


PAGE = (
    *("offer", "offer_lora", "host", "port", "allow_host", "ssl_certfile", "ssl_keyfile", "max_sessions", "max_rows"),
    *("processes", "osc", "webrtc"),
)
"""Options, as click knows them, that do nothing without a page."""
_GROUPS = {
    "What to paint": (
        *("--prompt", "--negative-prompt", "--strength", "--steps", "--guidance", "--guidance-scale", "--seed"),
        *("--size", "--fit", "--smoothing", *READING_NAMES),
    ),
    "The model": (*MODEL_NAMES, *CONTROLNET_NAMES, "--offer", "--offer-lora"),
    "Speed": ("--cache", "--fps", "--compile", "--processes", "--engine", "--address", "--max-rows"),
    "The page": (
        *("--host", "--port", "--allow-host", "--token", "--ssl-certfile", "--ssl-keyfile", "--max-sessions"),
        *("--osc", "--webrtc", "--no-browser", "--help"),
    ),
    "Without a page": ("--source", "--sink", "--overwrite"),
}
_EXAMPLES = {
    "What to paint": "diffaccel live --prompt 'a green apple' --strength 0.65 --size 256x192",
    "The model": "diffaccel live --model sd15.safetensors --lora lcm=1 --embedding glow.safetensors",
    "Speed": "diffaccel live --cache 4 --fps 20",
    "The page": "diffaccel live --host 0.0.0.0 --port 8000 --no-browser",
    "Without a page": "diffaccel live --source camera --sink window --size fit",
}


@click.command(
    "live",
    cls=Grouped,
    groups=_GROUPS,
    examples=_EXAMPLES,
    short_help="Paint what you draw or show the camera, live.",
)
@declared(_OPTIONS)
def live(**given: Any) -> None:
    """Open a page that paints what you draw, or show the camera, while you watch.

    Everything stays on this machine: the bundled model needs no download, and the page can be reached from here alone,
    with the token in its address. With --source, frames come from a camera, the screen or a file, without a browser.
    """
    logging.basicConfig(format="%(message)s")
    _check(given)
    if given["source"]:
        _run_without_browser(given)
    elif given["engine"] == "ray":
        _serve_on_ray(given)
    else:
        _serve(given)


def _check(given: dict[str, Any]) -> None:
    """Tell what is wrong at once: importing torch takes seconds, and loading a model takes more."""
    from diffaccel.media.sources import check_source, is_file, open_source
    from diffaccel.realtime import sinks
    from diffaccel.realtime.sinks import check_sink
    from diffaccel.realtime.tls import check_certificate

    if given["sink"] and not given["source"]:
        raise click.UsageError("--sink needs --source: camera, screen or a video file")
    if given["source"]:
        refuse(click.get_current_context(), PAGE, "is for the page: leave it out, or --source")
    if given["engine"] == "ray":
        _check_ray(given)
    elif given["address"]:
        raise click.UsageError("--address is that of a Ray cluster: add --engine ray")
    if bool(given["ssl_certfile"]) != bool(given["ssl_keyfile"]):
        raise click.UsageError("--ssl-certfile and --ssl-keyfile go together")
    if given["size"] == FIT and not given["source"]:
        raise click.UsageError("--size fit needs --source; on the page, choose a size")
    controls(given, START)
    require_extras(given)
    if given["source"]:
        check_source(given["source"])
        check_sink(given["sink"] or "window", overwrite=given["overwrite"])
        if given["fps"] is not None and is_file(given["source"]) and sinks.is_file(given["sink"] or "window"):
            raise click.UsageError("--fps holds a rate of what is live, and a file into a file keeps every frame")
        if is_file(given["source"]):
            open_source(given["source"]).close()  # a file without a picture is told now, too
    if given["ssl_certfile"]:
        check_certificate(given["ssl_certfile"], given["ssl_keyfile"])


def _check_ray(given: dict[str, Any]) -> None:
    from diffaccel.media.errors import need

    for name, asked in (("source", given["source"]), ("osc", given["osc"] is not None), ("webrtc", given["webrtc"])):
        if asked:
            raise click.UsageError(f"--engine ray serves the page alone: leave out --{name}")
    need("ray.serve", extra="ray", purpose="--engine ray")


def _load_settings(given: dict[str, Any]) -> "LiveSettings":
    """What to load, every part of it found; says so first, because the Hub and importing torch take seconds."""
    from diffaccel import models
    from diffaccel.realtime.controls import NO_CONTROLNET

    click.echo(f"Loading {given['model'] or DEFAULT_MODEL} ...")
    choice = ModelChoice.of(given)
    source = choice.find()
    choice.check_reading(source.index["_class_name"], [given["prompt"] or "", given["negative_prompt"] or ""])
    for model in given["offer"]:
        choice.check_reading(models.resolve(model).index["_class_name"])
    for net in given["controlnet"]:
        models.find_controlnet(net)
    follows = given["control"] is not None or given["controlnet_scale"] is not None
    if follows and not given["controlnet"] and "controlnet" not in source.index:
        raise click.UsageError(NO_CONTROLNET)
    if given["device"]:
        models.choose_device(given["device"])
    from diffaccel.realtime.settings import offered_loras, quickest

    loras = offered_loras(given["offer_lora"])
    return quickest(replace(live_settings(given, START), offers=given["offer"], offered_loras=loras))


def _with_lines(settings: "LiveSettings") -> "LiveSettings":
    """The bundled model with the ControlNet that follows lines, which does not run until the page's switch is on."""
    from diffaccel.realtime.controls import ControlNetControls
    from diffaccel.realtime.settings import LINES

    if settings.controlnet or settings.model not in LINES:
        return settings
    controls = ControlNetControls(**settings.controls.model_dump(), follow_lines=False)
    return replace(settings, controlnet=(LINES[settings.model],), controls=controls)


def _options(given: dict[str, Any]) -> "ServerOptions":
    from diffaccel.realtime.server import ServerOptions

    token = {"token": given["token"]} if given["token"] else {}
    return ServerOptions(
        host=given["host"],
        port=given["port"],
        allow_hosts=given["allow_host"],
        webrtc=given["webrtc"],
        certificate=given["ssl_certfile"],
        key=given["ssl_keyfile"],
        **token,
    )


def _serve(given: dict[str, Any]) -> None:
    """Load, say where the page is, and serve until Ctrl-C."""
    from diffaccel.realtime.address import listen

    begin = time.monotonic()
    with listen(given["host"], given["port"], another=ANOTHER) as listener:  # a taken one is told before models load
        settings = _with_lines(_load_settings(given))
        from diffaccel.realtime.hub import spare_a_core
        from diffaccel.realtime.opening import open_hub
        from diffaccel.realtime.server import LiveServer

        options = _options(given)
        spare_a_core()
        opened = open_hub(
            settings, limit=given["max_sessions"], max_rows=given["max_rows"], processes=given["processes"]
        )
        with opened as (hub, about), suppress(KeyboardInterrupt):
            server = LiveServer(hub, options, about, listener)
            _say_where(server.url, options, begin)
            with _osc(server, given["osc"]):
                server.run(browser=not given["no_browser"])
    click.echo("Stopped.")


def _serve_on_ray(given: dict[str, Any]) -> None:
    """The same by replicas on a Ray cluster, behind Ray Serve's proxy."""
    from diffaccel.realtime.address import listen

    begin = time.monotonic()
    with listen(given["host"], given["port"], another=ANOTHER) as listener:
        port = listener.getsockname()[1]  # the proxy takes it next
    settings = _with_lines(_load_settings(given))
    from diffaccel.realtime.ray_serve import serving

    options = replace(_options(given), port=port)
    limits = {"limit": given["max_sessions"], "max_rows": given["max_rows"]}
    with serving(settings, options, replicas=given["processes"], cluster=given["address"], **limits) as url:
        _say_where(url, options, begin)
        if not given["no_browser"]:
            webbrowser.open(url)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
    click.echo("Stopped.")


def _say_where(url: str, options: "ServerOptions", begin: float) -> None:
    from diffaccel.realtime.address import is_local, seen_by_others

    click.echo(f"Ready after {time.monotonic() - begin:.1f} s. Open this page, Ctrl-C ends it:\n\n  {url}\n")
    if number := seen_by_others(options.host):
        click.echo(f"From other machines:\n\n  {url.replace('127.0.0.1', number, 1)}\n")
    if not is_local(options.host):
        click.echo("Everyone who can reach this machine and knows the address can use it.\n")


@contextmanager
def _osc(server: "LiveServer", port: int | None) -> Iterator[None]:
    """Open Sound Control beside the server, where it is asked for."""
    if port is None:
        yield
        return
    from diffaccel.realtime.osc import ROOT, OscServer

    with OscServer(server.change, port=port) as osc:
        click.echo(f"Open Sound Control: UDP port {osc.port}, as in {ROOT}/strength 0.7\n")
        yield


def _run_without_browser(given: dict[str, Any]) -> None:
    settings = _load_settings(given)
    from diffaccel.realtime.local import run
    from diffaccel.realtime.settings import load_pipeline, open_alone

    shape: list[tuple[int, int]] = []

    def open_stream() -> "StreamEngine":
        pipe = load_pipeline(settings)
        tell_unread(pipe, settings.controls)
        return open_alone(pipe, fitted(pipe, settings, shape[0]) if given["size"] == FIT else settings)

    with interruptible():  # of a file into a file nothing is left then; what is live ends in order by itself
        report = run(
            open_stream,
            source=given["source"],
            sink=given["sink"] or "window",
            overwrite=given["overwrite"],
            token=given["token"],
            on_source=lambda width, height: shape.append((width, height)),
            announce=lambda where: click.echo(f"Pictures go to {where}"),
            stuck=give_up,
            fps=given["fps"],
        )
    click.echo(str(report.stream))
