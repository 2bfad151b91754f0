"""The programs that tui-chat is measured against, on the same weights: transformers, llama.cpp (by
way of xllamacpp) and the loop without a cache that training repositories sample with.

None is a dependency: whoever wants to see them installs transformers, xllamacpp, numpy and gguf
beside tui-chat, and the benchmarks find them. What is missing is left out, and said. Each peer is
set up the way that is fastest for it.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from common import Shape, Weights, torch
from torch.nn import functional as F

NEEDS = {
    "transformers": ("transformers",),
    "llama.cpp": ("xllamacpp", "gguf", "numpy"),
}


class Round(NamedTuple):
    """One prompt read and continued."""

    first: float  # seconds from the prompt to the first token
    token: float  # seconds for each token behind it
    first_cpu: float  # the same in seconds of the processor, which neighbours hardly change
    token_cpu: float
    ids: list[int]  # the tokens written


class Clock:
    """Time on the wall, and of the processor in all threads."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def passed(self) -> tuple[float, float]:
        """Seconds since it was made."""
        return time.perf_counter() - self._began[0], time.process_time() - self._began[1]


Way = Callable[[Sequence[int], int], Round]  # (prompt, how many tokens behind the first)


def there(name: str) -> str:
    """Why a peer cannot be measured; "" if it can."""
    for module in NEEDS[name]:
        try:
            importlib.import_module(module)
        except ImportError as error:
            return f"{name} is left out: {error}"
    return ""


def versions() -> dict[str, str]:
    """Of the peers that are there, and the instructions that llama.cpp was built with: a build for
    this very processor may be faster than a wheel for many.
    """
    found = {}
    for name in ("transformers", "xllamacpp"):
        try:
            found[name] = str(importlib.import_module(name).__version__)
        except ImportError:
            continue
    if "xllamacpp" in found:
        said = str(importlib.import_module("xllamacpp").get_system_info())
        flags = dict(re.findall(r"(\w+) = (\d)", said))
        found["llama.cpp built with"] = " ".join(name for name, on in flags.items() if on != "0")
    return found


def greedy(first: Callable[[Sequence[int]], Any], step: Callable[[int], Any]) -> Way:
    """The loop around a program that gives logits: `first` reads a prompt from nothing, `step` one
    token more."""

    def way(prompt: Sequence[int], count: int) -> Round:
        with torch.inference_mode():
            began = Clock()
            token = int(first(prompt).argmax())
            to_first = began.passed()
            read = Clock()
            ids = [token]
            for _ in range(count):
                token = int(step(token).argmax())
                ids.append(token)
            wall, cpu = (value / max(1, count) for value in read.passed())
            return Round(to_first[0], wall, to_first[1], cpu, ids)

    return way


# ---- without a cache


def uncached(shape: Shape, weights: Weights) -> Way:
    """The whole text through the model for each token, and the head for its last position, as
    nanoGPT's `generate` does."""
    spec, w = shape.spec, weights
    heads, dim = spec.n_head, spec.head_dim
    angles = None
    if not shape.like_gpt2:
        steps = spec.rope_theta ** (-torch.arange(0, dim, 2).float() / dim)
        turns = torch.outer(torch.arange(spec.context_length).float(), steps)
        angles = torch.cat([turns, turns], -1)

    def normed(x: Any, at: str) -> Any:
        if shape.like_gpt2:
            return F.layer_norm(x, x.shape[-1:], w[f"{at}.weight"], w[f"{at}.bias"], spec.norm_eps)
        return F.rms_norm(x, x.shape[-1:], w[f"{at}.weight"], spec.norm_eps)

    def linear(x: Any, at: str) -> Any:
        return F.linear(x, w[f"{at}.weight"], w.get(f"{at}.bias"))

    def turned(x: Any) -> Any:  # (heads, T, dim)
        if angles is None:
            return x
        left, right = x.chunk(2, -1)
        by = angles[: x.shape[1]]
        return x * by.cos() + torch.cat([-right, left], -1) * by.sin()

    def logits(ids: Sequence[int]) -> Any:
        x = w["embed.weight"][torch.tensor(ids)]
        if shape.like_gpt2:
            x = x + w["position.weight"][: len(ids)]
        for i in range(spec.n_layer):
            at = f"blocks.{i}"
            qkv = linear(normed(x, f"{at}.attn_norm"), f"{at}.attn.qkv")
            q, k, v = (part.view(-1, heads, dim).transpose(0, 1) for part in qkv.chunk(3, -1))
            mixed = F.scaled_dot_product_attention(
                turned(q)[None], turned(k)[None], v[None], is_causal=True
            )[0]
            x = x + linear(mixed.transpose(0, 1).reshape(len(ids), -1), f"{at}.attn.out")
            inner = normed(x, f"{at}.mlp_norm")
            if spec.gated:
                gate, up = linear(inner, f"{at}.mlp.gate_up").chunk(2, -1)
                inner = F.silu(gate) * up
            else:
                inner = F.gelu(linear(inner, f"{at}.mlp.up"), approximate="tanh")
            x = x + linear(inner, f"{at}.mlp.down")
        return linear(normed(x[-1:], "final_norm"), "embed" if "head.weight" not in w else "head")

    text: list[int] = []

    def first(prompt: Sequence[int]) -> Any:
        text[:] = prompt
        return logits(text)

    def step(token: int) -> Any:
        text.append(token)
        return logits(text)

    return greedy(first, step)


# ---- transformers


def hf_model(shape: Shape, weights: Weights) -> Any:
    """The shape as a module of transformers, with the same weights."""
    import transformers

    transformers.logging.set_verbosity_error()
    spec, tied = shape.spec, "head.weight" not in weights
    sample = weights["embed.weight"]
    if shape.like_gpt2:
        config: Any = transformers.GPT2Config(
            vocab_size=spec.vocab_size,
            n_positions=spec.context_length,
            n_embd=spec.n_embd,
            n_layer=spec.n_layer,
            n_head=spec.n_head,
            activation_function="gelu_pytorch_tanh",  # fused, where GPT-2's own name is not
            layer_norm_epsilon=spec.norm_eps,
            tie_word_embeddings=tied,
            attn_implementation="sdpa",
        )
        kind: Any = transformers.GPT2LMHeadModel
    else:
        config = transformers.LlamaConfig(
            vocab_size=spec.vocab_size,
            hidden_size=spec.n_embd,
            intermediate_size=shape.inner,
            num_hidden_layers=spec.n_layer,
            num_attention_heads=spec.n_head,
            max_position_embeddings=spec.context_length,
            rms_norm_eps=spec.norm_eps,
            tie_word_embeddings=tied,
            attn_implementation="sdpa",
        )
        kind = transformers.LlamaForCausalLM
    with torch.device(sample.device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(sample.dtype)
        try:
            model = kind(config).eval()
        finally:
            torch.set_default_dtype(before)
    state = _hf_state(shape, weights)
    missing, unknown = model.load_state_dict(state, strict=False)
    left = {name for name in missing if name != "lm_head.weight" or not tied}
    assert not left and not unknown, (left, unknown)
    return model


def _hf_state(shape: Shape, weights: Weights) -> Weights:
    """The weights by transformers' names; GPT-2's matrices lie (in, out) there."""
    spec, gpt = shape.spec, shape.like_gpt2
    names = (
        {
            "embed": "transformer.wte", "position": "transformer.wpe",
            "final_norm": "transformer.ln_f", "attn_norm": "ln_1", "attn.qkv": "attn.c_attn",
            "attn.out": "attn.c_proj", "mlp_norm": "ln_2", "mlp.up": "mlp.c_fc",
            "mlp.down": "mlp.c_proj",
        }
        if gpt
        else {
            "embed": "model.embed_tokens", "final_norm": "model.norm",
            "attn_norm": "input_layernorm", "attn.out": "self_attn.o_proj",
            "mlp_norm": "post_attention_layernorm", "mlp.down": "mlp.down_proj",
        }
    )  # fmt: skip
    names["head"] = "lm_head"
    found: Weights = {}
    for name, tensor in weights.items():
        part, kind = name.rsplit(".", 1)
        block = ""
        if part.startswith("blocks."):
            _, number, part = part.split(".", 2)
            block = f"transformer.h.{number}." if gpt else f"model.layers.{number}."
        if gpt and block and tensor.dim() == 2:
            tensor = tensor.t()
        if part == "attn.qkv" and not gpt:
            for letter, rows in zip("qkv", tensor.split(spec.n_embd), strict=True):
                found[f"{block}self_attn.{letter}_proj.{kind}"] = rows
        elif part == "mlp.gate_up":
            for which, rows in zip(("gate", "up"), tensor.chunk(2), strict=True):
                found[f"{block}mlp.{which}_proj.{kind}"] = rows
        else:
            found[f"{block}{names[part]}.{kind}"] = tensor
    return found


def hf(model: Any, length: int = 0, step: Callable[..., Any] | None = None) -> Way:
    """transformers with a cache that grows, or with a static one of `length` tokens; `step` is
    what computes a token, if not the model itself."""
    import transformers

    device = next(model.parameters()).device
    named = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    one: Callable[..., Any] = step or model
    kept: dict[str, Any] = {}

    def first(prompt: Sequence[int]) -> Any:
        if not length:
            kept[named] = transformers.DynamicCache(config=model.config)
        elif named in kept:
            kept[named].reset()  # what was captured for the old one's addresses stays right
        else:
            kept[named] = transformers.StaticCache(config=model.config, max_cache_len=length)
        ids = torch.tensor([list(prompt)], device=device)
        return model(ids, use_cache=True, logits_to_keep=1, **kept).logits[0, -1]

    token_row = torch.zeros(1, 1, dtype=torch.long, device=device)

    def next_one(token: int) -> Any:
        token_row.fill_(token)
        return one(token_row, use_cache=True, **kept).logits[0, -1]

    return greedy(first, next_one)


# ---- llama.cpp

KINDS = ("F32", "F16", "Q8_0")


def write_gguf(path: Path, shape: Shape, weights: Weights, kind: str) -> None:
    """The weights as GGUF, matrices in `kind`; what llama.cpp's converter keeps in float32 stays.
    The vocabulary is one of pieces nobody reads."""
    import gguf
    import numpy as np
    from gguf.quants import quantize

    spec = shape.spec
    arch = "gpt2" if shape.like_gpt2 else "llama"
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name("random")
    writer.add_context_length(spec.context_length)
    writer.add_embedding_length(spec.n_embd)
    writer.add_feed_forward_length(shape.inner)
    writer.add_block_count(spec.n_layer)
    writer.add_head_count(spec.n_head)
    writer.add_file_type(
        {
            "F32": gguf.LlamaFileType.ALL_F32,
            "F16": gguf.LlamaFileType.MOSTLY_F16,
            "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
        }[kind]
    )
    if shape.like_gpt2:
        writer.add_layer_norm_eps(spec.norm_eps)
    else:
        writer.add_head_count_kv(spec.n_kv_head)
        writer.add_layer_norm_rms_eps(spec.norm_eps)
        writer.add_rope_dimension_count(spec.head_dim)
        writer.add_rope_freq_base(spec.rope_theta)
    pieces = ["<unk>", "<s>", "</s>", "<0x0A>"]
    pieces += [f"piece{at}" for at in range(len(pieces), spec.vocab_size)]
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, gguf.TokenType.BYTE]
    kinds += [gguf.TokenType.NORMAL] * (spec.vocab_size - len(kinds))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([-float(at) for at in range(spec.vocab_size)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    wanted = gguf.GGMLQuantizationType[kind]
    for name, tensor in _gguf_tensors(shape, weights).items():
        numbers = tensor.contiguous().numpy()
        small = tensor.dim() == 1 or name == "position_embd.weight"
        if small or kind == "F32":
            writer.add_tensor(name, numbers)
        elif kind == "F16":
            writer.add_tensor(name, numbers.astype(np.float16))
        else:
            writer.add_tensor(name, quantize(numbers, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_tensors(shape: Shape, weights: Weights) -> Weights:
    names = {
        "embed": "token_embd", "position": "position_embd", "final_norm": "output_norm",
        "head": "output", "attn_norm": "attn_norm", "attn.qkv": "attn_qkv",
        "attn.out": "attn_output", "mlp_norm": "ffn_norm", "mlp.up": "ffn_up",
        "mlp.down": "ffn_down",
    }  # fmt: skip
    spec = shape.spec
    found: Weights = {}
    for name, tensor in weights.items():
        part, kind = name.rsplit(".", 1)
        block = ""
        if part.startswith("blocks."):
            _, number, part = part.split(".", 2)
            block = f"blk.{number}."
        if part == "attn.qkv" and not shape.like_gpt2:
            for letter, rows in zip("qkv", tensor.split(spec.n_embd), strict=True):
                if letter != "v":  # llama.cpp turns neighbours, where these are halves
                    rows = rows.view(spec.n_head, 2, spec.head_dim // 2, spec.n_embd)
                    rows = rows.transpose(1, 2).reshape(spec.n_embd, spec.n_embd)
                found[f"{block}attn_{letter}.{kind}"] = rows
        elif part == "mlp.gate_up":
            for which, rows in zip(("gate", "up"), tensor.chunk(2), strict=True):
                found[f"{block}ffn_{which}.{kind}"] = rows
        else:
            found[f"{block}{names[part]}.{kind}"] = tensor
    return found


class LlamaCpp:
    """llama.cpp on a GGUF file, by its own clock, which counts no time of Python's. Keys and values
    are float16, as it chooses by itself.
    """

    def __init__(self, path: Path, threads: int, length: int) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_gpu_layers = 0
        params.n_ctx = length
        params.n_parallel = 1
        params.cpuparams.n_threads = threads
        params.cpuparams_batch.n_threads = threads
        params.verbosity = -1
        with _silence():
            self._server = xllamacpp.Server(params)

    def __call__(self, prompt: Sequence[int], count: int) -> Round:
        clock = Clock()
        first = self._answer(prompt, 1, cache_prompt=False)["timings"]["prompt_ms"] / 1e3
        _, first_cpu = clock.passed()
        # Now all but the last token of the prompt is there, and that one is a step as any other.
        clock = Clock()
        times = self._answer(prompt, count + 1, cache_prompt=True)["timings"]
        _, cpu = clock.passed()
        each = times["predicted_ms"] / 1e3 / max(1, times["predicted_n"] - 1)
        return Round(first, each, first_cpu, cpu / (count + 1), [])

    def likeliest(self, prompt: Sequence[int]) -> tuple[int, float]:
        """The likeliest token after a prompt, and its logprob."""
        answer = self._answer(prompt, 1, n_probs=1, cache_prompt=False)
        found = answer["choices"][0]["logprobs"]["content"][0]
        return found["id"], found["logprob"]

    def _answer(self, prompt: Sequence[int], count: int, **more: object) -> Any:
        wish = {
            "prompt": list(prompt),
            "n_predict": count,
            "temperature": 0.0,
            "samplers": ["temperature"],
            "ignore_eos": True,
            **more,
        }
        answers: list[str] = []
        with _silence():
            self._server.handle_completions(json.dumps(wish), answers.append)
        answer = json.loads(answers[-1])
        if "timings" not in answer:
            raise RuntimeError(f"llama.cpp answered {answers[-1][:200]}")
        return answer


@contextmanager
def _silence() -> Any:
    """llama.cpp writes its log to the file of stderr, whatever Python thinks that is."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
