"""Train the shipped tiny teacher from scratch: `python scripts/train_teacher.py --out FOLDER`.

Legend: B rows, T tokens. A 200-step warm-up on copying makes induction heads form; then the
difficulty of the problems grows linearly until the middle of the run. Rows are packed with whole
documents; an attention mask keeps them apart. Continues from `FOLDER/training.pt` if it exists.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hybridize import tasks
from hybridize.tasks.kinds import KINDS
from hybridize.tasks.words import ASSISTANT, BOS, EOS, LETTERS, NOUNS, PAD, THINK, USER, VOCABULARY

CONFIG = LlamaConfig(
    vocab_size=176,
    hidden_size=128,
    intermediate_size=352,
    num_hidden_layers=12,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=2048,
    rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    bos_token_id=VOCABULARY.index(BOS),
    eos_token_id=VOCABULARY.index(EOS),
    pad_token_id=VOCABULARY.index(PAD),
)
CHAT_TEMPLATE = (
    f"{BOS}{{% for message in messages %}}{{% if message.role == 'user' %}} {USER} "
    f"{{{{ message.content }}}}{{% else %}} {ASSISTANT} {THINK} {{{{ message.content }}}}"
    f" {EOS}{{% endif %}}{{% endfor %}}"
    f"{{% if add_generation_prompt %}} {ASSISTANT} {THINK}{{% endif %}}"
)
WORD_IDS = {word: index for index, word in enumerate(VOCABULARY)}
SHORT_ROW, LONG_ROW = 256, 1024
LONG_EVERY = 3
TEXT_SHARE = 0.04
COPY_STEPS = 200
EXTRA, EXTRA_FROM = ["edit"] * 3, 0.75
"""The last quarter of the run gives the kind that is learned last four times its share."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the word-level tokenizer of the closed vocabulary."""
    core = Tokenizer(models.WordLevel(WORD_IDS, unk_token=PAD))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=BOS, eos_token=EOS, pad_token=PAD, padding_side="left"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def draw_document(rng: Random, row_tokens: int, progress: float) -> tuple[list[str], int]:
    """Return the words of one training document and the number of leading words without loss."""
    index = rng.getrandbits(60)
    if rng.random() < TEXT_SHARE:
        return tasks.make_text(seed=1, index=index).split()[:row_tokens], 1
    kinds = list(KINDS) + (EXTRA if progress >= EXTRA_FROM else [])
    kind = "recall" if row_tokens == LONG_ROW else rng.choice(kinds)
    highest = KINDS[kind].max_difficulty
    level = rng.randint(1, max(1, min(highest, 1 + round(2 * progress * highest))))
    problem = tasks.make(kind, seed=1, index=index, difficulty=level)
    prompt = problem.prompt_text.split()
    return prompt + problem.completion_text.split(), len(prompt)


def draw_copy(rng: Random) -> tuple[list[str], int]:
    """Return random words and the same words again; the loss is on the second half."""
    words = [rng.choice(LETTERS + NOUNS) for _ in range(rng.randint(8, 60))]
    return [BOS, *words, THINK, *words, EOS], len(words) + 2


def draw_row(rng: Random, row_tokens: int, step: int, progress: float) -> tuple[list[int], ...]:
    """Fill one row with documents; return its token ids, document numbers and loss mask."""
    ids: list[int] = []
    segments: list[int] = []
    counted: list[int] = []
    misses = 0
    while misses < 6 and len(ids) < row_tokens - 24:
        words, free = (
            draw_copy(rng) if step < COPY_STEPS else draw_document(rng, row_tokens, progress)
        )
        if len(ids) + len(words) > row_tokens:
            misses += 1
            continue
        segments += [max(segments, default=0) + 1] * len(words)
        counted += [0] * free + [1] * (len(words) - free)
        ids += [WORD_IDS[word] for word in words]
    padding = [0] * (row_tokens - len(ids))
    return ids + padding, segments + padding, counted + padding


def draw_batch(seed: int, step: int, tokens_per_step: int, progress: float) -> tuple[Tensor, ...]:
    """Return ids_BT, positions_BT, mask_B1TT and targets_BT (-100 where no loss is taken)."""
    long_rows = step >= COPY_STEPS and step % LONG_EVERY == 0
    row_tokens = LONG_ROW if long_rows else SHORT_ROW
    rng = Random(f"{seed}/{step}")
    rows = [draw_row(rng, row_tokens, step, progress) for _ in range(tokens_per_step // row_tokens)]
    ids_BT, segments_BT, counted_BT = (torch.tensor(part) for part in zip(*rows, strict=True))
    causal_TT = torch.ones(row_tokens, row_tokens, dtype=torch.bool).tril()
    mask_BTT = causal_TT & (segments_BT[:, :, None] == segments_BT[:, None, :])
    places_T = torch.arange(row_tokens)
    starts_BT = torch.cat(
        [torch.ones(len(rows), 1, dtype=torch.bool), segments_BT[:, 1:] != segments_BT[:, :-1]], 1
    )
    positions_BT = places_T - (places_T * starts_BT).cummax(1).values
    targets_BT = torch.where(counted_BT.bool(), ids_BT, -100).roll(-1, 1)
    targets_BT[:, -1] = -100
    return ids_BT, positions_BT, mask_BTT[:, None], targets_BT


def build_optimizers(model: LlamaForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    """Give hidden matrices to Muon and the embedding, head and norms to AdamW."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "layers" not in n]
    return [
        torch.optim.Muon(
            matrices, lr=lr, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


@torch.no_grad()
def measure_accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, num_problems: int, offset: int = 0
) -> dict[str, float]:
    """Return the share of right generated answers on held-out problems, per kind."""
    scores = {}
    for kind in KINDS:
        problems = [
            tasks.make(kind, seed=2, index=offset + index, split="heldout")
            for index in range(num_problems)
        ]
        problems.sort(key=lambda problem: len(problem.prompt))
        right = 0
        for first in range(0, num_problems, 50):
            part = problems[first : first + 50]
            inputs = tokenizer(
                [p.prompt_text for p in part],
                padding=True,
                return_tensors="pt",
                return_token_type_ids=False,
            )
            longest = max(len(p.completion_text.split()) for p in part)
            output = model.generate(**inputs, max_new_tokens=longest + 8, do_sample=False)
            texts = tokenizer.batch_decode(output[:, inputs.input_ids.shape[1] :])
            right += sum(
                tasks.read_answer(text) == p.answer for text, p in zip(texts, part, strict=True)
            )
        scores[kind] = right / num_problems
    return scores


def train(options: argparse.Namespace) -> None:
    """Run or continue the training, then write the model folder."""
    torch.manual_seed(options.seed)
    torch.set_flush_denormal(True)  # small gradients underflow, and denormal numbers are slow
    torch.set_num_threads(options.threads)
    model, tokenizer = LlamaForCausalLM(CONFIG), build_tokenizer()
    optimizers = build_optimizers(model, options.lr)
    options.out.mkdir(parents=True, exist_ok=True)
    state_file, log_file = options.out / "training.pt", options.out / "training_log.jsonl"
    step, seconds = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        step, seconds = state["step"], state["seconds"]
        model.load_state_dict(state["model"])
        for optimizer, values in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
    backbone = torch.compile(model.model, dynamic=False)
    losses: list[float] = []
    started = time.monotonic() - seconds
    while step < options.steps:
        progress = step / options.steps
        lr = options.lr * min(1.0, (step + 1) / 50, max(0.02, (1 - progress) / 0.35))
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = lr
        ids, positions, mask, targets = draw_batch(
            options.seed, step, options.tokens_per_step, progress
        )
        with torch.autocast("cpu", torch.bfloat16):
            hidden_BTD = backbone(
                input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False
            ).last_hidden_state
        counted = targets != -100
        logits_V = model.lm_head(hidden_BTD[counted].float())
        loss = functional.cross_entropy(logits_V, targets[counted])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        losses.append(loss.item())
        step += 1
        if step % options.report_every and step < options.steps:
            continue
        record = {
            "step": step,
            "tokens": step * options.tokens_per_step,
            "loss": round(sum(losses) / len(losses), 4),
            "lr": round(lr, 6),
            "seconds": round(time.monotonic() - started),
            "accuracy": measure_accuracy(model, tokenizer, options.problems),
        }
        losses = []
        with log_file.open("a") as log:
            log.write(json.dumps(record) + "\n")
        print(json.dumps(record), flush=True)
        torch.save(
            {
                "step": step,
                "seconds": time.monotonic() - started,
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            },
            state_file,
        )
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    checksum = hashlib.sha256((options.out / "model.safetensors").read_bytes()).hexdigest()
    (options.out / "model.safetensors.sha256").write_text(checksum + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--tokens-per-step", type=int, default=8192)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--report-every", type=int, default=200)
    parser.add_argument("--problems", type=int, default=50)
    train(parser.parse_args())
