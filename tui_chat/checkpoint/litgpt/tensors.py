"""litgpt's tensors of every age under the present names, queries apart from keys and values, LoRA
weights as changes of the matrices they belong to. Nothing is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tui_chat.checkpoint.files import Damaged
from tui_chat.checkpoint.names import count
from tui_chat.checkpoint.tensors import LowRank, TensorRef, part
from tui_chat.errors import CheckpointError

# TinyLlama's fork computes the MLP with xformers, which numbers its matrices.
_OLD = {".mlp.swiglu.w1.": ".mlp.fc_1.", ".mlp.swiglu.w2.": ".mlp.fc_2.",
        ".mlp.swiglu.w3.": ".mlp.proj."}  # fmt: skip


def parted(tensors: Mapping[str, object]) -> tuple[dict[str, object], dict[str, object]]:
    """The LoRA weights, and all others."""
    lora = {k: v for k, v in tensors.items() if k.rpartition(".")[2] in ("lora_A", "lora_B")}
    return lora, {k: v for k, v in tensors.items() if k not in lora}


def normalised(tensors: Mapping[str, object]) -> dict[str, object]:
    """The tensors under the names of today's litgpt, but for the queries (see split_queries)."""
    found: dict[str, object] = {}
    for name, value in tensors.items():
        for old, new in _OLD.items():
            name = name.replace(old, new)
        found[name.replace(".linear.", ".")] = value
    return found


def split_queries(tensors: Mapping[str, object], spec: Mapping[str, object]) -> dict[str, object]:
    """The fused matrix `attn.qkv` as `attn.q`, `attn.k`, `attn.v`; the older `attn.attn` too, whose
    rows stand group by group. Raises CheckpointError where its size is another."""
    heads, groups, dim = (_int(spec, word) for word in ("n_head", "n_kv_head", "head_dim"))
    each = heads // groups if groups and heads % groups == 0 else 0
    found: dict[str, object] = {}
    for name, ref in tensors.items():
        stem, _, suffix = name.rpartition(".")
        grouped = stem.endswith(".attn.attn")
        if not (grouped or stem.endswith(".attn.qkv")) or not isinstance(ref, TensorRef):
            found[name] = ref
            continue
        columns = ref.shape[1:]
        wide = columns[0] if columns else 1
        if not each or ref.shape[0] != (heads + 2 * groups) * dim:
            raise CheckpointError(
                "the file contradicts itself",
                f"{name[:80]} has {ref.shape[0]} rows, and {heads} heads with {groups} query "
                f"groups of {dim} numbers need {(heads + 2 * groups) * dim}",
                "Give the right sizes with --config n_head=N, n_kv_head=N, head_dim=N",
            )
        # Within a group its queries, its key, its value; in the newer layout there is one group.
        sizes = (each * dim, dim, dim) if grouped else (heads * dim, groups * dim, groups * dim)
        begin = 0
        for letter, rows in zip("qkv", sizes, strict=True):
            many = groups if grouped else 1
            if grouped:
                grid = (groups, rows, *columns)
                stride = (sum(sizes) * wide, wide, 1)[: len(grid)] if columns else (sum(sizes), 1)
            else:
                grid, stride = (), ()
            found[f"{stem.rpartition('.')[0]}.{letter}.{suffix}"] = _cut(
                name, ref, (many * rows, *columns), offset=begin * wide, grid=grid, stride=stride
            )
            begin += rows
    return found


def merged(
    tensors: Mapping[str, object],
    lora: Mapping[str, object],
    said: Mapping[str, object],
    spec: Mapping[str, object],
) -> dict[str, object]:
    """The tensors with the changes that LoRA weights make. `said` is hyperparameters.yaml."""
    rank, alpha = said.get("lora_r"), said.get("lora_alpha")
    if not (
        isinstance(rank, int)
        and 0 < rank < 2**20
        and isinstance(alpha, (int, float))
        and abs(alpha) < 1e9
    ):
        raise CheckpointError(
            "its LoRA weights cannot be merged",
            "no hyperparameters.yaml beside it says lora_r and lora_alpha",
            "Merge them with `litgpt merge_lora`",
        )
    scale = float(alpha) / rank
    found = dict(tensors)
    for name, down in lora.items():
        stem, _, end = name.rpartition(".")
        up = lora.get(f"{stem}.lora_B")
        if end != "lora_A":
            if f"{stem}.lora_A" not in lora:
                raise _stray(name)
            continue
        if not isinstance(down, TensorRef) or not isinstance(up, TensorRef):
            raise _stray(name)
        if not len(down.shape) == len(up.shape) == 2:
            raise _stray(name)
        if stem.endswith(".attn.qkv"):
            _merge_queries(found, stem, (down, up), rank, scale, said, spec)
        else:
            _add(found, f"{stem}.weight", down, up, scale)
    return found


def _merge_queries(
    found: dict[str, object],
    stem: str,
    pair: tuple[TensorRef, TensorRef],
    rank: int,
    scale: float,
    said: Mapping[str, object],
    spec: Mapping[str, object],
) -> None:
    """The parts that were trained follow one another in both matrices: rows of queries, keys,
    values."""
    down, up = pair
    heads, groups, dim = (_int(spec, word) for word in ("n_head", "n_kv_head", "head_dim"))
    wide, at, rows = down.shape[-1], 0, 0
    for letter, word, size in (
        ("q", "lora_query", heads * dim),
        ("k", "lora_key", groups * dim),
        ("v", "lora_value", groups * dim),
    ):
        if said.get(word) is True:
            name = f"{stem.removesuffix('.qkv')}.{letter}.weight"
            _add(
                found,
                name,
                _cut(name, down, (rank, wide), offset=at * rank * wide),
                _cut(name, up, (size, rank), offset=rows * rank),
                scale,
            )
            at, rows = at + 1, rows + size
    if (at * rank, rows) != (down.shape[0], up.shape[0]):
        raise CheckpointError(
            "its LoRA weights cannot be merged",
            f"{stem[:80]} has {down.shape[0]} x {up.shape[0]} rows, hyperparameters.yaml says "
            f"{at * rank} x {rows}",
        )


def _add(found: dict[str, object], name: str, down: TensorRef, up: TensorRef, scale: float) -> None:
    ref = found.get(name)
    joined = (up.shape[0], down.shape[1])
    if not isinstance(ref, TensorRef) or ref.shape != joined or down.shape[0] != up.shape[1]:
        raise _stray(name)
    found[name] = replace(ref, deltas=(*ref.deltas, LowRank(down, up, scale)))


def _stray(name: str) -> CheckpointError:
    return CheckpointError(
        "its LoRA weights cannot be merged", f"those of {name[:80]} fit no matrix of the model"
    )


def inferred_config(
    tensors: Mapping[str, object], given: Mapping[str, object]
) -> tuple[dict[str, object], list[str]]:
    """What the tensors show of a config that is missing, with sentences on what was concluded from
    what. Raises CheckpointError where the number of heads cannot even be guessed."""
    layer = "transformer.h.0"
    fused = next(
        (tensors[f"{layer}.attn.{n}.weight"] for n in ("qkv", "attn")
         if f"{layer}.attn.{n}.weight" in tensors), None)  # fmt: skip
    out = tensors.get(f"{layer}.attn.proj.weight")
    normed = tensors.get(f"{layer}.attn.norm_q.weight")
    if not isinstance(fused, TensorRef) or not isinstance(out, TensorRef):
        raise CheckpointError(
            "the tensors do not fit the format", f"{layer}.attn has no qkv or no proj matrix"
        )
    width, queries = out.shape[0], out.shape[-1]
    dim, remark = 64, "head_size 64: as most models have"
    heads = given.get("n_head")
    if isinstance(heads, int) and heads > 0 and queries % heads == 0:
        dim, remark = queries // heads, f"head_size {queries // heads}: {queries} / {heads} heads"
    elif isinstance(normed, TensorRef) and normed.shape != (queries,):
        dim = normed.shape[0]
        remark = f"head_size {dim}: the size of norm_q"
    keys = (fused.shape[0] - queries) // 2
    if queries % dim or keys % dim or keys < dim:
        raise CheckpointError(
            "the file does not say the number of heads", "", "Give it with --config n_head=N"
        )
    llama = f"{layer}.norm_1.bias" not in tensors
    gated = f"{layer}.mlp.fc_1.weight" in tensors
    experts = count(tensors, f"{layer}.mlp.experts.{{n}}.")
    if experts:
        raise CheckpointError(
            "the file does not say how many experts are used",
            "",
            "Put its model_config.yaml beside it, or name it with --config-file",
        )
    kind = "Llama" if llama and gated else "GPT-NeoX"
    config: dict[str, object] = {
        "n_layer": count(tensors, "transformer.h.{n}."),
        "n_embd": width,
        "n_head": queries // dim,
        "head_size": dim,
        "n_query_groups": keys // dim,
        "norm_class_name": "RMSNorm" if llama else "LayerNorm",
        "mlp_class_name": "LLaMAMLP" if gated else "GptNeoxMLP",
        "norm_qk": normed is not None,
        "bias": f"{layer}.attn.proj.bias" in tensors,
        "attn_bias": f"{layer}.attn.qkv.bias" in tensors,
        "norm_1": f"{layer}.norm_1.weight" in tensors,
        "norm_2": f"{layer}.norm_2.weight" in tensors or f"{layer}.norm_1.weight" in tensors,
        "shared_attention_norm": f"{layer}.norm_1.weight" in tensors
        and f"{layer}.norm_2.weight" not in tensors,
        "parallel_residual": kind != "Llama",
        "rotary_percentage": 1.0 if kind == "Llama" else 0.25,
        "rope_base": 10000,
        "norm_eps": 1e-5,
        "block_size": 2048,
    }
    if config["shared_attention_norm"]:
        config["parallel_residual"] = True
    residual = "parallel" if config["parallel_residual"] else "serial"
    return config, [
        remark,
        f"{kind}: {config['norm_class_name']} and {config['mlp_class_name']} are what the tensors "
        f"fit; {residual} residual, rotary_percentage {config['rotary_percentage']}, rope_base "
        "10000, norm_eps 1e-05 and block_size 2048 are what such models mostly have",
    ]


def _cut(
    name: str,
    ref: TensorRef,
    shape: tuple[int, ...],
    *,
    offset: int,
    grid: tuple[int, ...] = (),
    stride: tuple[int, ...] = (),
) -> TensorRef:
    """`tensors.part`, with the tensor's name where it cannot be."""
    try:
        return part(ref, shape, offset=offset, grid=grid, stride=stride)
    except Damaged as error:
        raise CheckpointError(
            "the tensors do not fit the settings", f"{name[:80]}: {error}"
        ) from None


def _int(spec: Mapping[str, object], word: str) -> int:
    value = spec.get(word)
    return value if isinstance(value, int) else 0
