"""Language models of a few thousand random weights, saved as the folders harvest.py reads."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

LAYERS, WIDTH, NEURONS, HEADS = 3, 32, 48, 4
SHAPE = dict(hidden_size=WIDTH, intermediate_size=NEURONS, num_hidden_layers=LAYERS,
             num_attention_heads=HEADS, max_position_embeddings=64)
GROUPED = SHAPE | dict(num_key_value_heads=2)
HEAD_DIM = GROUPED | dict(head_dim=8)

WORDS = ("the a tree river stone bird light quiet green under over walks sleeps finds one two of "
         "and to in small old wind water night morning").split()

# name -> (model_type, config fields)
FAMILIES = {
    "gpt2": ("gpt2", dict(n_embd=WIDTH, n_inner=NEURONS, n_layer=LAYERS, n_head=HEADS,
                          n_positions=64)),
    "gpt_neo": ("gpt_neo", dict(hidden_size=WIDTH, intermediate_size=NEURONS, num_layers=LAYERS,
                                num_heads=HEADS, max_position_embeddings=64, window_size=8,
                                attention_types=[[["global"], 1], [["local"], 1],
                                                 [["global"], 1]])),
    "gpt_neox": ("gpt_neox", SHAPE),
    "gpt_neox_sequential": ("gpt_neox", SHAPE | dict(use_parallel_residual=False)),
    "llama": ("llama", GROUPED),
    "gptj": ("gptj", dict(n_embd=WIDTH, n_inner=NEURONS, n_layer=LAYERS, n_head=HEADS,
                          n_positions=64, rotary_dim=8)),
    "phi": ("phi", SHAPE),
    "phi3": ("phi3", GROUPED | dict(pad_token_id=0)),
    "stablelm": ("stablelm", GROUPED | dict(use_parallel_residual=True)),
    "stablelm_sequential": ("stablelm", GROUPED),
    "mistral": ("mistral", GROUPED),
    "qwen2": ("qwen2", GROUPED),
    "qwen3": ("qwen3", HEAD_DIM),
    "smollm3": ("smollm3", GROUPED | dict(pad_token_id=0)),
    "gemma": ("gemma", HEAD_DIM),
    "gemma2": ("gemma2", HEAD_DIM),
    "gemma3_text": ("gemma3_text", HEAD_DIM),
    "olmo": ("olmo", GROUPED),
    "olmo2": ("olmo2", GROUPED),
}
PARALLEL = ("gpt_neox", "gptj", "phi", "stablelm")


def stories(count: int, seed: int = 0) -> list[str]:
    """Documents of 5 to 120 random words."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(5, 120, (count,), generator=generator).tolist()
    return [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=generator))
            for n in lengths]


def save_tokenizer(folder: Path) -> int:
    """A byte-level BPE tokenizer trained on the spot; returns its vocabulary's size."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(stories(50, seed=1), trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    ).save_pretrained(folder)
    return tokenizer.get_vocab_size()


def make_model(folder: Path, name: str) -> Path:
    """Saves a random model of FAMILIES[name] and its tokenizer."""
    vocabulary = save_tokenizer(folder)
    model_type, fields = FAMILIES[name]
    config = transformers.AutoConfig.for_model(
        model_type, vocab_size=vocabulary, bos_token_id=0, eos_token_id=0, **fields)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # far from the tiny usual weights, so that a wrong tensor is far off too
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    return folder


def write_text(path: Path, documents: list[str]) -> Path:
    path.write_text("<|endoftext|>".join(documents))
    return path
