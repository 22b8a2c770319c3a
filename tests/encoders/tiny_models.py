"""Tiny models of the true classes, randomly initialised, saved by their own library."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

WORDS = "a an the photo of image red green blue yellow black white dog cat car 犬 猫 . , !".split()
LAYER = {
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
VISION = {**LAYER, "image_size": 32, "patch_size": 8}


def tokenizer(start: str, end: str, pad: str = "[PAD]", *, length: int = 16, **options: Any) -> Any:
    """Make a real word-level tokenizer whose rows are `start ... end pad pad`."""
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([pad, "[UNK]", start, *WORDS, end])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(start, vocabulary[start]), (end, vocabulary[end])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=pad,
        unk_token="[UNK]",
        model_max_length=length,
        **options,
    )


def _ids(tok: Any) -> dict[str, int]:
    return {"vocab_size": len(tok)}


def clip(folder: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    tok = tokenizer("<s>", "</s>", bos_token="<s>", eos_token="</s>")
    marks = {"bos_token_id": 2, "eos_token_id": len(tok) - 1, "pad_token_id": 0}
    text = {**LAYER, **_ids(tok), **marks, "max_position_embeddings": 16}
    config = CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    _save(folder, CLIPModel(config), tok, CLIPImageProcessor(**_sizes()))


def _sizes() -> dict[str, Any]:
    return {
        "size": {"shortest_edge": 36},
        "crop_size": {"height": 32, "width": 32},
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.4],
    }


def siglip(folder: Path) -> None:
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    tok = tokenizer("<s>", "</s>", bos_token="<s>", eos_token="</s>")
    tok.model_input_names = ["input_ids"]
    text = {**LAYER, **_ids(tok), "max_position_embeddings": 16, "projection_size": 32}
    config = SiglipConfig(text_config=text, vision_config=VISION)
    model = SiglipModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(2.3)
        model.logit_bias.fill_(-7.0)
    _save(folder, model, tok, SiglipImageProcessor(size={"height": 32, "width": 32}))


def siglip2(folder: Path) -> None:
    import transformers
    from transformers import GemmaTokenizer, Siglip2Config, Siglip2ImageProcessor, Siglip2Model

    pieces = Tokenizer(models.BPE())
    marks = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(special_tokens=marks, show_progress=False)
    pieces.train_from_iterator([word for w in WORDS for word in (w, f"▁{w}")] * 2, trainer)
    learned = json.loads(pieces.to_str())["model"]
    # transformers 5.0 has no class of its own for it.
    tok = getattr(transformers, "Siglip2Tokenizer", GemmaTokenizer)(
        learned["vocab"],
        [tuple(pair) for pair in learned["merges"]],
        padding_side="right",
        model_max_length=16,
        add_bos_token=False,
        add_eos_token=True,
        model_input_names=["input_ids"],
    )
    text = {**LAYER, **_ids(tok), "max_position_embeddings": 16, "projection_size": 32}
    vision = {**LAYER, "patch_size": 8, "num_patches": 16}
    model = Siglip2Model(Siglip2Config(text_config=text, vision_config=vision))
    with torch.no_grad():
        model.logit_scale.fill_(2.3)
        model.logit_bias.fill_(-7.0)
    _save(folder, model, tok, Siglip2ImageProcessor(patch_size=8, max_num_patches=16))


def align(folder: Path) -> None:
    from transformers import AlignConfig, AlignModel, EfficientNetImageProcessor

    tok = tokenizer("[CLS]", "[SEP]", cls_token="[CLS]", sep_token="[SEP]")
    text = {**LAYER, **_ids(tok), "max_position_embeddings": 16, "pad_token_id": 0}
    vision = {
        "image_size": 32,
        "in_channels": [32, 16],
        "out_channels": [16, 24],
        "kernel_sizes": [3, 3],
        "strides": [1, 2],
        "num_block_repeats": [1, 1],
        "expand_ratios": [1, 2],
        "hidden_dim": 24,
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
        "depthwise_padding": [],
    }
    config = AlignConfig(text_config=text, vision_config=vision, projection_dim=24)
    config.temperature_init_value = 0.3
    model = AlignModel(config)
    model.train()
    with torch.no_grad():  # running statistics that are not those of a fresh norm
        model.vision_model(torch.randn(8, 3, 32, 32))
    processor = EfficientNetImageProcessor(
        size={"height": 36, "width": 36},
        crop_size={"height": 32, "width": 32},
        do_center_crop=True,
        rescale_factor=1 / 127.5,
        rescale_offset=True,
        do_normalize=False,
    )
    _save(folder, model, tok, processor)


def _blip_parts() -> tuple[Any, Any, Any]:
    from transformers import BlipConfig, BlipImageProcessor

    tok = tokenizer("[CLS]", "[SEP]", cls_token="[CLS]", sep_token="[SEP]")
    text = {**LAYER, **_ids(tok), "max_position_embeddings": 16, "pad_token_id": 0}
    text |= {
        "bos_token_id": 2,
        "eos_token_id": 2,
        "sep_token_id": len(tok) - 1,
        "projection_dim": 24,
    }
    text |= {"encoder_hidden_size": 32}
    vision = {
        **VISION,
        "initializer_range": 0.02,
    }  # BLIP's own, 1e-10, is no number in half precision
    config = BlipConfig(
        text_config=text, vision_config=vision, projection_dim=24, image_text_hidden_size=24
    )
    return config, tok, BlipImageProcessor(size={"height": 32, "width": 32})


def blip(folder: Path) -> None:
    from transformers import BlipForImageTextRetrieval

    config, tok, processor = _blip_parts()
    _save(folder, BlipForImageTextRetrieval(config), tok, processor)


def blip_captioning(folder: Path) -> None:
    """Save a model without retrieval encoders."""
    from transformers import BlipForConditionalGeneration

    config, tok, processor = _blip_parts()
    _save(folder, BlipForConditionalGeneration(config), tok, processor)


def altclip(folder: Path) -> None:
    from transformers import AltCLIPConfig, AltCLIPModel, CLIPImageProcessor

    tok = tokenizer("<s>", "</s>", length=512, bos_token="<s>", eos_token="</s>")
    text = {**LAYER, **_ids(tok), "max_position_embeddings": 17, "pad_token_id": 0}
    text |= {"project_dim": 28, "bos_token_id": 2, "eos_token_id": len(tok) - 1}
    config = AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    _save(folder, AltCLIPModel(config), tok, CLIPImageProcessor(**_sizes()))


def chinese_clip(folder: Path) -> None:
    from transformers import ChineseCLIPConfig, ChineseCLIPImageProcessor, ChineseCLIPModel

    tok = tokenizer("[CLS]", "[SEP]", cls_token="[CLS]", sep_token="[SEP]")
    text = {**LAYER, **_ids(tok), "max_position_embeddings": 16, "pad_token_id": 0}
    config = ChineseCLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    processor = ChineseCLIPImageProcessor(
        size={"height": 32, "width": 32}, do_center_crop=False, image_mean=[0.4, 0.5, 0.6]
    )
    _save(folder, ChineseCLIPModel(config), tok, processor)


def vision_text(folder: Path) -> None:
    from transformers import (
        BertConfig,
        BertModel,
        VisionTextDualEncoderConfig,
        VisionTextDualEncoderModel,
        ViTConfig,
        ViTImageProcessor,
        ViTModel,
    )

    tok = tokenizer("[CLS]", "[SEP]", cls_token="[CLS]", sep_token="[SEP]")
    vision = ViTModel(ViTConfig(**VISION))
    text = BertModel(BertConfig(**LAYER, **_ids(tok), max_position_embeddings=16, pad_token_id=0))
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision.config, text.config, projection_dim=24
    )
    model = VisionTextDualEncoderModel(config=config, vision_model=vision, text_model=text)
    _save(folder, model, tok, ViTImageProcessor(size={"height": 32, "width": 32}))


def _save(folder: Path, model: Any, tok: Any, processor: Any) -> None:
    model.eval().save_pretrained(folder)
    tok.save_pretrained(folder)
    processor.save_pretrained(folder)


@timm.models.register_model
def rada_test_vit(pretrained: bool = False, **options: Any) -> Any:
    """Build a vision transformer of timm, small enough for tests."""
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    options = {
        key: value for key, value in options.items() if key in ("num_classes", "global_pool")
    }
    return timm.models.VisionTransformer(**settings, **options)


OPEN_CLIP: dict[str, dict[str, Any]] = {
    "open_clip": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 32,
            "heads": 4,
            "layers": 2,
        },
    },
    "open_clip_siglip": {
        "embed_dim": 32,  # the encoder's own width, as in SigLIP
        "init_logit_bias": -7,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 32,
            "timm_model_name": "rada_test_vit",
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 32,
            "heads": 4,
            "layers": 2,
        },
    },
    "open_clip_resnet": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 32,
            "heads": 4,
            "layers": 2,
        },
    },
    "open_clip_coca": {
        "embed_dim": 32,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 32,
            "layers": 2,
            "width": 64,
            "patch_size": 8,
            "attentional_pool": True,
            "attn_pooler_heads": 4,
            "output_tokens": True,
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 32,
            "heads": 4,
            "layers": 2,
            "embed_cls": True,
            "output_tokens": True,
        },
        "multimodal_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 32,
            "heads": 4,
            "layers": 2,
        },
    },
}


def open_clip_directory(name: str) -> Callable[[Path], None]:
    """Return a function that saves a model of open_clip in its own layout."""

    def write(folder: Path) -> None:
        import open_clip
        from safetensors.torch import save_file

        config = json.loads(json.dumps(OPEN_CLIP[name]))
        arguments = {key: value for key, value in config.items() if key != "custom_text"}
        kinds = {True: open_clip.CustomTextCLIP, False: open_clip.CLIP}
        kind = open_clip.CoCa if "multimodal_cfg" in config else kinds["custom_text" in config]
        model = kind(**arguments)
        folder.mkdir(parents=True, exist_ok=True)
        # CoCa leaves a weight of its decoder as memory was: a NaN there is unlike itself
        state = {key: value.nan_to_num(0.0, 0.0, 0.0) for key, value in model.state_dict().items()}
        save_file(state, folder / "open_clip_model.safetensors")
        preprocess = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear"}
        whole = {"model_cfg": OPEN_CLIP[name], "preprocess_cfg": preprocess}
        (folder / "open_clip_config.json").write_text(json.dumps(whole))

    return write


MAKERS: dict[str, Callable[[Path], None]] = {
    "clip": clip,
    "siglip": siglip,
    "siglip2": siglip2,
    "align": align,
    "blip": blip,
    "altclip": altclip,
    "chinese_clip": chinese_clip,
    "vision_text": vision_text,
    **{name: open_clip_directory(name) for name in OPEN_CLIP},
}
