"""A tiny model, tokenizer and source of rows, for tests of training alone."""

import torch
from torch import nn

from hybridize.core.artifacts import hash_json
from hybridize.tasks.words import EOS, VOCABULARY
from hybridize.training.data import Row

NUM_WORDS = len(VOCABULARY)


class TinyMixer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.in_proj = nn.Linear(width, width, bias=False)
        self.A_log = nn.Parameter(torch.zeros(width, 2))
        self.conv_weight = nn.Parameter(torch.ones(width, 3) / 3)
        self.dt_bias = nn.Parameter(torch.zeros(width))

    def forward(self, hidden_BTD, same_BT1):
        previous_BTD = torch.roll(hidden_BTD, 1, 1) * same_BT1
        weight_3D = self.conv_weight.T + self.A_log.sum() * 0
        mixed_BTD = hidden_BTD * weight_3D[0] + previous_BTD * weight_3D[1]
        return self.in_proj(mixed_BTD + self.dt_bias)


class TinyLayer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mixer = TinyMixer(width)
        wide = 2 * width
        self.mlp = nn.Sequential(nn.Linear(width, wide), nn.SiLU(), nn.Linear(wide, width))

    def forward(self, hidden_BTD, same_BT1):
        hidden_BTD = hidden_BTD + self.mixer(self.norm(hidden_BTD), same_BT1)
        return hidden_BTD + self.mlp(hidden_BTD)


class TinyModel(nn.Module):
    """Predicts from the token and the one before it, in the same document."""

    def __init__(self, seed=0, vocab=NUM_WORDS, width=12, layers=2, dropout=0.0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embed = nn.Embedding(vocab, width)
            self.layers = nn.ModuleList(TinyLayer(width) for _ in range(layers))
            self.dropout = nn.Dropout(dropout)
            self.lm_head = nn.Linear(width, vocab, bias=False)
        self.register_buffer("calls", torch.zeros(1))

    def hidden(self, input_ids, segments=None):
        hidden_BTD = self.embed(input_ids)
        same_BT1 = torch.ones_like(input_ids)[..., None]
        if segments is not None:
            same_BT1 = (segments == torch.roll(segments, 1, 1))[..., None]
        self.calls += 1
        for layer in self.layers:
            hidden_BTD = self.dropout(layer(hidden_BTD, same_BT1))
        return hidden_BTD


class WordTokenizer:
    """Looks words up, <pad> for others; counts its calls, since tokenising has to happen once."""

    eos_token_id = VOCABULARY.index(EOS)
    chat_template = "words"

    def __init__(self):
        self.calls = 0

    def get_vocab(self):
        return {word: index for index, word in enumerate(VOCABULARY)}

    def __call__(self, text, *, add_special_tokens=True):
        self.calls += 1
        ids = [VOCABULARY.index(word) if word in VOCABULARY else 0 for word in text.split()]
        return {"input_ids": [VOCABULARY.index("<bos>"), *ids] if add_special_tokens else ids}

    def apply_chat_template(self, messages, *, tokenize, add_generation_prompt):
        text = "<bos>"
        for entry in messages:
            text += f" <{entry['role']}> {entry['content']} <eos>"
        return text + (" <assistant>" if add_generation_prompt else "")


class RandomRows:
    """Rows of random tokens in two documents; rows named in `poison` hold an unknown token."""

    rows_per_pass = None

    def __init__(self, seed=0, sequence_length=16, vocab=NUM_WORDS, poison=()):
        self.sequence_length, self.vocab, self.seed = sequence_length, vocab, seed
        self.poison = poison
        self.identity = {"kind": "random", "seed": seed, "sequence_length": sequence_length}

    def row(self, index):
        make = torch.Generator().manual_seed(int(hash_json([self.seed, index])[:12], 16))
        length = self.sequence_length
        ids_T = torch.randint(self.vocab, (length,), generator=make)
        segments_T = 1 + (torch.arange(length) >= length // 3).long()
        mask_T = torch.rand(length, generator=make) < 0.7
        mask_T[0] = mask_T[length // 3] = False
        mask_T[-1] = True
        return Row(ids_T, segments_T, mask_T)
