"""For each family, the tokenizer class and files that its public checkpoints come with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from rada.core.errors import EncoderError
from rada.encoders import load_encoder

TEXTS = [
    "a photo of a golden retriever",
    "the red car, the blue car",
    "a green cat",
    "A photo of a Golden cat.",
] * 9
PROMPT = "A Golden cat."


def pieces(folder: Path, name: str, **marks: int) -> sentencepiece.SentencePieceProcessor:
    """Train a sentencepiece model and write it under its usual name."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_prefix=str(folder / "trained"),
        vocab_size=96,
        hard_vocab_limit=False,
        minloglevel=2,
        **marks,
    )
    (folder / "trained.vocab").unlink()
    (folder / "trained.model").rename(folder / name)
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / name))


def write(folder: Path, name: str, **content: object) -> None:
    (folder / name).write_text(json.dumps(content))


def clip(folder: Path) -> tuple[int, list[int], dict[str, int]]:
    """openai/clip-vit-*: vocab.json and merges.txt."""
    words = ["a</w>", "photo</w>", "of</w>", "cat</w>", ".</w>", "golden</w>"]
    letters = sorted({letter for word in words for letter in word.removesuffix("</w>")})
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges = []
    for word in words:
        parts = [*word.removesuffix("</w>")]
        parts[-1] += "</w>"
        while len(parts) > 1:
            merges.append(f"{parts[0]} {parts[1]}")
            parts[:2] = [parts[0] + parts[1]]
            vocabulary.append(parts[0])
    ids = {word: i for i, word in enumerate(dict.fromkeys(vocabulary))}
    ids |= {"<|startoftext|>": len(ids), "<|endoftext|>": len(ids) + 1}
    write(folder, "vocab.json", **ids)
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *dict.fromkeys(merges)]))
    write(
        folder,
        "tokenizer_config.json",
        tokenizer_class="CLIPTokenizer",
        model_max_length=16,
        do_lower_case=True,
        pad_token="<|endoftext|>",
    )
    row = [
        "<|startoftext|>",
        "a</w>",
        "golden</w>",
        "cat</w>",
        ".</w>",
        "<|endoftext|>",
    ]
    end = ids["<|endoftext|>"]
    return (
        len(ids),
        [ids[word] for word in row],
        {"eos_token_id": end, "bos_token_id": end - 1, "pad_token_id": end},
    )


def bert(folder: Path) -> tuple[int, list[int], dict[str, int]]:
    """ALIGN, BLIP, Chinese-CLIP, CLIP-Italian: vocab.txt."""
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] a photo of gold ##en cat .".split()
    (folder / "vocab.txt").write_text("\n".join(words))
    write(
        folder,
        "tokenizer_config.json",
        tokenizer_class="BertTokenizer",
        do_lower_case=True,
        model_max_length=16,
    )
    row = "[CLS] a gold ##en cat . [SEP]".split()
    return len(words), [words.index(word) for word in row], {}


def siglip(folder: Path) -> tuple[int, list[int], dict[str, int]]:
    """google/siglip-*: spiece.model; punctuation is removed."""
    model = pieces(folder, "spiece.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    write(
        folder,
        "tokenizer_config.json",
        tokenizer_class="SiglipTokenizer",
        do_lower_case=True,
        model_input_names=["input_ids"],
        model_max_length=16,
        pad_token="</s>",
    )
    row = [*model.encode("a golden cat"), 1]
    return model.get_piece_size(), row + [1] * (16 - len(row)), {}


def siglip_beside(folder: Path) -> tuple[int, list[int], dict[str, int]]:
    """The same with a tokenizer.json beside, as some of the checkpoints have."""
    found = siglip(folder)
    pieces_only = Tokenizer(models.Unigram([("<unk>", 0.0)], 0))
    pieces_only.save(str(folder / "tokenizer.json"))
    return found


def gemma(folder: Path, **config: object) -> tuple[int, list[int], dict[str, int]]:
    """google/siglip2-*: tokenizer.json whose normaliser keeps capitals."""
    inner = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    inner.decoder = decoders.Replace("▁", " ")
    marks = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    alphabet = [*map(chr, range(33, 127)), "▁"]
    trainer = trainers.BpeTrainer(
        vocab_size=160, special_tokens=marks, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(TEXTS, trainer)
    inner.post_processor = processors.TemplateProcessing(
        "$A:0 <eos>:0", special_tokens=[("<eos>", 1)]
    )
    inner.save(str(folder / "tokenizer.json"))
    write(
        folder,
        "tokenizer_config.json",
        **{
            "tokenizer_class": "GemmaTokenizer",
            "do_lower_case": True,
            "add_bos_token": False,
            "add_eos_token": True,
            "padding_side": "right",
            "model_max_length": 16,
            "model_input_names": ["input_ids"],
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "mask_token": "<mask>",
        }
        | config,
    )
    row = inner.encode(PROMPT.lower()).ids
    return inner.get_vocab_size(), row + [0] * (16 - len(row)), {}


def xlm_roberta(folder: Path) -> tuple[int, list[int], dict[str, int]]:
    """BAAI/AltCLIP: sentencepiece.bpe.model with fairseq's numbers; capitals are kept."""
    model = pieces(folder, "sentencepiece.bpe.model")
    write(
        folder, "tokenizer_config.json", tokenizer_class="XLMRobertaTokenizer", model_max_length=16
    )
    row = [0, *(3 if i == 0 else i + 1 for i in model.encode(PROMPT)), 2]
    return (
        model.get_piece_size() + 2,
        row,
        {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
    )


PUBLIC = {
    "clip": (clip, "CLIPTokenizer"),
    "siglip": (siglip, "SiglipTokenizer"),
    "siglip beside": (siglip_beside, "SiglipTokenizer"),
    "siglip gemma": (gemma, "GemmaTokenizer"),
    "siglip2": (gemma, "Siglip2Tokenizer"),
    "align": (bert, "BertTokenizer"),
    "blip": (bert, "BertTokenizer"),
    "chinese_clip": (bert, "BertTokenizer"),
    "vision_text": (bert, "BertTokenizer"),
    "altclip": (xlm_roberta, "XLMRobertaTokenizer"),
}


def with_tokenizer(source: Path, folder: Path, make) -> tuple[Path, list[int]]:
    """Copy a tiny model and give it another tokenizer, and a vocabulary of its size."""
    shutil.copytree(source, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    size, row, marks = make(folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"vocab_size": size, **marks}
    (folder / "config.json").write_text(json.dumps(config))
    path = next(folder.glob("*.safetensors"))
    weights = load_file(path)
    generator = torch.Generator().manual_seed(0)
    for key, value in weights.items():
        if key.endswith(("token_embedding.weight", "word_embeddings.weight")):
            weights[key] = torch.randn(size, value.shape[1], generator=generator) * 0.02
    save_file(weights, path, metadata={"format": "pt"})
    return folder, row


@pytest.mark.parametrize("family", PUBLIC)
def test_public_tokenizer(saved, tmp_path, family):
    make, kind = PUBLIC[family]
    folder, row = with_tokenizer(saved(family.split()[0]), tmp_path / "model", make)
    encoder = load_encoder(folder)
    # transformers 5.0 has no class for SigLIP 2, and where the files name another class than this kind of
    # model has, it opens them as the class of all tokenizers.
    older = {"GemmaTokenizer", "TokenizersBackend"} if make is gemma else set()
    assert type(encoder.tokenizer).__name__ in {kind} | older
    assert encoder.tokenize([PROMPT])["input_ids"][0].tolist() == row
    texts = encoder.encode_texts([PROMPT, PROMPT.lower(), "the red car"])
    assert torch.allclose(texts[0], texts[1], atol=1e-6) == (make is not xlm_roberta)
    assert not torch.allclose(texts[0], texts[2], atol=1e-5)
    encoder.save(tmp_path / "saved")
    again = load_encoder(tmp_path / "saved")
    torch.testing.assert_close(again.encode_texts([PROMPT, "the red car"]), texts[[0, 2]])
    assert again.fingerprint == encoder.fingerprint


def test_gemma_keeps_capitals_where_the_checkpoint_says_so(saved, tmp_path):
    def cased(folder):
        return gemma(folder, do_lower_case=False)

    def silent(folder):
        found = gemma(folder)
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text())
        del config["do_lower_case"]
        path.write_text(json.dumps(config))
        return found

    encoders = {
        make.__name__: load_encoder(
            with_tokenizer(saved("siglip"), tmp_path / make.__name__, make)[0]
        )
        for make in (gemma, cased, silent)
    }
    same = {
        name: torch.allclose(*e.encode_texts(["A Dog", "a dog"]), atol=1e-6)
        for name, e in encoders.items()
    }
    assert same == {"gemma": True, "cased": False, "silent": True}
    assert encoders["gemma"].fingerprint == encoders["silent"].fingerprint
    assert encoders["gemma"].fingerprint != encoders["cased"].fingerprint


def test_siglip_that_keeps_capitals_is_another_function(saved, tmp_path):
    folder, _ = with_tokenizer(saved("siglip"), tmp_path / "model", siglip)
    first = load_encoder(folder).fingerprint
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_lower_case": False}))
    assert load_encoder(folder).fingerprint != first


def test_a_missing_package_is_told_whole(saved, tmp_path, monkeypatch):
    """The cause must not be cut at the end of the first line."""
    import transformers

    message = (
        "SiglipTokenizer requires SentencePiece, which was not found in\nyour environment. Do this."
    )

    def fail(*_, **__):
        raise ImportError("\n" + message)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(EncoderError, match=r"not found in your environment\. Do this"):
        load_encoder(saved("siglip"))


def test_t5_tokenizer_of_open_clip(saved, tmp_path):
    """timm/ViT-*-SigLIP: a model of open_clip whose folder holds a tokenizer of transformers."""
    folder = shutil.copytree(saved("open_clip_siglip"), tmp_path / "model")
    model = pieces(folder, "spiece.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    write(folder, "tokenizer_config.json", tokenizer_class="T5Tokenizer", extra_ids=0)
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"] |= {
        "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
        "tokenizer_kwargs": {"clean": "canonicalize"},
    }
    path.write_text(json.dumps(config))
    encoder = load_encoder(folder)
    assert type(encoder.tokenizer.tokenizer).__name__ == "T5Tokenizer"
    row = [*model.encode("a golden cat"), 1]
    assert encoder.tokenize([PROMPT])["input_ids"][0].tolist() == row
    encoder.save(tmp_path / "saved")
    again = load_encoder(tmp_path / "saved")
    torch.testing.assert_close(again.encode_texts([PROMPT]), encoder.encode_texts([PROMPT]))
    assert again.fingerprint == encoder.fingerprint
