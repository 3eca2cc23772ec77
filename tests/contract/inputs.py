"""Ways in which a model folder is broken, each made from a whole one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from hf_warmscale.checkpoints.files import (
    ADAPTER_CONFIG,
    ADAPTER_FILE,
    CONFIG_FILE,
    INDEX_FILE,
    PICKLED_FILE,
    SINGLE_FILE,
)
from tests.cli.workspace import make_tokenizer

MATRIX = "model.layers.0.mlp.up_proj.weight"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def change_config(folder: Path, **changes: Any) -> None:
    """Set entries of the config."""
    path = folder / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Write the weights anew."""
    path = folder / SINGLE_FILE
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def no_config(folder: Path) -> None:
    (folder / CONFIG_FILE).unlink()


def damaged_config(folder: Path) -> None:
    path = folder / CONFIG_FILE
    path.write_text(path.read_text()[:60])


def text_for_a_number(folder: Path) -> None:
    change_config(folder, hidden_size="many")


def truncated(folder: Path) -> None:
    path = folder / SINGLE_FILE
    path.write_bytes(path.read_bytes()[:-100])


def empty_weights(folder: Path) -> None:
    (folder / SINGLE_FILE).write_bytes(b"")


def lfs_pointer(folder: Path) -> None:
    (folder / SINGLE_FILE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")


def missing_weights(folder: Path) -> None:
    (folder / SINGLE_FILE).unlink()


def pickled_weights(folder: Path) -> None:
    torch.save(load_file(folder / SINGLE_FILE), folder / PICKLED_FILE)
    (folder / SINGLE_FILE).unlink()


def foreign_weights(folder: Path) -> None:
    change_tensors(folder, lambda tensors: {f"transformer.h.0.{index}": torch.ones(4) for index in range(3)})


def single_file_beside_an_index(folder: Path) -> None:
    shard = "model-00001-of-00001.safetensors"
    shutil.copy(folder / SINGLE_FILE, folder / shard)
    names = dict.fromkeys(load_file(folder / shard), shard)
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": names}))


def index_of_absent_files(folder: Path) -> None:
    names = dict.fromkeys(load_file(folder / SINGLE_FILE), "model-00001-of-00001.safetensors")
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (folder / SINGLE_FILE).unlink()


def nan(folder: Path) -> None:
    def poisoned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors[MATRIX][1, 2] = torch.nan
        return tensors

    change_tensors(folder, poisoned)


def float8_without_scales(folder: Path) -> None:
    change_tensors(folder, lambda tensors: {**tensors, MATRIX: tensors[MATRIX].to(torch.float8_e4m3fn)})


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
BITSANDBYTES = {"quant_method": "bitsandbytes", "load_in_8bit": True}


def gptq(folder: Path) -> None:
    def quantized(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        rows, columns = tensors.pop(MATRIX).shape
        stem = MATRIX.removesuffix("weight")
        return {**tensors, f"{stem}qweight": torch.ones(columns // 8, rows, dtype=torch.int32)}

    change_tensors(folder, quantized)
    change_config(folder, quantization_config=GPTQ)


def gptq_entry_alone(folder: Path) -> None:
    change_config(folder, quantization_config=GPTQ)


def bitsandbytes(folder: Path) -> None:
    change_tensors(folder, lambda tensors: {**tensors, MATRIX: tensors[MATRIX].to(torch.int8)})
    change_config(folder, quantization_config=BITSANDBYTES)


def bitsandbytes_entry_alone(folder: Path) -> None:
    change_config(folder, quantization_config=BITSANDBYTES)


def tied_over_two_tensors(folder: Path) -> None:
    change_config(folder, tie_word_embeddings=True)


def missing_head(folder: Path) -> None:
    change_tensors(folder, lambda tensors: {name: value for name, value in tensors.items() if name != HEAD})


def a_layer_too_many(folder: Path) -> None:
    change_config(folder, num_hidden_layers=1)


def an_adapter(folder: Path) -> None:
    empty(folder)
    (folder / ADAPTER_CONFIG).write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "base"}))
    save_file({"base_model.model.lm_head.lora_A.weight": torch.ones(2, 2)}, folder / ADAPTER_FILE)


def a_gguf(folder: Path) -> None:
    empty(folder)
    (folder / "model-Q4_K_M.gguf").write_bytes(b"GGUF" + bytes(60))


def a_composite(folder: Path) -> None:
    """Text and vision: the text model is one part of it."""
    text = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=299)
    for path in (folder / CONFIG_FILE, folder / SINGLE_FILE):
        path.unlink()
    torch.manual_seed(0)
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)


def another_tokenizer(folder: Path) -> None:
    """As many tokens, in another order."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    plain = sorted(vocabulary.items(), key=lambda item: item[1])[-20:]
    vocabulary |= {token: number for (token, _), (_, number) in zip(plain, reversed(plain), strict=True)}
    path.write_text(json.dumps(content))


def ids_beyond_the_table(folder: Path) -> None:
    """The tokenizer knows more tokens than the embedding has rows."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<extra {number}>" for number in range(400)] + ["sword", "human", "rose"])
    tokenizer.save_pretrained(folder)


def no_tokenizer(folder: Path) -> None:
    for path in (*folder.glob("tokenizer*"), *folder.glob("special_tokens_map*")):
        path.unlink()


CONFIGS: dict[str, Callable[[Path], None]] = {
    "empty folder": empty,
    "no config": no_config,
    "damaged JSON": damaged_config,
    "text for a number": text_for_a_number,
    "adapter folder": an_adapter,
    "GGUF": a_gguf,
    "composite": a_composite,
}
"""What a verb that reads the config alone can see."""

WEIGHTS: dict[str, Callable[[Path], None]] = {
    "truncated weights": truncated,
    "empty weights": empty_weights,
    "LFS pointer": lfs_pointer,
    "missing weights": missing_weights,
    "pickled weights": pickled_weights,
    "foreign weights": foreign_weights,
    "single file beside an index": single_file_beside_an_index,
    "index of absent files": index_of_absent_files,
    "NaN": nan,
    "float8 without scales": float8_without_scales,
    "GPTQ": gptq,
    "GPTQ entry alone": gptq_entry_alone,
    "bitsandbytes": bitsandbytes,
    "bitsandbytes entry alone": bitsandbytes_entry_alone,
    "tied flag over two tensors": tied_over_two_tensors,
    "missing head": missing_head,
    "a layer too many": a_layer_too_many,
}

TOKENIZERS: dict[str, Callable[[Path], None]] = {
    "another tokenizer": another_tokenizer,
    "ids beyond the table": ids_beyond_the_table,
    "no tokenizer": no_tokenizer,
}

FOLDERS = CONFIGS | WEIGHTS | TOKENIZERS
NAMES = {"id@revision": "org/model@step1000", "no network": "org/model"}
"""Names that can only be on the Hub, which cannot be reached."""

OUTPUTS = ("read-only output", "full disk", "output not empty")
INPUTS = (*FOLDERS, *NAMES, *OUTPUTS)
