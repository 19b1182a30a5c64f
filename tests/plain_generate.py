"""最朴素的写诗：每一步都把全部 token 重新前向一遍，没有缓存，没有批。writing/ 的对照。"""

from __future__ import annotations

import math

import torch

from writing import sample
from writing.vocabulary import is_mark, visible


@torch.no_grad()
def generate(model, tok, ids: list, options, asked: tuple = ()) -> list:
    """写出的 token，不含结束符；asked 是重复惩罚要从提问里算上的。"""
    limit, stops = model.config.max_seq_len, (tok.end_id, tok.pad_id)
    uniforms = sample.Uniforms(options.seed or 0)
    table = [tok.token_bytes(token) for token in range(tok.vocab_size)]
    context, out = list(ids), []

    def counted(tokens):
        wanted = [
            t for t in tokens if table[t] and (options.penalize_marks or not is_mark(table[t]))
        ]
        return torch.tensor([sorted(set(wanted))], dtype=torch.long)

    room = options.max_new_tokens
    if options.context == "stop":
        room = min(room, limit - len(ids))
    while len(out) < options.max_new_tokens:
        if options.context == "stop" and len(context) >= limit:
            break
        if len(context) > limit:  # 写满了：提问与诗的后一半
            context = [*ids, *out[-max(1, (limit - len(ids)) // 2) :]]
        logits = model(torch.tensor([context]))[:, -1].float()
        raw, seen = logits.clone(), counted([*asked, *out])
        if seen.numel():
            sample.penalize_repeats(logits, seen, options.repetition_penalty)
        for token in counted(out)[0].tolist():
            logits[0, token] -= options.presence_penalty
            logits[0, token] -= options.frequency_penalty * out.count(token)
        banned = sample.repeated_ngrams(out, options.no_repeat_ngram)
        if len(out) < options.min_new_tokens:
            banned.update(stops)
        if not visible(b"".join(table[t] for t in out)):  # 不许交白卷
            banned.update(stops)
            banned.update(t for t, data in enumerate(table) if b"\n" in data or b"\r" in data)
        logits[0, list(banned)] = -torch.inf
        picked = {n: getattr(options, n) for n in ("temperature", "top_k", "top_p", "min_p")}
        uniform = torch.tensor([uniforms.next()])
        if options.steady_marks and options.temperature > 0:
            marks = torch.tensor([t for t, data in enumerate(table) if is_mark(data)])
            chances = raw.softmax(-1)
            chances[0, tok.end_id] *= math.exp(sample.closing(room - len(out)))
            token = int(sample.steady_pick(logits, chances[:, marks], marks, uniform, **picked))
        else:
            token = int(sample.pick(logits, uniform, **picked))
        if token in stops:
            break
        out.append(token)
        context.append(token)
    return out
