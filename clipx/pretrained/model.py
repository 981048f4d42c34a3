"""A trained model with its tokenizer and preprocessing, used by evaluation and export.

Shapes: B images or texts, S image size, T tokens, D embedding.
"""

import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from clipx.config.model import ModelConfig
from clipx.data.labelled.sets import DEFAULT_TEMPLATES
from clipx.data.tokenizer import Tokenizer, build_tokenizer
from clipx.data.transforms import EvalTransform
from clipx.errors import InputError
from clipx.models.clip import CLIP
from clipx.models.evaluating import evaluating
from clipx.pretrained.classes import BestClasses, ClassEmbeddings, embed_classes
from clipx.pretrained.fingerprint import fingerprint
from clipx.pretrained.pictures import Pictures, pixel_batches

_AT_ONCE = 128
"""On the CPU more are not faster: activations leave the caches, and memory grows with what a caller gives."""


class Pretrained:
    """Computes embeddings of images and texts; the mode, dtype and device of the model do not change.

    Args:
        model: may be in training mode, or parts of it; every call evaluates and restores the modes.
        config: the config that the model was built from.
        tokenizer: the tokenizer of its training; None means that it is built from the config.
        in_parts: whether a long call goes through a CPU in several forward passes. Not where the ranks hold shards of
            the model: all of them must make as many passes, whatever each is given (`clipx.evaluate.sharing`).
    """

    def __init__(
        self, model: CLIP, config: ModelConfig, *, tokenizer: Tokenizer | None = None, in_parts: bool = True
    ) -> None:
        self.model = model
        self.in_parts = in_parts
        self.config = config
        self.tokenizer = tokenizer if tokenizer is not None else build_tokenizer(config.text)
        image = config.image
        self.transform = EvalTransform(
            image.image_size, resize=image.resize, interpolation=image.interpolation, crop=image.crop
        )

    @property
    def device(self) -> torch.device:
        """The device of the model's weights."""
        return self.model.log_logit_scale.device

    @property
    def logit_scale(self) -> float:
        """The multiplier of the similarities."""
        return self.model.log_logit_scale.detach().exp().item()

    @property
    def logit_bias(self) -> float | None:
        """What is added to the multiplied similarities; None in a model of the softmax loss."""
        bias = self.model.logit_bias
        return None if bias is None else bias.detach().item()

    def preprocess(self, image: Image.Image) -> Tensor:
        """Makes a square of a picture as the config says: uint8 (S, S, 3). The model itself normalises.

        Raises:
            InputError: the argument is not an image of Pillow.
        """
        if not isinstance(image, Image.Image):
            raise InputError(f"a picture must be a PIL.Image, not {type(image).__name__}; open files with Image.open")
        return self.transform(image)

    def pixels(self, data: bytes, *, decode: Literal["pil", "fast"] = "pil") -> Tensor:
        """Decodes an encoded picture and makes a square of it: uint8 (S, S, 3).

        Args:
            decode: "pil" gives the pixels of `preprocess`; "fast" nearly those, sooner (`clipx.data.transforms`).

        Raises:
            UndecodableError: no picture that Pillow can read.
        """
        return self.transform.decoded(data, decode=decode)

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits of weights, architecture and tokenizer: equal for equal models, wherever they lie."""
        return fingerprint(self.model, self.config, self.tokenizer)

    def tokenize(self, texts: str | Sequence[str]) -> tuple[Tensor, Tensor]:
        """Flat token ids int64 (T,) and lengths int64 (B,) of one or several texts.

        Raises:
            InputError: there is no text, or one is not a string.
        """
        listed = list(texts) if isinstance(texts, Iterable) and not isinstance(texts, str) else [texts]
        if wrong := [type(text).__name__ for text in listed if not isinstance(text, str)]:
            raise InputError(f"a text must be a str, not {wrong[0]}; give one, or a list of them")
        if not listed:
            raise InputError("no text to tokenize; give at least one")
        return self.tokenizer.encode(listed)

    @torch.no_grad()
    def encode_image(self, images: Image.Image | Sequence[Image.Image] | Tensor) -> Tensor:
        """Unit-length embeddings (B, D) of one image, of several, or of uint8 (B, S, S, 3) from `preprocess`.

        Raises:
            InputError: there is no image, one is not an image, or a tensor has another dtype or shape.
        """
        if not isinstance(images, Tensor):
            rows = [self.preprocess(image) for image in (images if isinstance(images, Iterable) else [images])]
            images = torch.stack(rows) if rows else torch.empty(0)
        size = self.config.image.image_size
        if images.dtype != torch.uint8 or images.shape[1:] != (size, size, 3) or images.numel() == 0:
            raise InputError(
                f"pictures must be at least one PIL.Image or uint8 (B, {size}, {size}, 3) as `preprocess` makes them, "
                f"not {str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
            )
        with evaluating(self.model):
            return torch.cat([self.model.encode_image(part.to(self.device)) for part in images.split(self._at_once)])

    @torch.no_grad()
    def encode_text(self, texts: str | Sequence[str]) -> Tensor:
        """Unit-length embeddings (B, D) of one or several texts.

        Raises:
            InputError: the cases of `tokenize`.
        """
        return self.encode_tokens(*self.tokenize(texts))

    @torch.no_grad()
    def encode_tokens(self, tokens_T: Tensor, lengths_B: Tensor) -> Tensor:
        """Unit-length embeddings (B, D) of texts as `tokenize` gives them: flat ids, and how many each text has."""
        parts = lengths_B.split(self._at_once)
        tokens = tokens_T.split([int(part.sum()) for part in parts])
        with evaluating(self.model):
            return torch.cat(list(map(self._encode_part, tokens, parts)))

    def _encode_part(self, tokens_T: Tensor, lengths_B: Tensor) -> Tensor:
        max_length = int(lengths_B.max())
        return self.model.encode_text(tokens_T.to(self.device), lengths_B.to(self.device), max_length=max_length)

    @property
    def _at_once(self) -> int:
        """Pictures or texts of a forward pass; CUDA gets as many as the caller gives."""
        return _AT_ONCE if self.in_parts and self.device.type == "cpu" else sys.maxsize

    def class_embeddings(
        self, classes: Sequence[str], templates: str | Sequence[str] = DEFAULT_TEMPLATES
    ) -> ClassEmbeddings:
        """The classes as `classify` takes them, for many calls.

        Args:
            classes: their names.
            templates: prompts, each with `{c}` in the place of the name; a class is the mean of its prompts.

        Raises:
            InputError: no class, a blank one, one twice (to the model: CLIP's lowers names and cuts long ones), or a
                template without `{c}`.
        """
        return embed_classes(self, classes, templates=templates)

    def classify(
        self,
        pictures: Pictures,
        classes: Sequence[str] | ClassEmbeddings,
        *,
        templates: str | Sequence[str] | None = None,
        top: int | None = None,
        multi: bool = False,
    ) -> list[dict[str, float]]:
        """For each picture the probabilities of the classes by their names, the best first.

        Args:
            pictures: one or several, each a PIL.Image, a path, an address or a file's bytes; or uint8 (B, S, S, 3) from
                `preprocess`.
            classes: names, or what `class_embeddings` made of them.
            templates: prompts, each with `{c}` in the place of the name; None means "a photo of a {c}.".
            top: how many classes to keep of each picture; None means all.
            multi: off, the probabilities of all classes sum to one; on, each class has its own (`pretrained.classes`).

        Returns:
            A dict for each picture, for a picture alone too.

        Raises:
            InputError: no picture, one that is none, `top` below 1, or the cases of `class_embeddings`.
        """
        if top is not None and top < 1:
            raise InputError(f"top={top} keeps no class; give at least 1, or None for all")
        if not isinstance(classes, ClassEmbeddings):
            classes = self.class_embeddings(classes, DEFAULT_TEMPLATES if templates is None else templates)
        elif templates is not None:
            raise InputError("templates belong to class_embeddings, which made these classes; leave them out here")
        found = []
        for images_BSSC in pixel_batches(pictures, of_image=self.preprocess, of_bytes=self.pixels):
            best = self.best_classes(self.encode_image(images_BSSC), classes, top=top, multi=multi)
            found += best.named(classes.names)
        return found

    def best_classes(
        self, image_BD: Tensor, classes: ClassEmbeddings, *, top: int | None, multi: bool = False
    ) -> BestClasses:
        """`classify` of pictures' embeddings, as tensors; see `ClassEmbeddings.best`."""
        return classes.best(image_BD, logit_scale=self.logit_scale, logit_bias=self.logit_bias, top=top, multi=multi)
