"""Train the bundled CLIP: a text encoder for the diffusion models, and a small image tower that judges them.

Contrastive learning (Radford et al., arXiv 2103.00020) on emoji drawings in two styles. Equal captions in a batch
count as equally right; for every caption that names a colour or two things, one with the colours or sides exchanged
is added as a wrong answer, so that the text encoder must tell them apart. Run again to resume.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from emoji_data import COLOURS, HELD_OUT_BASE, Emojis, render_all
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from training import Run, has_fast_bf16, optimisers
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

TEXT_TOKENS = 24
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def train_tokenizer(texts: list[str], merges: int) -> CLIPTokenizer:
    """CLIP's byte-pair encoding with merges learned from the texts; any other text still encodes, byte by byte."""
    model = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    template = CLIPTokenizer().backend_tokenizer
    model.normalizer, model.pre_tokenizer = template.normalizer, template.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + merges, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    model.train_from_iterator(texts, trainer)
    learned = [tuple(pair) for pair in json.loads(model.to_str())["model"]["merges"]][:merges]
    tokens = [*alphabet, *(a + "</w>" for a in alphabet), *("".join(pair) for pair in learned), *SPECIAL]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=learned, model_max_length=TEXT_TOKENS)


def build(vocabulary: int, eos: int) -> CLIPModel:
    """Text: 3 layers of width 128. Image: a vision transformer of 5 layers of width 160 on 16-pixel patches."""
    text = {
        "vocab_size": vocabulary,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "projection_dim": 128,
        "bos_token_id": eos - 1,
        "eos_token_id": eos,
        "pad_token_id": eos,
    }
    vision = {
        "hidden_size": 160,
        "intermediate_size": 640,
        "num_hidden_layers": 5,
        "num_attention_heads": 5,
        "image_size": 128,
        "patch_size": 16,
        "projection_dim": 128,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Token ids, (texts, TEXT_TOKENS), padded with the end token as Stable Diffusion does."""
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def thing(caption: str) -> str:
    """The caption without "a drawing of" and its article."""
    return caption.removeprefix("a drawing of ").removeprefix("a ").removeprefix("an ")


def wrong_caption(caption: str, rng: np.random.Generator) -> str | None:
    """The caption with its sides or one colour exchanged; None where there is neither."""
    words = caption.split(" ")
    if " and " in caption and " on a" not in caption and rng.random() < 0.5:
        left, right = caption.split(" and ", 1)
        return f"{right} and {left}" if left != right else None
    places = [i for i, word in enumerate(words) if word in COLOURS and i + 1 < len(words)]
    if not places:
        return None
    at = places[rng.integers(len(places))]
    words[at] = [c for c in COLOURS if c != words[at]][rng.integers(len(COLOURS) - 1)]
    return " ".join(words)


def roughen(pictures: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Blur some pictures and add noise to some: what comes out of a diffusion model is not as crisp as a drawing."""
    blur = torch.from_numpy(rng.random(len(pictures)) < 0.3)
    soft = (
        F.interpolate(F.avg_pool2d(pictures[blur], 2), scale_factor=2, mode="bilinear")
        if blur.any()
        else pictures[blur]
    )
    pictures = pictures.clone()
    pictures[blur] = soft
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(int(rng.integers(1 << 62))))
    return pictures + noise * torch.from_numpy(rng.uniform(0, 0.1, len(pictures))).float()[:, None, None, None]


def similarities(model: CLIPModel, pixels: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Cosine similarities, (pictures, texts)."""
    image = F.normalize(model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output), dim=-1)
    text = F.normalize(model.text_projection(model.text_model(input_ids=ids).pooler_output), dim=-1)
    return image @ text.T


@torch.no_grad()
def top1(
    model: CLIPModel, tokenizer: CLIPTokenizer, pictures: torch.Tensor, truth: list[str], captions: list[str]
) -> float:
    """Share of pictures whose caption is the nearest of all captions."""
    device = next(model.parameters()).device
    scores = torch.cat(
        [similarities(model, p.to(device), tokenize(tokenizer, captions).to(device)) for p in pictures.split(64)]
    )
    target = torch.tensor([captions.index(c) for c in truth], device=device)
    return (scores.argmax(1) == target).float().mean().item()


def start(data: Path, emojis: Emojis) -> tuple[CLIPTokenizer, CLIPModel]:
    """A new tokenizer, trained on captions and on the names of all drawings, and a new model."""
    names = [name.replace("-", " ") for drawings in render_all(data).values() for name in drawings]
    tokenizer = train_tokenizer([emojis.describe(i)[0] for i in range(20000)] + names, merges=1100)
    return tokenizer, build(len(tokenizer), tokenizer.eos_token_id)


def main() -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--run", type=Path, default=Path("runs/clip"))
    parser.add_argument("--output", type=Path, default=Path("runs/clip/model"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--image-only",
        type=Path,
        metavar="CLIP",
        help="freeze the text encoder of this folder, go on with its image tower",
    )
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    emojis = Emojis(args.data, ("fluent", "noto"), seed=args.seed + 1)
    plain = Emojis(args.data, ("fluent", "noto"), seed=args.seed + 1, p_colour=0, p_pair=0, p_background=0)
    bf16 = has_fast_bf16(device)
    if args.image_only:
        tokenizer, model = CLIPTokenizer.from_pretrained(args.image_only), CLIPModel.from_pretrained(args.image_only)
        model.text_model.requires_grad_(False)
        model.text_projection.requires_grad_(False)
    else:
        tokenizer, model = start(args.data, emojis)
    model.to(device)
    tokenizer.save_pretrained(args.output)

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = np.random.default_rng((args.seed, step))
        captions, pictures = emojis.batch(range(step * args.batch, (step + 1) * args.batch))
        things = [thing(c) for c in captions]
        wrong = [w for c in captions if (w := wrong_caption(c, rng)) and thing(w) not in things]
        if args.image_only:  # judge against every plain caption, as prompt accuracy does
            wrong += [c for c in plain.captions if c not in things]
        ids = tokenize(tokenizer, captions + wrong).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            cosine = similarities(model, roughen(pictures, rng).to(device), ids)
        logits = cosine.float() * model.logit_scale.exp().clamp(max=100)
        same = torch.tensor([[a == b for b in things] for a in things], device=device).float()
        target = F.normalize(same, p=1, dim=1)
        by_image = F.cross_entropy(logits, F.pad(target, (0, len(wrong))))
        by_text = F.cross_entropy(logits[:, : len(captions)].T, target)
        return (by_image + by_text) / 2, {"scale": model.logit_scale.exp().item()}

    def evaluate(step: int) -> None:
        truth, pictures = plain.batch(range(HELD_OUT_BASE, HELD_OUT_BASE + 512))
        run.log(step=step, top1=top1(run.ema, tokenizer, pictures, [thing(t) for t in truth], plain.captions))

    run = Run(
        args.run,
        model,
        loss,
        optimisers(model, args.lr, 0.02, muon=True),
        args.lr,
        args.steps,
        every=evaluate,
        every_steps=250,
    )
    run.train()
    run.ema.save_pretrained(args.output)


if __name__ == "__main__":
    main()
