"""Write tiny random EAGLE heads in the published layouts, and what they say by plain torch.

Run in an environment of its own that has torch, transformers and safetensors:
    python tests/parity/make_eagle_goldens.py
The target is goldens/llama, run by transformers. The heads follow the published formulas: EAGLE
takes fc([embedding; feature]) through a layer without an input norm and shares the target's head;
EAGLE-3 takes fc([three features]), a layer over [norm(embedding); norm(hidden)], a norm and a head
of its own vocabulary. Attention is written out here, on whole sequences, without any cache.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from safetensors.torch import save_file

HERE = Path(__file__).parent
D, HEADS, KV, E, F, VOCAB, DRAFT = 64, 4, 2, 16, 96, 160, 100
EPS, THETA, TOKENS, GUESSES = 1e-6, 10000.0, 40, 4
TAPS = (0, 1, 2)
CONFIG = dict(
    hidden_size=D, intermediate_size=F, num_attention_heads=HEADS, num_key_value_heads=KV,
    head_dim=E, num_hidden_layers=1, vocab_size=VOCAB, max_position_embeddings=256,
    rms_norm_eps=EPS, rope_theta=THETA, hidden_act="silu", model_type="llama",
)  # fmt: skip


def norm(x, weight):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * weight


def rotate(x, positions):
    inv = THETA ** (-torch.arange(0, E, 2).float() / E)
    angles = positions[:, None].float() * inv[None, :]
    cos, sin = angles.cos().repeat(1, 2)[:, None], angles.sin().repeat(1, 2)[:, None]
    half = torch.cat([-x[..., E // 2 :], x[..., : E // 2]], -1)
    return x * cos + half * sin


def attend(w, x):
    """Causal attention of a sequence on itself; position = row."""
    n, places = len(x), torch.arange(len(x))
    q = rotate((x @ w["self_attn.q_proj.weight"].T).view(n, HEADS, E), places)
    k = rotate((x @ w["self_attn.k_proj.weight"].T).view(n, KV, E), places)
    v = (x @ w["self_attn.v_proj.weight"].T).view(n, KV, E)
    k, v = (part.repeat_interleave(HEADS // KV, 1) for part in (k, v))
    scores = torch.einsum("qhe,khe->hqk", q, k) * E**-0.5
    scores = scores.masked_fill(places[None, None, :] > places[None, :, None], float("-inf"))
    out = torch.einsum("hqk,khe->qhe", scores.softmax(-1), v).reshape(n, HEADS * E)
    return out @ w["self_attn.o_proj.weight"].T


def mlp(w, x):
    gate = torch.nn.functional.silu(x @ w["mlp.gate_proj.weight"].T)
    return (gate * (x @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T


class Eagle:
    """stream(features or own outputs, next embeddings) -> the stream after the layer."""

    def __init__(self, tensors, target):
        self.t, self.target = tensors, target
        self.w = {k.removeprefix("layers.0."): v for k, v in tensors.items() if "layers.0." in k}

    def fuse(self, features):
        return features

    def stream(self, hidden, embeds):
        x = torch.cat([embeds, hidden], -1) @ self.t["fc.weight"].T + self.t["fc.bias"]
        x = x + attend(self.w, x)
        return x + mlp(self.w, norm(x, self.w["post_attention_layernorm.weight"]))

    def logits(self, x):
        return x @ self.target.lm_head.weight.T

    def ids(self, picks):
        return picks

    def embed(self, ids):
        return self.target.model.embed_tokens(ids)


class Eagle3(Eagle):
    def __init__(self, tensors, target, before):
        super().__init__(tensors, target)
        self.w |= {k.removeprefix("midlayer."): v for k, v in tensors.items() if "midlayer." in k}
        self.before = before

    def fuse(self, features):
        return features @ self.t["fc.weight"].T

    def stream(self, hidden, embeds):
        first = norm(embeds, self.w["input_layernorm.weight"])
        second = norm(hidden, self.w["hidden_norm.weight"])
        rest = second if self.before else hidden
        x = rest + attend(self.w, torch.cat([first, second], -1))
        return x + mlp(self.w, norm(x, self.w["post_attention_layernorm.weight"]))

    def logits(self, x):
        head = self.t.get("lm_head.weight", self.target.lm_head.weight)
        return norm(x, self.t["norm.weight"]) @ head.T

    def ids(self, picks):
        return picks + self.t["d2t"][picks] if "d2t" in self.t else picks

    def embed(self, ids):
        own = self.t.get("embed_tokens.weight")
        return self.target.model.embed_tokens(ids) if own is None else own[ids]


def random_layer(prefix, width):
    def matrix(*shape):
        return torch.randn(shape) * 0.15

    return {
        f"{prefix}self_attn.q_proj.weight": matrix(HEADS * E, width),
        f"{prefix}self_attn.k_proj.weight": matrix(KV * E, width),
        f"{prefix}self_attn.v_proj.weight": matrix(KV * E, width),
        f"{prefix}self_attn.o_proj.weight": matrix(D, HEADS * E),
        f"{prefix}mlp.gate_proj.weight": matrix(F, D),
        f"{prefix}mlp.up_proj.weight": matrix(F, D),
        f"{prefix}mlp.down_proj.weight": matrix(D, F),
        f"{prefix}post_attention_layernorm.weight": 1 + 0.3 * torch.randn(D),
    }


def heads(target):
    """(folder, config, tensors, class) of each layout."""

    def matrix(*shape):
        return torch.randn(shape) * 0.15

    eagle = {"fc.weight": matrix(D, 2 * D), "fc.bias": matrix(D), **random_layer("layers.0.", D)}
    yield "eagle", {"architectures": ["EagleLlamaForCausalLM"], **CONFIG}, eagle, Eagle

    def eagle3(prefix):
        return {
            "fc.weight": matrix(D, 3 * D), **random_layer(prefix, 2 * D),
            f"{prefix}input_layernorm.weight": 1 + 0.3 * torch.randn(D),
            f"{prefix}hidden_norm.weight": 1 + 0.3 * torch.randn(D),
            "norm.weight": 1 + 0.3 * torch.randn(D),
        }  # fmt: skip

    own = torch.sort(torch.randperm(VOCAB)[:DRAFT]).values
    tensors = eagle3("midlayer.")
    tensors["lm_head.weight"] = matrix(DRAFT, D)
    tensors["d2t"] = own - torch.arange(DRAFT)
    tensors["t2d"] = torch.isin(torch.arange(VOCAB), own)
    taps = {"eagle_aux_hidden_state_layer_ids": list(TAPS)}
    config = {
        "architectures": ["LlamaForCausalLMEagle3"], **CONFIG, **taps, "draft_vocab_size": DRAFT,
    }  # fmt: skip
    yield "eagle3", config, tensors, lambda t, m: Eagle3(t, m, before=False)
    tensors = eagle3("layers.0.")
    tensors["embed_tokens.weight"] = matrix(VOCAB, D)
    config = {
        "architectures": ["Eagle3Speculator"], "speculators_model_type": "eagle3", **taps,
        "transformer_layer_config": CONFIG, "draft_vocab_size": VOCAB,
        "speculators_config": {"algorithm": "eagle3", "verifier": {"name_or_path": "tiny"}},
    }  # fmt: skip
    yield "speculators", config, tensors, lambda t, m: Eagle3(t, m, before=True)


def main() -> None:
    target = hf.LlamaForCausalLM.from_pretrained(HERE / "goldens/llama", dtype=torch.float32)
    target.eval()
    torch.manual_seed(7)
    ids = torch.randint(3, VOCAB, (TOKENS,))
    with torch.no_grad():
        out = target(ids[None], output_hidden_states=True)
        # The last entry of hidden_states is behind the last norm, which is EAGLE's feature.
        streams = [h[0] for h in out.hidden_states]
        newest = out.logits[0, -1].argmax()
        for name, config, tensors, make in heads(target):
            tensors = {
                k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in tensors.items()
            }
            head = make(
                {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}, target
            )
            taps = [streams[i] for i in TAPS] if name != "eagle" else [streams[-1]]
            fed = torch.cat([ids[1:], newest[None]])
            hidden = head.fuse(torch.cat(taps, -1))
            logits = head.logits(head.stream(hidden, head.embed(fed)))
            guesses = []
            for _ in range(GUESSES):
                after = head.stream(hidden, head.embed(fed))[-1:]
                guesses.append(head.ids(head.logits(after)[-1].argmax()))
                hidden, fed = torch.cat([hidden, after]), torch.cat([fed, guesses[-1][None]])
            folder = HERE / "eagle" / name
            folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
            (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
            np.savez_compressed(
                folder / "expected.npz", ids=ids.numpy(), newest=newest.numpy(),
                logits=logits.numpy(), guesses=torch.stack(guesses).numpy(),
            )  # fmt: skip
            print(name, newest.item(), [g.item() for g in guesses])


if __name__ == "__main__":
    main()
