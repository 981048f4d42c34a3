"""What open_clip computes from an export, by `local-dir:`."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from clipx.data.tokenizer import ClipTokenizer
from clipx.export.parity.consumer import BATCH, Consumer, Outputs, batches, library_version


def _library() -> str | None:
    return library_version("open_clip_torch", "open_clip")


def _applies(folder: Path) -> bool:
    return (folder / "open_clip_config.json").is_file()


@torch.no_grad()
def _outputs(folder: Path, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Outputs:
    import open_clip

    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    model.eval()
    pixels_B3SS = torch.stack([preprocess(picture) for some in batches(pictures) for picture in some])
    tokens_NL = open_clip.get_tokenizer(f"local-dir:{folder}")(list(texts))
    image_BD = torch.cat([model.encode_image(some, normalize=True) for some in pixels_B3SS.split(BATCH)])
    text_ND = torch.cat([model.encode_text(some, normalize=True) for some in tokens_NL.split(BATCH)])
    logits_BN = model.logit_scale.exp() * image_BD @ text_ND.T
    return Outputs(
        pixels_B3SS=pixels_B3SS,
        tokens=[_until_end(row) for row in tokens_NL.tolist()],
        image_BD=image_BD,
        text_ND=text_ND,
        logits_BN=logits_BN if model.logit_bias is None else logits_BN + model.logit_bias,
    )


def _until_end(row: list[int]) -> list[int]:
    return row[: row.index(ClipTokenizer.end_id) + 1]


CONSUMERS = (Consumer(name="open_clip", library=_library, applies=_applies, outputs=_outputs),)
