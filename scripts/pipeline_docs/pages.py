"""What each page shows: code that makes a pipeline and the arguments of a call, and the calls that are compared."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Page:
    """One pipeline's page.

    Attributes:
        name: the pipeline's file, without `.py`.
        code: defines `pipe`, `call` (arguments that all calls share) and perhaps `inputs` (pictures shown first).
        variants: what is added to the call, as it is written in code; the first is what the others are compared with.
            Without any, nothing is measured.
        memory: what is stored, and for how long.
        note: what the reader should know about the picture or the figures.
    """

    name: str
    code: str
    variants: dict[str, str]
    memory: str
    note: str = ""


UNET_MEMORY = (
    "DeepCache stores one feature of the UNet per picture and guidance half, with a forecast two. One, at branch 0, in "
    "float16, with guidance, "
    "this is 5 MiB for Stable Diffusion 1.5 at 512 x 512 pixels and 20 MiB for SDXL at 1024 x 1024. It is freed when "
    "the call ends."
)
SKETCH = """
sketch = Image.new("RGB", (128, 128), "white")
ImageDraw.Draw(sketch).ellipse((20, 20, 108, 108), fill="orange")
"""


def loaded(name: str, model: str, *imports: str) -> str:
    """Code that loads a custom pipeline from its file."""
    lines = ["from diffusers import DiffusionPipeline", *imports, "", "from diffaccel import models", ""]
    call = (
        "pipe = DiffusionPipeline.from_pretrained(\n"
        f'    models.path("{model}"), custom_pipeline="pipelines/{name}.py", trust_remote_code=True\n'
        ")\n"
    )
    return "\n".join(lines) + "\n" + call


PIL = "from PIL import Image, ImageDraw"
PAGES = (
    Page(
        "fast_text_to_image",
        loaded("fast_text_to_image", "emoji-sd")
        + """prompts = ["a red heart", "a burger", "a rainbow"]
call = {"prompt": prompts, "num_inference_steps": 20, "guidance_scale": 2.0}
""",
        {
            "stock": "",
            "DeepCache": 'cache="deepcache:interval=3,branch=0"',
            "DeepCache, branch 2": 'cache={"type": "deepcache", "interval": 3, "branch": 2}',
            "TGate": "gate=10",
            "DeepCache, forecast": 'cache="deepcache:interval=3,forecast=taylor(1)"',
            "DeepCache, forecast, residual guidance": 'cache="deepcache:interval=3,forecast=taylor(1)", '
            'guidance="residualguidance:renew=3,held=difference"',
        },
        UNET_MEMORY,
    ),
    Page(
        "fast_image_to_image",
        loaded("fast_image_to_image", "emoji-sd", PIL)
        + SKETCH
        + """inputs = [sketch]
call = {"prompt": "a burger", "image": sketch, "strength": 0.7, "num_inference_steps": 30, "guidance_scale": 2.0}
""",
        {
            "stock": "",
            "DeepCache": 'cache="deepcache:interval=2,branch=0"',
            "DeepCache, branch 2": 'cache="deepcache:interval=3,branch=2"',
            "TGate": "gate=12",
        },
        UNET_MEMORY,
    ),
    Page(
        "fast_inpaint",
        loaded("fast_inpaint", "emoji-sd", PIL)
        + SKETCH
        + """mask = Image.new("L", (128, 128))
ImageDraw.Draw(mask).rectangle((34, 34, 94, 94), fill=255)
inputs = [sketch, mask.convert("RGB")]
call = {
    "prompt": "a grinning face",
    "image": sketch,
    "mask_image": mask,
    "num_inference_steps": 30,
    "guidance_scale": 2.0,
}
""",
        {
            "stock": "",
            "DeepCache": 'cache="deepcache:interval=2,branch=0"',
            "DeepCache, branch 2": 'cache="deepcache:interval=3,branch=2"',
            "TGate": "gate=15",
        },
        UNET_MEMORY,
        "The second picture is the mask: only where it is white is anything drawn.",
    ),
    Page(
        "fast_transformer",
        loaded("fast_transformer", "emoji-dit")
        + """call = {
    "prompt": ["a red heart", "a burger", "a rainbow"],
    "num_inference_steps": 20,
    "guidance_scale": 2.0,
    "use_resolution_binning": False,
    "clean_caption": False,
}
""",
        {
            "stock": "",
            "IntervalCache": 'cache="intervalcache:interval=2"',
            "IntervalCache, forecast": 'cache="intervalcache:interval=3,forecast=taylor(1)"',
            "BlockCache": 'cache={"type": "blockcache", "threshold": 0.12}',
        },
        "IntervalCache stores the output of every attention and of every feed-forward network: as many tensors of the "
        "size of the hidden states as there are of these. BlockCache stores two. All are freed when the call ends.",
    ),
    Page(
        "fast_control",
        """import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw

from diffaccel import models

net = models.load_controlnet("emoji-control", dtype=torch.float32, device=torch.device("cpu"))
pipe = DiffusionPipeline.from_pretrained(
    models.path("emoji-sd"), controlnet=net, custom_pipeline="pipelines/fast_control.py", trust_remote_code=True
)
lines = Image.new("RGB", (128, 128), "black")
points = [(64, 110), (20, 60), (22, 36), (42, 24), (64, 44), (86, 24), (106, 36), (108, 60), (64, 110)]
ImageDraw.Draw(lines).line(points, fill="white", width=3, joint="curve")
inputs = [lines]
prompts = ["a red heart", "a green apple", "a blue fish"]
call = {"prompt": prompts, "control_image": lines, "num_inference_steps": 20, "guidance_scale": 2.0}
""",
        {
            "stock": "",
            "ControlCache": 'cache="controlcache:interval=3"',
            "ControlCache, forecast": 'cache="controlcache:interval=3,forecast=taylor(1)"',
            "DeepCache and ControlCache": (
                'cache="deepcache:interval=3,forecast=taylor(1) + controlcache:interval=3,forecast=taylor(1)"'
            ),
        },
        "ControlCache stores each residual of the net, with a forecast two of each, until the call ends; DeepCache "
        "one feature of the UNet. Figures of memory are the UNet's alone.",
        "A RelaCtrl adapter is loaded with `pipe.load_control(folder)` into a pipeline of PixArt, and called alike: "
        "[Control](../control.md).",
    ),
    Page(
        "fast_video",
        """import torch
from diffusers import MotionAdapter

from diffaccel import models
from diffaccel.pipelines import FastVideoPipeline

stock = models.load("emoji-sd")
levels, layers = stock.unet.config.block_out_channels, stock.unet.config.layers_per_block
adapter = MotionAdapter(
    block_out_channels=levels, motion_layers_per_block=layers, motion_norm_num_groups=8, motion_num_attention_heads=4
)
for name, weight in adapter.named_parameters():
    if "proj_out" in name:
        torch.nn.init.zeros_(weight)
pipe = FastVideoPipeline.from_pipe(stock, motion_adapter=adapter)
call = {"prompt": "a red heart", "num_frames": 4, "num_inference_steps": 12, "guidance_scale": 2.0}
""",
        {
            "stock": "",
            "DeepCache": 'cache="deepcache:interval=2,branch=0"',
            "DeepCache, branch 2": 'cache={"type": "deepcache", "interval": 3, "branch": 2}',
        },
        "DeepCache stores one feature per frame and guidance half, until the call ends.",
        "This example gives emoji-sd a motion adapter that adds nothing: frames are drawings of their own, at the cost "
        "of a video model. With a trained adapter, and with Stable Video "
        'Diffusion, the call is the same; `custom_pipeline="pipelines/fast_video.py"` loads those.',
    ),
    Page(
        "causal_video",
        """from diffaccel import models
from diffaccel.pipelines import CausalVideoPipeline

pipe = CausalVideoPipeline.from_pipe(models.load("emoji-video"))
call = {"prompt": "a cat bounces", "num_frames": 4, "chunk_size": 2, "num_inference_steps": 6, "guidance_scale": 2.0}
""",
        {},
        "Keys and values of the frames that a chunk sees, for each guidance half: how much that will be is known "
        "before the call starts, and does not grow with the video.",
        "The prompt of `emoji-video` names a drawing and a motion: [videos without end](../causal-video.md).",
    ),
    Page(
        "stream_diffusion",
        loaded("stream_diffusion", "emoji-sd", PIL)
        + """models.load_lora(pipe, "emoji-lcm-lora")
pipe.fuse_lora()
frames = [Image.new("RGB", (128, 128), "white") for _ in range(12)]
for i, frame in enumerate(frames):
    ImageDraw.Draw(frame).ellipse((8 + 4 * i, 36, 64 + 4 * i, 92), fill="purple")
inputs = frames[::4]
call = {"prompt": "a purple heart", "image": frames, "strength": 0.8, "num_steps": 2, "seed": 2}
""",
        {
            "frame after frame": "stream_batch=False",
            "stream batch": "",
            "self-negative guidance": 'guidance="selfnegative:scale=1.2"',
            "four frames a call": "frame_buffer=4, shared_noise=True",
            "cached between frames": (
                'cache="deepcache:schedule=threshold(0.15,max_reuse=3),branch=3,forecast=taylor(2)"'
            ),
        },
        "One slot per stage: the latents, the noise and the prompt's embedding of a frame. A cache between frames "
        "stores what its method stores, once per stage.",
        "Every fourth of twelve frames is shown. A stream that stays open, `pipe.stream(...)`, is described in "
        "[Streams](../streaming.md), with figures of its own.",
    ),
)
